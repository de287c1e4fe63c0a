"""Reconstruction guidance in a real ComfyUI, through its API."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import avg_pool3d

from launch.prompt import RunError
from vidcore.data.shapes import Scene, Thing, render
from vidcore.guide.threshold import dynamic_threshold

from .prompts import keep_latent, loaded, node, sample

try:
    import resource
except ImportError:  # not on Windows
    resource = None


@pytest.fixture
def given(server):
    """Puts a tensor among the host's input files, as a LATENT for LoadLatent."""

    def given(name, tensor):
        save_file(
            {"latent_tensor": tensor.contiguous(), "latent_format_version_0": torch.zeros(1)}, server.base / "input" / name
        )
        return node("LoadLatent", latent=name)

    return given


def guide(model=("1", 0), kind="frames", weight=2.0, **inputs):
    return node("ReconstructionGuide", model=list(model), kind=kind, weight=weight, **inputs)


def clip():
    """A clip of the kind that the model knows: what TEXT says, 1 3 8 32 32."""
    scene = Scene((Thing("star", "red", "large", "left", 0.5, 0.5),), "dark blue")
    return torch.from_numpy(render(scene, 8, 32)).permute(3, 0, 1, 2)[None] * 2 - 1


def test_known_frames_are_kept_and_the_rest_follows_them(latents, given):
    real = clip()
    found = latents(
        {
            **loaded(),
            "5": given("known.latent", real[:, :, [0, 1, 7]]),
            "6": guide(latent=["5", 0], frames="0-1, -1", weight=4.0),
            "7": sample(model=("6", 0), steps=10),
            "8": keep_latent("7", "latents/guided"),
            "9": guide(latent=["5", 0], frames="0-1, -1", weight=0.0),
            "10": sample(model=("9", 0), steps=10),
            "11": keep_latent("10", "latents/replaced"),
            "12": sample(steps=10),
            "13": keep_latent("12", "latents/plain"),
        }
    )
    for kept in ("8", "11"):
        torch.testing.assert_close(found[kept][:, :, [0, 1, 7]], real[:, :, [0, 1, 7]], atol=1e-4, rtol=0)
    assert (found["8"] - found["11"])[:, :, 2:7].abs().mean() > 1e-3  # guidance reaches the other frames
    assert (found["11"] - found["13"])[:, :, :2].abs().mean() > 0.03


@pytest.mark.parametrize("how", ["KSampler", "SamplerCustomAdvanced"])
def test_stock_samplers_are_guided_too(latents, given, how):
    real = clip()
    prompt = {**loaded(), "5": given("known.latent", real[:, :, :2]), "6": guide(latent=["5", 0])}
    inputs = dict(model=["6", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0])
    if how == "KSampler":
        prompt["7"] = node(
            "KSampler", seed=1, steps=6, cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0, **inputs
        )
    else:
        prompt |= {
            "9": node("RandomNoise", noise_seed=1),
            "10": node("CFGGuider", model=["6", 0], positive=["2", 0], negative=["3", 0], cfg=3.0),
            "11": node("SamplerVDM", sampler="vdm_predictor_corrector", gamma=0.0, delta=0.1),
            "12": node("BasicScheduler", model=["6", 0], scheduler="sgm_uniform", steps=6, denoise=1.0),
            "7": node(
                "SamplerCustomAdvanced",
                noise=["9", 0], guider=["10", 0], sampler=["11", 0], sigmas=["12", 0], latent_image=["4", 0],
            ),
        }  # fmt: skip
    (made,) = latents({**prompt, "8": keep_latent("7")}).values()
    torch.testing.assert_close(made[:, :, :2], real[:, :, :2], atol=2e-3, rtol=0)
    assert torch.isfinite(made).all()


def test_weight_zero_without_known_values_is_no_guidance_bit_for_bit(latents, given):
    found = latents(
        {
            **loaded(),
            "5": given("small.latent", avg_pool3d(clip(), (1, 2, 2))),
            "6": guide(kind="low_resolution", latent=["5", 0], weight=0.0),
            "7": sample(model=("6", 0)),
            "8": keep_latent("7", "latents/a"),
            "9": sample(),
            "10": keep_latent("9", "latents/b"),
        }
    )
    assert torch.equal(found["8"], found["10"])


