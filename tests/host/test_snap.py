"""Both stages of Snap Video as MODELs of a real ComfyUI; random weights of a small FIT."""

from dataclasses import replace

import pytest
import torch

from launch.prompt import RunError
from vidcore import weights
from vidcore.data.shapes import VOCABULARY
from vidcore.systems.snap import FIT, SnapConfig
from vidcore.systems.snap.checkpoint import to_info
from vidcore.systems.snap.sample import make_clips
from vidcore.text import TextConfig, TextEncoder, Vocabulary

from .prompts import keep_latent, node, sample

CONFIG = SnapConfig(
    frames=4, height=16, width=16, group=(2, 2), token=16, latents=8, latent_width=24, blocks=1, layers=1, head_width=8,
    latent_head_width=8, condition=12, context=16, sigma_in=2.0, interval=0.25,
)  # fmt: skip
TEXT = TextConfig(VOCABULARY, 24, 16, 1)
PROMPT = "a red star rotates over a black background"


SECOND = replace(CONFIG, height=32, width=32, group=(4, 4), low_height=16, sigma_in=4.0)


def random_parts(config):
    torch.manual_seed(0)
    net, text = FIT(config).init_weights(), TextEncoder(TEXT)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval(), text.eval()


def file_of(folder, parts):
    named = zip(("net", "text"), parts)
    tensors = {f"{name}.{key}": value for name, part in named for key, value in part.state_dict().items()}
    weights.save(folder / "snap.safetensors", tensors, to_info(parts[0].config, TEXT))
    return (folder / "snap.safetensors").read_bytes()


@pytest.fixture
def parts():
    return random_parts(CONFIG)


@pytest.fixture
def snap_file(parts, tmp_path, model_file):
    return model_file(file_of(tmp_path, parts), "snap.safetensors")


@pytest.fixture
def second():
    return random_parts(SECOND)


@pytest.fixture
def second_file(second, tmp_path, model_file):
    return model_file(file_of(tmp_path, second), "snap_second.safetensors")


def loaded(name, **size):
    size = dict(width=16, height=16, frames=4) | size
    return {
        "1": node("LoadVideoModel", model_name=name),
        "2": node("CLIPTextEncode", clip=["1", 1], text=PROMPT),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyVideoLatent", batch_size=1, **size),
    }


HEUN = dict(steps=5, sampler="edm_heun", schedule="karras")


@torch.no_grad()
def test_the_hosts_route_is_the_papers(parts, snap_file, latents):
    """Sample Video on EDM's grid gives what the core's sampler gives, self-conditioning and guidance included."""
    net, text = parts
    found = latents(
        {
            **loaded(snap_file),
            "5": sample(**HEUN, guidance_scale=2.0),
            "6": keep_latent("5", "latents/host"),
            "7": sample(**HEUN, guidance_scale=1.0),
            "8": keep_latent("7", "latents/unguided"),
        }
    )
    context = text(torch.tensor([Vocabulary(TEXT.words, TEXT.length).encode(PROMPT)]))
    expected = make_clips(net, context, 5, 1, guidance_scale=2.0)
    torch.testing.assert_close(found["6"], expected, atol=2e-3, rtol=2e-3)
    assert (found["6"] - found["8"]).abs().max() > 1e-2


