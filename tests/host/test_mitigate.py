"""Mitigating gradient sampling on a video model and on an image model's batch of frames."""

import pytest
import torch

from launch.prompt import RunError

from .prompts import keep_latent, loaded, node, sample

TEXT = "a large red star over a dark blue background"


def variants(prompt, strengths, **how):
    """The nodes for each strength; the latents are kept under 50, 51..., the last without any node of ours."""
    for number, strength in enumerate(strengths):
        prompt |= {
            f"3{number}": node("MitigatingGradientSampling", model=["1", 0], strength=strength),
            f"4{number}": sample(model=(f"3{number}", 0), **how),
            f"5{number}": keep_latent(f"4{number}", f"latents/{number}"),
        }
    return prompt | {"48": sample(**how), "59": keep_latent("48", "latents/without")}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_frames_come_nearer_the_stronger_it_is(latents, kind):
    prompt = loaded() if kind == "video" else loaded(TEXT, "shapes-image.safetensors")
    if kind == "image":
        prompt["4"] = node("EmptyLatentImage", width=32, height=32, batch_size=4)
    found = latents(variants(prompt, [0.0, 0.05, 0.2], steps=8))
    axis = 2 if kind == "video" else 0
    assert torch.equal(found["50"], found["59"])
    rough = [float(found[number].diff(dim=axis).square().mean()) for number in ("50", "51", "52")]
    assert rough[0] > 1.05 * rough[1] > 1.1 * rough[2], rough
    assert all(torch.isfinite(found[number]).all() for number in found)


def test_it_composes_with_reconstruction_guidance(latents):
    prompt = loaded() | {
        "20": sample(steps=6),
        "22": node("LatentCut", samples=["20", 0], dim="t", index=0, amount=2),
        "23": node("ReconstructionGuide", model=["1", 0], kind="frames", weight=2.0, latent=["22", 0], frames="0, 1"),
        "24": node("MitigatingGradientSampling", model=["23", 0], strength=0.1, memory_saver=True),
        "25": sample(model=("24", 0), steps=6, seed=5),
        "26": keep_latent("25", "latents/both"),
        "27": keep_latent("22", "latents/known"),
    }
    found = latents(prompt)
    torch.testing.assert_close(found["26"][:, :, :2], found["27"], atol=1e-4, rtol=1e-4)


def test_a_single_frame_is_refused(run):
    prompt = loaded(frames=1) | {
        "5": node("MitigatingGradientSampling", model=["1", 0], strength=1.0),
        "6": sample(model=("5", 0)),
        "7": keep_latent("6"),
    }
    with pytest.raises(RunError, match="has one alone"):
        run(prompt)