def test_a_small_clip_and_a_mask_and_an_average_are_met(latents, given):
    real = clip()
    small = avg_pool3d(real, (1, 2, 2))
    pairs = real.unflatten(2, (4, 2)).mean(3)
    found = latents(
        {
            **loaded(),
            "5": given("small.latent", small),
            "6": guide(kind="low_resolution", latent=["5", 0], weight=8.0),
            "7": sample(model=("6", 0), steps=20, guidance_scale=1.0),
            "8": keep_latent("7", "latents/a"),
            "9": given("pairs.latent", pairs),
            "10": guide(kind="temporal_average", latent=["9", 0], weight=8.0),
            "11": sample(model=("10", 0), steps=20, guidance_scale=1.0),
            "12": keep_latent("11", "latents/b"),
            "13": given("real.latent", real),
            "14": node("SolidMask", value=1.0, width=32, height=32),
            "15": node("SolidMask", value=0.0, width=16, height=32),
            "16": node("MaskComposite", destination=["14", 0], source=["15", 0], x=0, y=0, operation="multiply"),
            "17": guide(kind="mask", latent=["13", 0], mask=["16", 0]),
            "18": sample(model=("17", 0), steps=6),
            "19": keep_latent("18", "latents/c"),
            "20": sample(steps=20, guidance_scale=1.0),
            "21": keep_latent("20", "latents/d"),
        }
    )
    pool = lambda x: avg_pool3d(x, (1, 2, 2))  # noqa: E731
    assert (pool(found["8"]) - small).abs().mean() < 0.35 * (pool(found["21"]) - small).abs().mean()
    mean = lambda x: x.unflatten(2, (4, 2)).mean(3)  # noqa: E731
    assert (mean(found["12"]) - pairs).abs().mean() < 0.35 * (mean(found["21"]) - pairs).abs().mean()
    torch.testing.assert_close(found["19"][..., :16], real[..., :16], atol=1e-4, rtol=0)
    assert (found["19"][..., 16:] - real[..., 16:]).abs().mean() > 0.05


