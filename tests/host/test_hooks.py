"""LoRAs that prompts carry, which the host takes on and off a MODEL's weights by hooks as it samples."""

import pytest
import torch

from .prompts import keep_latent, loaded, node, sample

IMAGE, VIDEO = "shapes-image.safetensors", "shapes-vdm.safetensors"
GUIDE = node("ReconstructionGuide", model=["1", 0], kind="low_resolution", image=["small", 0], weight=0.5, vae=["1", 2])
WAYS = {
    "image model": (IMAGE, None),
    "video model": (VIDEO, None),
    "guided image model": (IMAGE, GUIDE),
    "guided video model": (VIDEO, GUIDE),
    "frames that see one another": (IMAGE, node("SparseCausalAttention", model=["1", 0])),
    "motion module": (IMAGE, node("LoadMotionModule", model=["1", 0], motion_name="shapes-harivo.safetensors")),
    "tuned with it": (
        IMAGE,
        node("TuneAVideo", model=["1", 0], vae=["1", 2], frames=["large", 0], positive=["2", 0], steps=3, learning_rate=1e-3,
             seed=5, preview_every=0, name="hooked"),
    ),
}  # fmt: skip


def prompts(way: str, lora: str) -> tuple[dict, dict, dict]:
    """Sampling without the LoRA, with it on both prompts, and with it on the MODEL."""
    model, changed = WAYS[way]
    clip = loaded("a large red circle moves left over a dark blue background", model, frames=4)
    if model == IMAGE:
        clip["4"] = node("EmptyLatentImage", width=32, height=32, batch_size=4)
    for name, size in (("small", 16), ("large", 32)):
        clip[name] = node("EmptyImage", width=size, height=size, batch_size=4, color=0xC08030)
    clip |= {"s": sample(("1" if changed is None else "11", 0)), "k": keep_latent("s")}
    if changed is not None:
        clip["11"] = changed
    hooks = {
        "h": node("CreateHookLora", lora_name=lora, strength_model=1.0, strength_clip=0.0),
        "p": node("PairConditioningSetProperties", positive_NEW=["2", 0], negative_NEW=["3", 0], strength=1.0,
                  set_cond_area="default", hooks=["h", 0]),
    }  # fmt: skip
    whole = {"m": node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0)}
    return (
        clip,
        instead(clip, {("2", 0): ["p", 0], ("3", 0): ["p", 1]}) | hooks,
        instead(clip, {("1", 0): ["m", 0]}) | whole,
    )


def instead(prompt: dict, links: dict) -> dict:
    """The prompt with other links in place of some."""
    change = lambda value: links.get(tuple(value), value) if isinstance(value, list) else value  # noqa: E731
    return {n: {**each, "inputs": {k: change(v) for k, v in each["inputs"].items()}} for n, each in prompt.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_lora_on_the_prompts_is_that_lora_on_the_model(server, latents, lora, emptied, way):
    emptied("tuned_video")
    without, on_prompts, on_model = (latents(p)["k"] for p in prompts(way, lora(server, WAYS[way][0])))
    torch.testing.assert_close(on_prompts, on_model, atol=1e-4, rtol=1e-4)
    assert (on_prompts - without).abs().max() > 0.1
