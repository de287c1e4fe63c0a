"""DDIM inversion in a real ComfyUI, through its API."""

import pytest
import torch
from safetensors.torch import save_file

from launch.prompt import RunError
from vidcore.data.shapes import Scene, Thing, render
from vidcore.metrics.tracker import observe

from .prompts import keep_latent, loaded, node, sample
from .random_weights import weights
from .test_layouts import model_and_clips

TEXT = "a large red circle moves left over a dark blue background"


@pytest.fixture
def clip(server):
    """A clip of what TEXT says, 1 3 8 32 32, and the node that loads it."""
    scene = Scene((Thing("circle", "red", "large", "left", 0.5, 0.5),), "dark blue")
    clip = torch.from_numpy(render(scene, 8, 32)).permute(3, 0, 1, 2)[None] * 2 - 1
    save_file(
        {"latent_tensor": clip.contiguous(), "latent_format_version_0": torch.zeros(1)}, server.base / "input/clip.latent"
    )
    return clip, node("LoadLatent", latent="clip.latent")


def inverted(**inputs):
    how = dict(
        model=["1", 0], positive=["2", 0], latent_image=["5", 0], steps=16, schedule="uniform_time", method="fixed_point"
    )
    return node("DDIMInvert", **how | inputs)


def again(latent, kind="SampleVideo", positive="2", first=0):
    """The nodes' way back: from the noise of node ``latent``, without guidance."""
    if kind == "SampleVideo":
        return sample(
            latent=(latent, 0), positive=(positive, 0), steps=16, guidance_scale=1.0, add_noise=False, start_at_step=first
        )
    return node(
        "KSamplerAdvanced", model=["1", 0], positive=[positive, 0], negative=["3", 0], latent_image=[latent, 0],
        add_noise="disable", noise_seed=7, steps=16, cfg=1.0, sampler_name="euler", scheduler="sgm_uniform",
        start_at_step=first, end_at_step=16, return_with_leftover_noise="disable",
    )  # fmt: skip


def test_sampling_comes_back_to_the_clip(latents, clip):
    real, load = clip
    nodes = {**loaded(TEXT), "5": load}
    for i, kind in enumerate(("SampleVideo", "KSamplerAdvanced")):
        for j, first in enumerate((0, 6)):
            n = f"{i}{j}"
            nodes[f"1{n}"] = inverted(start_at_step=first, iterations=4)
            nodes[f"2{n}"] = again(f"1{n}", kind, first=first)
            nodes[f"3{n}"] = keep_latent(f"2{n}", f"latents/{n}")
    for n, made in latents(nodes).items():
        error = ((made - real).square().mean() / real.square().mean()).sqrt()
        assert error < 0.08, f"{n}: {error}"  # what this model cannot say of a clean clip


def test_another_prompt_edits_the_clip(latents, clip):
    real, load = clip
    nodes = {
        **loaded(TEXT),
        "5": load,
        "6": inverted(end_at_step=14, start_at_step=4, seed=3),
        "7": node("CLIPTextEncode", clip=["1", 1], text=TEXT.replace("red", "green")),
        "8": again("6", positive="7", first=4),
        "9": keep_latent("8"),
    }
    (made,) = latents(nodes).values()
    seen = observe(((made[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1).numpy())
    assert [t.colour for t in seen.things] == ["green"] and seen.things[0].motion == "left"


def test_the_error_is_told_and_iterations_lower_it(run, clip):
    _, load = clip
    nodes = {**loaded(TEXT), "5": load}
    for i, how in enumerate((dict(method="ddim"), dict(iterations=4), dict(round_trip=False))):
        nodes[f"1{i}"] = inverted(start_at_step=4, end_at_step=14, seed=1, **how)
        nodes[f"2{i}"] = node("PreviewAny", source=[f"1{i}", 1])
    told = run(nodes)["outputs"]
    rough, fine, none = (float(told[f"2{i}"]["text"][0]) for i in range(3))
    assert 0 < fine < 0.5 * rough and none == -1


@pytest.mark.parametrize("kind, first", [("sd15", 0), ("wan", 1)])
def test_models_in_public_layouts_are_inverted(server, latents, run, kind, first):
    """Random weights are no denoiser, so only the last two steps are walked back; every wire and shape is real."""
    with weights(server, kind, "diffusion_models", "UNETLoader") as name:
        known, nodes = model_and_clips(kind, name, server)
        how = dict(latent_image=["5", 0], steps=16, iterations=8)
        for i, method in enumerate(("fixed_point", "ddim")):
            nodes[f"6{i}"] = inverted(start_at_step=14, method=method, round_trip=False, **how)
            nodes[f"7{i}"] = again(f"6{i}", "KSamplerAdvanced", first=14)
            nodes[f"8{i}"] = keep_latent(f"7{i}", f"latents/{method}")
        nodes["9"] = inverted(start_at_step=first, **how | dict(steps=3, iterations=1))
        nodes["10"] = keep_latent("9", "latents/noise")
        found = latents(nodes, timeout=600)
        fine, rough = ((found[n] - known).square().mean() / known.square().mean() for n in ("80", "81"))
        assert fine < 0.01 and fine < 0.5 * rough
        assert torch.isfinite(found["10"]).all()
        if first:
            with pytest.raises(RunError, match="set start_at_step to 1 or more"):
                run({**nodes, "9": inverted(**how)})


def test_what_cannot_be_inverted_is_said(run, clip, server):
    _, load = clip
    tensors = {"latent_tensor": torch.ones(1, 4, 8, 8), "latent_format_version_0": torch.zeros(1)}
    save_file(tensors, server.base / "input" / "four.latent")
    four = node("LoadLatent", latent="four.latent")
    cases = [
        (inverted(start_at_step=16), load, r"start_at_step \(16\) must be below end_at_step \(16\)"),
        (inverted(guidance_scale=3.0), load, "needs a negative prompt"),
        (inverted(), four, "this model takes latents of batch x 3"),
        (inverted(), load, r"start_at_step \(16\) must be below steps \(16\)"),
    ]
    for i, (invert, latent, message) in enumerate(cases):
        nodes = {**loaded(TEXT), "5": latent, "6": invert, "7": again("6", first=16 * (i == 3)), "8": keep_latent("7")}
        with pytest.raises(RunError, match=message):
            run(nodes)