def test_stock_samplers_rates_and_sizes_count_and_runs_repeat(snap_file, latents):
    stock = dict(seed=1, steps=4, cfg=2.0, sampler_name="heun", scheduler="karras", denoise=1.0)
    prompt = loaded(snap_file) | {
        "10": node("SetFrameRate", conditioning=["2", 0], frame_rate=24.0, still=True),
        "11": node("SetFrameRate", conditioning=["2", 0], frame_rate=4.0),
        "12": node("SetFrameRate", conditioning=["2", 0], frame_rate=4.0, original_height=720),
        "20": node("KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], **stock),
        "21": sample(**HEUN | dict(steps=4), guidance_scale=2.0),
        "22": sample(**HEUN | dict(steps=4), guidance_scale=2.0, positive=("10", 0)),
        "23": sample(**HEUN | dict(steps=4), guidance_scale=2.0, positive=("11", 0)),
        "24": sample(**HEUN | dict(steps=4), guidance_scale=2.0, positive=("12", 0)),
        **{str(number + 10): keep_latent(str(number), f"latents/{number}") for number in range(20, 25)},
    }
    found = latents(prompt)
    assert (found["30"] - found["31"]).abs().max() < 2e-3  # the host's Heun on the same grid
    # 4 frames a second is the model's own rate; said for one prompt alone, both are evaluated apart, and round otherwise.
    assert (found["33"] - found["31"]).abs().max() < 2e-3
    assert (found["32"] - found["31"]).abs().max() > 1e-3 and (found["34"] - found["31"]).abs().max() > 1e-3


def test_churn_renews_noise_by_the_seed(snap_file, latents):
    prompt = loaded(snap_file) | {
        "5": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=2.0),
        "6": node("BasicScheduler", model=["1", 0], scheduler="karras", steps=4, denoise=1.0),
    }
    for number, (churn, seed) in enumerate([(0.0, 1), (2.0, 1), (2.0, 1.0), (2.0, 2)]):
        prompt |= {
            f"1{number}": node("RandomNoise", noise_seed=int(seed)),
            f"2{number}": node("SamplerEDMHeun", s_churn=churn, s_noise=1.0 + 1e-4 * isinstance(seed, float)),
            f"3{number}": node(
                "SamplerCustomAdvanced", noise=[f"1{number}", 0], guider=["5", 0], sampler=[f"2{number}", 0],
                sigmas=["6", 0], latent_image=["4", 0],
            ),
            f"4{number}": keep_latent(f"3{number}", f"latents/{number}"),
        }  # fmt: skip
    plain, churned, nearly, other = (found for _, found in sorted(latents(prompt).items()))
    assert (plain - churned).abs().max() > 1e-2 and (other - churned).abs().max() > 1e-2
    assert (nearly - churned).abs().max() < 0.05