def test_images_guides_in_a_row_and_the_memory_saver(latents, given):
    """Two guides act as one; recomputing on the way back changes nothing but memory."""
    real = clip()
    steps = {**loaded(), "4": given("real.latent", real), "5": node("VAEDecode", samples=["4", 0], vae=["1", 2])}
    steps["6"] = node("EmptyVideoLatent", width=32, height=32, frames=8, batch_size=1)
    for i, saver in enumerate((False, True)):
        a, b, c, d, e = (str(10 * (i + 1) + k) for k in range(5))
        steps[a] = node("ImageFromBatch", image=["5", 0], batch_index=0, length=2)
        steps[b] = guide(image=[a, 0], vae=["1", 2], frames="0,1", memory_saver=saver)
        small = f"small{i}.latent"
        steps[c] = given(small, avg_pool3d(real, (1, 2, 2)))
        steps[d] = guide(model=(b, 0), kind="low_resolution", latent=[c, 0], every=2, end_percent=0.9)
        steps[e] = sample(model=(d, 0), latent=("6", 0), steps=6)
        steps[f"3{i}"] = keep_latent(e, f"latents/{i}")
    found = latents(steps)
    torch.testing.assert_close(found["30"], found["31"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["30"][:, :, :2], real[:, :, :2], atol=1e-4, rtol=0)


def test_measuring_in_pixels_goes_through_the_decoder(latents, given):
    """For a model of pixels both ways of measuring see the same numbers."""
    real = clip()
    steps = {
        **loaded(),
        "5": given("small.latent", avg_pool3d(real, (1, 2, 2))),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
    }
    for i, place in enumerate(("latent", "pixels")):
        guided = guide(kind="low_resolution", image=["6", 0], vae=["1", 2], measured_in=place)
        steps |= {
            f"1{i}": guided,
            f"2{i}": sample(model=(f"1{i}", 0), steps=6),
            f"3{i}": keep_latent(f"2{i}", f"latents/{i}"),
        }
    found = latents(steps)
    torch.testing.assert_close(found["31"], found["30"], atol=1e-3, rtol=0)


def test_bad_guides_get_one_clear_message_each(run, given):
    real = clip()
    frames = {"5": given("known.latent", real[:, :, :2])}
    nan = {"5": given("nan.latent", real * float("nan"))}
    narrow = {"5": given("narrow.latent", real[..., :24])}
    three = {"5": given("three.latent", real[:, :, :2].expand(3, -1, -1, -1, -1))}
    four = {"5": given("four.latent", torch.zeros(2, 4, 8, 8))}
    known = dict(latent=["5", 0])
    cases = [
        (frames, guide(**known, frames="0, 8"), r"frame numbers \[8\] lie outside a clip of 8 frames"),
        (frames, guide(**known, frames="3, 3"), "twice"),
        (frames, guide(**known, frames="0-4"), "2 known frames came with 5 frame numbers"),
        (frames, guide(**known, frames="first"), "'first' is neither"),
        (frames, guide(**known, frames="5-2"), "runs backwards"),
        (frames, guide(), "either a latent or an image"),
        (frames, guide(**known, kind="mask"), "please connect a mask"),
        (frames, guide(**known, kind="low_resolution"), "2 frames; 8 are expected"),
        (frames, guide(**known, measured_in="pixels"), "as an image, with the vae"),
        (frames, guide(**known, start_percent=0.5, end_percent=0.5), "must be below"),
        (frames, guide(**known, weight=100000.0), "lower its weight"),
        (nan, guide(**known), "NaN"),
        (three, guide(**known), "holds 3 clips and the latent 1"),
        (narrow, guide(**known), "width and height must be equal"),
        (four, guide(**known), "come from different models"),
    ]
    for before, node_, message in cases:
        with pytest.raises(RunError, match=message):
            run({**loaded(), **before, "6": node_, "7": sample(model=("6", 0)), "8": keep_latent("7")})
    run({**loaded(), "7": sample(steps=1), "8": keep_latent("7")})


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux, to limit the memory of a running program")
def test_out_of_memory_says_what_to_lower_and_the_host_goes_on(run, server, given):
    real, pid = clip(), server.process.pid
    plain = {**loaded(), "7": sample(steps=1), "8": keep_latent("7")}
    run(plain)
    long = {
        **loaded(width=128, height=128, frames=64),
        "5": given("known.latent", real.repeat(1, 1, 1, 4, 4)[:, :, :1]),
        "6": guide(latent=["5", 0]),
        "7": sample(model=("6", 0), steps=1, guidance_scale=1.0),
        "8": keep_latent("7"),
    }
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
        with pytest.raises(RunError, match="turn memory_saver on"):
            run(long)
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    run({**plain, "7": sample(steps=2)})


def test_strong_guidance_stays_in_range_with_dynamic_thresholding(latents):
    """One step to the end returns the thresholded estimate itself; a limit out of reach changes nothing."""
    how = dict(steps=1, cfg=30.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0, seed=1)
    nodes = loaded()
    for i, limit in enumerate((None, 1.0, 1000.0)):
        if limit:
            nodes[f"1{i}"] = node("DynamicThresholding", model=["1", 0], percentile=0.9, limit=limit)
        nodes[f"2{i}"] = node("KSampler", model=[f"1{i}" if limit else "1", 0], positive=["2", 0], negative=["3", 0],
                              latent_image=["4", 0], **how)  # fmt: skip
        nodes[f"3{i}"] = keep_latent(f"2{i}", f"latents/threshold{i}")
    found = latents(nodes)
    assert found["30"].abs().max() > 1.5
    torch.testing.assert_close(found["31"], dynamic_threshold(found["30"], 0.9), atol=0.02, rtol=1e-2)
    assert torch.equal(found["32"], found["30"])


def test_guidance_oscillates_between_the_samplers_scale_and_a_low_one(latents, run):
    """Against guidance by hand: one sampler per stretch of steps, each with the scale that belongs to it."""
    inputs = dict(add_noise="disable", noise_seed=1, positive=["2", 0], negative=["3", 0], sampler_name="euler",
                  scheduler="sgm_uniform", steps=6, return_with_leftover_noise="enable")  # fmt: skip
    noise = dict(add_noise="enable", start_at_step=0)
    nodes = {**loaded(), "5": node("OscillatingGuidance", model=["1", 0], low=1.0, first_steps=2)}
    nodes["10"] = node("KSamplerAdvanced", model=["5", 0], latent_image=["4", 0], cfg=5.0, end_at_step=6, **inputs | noise)
    nodes["11"] = keep_latent("10", "latents/oscillating")
    latent = "4"
    for i, scale in enumerate((5.0, 5.0, 1.0, 5.0, 1.0, 5.0)):
        first = noise if i == 0 else dict(start_at_step=i)
        how = inputs | dict(model=["1", 0], latent_image=[latent, 0], cfg=scale, end_at_step=i + 1) | first
        latent = f"2{i}"
        nodes[latent] = node("KSamplerAdvanced", **how)
    nodes["30"] = keep_latent(latent, "latents/by_hand")
    nodes["31"] = node("KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], seed=1,
                       steps=6, cfg=5.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0)  # fmt: skip
    nodes["32"] = keep_latent("31", "latents/constant")
    found = latents(nodes)
    torch.testing.assert_close(found["11"], found["30"], atol=2e-3, rtol=1e-3)
    assert (found["11"] - found["32"]).abs().max() > 0.05

    guider = {
        "40": node("RandomNoise", noise_seed=1),
        "41": node("BasicGuider", model=["5", 0], conditioning=["2", 0]),
        "42": node("SamplerVDM", sampler="vdm_ancestral", gamma=0.0, delta=0.1),
        "43": node("BasicScheduler", model=["1", 0], scheduler="sgm_uniform", steps=2, denoise=1.0),
        "44": node(
            "SamplerCustomAdvanced",
            noise=["40", 0], guider=["41", 0], sampler=["42", 0], sigmas=["43", 0], latent_image=["4", 0],
        ),
        "45": keep_latent("44"),
    }  # fmt: skip
    with pytest.raises(RunError, match="has no negative one"):
        run({**loaded(), "5": nodes["5"], **guider})
