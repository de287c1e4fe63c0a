import numpy as np
import pytest

from vidcore.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    VOCABULARY,
    Scene,
    Thing,
    caption,
    is_held_out,
    random_scene,
    render,
)
from vidcore.data.shapes.render import polygon_distance


def scenes(count, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, **options) for _ in range(count)]


def test_everything_follows_from_the_seed():
    assert scenes(20, two=0.5) == scenes(20, two=0.5) != scenes(20, seed=1, two=0.5)
    scene = scenes(1)[0]
    assert np.array_equal(render(scene, 4, 16), render(scene, 4, 16))


def test_captions_are_short_natural_and_in_the_vocabulary():
    scene = Scene((Thing("star", "red", "large", "left"),), "dark blue")
    assert caption(scene) == "a large red star moves left over a dark blue background"
    rng = np.random.default_rng(0)
    texts = [caption(s, rng) for s in scenes(500, two=0.3)]
    assert {w for text in texts for w in text.split()} <= set(VOCABULARY)
    assert max(len(text.split()) for text in texts) <= 24
    assert any(text.startswith("an orange") for text in texts)


def test_every_kind_appears():
    things = [t for s in scenes(800) for t in s.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.motion for t in things} == set(MOTIONS)


def test_sizes_can_be_chosen_without_changing_the_rest():
    assert {s.things[0].size for s in scenes(50, sizes=("large",))} == {"large"}
    assert {s.things[0].size for s in scenes(50)} == {"small", "", "large"}


def test_motions_can_be_chosen_and_are_ones_that_can_be_seen():
    turning = [s.things[0] for s in scenes(100, motions=("rotate",))]
    assert {t.motion for t in turning} == {"rotate"} and {t.shape for t in turning} == {
        "square",
        "triangle",
        "star",
        "cross",
    }
    pairs = [t.motion for s in scenes(50, two=1.0, motions=("left", "up", "bounce")) for t in s.things]
    assert set(pairs) == {"up", "bounce"}  # to the left would leave its half


def test_shapes_can_be_chosen():
    assert {s.things[0].shape for s in scenes(50, shapes=("star", "cross"))} == {"star", "cross"}
    assert {s.things[0].shape for s in scenes(50, shapes=("star", "ring"), motions=("rotate",))} == {"star"}


def test_held_out_combinations_never_appear_in_training():
    def combinations(many):
        return {(t.shape, t.colour, t.motion, s.background) for s in many for t in s.things}

    kept, unseen = combinations(scenes(1500, two=0.3)), combinations(scenes(200, held_out=True))
    assert not any(is_held_out(*c) for c in kept) and all(is_held_out(*c) for c in unseen)
    every = [(a, b, c, d) for a in SHAPES for b in COLOURS for c in MOTIONS for d in BACKGROUNDS]
    assert np.mean([is_held_out(*c) for c in every]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_things_stay_inside_the_frame_and_contrast_with_it(two):
    for scene in scenes(200, two=two):
        behind = np.array(BACKGROUNDS[scene.background])
        for thing in scene.things:
            assert np.linalg.norm(np.array(COLOURS[thing.colour]) - behind) > 0.5
            for u in np.linspace(0, 1, 50):
                x, y, radius, _ = thing.pose(u)
                assert min(x, y) - radius > 0 and max(x, y) + radius < 1


def test_a_scene_looks_the_same_at_every_size_and_rate():
    scene = scenes(1, seed=3)[0]
    small, large = render(scene, 8, 16), render(scene, 8, 64)
    pooled = large.reshape(8, 16, 4, 16, 4, 3).mean((2, 4))
    assert np.abs(pooled - small).mean() < 0.01
    every_second = render(scene, 15, 16)[::2]
    np.testing.assert_allclose(every_second, small, atol=1e-5)


def test_distance_to_a_square():
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    points = np.array([(0, 0), (0.5, 0), (3, 0), (2, 2), (1, 0.3)], float)
    np.testing.assert_allclose(polygon_distance(points, square), [-1, -0.5, 2, 2**0.5, 0], atol=1e-12)


def test_area_of_a_circle():
    scene = Scene((Thing("circle", "white", "large", "up"),), "black")
    clip = render(scene, 3, 64)[..., 0]
    cover = (clip - 0.02) / (0.97 - 0.02)
    np.testing.assert_allclose(cover.sum((1, 2)), np.pi * (0.255 * 0.92 * 64) ** 2, rtol=0.005)
