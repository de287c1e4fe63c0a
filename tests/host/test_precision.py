"""Weights that the host keeps in 8 bits (--fp8_e4m3fn-unet): our networks compute in its own precision."""

import pytest
from safetensors.torch import load_file

from launch.prompt import run_prompt

from .prompts import keep_latent, loaded, node, sample


@pytest.fixture(scope="module")
def eight_bits(serve):
    with serve("--fp8_e4m3fn-unet") as running:
        yield running


def clips():
    """A prompt for every network that ships and samples by itself; what it makes is kept under 6k."""
    sizes = {"shapes-vdm": (32, 8), "shapes-snap": (16, 8), "shapes-image": (32, 4)}
    for name, (size, frames) in sizes.items():
        prompt = loaded(model=f"{name}.safetensors", width=size, height=size, frames=frames)
        if name == "shapes-image":
            prompt["4"] = node("EmptyLatentImage", width=size, height=size, batch_size=frames)
            prompt["5"] = node("LoadMotionModule", model=["1", 0], motion_name="shapes-harivo.safetensors")
            yield "shapes-harivo", prompt | {"6": sample(model=("5", 0)), "6k": keep_latent("6")}
        yield name, prompt | {"6": sample(), "6k": keep_latent("6")}
    prompt = loaded(model="shapes-snap-upsampler.safetensors")
    prompt |= {
        "5": node("EmptyImage", width=16, height=16, batch_size=8, color=0xFF0000),
        "6": node(
            "UpsampleVideoCascade", model=["1", 0], positive=["2", 0], negative=["3", 0], image=["5", 0], seed=1, steps=4,
            guidance_scale=1.0, sampler="edm_heun", schedule="karras", corruption=0.1, overlap=4, weight=0.0,
        ),
        "7": node("VAEEncode", pixels=["6", 0], vae=["1", 2]),
        "6k": keep_latent("7"),
    }  # fmt: skip
    yield "shapes-snap-upsampler", prompt


@pytest.mark.parametrize("prompt", [pytest.param(prompt, id=name) for name, prompt in clips()])
def test_weights_in_eight_bits_make_nearly_the_same_clip(prompt, server, eight_bits):
    made = []
    for host in (server, eight_bits):
        found = run_prompt(host, prompt, 300)["outputs"]["6k"]["latents"][0]
        made.append(load_file(host.base / "output" / found["subfolder"] / found["filename"])["latent_tensor"])
    apart = (made[1] - made[0]).norm() / made[0].norm()
    assert 1e-3 < apart < 0.1  # rounding shows, and does no harm: 0.02 to 0.06 here