def test_a_run_knows_nothing_of_one_before_it(snap_file, latents):
    """A guider outlives a run that ended where the next begins, as one that was cancelled, or that sees to a few steps."""
    prompt = loaded(snap_file) | {
        "5": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=2.0),
        "6": node("BasicScheduler", model=["1", 0], scheduler="karras", steps=4, denoise=1.0),
        "7": node("SplitSigmas", sigmas=["6", 0], step=1),
        "8": node("KSamplerSelect", sampler_name="euler"),
        "10": node(
            "SamplerCustomAdvanced",
            noise=["9", 0],
            guider=["5", 0],
            sampler=["8", 0],
            sigmas=["7", 0],
            latent_image=["4", 0],
        ),
        "11": keep_latent("10", "latents/first"),
    }
    first, other, again = (latents(prompt | {"9": node("RandomNoise", noise_seed=seed)})["11"] for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("rate, message", [(0.0, "above 0 frames per second, got 0; for a picture"), (-4.0, "frame_rate")])
def test_a_frame_rate_that_is_none_is_refused(snap_file, run, rate, message):
    rated = node("SetFrameRate", conditioning=["2", 0], frame_rate=rate)
    prompt = loaded(snap_file) | {"10": rated, "5": sample(**HEUN, positive=("10", 0)), "6": keep_latent("5")}
    with pytest.raises(RunError, match=message):
        run(prompt)


def test_a_clip_of_another_size_is_refused(snap_file, run):
    prompt = loaded(snap_file, width=24) | {"5": sample(**HEUN), "6": keep_latent("5")}
    with pytest.raises(RunError, match="makes 4 frames of 16x16"):
        run(prompt)


# ------------------------------------------------------------------------------------------------------ the second stage


def cascade(**inputs):
    values = dict(seed=3, steps=4, guidance_scale=1.0, sampler="edm_heun", schedule="karras", corruption=0.2, overlap=2)
    names = dict(model=["1", 0], positive=["2", 0], negative=["3", 0], image=["5", 0])
    return node("UpsampleVideoCascade", **{**names, **values, "weight": 0.0, **inputs})


def a_clip(name, frames):
    """Nodes 1 to 3 as `loaded`, and frames of 16x16 that differ, node 5."""
    prompt = loaded(name)
    prompt["4"] = node("EmptyImage", width=16, height=16, batch_size=frames, color=0x3080C0)
    return prompt | {"5": node("ImageAddNoise", image=["4", 0], seed=7, strength=0.3)}


def kept(source, number):
    return {
        f"{number}0": node("VAEEncode", pixels=[source, 0], vae=["1", 2]),
        f"{number}1": keep_latent(f"{number}0", f"latents/cascade{number}"),
    }


@torch.no_grad()
def test_the_second_stage_enlarges_as_the_core_does(second, second_file, latents):
    net, text = second
    found = latents(a_clip(second_file, 4) | {"6": cascade()} | kept("5", 7) | kept("6", 8))
    context = text(torch.tensor([Vocabulary(TEXT.words, TEXT.length).encode(PROMPT)]))
    expected = make_clips(net, context, 4, 3, low=found["71"], corruption=0.2).clamp(-1, 1)
    assert found["81"].shape == (1, 3, 4, 32, 32)
    assert expected.abs().lt(0.9).float().mean() > 0.05  # not all of it is cut off
    torch.testing.assert_close(found["81"], expected, atol=5e-3, rtol=5e-3)


def test_longer_and_shorter_clips_go_in_windows(second_file, latents):
    """Seven frames are two windows, the first of which is that of the first four frames alone; two are filled up."""
    prompt = a_clip(second_file, 7) | {
        "50": node("ImageFromBatch", image=["5", 0], batch_index=0, length=4),
        "51": node("ImageFromBatch", image=["5", 0], batch_index=0, length=2),
        "6": cascade(),
        "60": cascade(image=["50", 0]),
        "61": cascade(image=["51", 0]),
        "62": cascade(corruption=1.0),
        "63": cascade(weight=2.0),
    }
    for number, source in enumerate(["6", "60", "61", "62", "63"], 7):
        prompt |= kept(source, number)
    found = latents(prompt)
    assert [found[f"{n}1"].shape[2] for n in range(7, 12)] == [7, 4, 2, 7, 7]
    torch.testing.assert_close(found["71"][:, :, :4], found["81"], atol=1e-4, rtol=1e-4)
    assert (found["71"] - found["101"]).abs().max() > 1e-3  # the corruption counts
    assert (found["71"][:, :, 4:] - found["111"][:, :, 4:]).abs().max() > 1e-4  # and so does guidance at the seam
    assert all(torch.isfinite(clip).all() for clip in found.values())


def test_a_clip_of_another_size_is_resized_and_says_so(second_file, run):
    prompt = a_clip(second_file, 4) | {
        "50": node("ImageScale", image=["5", 0], upscale_method="area", width=64, height=64, crop="disabled"),
        "6": cascade(image=["50", 0]),
        "7": node("PreviewImage", images=["6", 0]),
    }
    assert run(prompt)["outputs"]["6"]["text"] == ["The clip was resized from 64x64 to 16x16 first."]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"6": cascade(model=["40", 0])}, "works with a second stage, .* this is a first stage"),
        ({"6": cascade(model=["41", 0])}, "works with a second stage, .* Spatial Upsample"),
        ({"6": cascade(overlap=4)}, "overlap must be below the 4 frames"),
        ({"6": cascade(image=["42", 0])}, "clips of the shape 16x16; got 24x16"),
        ({"6": sample(**HEUN, latent=("43", 0)), "7": keep_latent("6")}, "please use Upsample Video Cascade"),
    ],
)
def test_what_the_cascade_cannot_do_is_refused(snap_file, second_file, run, change, message):
    prompt = a_clip(second_file, 4) | {
        "40": node("LoadVideoModel", model_name=snap_file),
        "41": node("LoadVideoModel", model_name="shapes-vdm.safetensors"),
        "42": node("EmptyImage", width=24, height=16, batch_size=4, color=0),
        "43": node("EmptyVideoLatent", width=32, height=32, frames=4, batch_size=1),
        "7": node("PreviewImage", images=["6", 0]),
    }
    with pytest.raises(RunError, match=message):
        run(prompt | change)
