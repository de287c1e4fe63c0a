"""Sparse-causal attention on models in public layouts, in a real ComfyUI."""

import pytest
import torch
from safetensors.torch import save_file

from launch.prompt import RunError

from .prompts import keep_latent, node
from .random_weights import weights
from .test_layouts import model_and_clips


def from_noise(model, latent):
    """Two steps of the stock sampler, with guidance, from noise that is given."""
    return node(
        "KSamplerAdvanced", model=[model, 0], positive=["2", 0], negative=["3", 0], latent_image=[latent, 0],
        add_noise="disable", noise_seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal",
        start_at_step=0, end_at_step=2, return_with_leftover_noise="disable",
    )  # fmt: skip


def test_frames_see_the_first_and_the_one_before(server, latents):
    """Four frames of noise, of which one is changed: which frames of the result change with it?"""
    noise = 14 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with weights(server, "sd15", "diffusion_models", "UNETLoader") as name:
        _, nodes = model_and_clips("sd15", name, server)
        nodes["9"] = node("SparseCausalAttention", model=["1", 0])
        nodes["10"] = node("NoAttention", model=["9", 0])
        for changed in (None, 0, 1, 3):
            clip = noise.clone()
            if changed is not None:
                clip[changed] = clip[changed].flip(-1)
            file = f"frames_{changed}.latent"
            save_file({"latent_tensor": clip, "latent_format_version_0": torch.zeros(1)}, server.base / "input" / file)
            nodes[f"20{changed}"] = node("LoadLatent", latent=file)
            for kind, model in (("plain", "1"), ("patched", "9"), ("overridden", "10")):
                nodes[f"{kind}{changed}"] = from_noise(model, f"20{changed}")
                nodes[f"keep_{kind}{changed}"] = keep_latent(f"{kind}{changed}", f"latents/{kind}{changed}")
        nodes["30"] = node("LatentFromBatch", samples=["20None", 0], batch_index=0, length=1)
        for kind, model in (("plain", "1"), ("patched", "9")):
            nodes[f"one_{kind}"] = from_noise(model, "30")
            nodes[f"keep_one_{kind}"] = keep_latent(f"one_{kind}", f"latents/one_{kind}")
        found = latents(nodes, timeout=600)

    def changes(kind, frame):
        apart = (found[f"keep_{kind}{frame}"] - found[f"keep_{kind}None"]).abs().flatten(1).max(dim=1).values
        return [i for i in range(4) if apart[i] > 1e-3]

    assert [changes("plain", frame) for frame in (0, 1, 3)] == [[0], [1], [3]]
    # Two steps: what frame 1 passes on to frame 2 in the first reaches frame 3 in the second.
    assert [changes("patched", frame) for frame in (0, 1, 3)] == [[0, 1, 2, 3], [1, 2, 3], [3]]
    # Another node's attention serves this one too, and its own finds nothing in other frames.
    assert [changes("overridden", frame) for frame in (0, 1, 3)] == [[0], [1], [3]]
    torch.testing.assert_close(found["keep_one_patched"], found["keep_one_plain"], atol=1e-3, rtol=1e-3)


def test_video_models_are_refused(server, run):
    with weights(server, "wan", "diffusion_models", "UNETLoader") as name:
        _, nodes = model_and_clips("wan", name, server)
        nodes["9"] = node("SparseCausalAttention", model=["1", 0])
        with pytest.raises(RunError, match="works on image models with a U-Net"):
            run({**nodes, "10": from_noise("9", "4"), "11": keep_latent("10")})
