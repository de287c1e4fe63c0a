"""Longer, smoother and larger clips in a real ComfyUI, through its API."""

import numpy as np
import pytest
from PIL import Image

from launch.prompt import RunError
from vidcore.data.shapes import Scene, Thing, render

from .prompts import loaded, node

HOW = dict(seed=1, steps=6, guidance_scale=3.0, sampler="ddim", schedule="uniform_time", weight=4.0, window=8, overlap=2)


@pytest.fixture
def frames(server):
    """Nodes 10 and up that load PNG files of a clip that the model knows, as one IMAGE; the last node's number."""

    def frames(count, size=32):
        scene = Scene((Thing("circle", "red", "large", "left", 0.5, 0.5),), "dark blue")
        nodes = {}
        for i, picture in enumerate(render(scene, count, size)):
            name = f"clip_{size}_{count}_{i}.png"
            Image.fromarray((picture * 255).round().astype("uint8")).save(server.base / "input" / name)
            nodes[str(10 + i)] = node("LoadImage", image=name)
            if i:
                before = "10" if i == 1 else str(40 + i - 1)
                nodes[str(40 + i)] = node("ImageBatch", image1=[before, 0], image2=[str(10 + i), 0])
        return nodes, str(40 + count - 1) if count > 1 else "10"

    return frames


@pytest.fixture
def pictures(run, output):
    """Runs a prompt whose node 80 saves pictures, and gives them T H W C in [0, 1]."""

    def pictures(prompt):
        history = run(prompt)
        files = history["outputs"]["80"]["images"]
        return np.stack([np.asarray(Image.open(output(item)).convert("RGB"), float) / 255 for item in files])

    return pictures


def asked(kind, image, **inputs):
    values = dict(model=["1", 0], positive=["2", 0], negative=["3", 0], vae=["1", 2], image=[image, 0]) | HOW | inputs
    return {"70": node(kind, **values), "80": node("SaveImage", images=["70", 0], filename_prefix="pictures/test")}


def known(count, size=32):
    scene = Scene((Thing("circle", "red", "large", "left", 0.5, 0.5),), "dark blue")
    return (render(scene, count, size) * 255).round() / 255


def test_new_frames_between_the_given_ones(pictures, frames):
    nodes, image = frames(4)
    made = pictures({**loaded(), **nodes, **asked("TemporalUpsample", image, factor=3, window=6, overlap=1)})
    assert made.shape == (10, 32, 32, 3)
    np.testing.assert_allclose(made[::3], known(4), atol=1e-6)
    new = np.delete(made, np.s_[::3], axis=0)
    assert new.std() > 0.01 and min(np.abs(new[0] - f).mean() for f in known(4)) > 1e-3


def test_a_clip_goes_on(pictures, frames):
    nodes, image = frames(3)
    made = pictures({**loaded(), **nodes, **asked("ExtendVideo", image, new_frames=10)})
    assert made.shape == (13, 32, 32, 3)
    np.testing.assert_allclose(made[:3], known(3), atol=1e-6)
    again = pictures({**loaded(), **nodes, **asked("ExtendVideo", image, new_frames=10, steps=7)})
    assert np.abs(again[3:] - made[3:]).mean() > 1e-4


def test_a_small_clip_becomes_large_and_smooth(pictures, frames):
    nodes, image = frames(4, 16)
    how = dict(factor=2, weight=8.0, steps=20, guidance_scale=1.0)
    made = pictures({**loaded(), **nodes, **asked("SpatialUpsample", image, **how)})
    assert made.shape == (4, 32, 32, 3)
    small = made.reshape(4, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(small - known(4, 16)).mean() < 0.03
    both = pictures({**loaded(), **nodes, **asked("SpatialUpsample", image, time_factor=2, window=5, **how)})
    assert both.shape == (7, 32, 32, 3)
    assert np.abs(both[::2].reshape(4, 16, 2, 16, 2, 3).mean((2, 4)) - known(4, 16)).mean() < 0.04


def test_what_cannot_be_done_is_said(run, frames):
    nodes, image = frames(3)
    one, alone = frames(1)
    odd, small = frames(2, 15)
    cases = [
        (nodes, asked("ExtendVideo", image, new_frames=9, window=4, overlap=4), r"overlap \(4\) must be below window \(4\)"),
        (one, asked("TemporalUpsample", alone, factor=2), "at least 2 frames are needed, got 1"),
        (odd, asked("SpatialUpsample", small, factor=2), "multiples of 8"),
    ]
    for before, after, message in cases:
        with pytest.raises(RunError, match=message):
            run({**loaded(), **before, **after})
