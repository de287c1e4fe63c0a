"""The completion scores are exact where the answer is known, and the command's tasks repeat."""

import av
import numpy as np
import pytest
import torch

from vidcore.data.shapes import VOCABULARY, Scene, Thing, render
from vidcore.metrics import completion
from vidcore.metrics.completion import LOST, Protocol, blend, psnr, run, scenes, trajectory_error
from vidcore.systems.vdm import UNet3D, VDMConfig
from vidcore.text import TextConfig, TextEncoder

ACROSS = Scene((Thing("circle", "red", "large", "right"),), "black")
FRAMES = list(range(8))


def test_errors_of_clips_that_are_right_displaced_or_empty():
    truth = render(ACROSS, 8, 32)
    assert trajectory_error(truth, truth, FRAMES) == 0 and psnr(truth, truth, FRAMES) == pytest.approx(120)
    assert trajectory_error(np.roll(truth, 4, axis=1), truth, FRAMES) == pytest.approx(4 / 32, abs=2e-3)
    empty = np.zeros_like(truth)
    assert trajectory_error(empty, truth, FRAMES) == LOST
    assert psnr(truth + 0.1, truth, FRAMES) == pytest.approx(20, abs=1e-3)
    # Only the frames asked for count.
    half = np.concatenate([truth[:5], empty[5:]])
    assert trajectory_error(half, truth, [0, 1, 2, 3, 4]) == 0


def test_blending_is_linear_in_time_and_keeps_what_is_given():
    truth = np.random.default_rng(0).random((2, 9, 4, 4, 3))
    made = blend(truth, [0, 4, 8])
    assert np.array_equal(made[:, ::4], truth[:, ::4])
    np.testing.assert_allclose(made[:, 5], 0.75 * truth[:, 4] + 0.25 * truth[:, 8])


def test_scenes_follow_from_the_seed_and_the_motions_asked_for():
    asked = scenes(Protocol("extension", clips=5), ("orbit", "bounce"))
    assert asked == scenes(Protocol("extension", clips=5), ("orbit", "bounce"))
    assert {s.things[0].motion for s in asked} <= {"orbit", "bounce"}


class Perfect(torch.nn.Module):
    """Stands in for a trained net: its x-hat is always the one clip that it knows."""

    def __init__(self, clip):
        super().__init__()
        self.config, self.clip = VDMConfig(frames=8, size=16, max_frames=16, prediction="x0", context=16), clip

    def forward(self, z, log_snr, context=None):
        return self.clip.to(z).expand_as(z) + 0 * z


@pytest.mark.parametrize("task, kinds", [
    ("prediction", {"guidance", "replacement", "replacement_marginal"}),
    ("between4", {"guidance", "linear blending"}),
])  # fmt: skip
def test_a_net_that_knows_the_clip_has_no_error(monkeypatch, task, kinds):
    frames = {"prediction": 16, "between4": 13}[task]
    clip = completion.to_tensor(render(ACROSS, frames, 16)[None])
    text = TextEncoder(TextConfig(VOCABULARY, 24, 16, 1, 2))
    monkeypatch.setattr(completion, "load_vdm", lambda path: (Perfect(clip), text))
    monkeypatch.setattr(completion, "scenes", lambda protocol, motions=(): [ACROSS] * protocol.clips)
    found = run("known", Protocol(task, clips=3, steps=3, batch=2))
    assert set(found["scores"]) == kinds
    for kind in kinds - {"linear blending"}:
        assert found["scores"][kind]["trajectory_error"] < 1e-3 and found["scores"][kind]["psnr"] > 60
    assert found["clips"]["truth"].shape == (3, frames, 16, 16, 3)


def test_an_untrained_net_runs_every_task_and_repeats(monkeypatch):
    torch.manual_seed(0)
    config = VDMConfig(**{**vars(VDMConfig.tiny()), "frames": 8, "max_frames": 16})
    net, text = UNet3D(config), TextEncoder(TextConfig(VOCABULARY, 24, 16, 1, 2))
    monkeypatch.setattr(completion, "load_vdm", lambda path: (net, text))
    for task in completion.TASKS:
        one, two = (run("tiny", Protocol(task, clips=1, steps=1, batch=1)) for _ in range(2))
        assert one["scores"] == two["scores"]
        assert all(np.isfinite(v).all() and v.min() >= 0 and v.max() <= 1 for v in one["clips"].values())
    # The extension is the last of the tasks.
    assert one["clips"]["guidance"].shape == (1, 128, 16, 16, 3)
    assert len(one["lost"]) == 1 - one["scores"]["colour_and_shape"]


def test_pictures_hold_a_clip_a_row_and_its_first_and_last_frames(tmp_path):
    clips = np.zeros((2, 33, 4, 4, 3), np.float32)
    clips[1, 0, ..., 0] = clips[1, 32, ..., 1] = 1
    completion.write_pictures(tmp_path / "new", {"guidance": clips}, columns=3)
    with av.open(str(tmp_path / "new" / "guidance.png")) as file:
        picture = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (8, 12, 3)
    assert (picture[4:, :4] == (255, 0, 0)).all() and (picture[4:, 8:] == (0, 255, 0)).all()
    assert picture.sum() == 2 * 16 * 255
