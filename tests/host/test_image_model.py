"""The shipped image model in a real ComfyUI: an ordinary MODEL for stock nodes."""

import numpy as np
import pytest
import torch
from PIL import Image

from launch.prompt import RunError
from vidcore.metrics.tracker import observe

from .prompts import keep_latent, node, sample

MODEL = "shapes-image.safetensors"


def nodes(text, width=32, height=32, batch=6):
    return {
        "1": node("LoadVideoModel", model_name=MODEL),
        "2": node("CLIPTextEncode", clip=["1", 1], text=text),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=width, height=height, batch_size=batch),
    }


def test_stock_nodes_make_pictures_of_what_the_prompt_says(run, output):
    prompt = nodes("a large green square over a black background") | {
        "5": node(
            "KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
            seed=1, steps=20, cfg=3.0, sampler_name="euler", scheduler="sgm_uniform", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="image_model"),
    }  # fmt: skip
    pictures = [np.array(Image.open(output(item))) / 255.0 for item in run(prompt)["outputs"]["7"]["images"]]
    assert [p.shape for p in pictures] == [(32, 32, 3)] * 6
    seen = [observe(p[None]) for p in pictures]
    right = [s.background == "black" and [t.colour for t in s.things] == ["green"] for s in seen]
    assert sum(right) >= 5, seen


def test_pictures_do_not_depend_on_one_another(latents):
    prompt = nodes("a small red star over a gray background", batch=3)
    prompt |= {"5": sample(), "6": keep_latent("5", "latents/three")}
    prompt |= {"7": node("LatentFromBatch", samples=["4", 0], batch_index=0, length=1)}
    prompt |= {"8": sample(latent=("7", 0)), "9": keep_latent("8", "latents/one")}
    found = latents(prompt)
    torch.testing.assert_close(found["9"][0], found["6"][0], atol=1e-4, rtol=1e-4)
    assert (found["6"][0] - found["6"][1]).abs().max() > 0.1


def test_sizes_that_do_not_fit_are_refused(run):
    prompt = nodes("a red star") | {
        "6": node("EmptyImage", width=36, height=32, batch_size=1, color=0),
        "7": node("VAEEncode", pixels=["6", 0], vae=["1", 2]),
        "8": sample(latent=("7", 0)),
        "9": keep_latent("8"),
    }
    with pytest.raises(RunError, match="multiples of 8, and was asked for 36x32"):
        run(prompt)
