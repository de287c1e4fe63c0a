"""Score Video on real frames: numbers that are known beforehand, and a plot."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import start
from vidcore.metrics.pixels import flicker, psnr, ssim

from .prompts import node


def shown(*more):
    """A clip of eight frames, of a moving gradient, and what is asked of it."""
    return {
        "1": node("LoadImage", image="score_frames.png"),
        "2": node("ImageCrop", image=["1", 0], width=32, height=32, x=0, y=0),
        "3": node("ImageCrop", image=["1", 0], width=32, height=32, x=8, y=0),
        "4": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
        "5": node("ImageBlur", image=["4", 0], blur_radius=1, sigma=1.0),
        **dict(more),
    }


@pytest.fixture
def picture(server):
    pixels = np.random.default_rng(3).integers(0, 256, (32, 40, 3), np.uint8)
    path = server.base / "input" / "score_frames.png"
    Image.fromarray(pixels).save(path)
    yield torch.from_numpy(pixels).float() / 255
    path.unlink()


def scores(run, **inputs):
    prompt = shown(("9", node("ScoreVideo", **inputs)), ("10", node("PreviewAny", source=["9", 0])))
    history = run(prompt)
    return json.loads(history["outputs"]["10"]["text"][0]), history["outputs"]["9"]["images"][0]


def test_scores_are_those_of_the_core_and_the_plot_shows_them(run, server, picture):
    clip = torch.stack([picture[:, :32], picture[:, 8:40]])
    found, image = scores(run, images=["4", 0], reference=["5", 0])
    assert found["clip"] == "2 frames of 32x32" and found["flicker"] == pytest.approx(flicker(clip), rel=1e-4)
    assert 5 < found["psnr"] < 30 and 0 < found["ssim"] < 1 and found["flicker_of_reference"] < found["flicker"]
    assert found["sha256"] != found["reference_sha256"]
    plot = np.asarray(Image.open(server.base / "temp" / image["filename"]))
    blue = (plot[..., 2].astype(int) - plot[..., 0]) > 80
    assert plot.shape == (600, 768, 3) and all(part.sum() > 20 for part in np.split(blue, 3))


def test_a_clip_beside_itself_is_perfect(run, picture):
    found, _ = scores(run, images=["4", 0], reference=["4", 0])
    clip = torch.stack([picture[:, :32], picture[:, 8:40]])
    assert found["psnr"] is None and psnr(clip, clip) == float("inf") and found["ssim"] == pytest.approx(ssim(clip, clip))


def test_bad_clips_are_refused_with_what_to_do(run, picture):
    with pytest.raises(start.RunError, match="two frames or more, got 1"):
        scores(run, images=["2", 0])
    with pytest.raises(start.RunError, match="2 frames of 32x32 and reference 1 frames of 40x32; please scale"):
        scores(run, images=["4", 0], reference=["1", 0])
