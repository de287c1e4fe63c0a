import numpy as np
import pytest

from vidcore.data.shapes import MOTIONS, SHAPES, Scene, Thing, random_scene, render
from vidcore.metrics.tracker import UNKNOWN, agreement, observe

KEYS = ("shape", "colour", "motion", "background", "count")


def right(count, frames, size, two, noise, seed=0):
    """The share of clips on which each key is read correctly."""
    rng = np.random.default_rng(seed)
    hits = {key: 0 for key in KEYS}
    for _ in range(count):
        scene = random_scene(rng, two)
        clip = render(scene, frames, size)
        found = agreement(np.clip(clip + noise * rng.standard_normal(clip.shape), 0, 1), scene)
        for key in KEYS:
            hits[key] += found[key]
    return {key: hit / count for key, hit in hits.items()}


@pytest.mark.parametrize("frames, size, two, count", [(8, 32, 0.0, 200), (8, 32, 1.0, 60), (16, 64, 0.2, 30)])
def test_reads_the_procedural_clips(frames, size, two, count):
    assert min(right(count, frames, size, two, noise=0).values()) >= 0.99


def test_small_noise_does_not_confuse_it():
    assert min(right(100, 8, 32, 0.0, noise=0.03).values()) >= 0.95


def one(shape="star", colour="red", motion="left", **more):
    return Scene((Thing(shape, colour, "large", motion, **more),), "black")


@pytest.mark.parametrize(
    "key, asked", [("shape", one(shape="circle")), ("colour", one(colour="blue")), ("motion", one(motion="up"))]
)
def test_a_wrong_clip_is_found_wrong_in_that_respect_alone(key, asked):
    found = agreement(render(one(), 8, 32), asked)
    assert [k for k in KEYS if not found[k]] == [key]


def test_every_shape_and_motion_can_be_told():
    for motion in MOTIONS:
        for shape in SHAPES:
            if motion == "rotate" and shape in ("circle", "ring"):
                continue
            seen = observe(render(one(shape, "green", motion), 8, 32)).things[0]
            assert (seen.shape, seen.motion) == (shape, motion)


def test_centroids_are_subpixel():
    thing = Thing("circle", "white", "large", "right", 0.5, 0.4)
    seen = observe(render(Scene((thing,), "black"), 8, 32)).things[0]
    expected = [thing.pose(u)[:2] for u in np.linspace(0, 1, 8)]
    np.testing.assert_allclose(seen.path, expected, atol=0.1 / 32)


def test_emptiness_stillness_and_nonsense_are_said():
    empty = np.full((8, 32, 32, 3), 0.02)
    assert observe(empty).things == [] and not agreement(empty, one())["count"]
    still = np.repeat(render(one(), 1, 32), 8, 0)
    assert observe(still).things[0].motion == "still"
    bars = empty.copy()
    bars[:, 14:17, 4:28] = 1
    assert observe(bars).things[0].shape == UNKNOWN
    jumping = np.concatenate([render(one(x=x, y=y), 1, 32) for x, y in [(0.3, 0.3), (0.7, 0.6)] * 4])
    assert observe(jumping).things[0].motion == UNKNOWN
