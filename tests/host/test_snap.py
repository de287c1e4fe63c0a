"""Snap Video's first stage as a MODEL of a real ComfyUI; random weights of a small FIT."""

from functools import partial

import pytest
import torch

import start
from vidcore import weights
from vidcore.data.shapes import VOCABULARY
from vidcore.sample.heun import heun_sample
from vidcore.systems.snap import FIT, SnapConfig
from vidcore.systems.snap.checkpoint import to_info
from vidcore.text import TextConfig, TextEncoder, Vocabulary

from .prompts import keep_latent, node, sample

CONFIG = SnapConfig(
    frames=4, height=16, width=16, group=(2, 2), token=16, latents=8, latent_width=24, blocks=1, layers=1, head_width=8,
    latent_head_width=8, condition=12, context=16, sigma_in=2.0, interval=0.25,
)  # fmt: skip
TEXT = TextConfig(VOCABULARY, 24, 16, 1)
PROMPT = "a red star rotates over a black background"


@pytest.fixture
def parts():
    torch.manual_seed(0)
    net, text = FIT(CONFIG).init_weights(), TextEncoder(TEXT)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval(), text.eval()


@pytest.fixture
def snap_file(parts, tmp_path, model_file):
    named = zip(("net", "text"), parts)
    tensors = {f"{name}.{key}": value for name, part in named for key, value in part.state_dict().items()}
    weights.save(tmp_path / "snap.safetensors", tensors, to_info(CONFIG, TEXT))
    return model_file((tmp_path / "snap.safetensors").read_bytes(), "snap.safetensors")


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
    edm, vocabulary = CONFIG.edm, Vocabulary(TEXT.words, TEXT.length)
    contexts = [text(torch.tensor([vocabulary.encode(words)])) for words in (PROMPT, "")]
    previous = [None, None]

    def output(scaled, c_noise, i):
        given = dict(interval=torch.tensor([0.25]), size=torch.tensor([16.0]))
        made, previous[i] = net(scaled, c_noise, contexts[i], **given, previous=previous[i])
        return made

    def denoise(y, s):
        level = torch.tensor([s / edm.sigma_in])
        yes, no = (edm.denoise(partial(output, i=i), y / edm.sigma_in, level) for i in range(2))
        return no + 2.0 * (yes - no)

    noise = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    sigmas = edm.sigma_in * edm.sigmas(5)
    expected = heun_sample(denoise, float(sigmas[0]) * noise, sigmas)
    torch.testing.assert_close(found["6"], expected, atol=2e-3, rtol=2e-3)
    assert (found["6"] - found["8"]).abs().max() > 1e-2


def test_stock_samplers_rates_and_sizes_count_and_runs_repeat(snap_file, latents):
    stock = dict(seed=1, steps=4, cfg=2.0, sampler_name="heun", scheduler="karras", denoise=1.0)
    prompt = loaded(snap_file) | {
        "10": node("SetFrameRate", conditioning=["2", 0], frame_rate=0.0),
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


def test_a_clip_of_another_size_is_refused(snap_file, run):
    prompt = loaded(snap_file, width=24) | {"5": sample(**HEUN), "6": keep_latent("5")}
    with pytest.raises(start.RunError, match="makes 4 frames of 16x16"):
        run(prompt)
