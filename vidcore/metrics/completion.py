"""``python -m vidcore.metrics.completion MODEL TASK``: does a shapes model fill in what is missing of a clip?

Tasks, each over procedural clips whose missing part is known to us alone:

- ``prediction``: the first 5 of 16 frames are given (VDM section 3.1); reconstruction guidance against both forms of the
  replacement method.
- ``between2``, ``between4``: every 2nd or 4th frame is given; against linear blending of the given frames.
- ``enlarge``: a clip of half the width and height is given; against bicubic enlargement.
- ``extension``: the first 5 frames are given, and a clip of 128 is made in windows of 16: what is it at the end?

Prints a JSON record of the scores with the protocol that made them, and for ``extension`` the captions of clips that were
lost. ``--pictures FOLDER`` writes what was made as one PNG a method, to look at.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..data.shapes import REPEATING, Scene, caption, random_scene, render
from ..denoise import Denoiser
from ..guide.cfg import with_cfg
from ..guide.extend import extension, stream
from ..guide.measure import LowResolution, Measurement, downsample, known_frames
from ..guide.reconstruction import with_reconstruction
from ..guide.replace import with_marginal_replacement, with_posterior_replacement
from ..sample import ancestral_step, sample_clip
from ..systems.vdm.checkpoint import load_vdm
from ..text import Vocabulary
from ..video import write_picture
from . import pixels
from .record import add_protocol, print_record
from .tracker import observe

LOST = 0.5  # a thing that is not found counts as half a frame's width away


@dataclass(frozen=True)
class Protocol:
    """Everything that the scores depend on beside the weights.

    Args:
        clips, seed: how many procedural clips, and the seed that draws them; their combinations were kept from training.
        steps, gamma: of the ancestral sampler. Batch b's noise has seed b.
        weight: w_r of reconstruction guidance.
        guidance_scale: towards the caption; 1 is plain conditioning, 0 gives no caption at all.
        overlap: frames that a window of the extension shares with the one before.
        clip_x0: whether the estimate is kept in [-1, 1].
        batch: clips at a time.
    """

    task: str
    clips: int = 200
    seed: int = 99
    steps: int = 12
    gamma: float = 0.0
    weight: float = 30.0
    guidance_scale: float = 1.0
    overlap: int = 5
    clip_x0: bool = True
    batch: int = 10


# ------------------------------------------------------------------------------------------------------------- scores


def path_of(clip: np.ndarray) -> np.ndarray:
    """T x 2, where a clip's (T H W 3) largest thing is, in widths of the frame; NaN where it is not found."""
    things = observe(clip).things
    path = np.full((len(clip), 2), np.nan)
    if things:
        path[: len(things[0].path)] = things[0].path
    return path


def trajectory_error(made: np.ndarray, truth: np.ndarray, frames: list[int]) -> float:
    """Mean distance of the thing from where it should be, over ``frames``, in widths of the frame; `LOST` at most."""
    distance = np.linalg.norm(path_of(made)[frames] - path_of(truth)[frames], axis=1)
    return float(np.minimum(np.nan_to_num(distance, nan=LOST), LOST).mean())


def psnr(made: np.ndarray, truth: np.ndarray, frames: list[int]) -> float:
    """Peak signal-to-noise ratio in dB over ``frames`` of clips T H W 3 in [0, 1]."""
    return min(120.0, pixels.psnr(torch.from_numpy(made[frames]), torch.from_numpy(truth[frames])))


def mean_scores(made: np.ndarray, truth: np.ndarray, frames: list[int]) -> dict[str, float]:
    """Both scores, averaged over clips N T H W 3."""
    pairs = list(zip(made, truth))
    return {
        "trajectory_error": float(np.mean([trajectory_error(m, t, frames) for m, t in pairs])),
        "psnr": float(np.mean([psnr(m, t, frames) for m, t in pairs])),
    }


# -------------------------------------------------------------------------------------------------------------- clips


def scenes(protocol: Protocol, motions: tuple[str, ...] = ()) -> list[Scene]:
    """One-thing scenes from the protocol's seed, of all motions or only some."""
    rng, found = np.random.default_rng(protocol.seed), []
    while len(found) < protocol.clips:
        scene = random_scene(rng, held_out=True)
        if not motions or scene.things[0].motion in motions:
            found.append(scene)
    return found


def to_tensor(clips: np.ndarray) -> Tensor:
    """N T H W 3 in [0, 1] to N 3 T H W in [-1, 1]."""
    return rearrange(torch.from_numpy(clips), "n t h w c -> n c t h w") * 2 - 1


def to_array(clips: Tensor) -> np.ndarray:
    """The way back, clamped."""
    return rearrange(clips.clamp(-1, 1) / 2 + 0.5, "n c t h w -> n t h w c").numpy()


class Maker:
    """A shapes model that samples clips under a wrapper of its denoiser."""

    def __init__(self, path: Path, protocol: Protocol):
        self.net, self.encoder = load_vdm(path)
        self.net.eval().requires_grad_(False)
        self.protocol, self.schedule = protocol, self.net.config.schedule
        denoiser = Denoiser(self.net, self.net.config.prediction, self.schedule)
        # Without a caption the tokens are zero, the unconditional ones.
        self.denoiser = with_cfg(denoiser, protocol.guidance_scale or 1.0)
        self.step = partial(ancestral_step, gamma=protocol.gamma)

    @torch.no_grad()
    def context(self, asked: list[Scene]) -> Tensor:
        """Text tokens N L D of the scenes' captions."""
        vocabulary = Vocabulary(self.encoder.config.words, self.encoder.config.length)
        tokens = self.encoder(torch.tensor([vocabulary.encode(caption(scene)) for scene in asked]))
        return tokens if self.protocol.guidance_scale else torch.zeros_like(tokens)

    @torch.no_grad()
    def sample(self, denoise: Callable[..., Tensor], shape: tuple[int, ...], seed: int, context: Tensor) -> Tensor:
        return sample_clip(denoise, self.schedule, shape, self.protocol.steps, self.step, seed, context=context)

    def guided(self, measurements: list[Measurement]) -> Callable[..., Tensor]:
        clip = 1.0 if self.protocol.clip_x0 else None
        return with_reconstruction(self.denoiser, self.schedule, measurements, self.protocol.weight, clip)


# -------------------------------------------------------------------------------------------------------------- tasks


def frames_given(maker: Maker, asked: list[Scene], given: list[int], frames: int, others: bool, report) -> dict:
    """Scores over the frames that are not ``given``; the clips as made, for looking at, under "clips"."""
    size = maker.net.config.size
    truth = np.stack([render(scene, frames, size) for scene in asked])
    missing = [i for i in range(frames) if i not in given]
    made: dict[str, list] = {"guidance": []}
    if others:
        made |= {"replacement": [], "replacement_marginal": []}
    batch = maker.protocol.batch
    for number, first in enumerate(range(0, len(asked), batch)):
        whole, context = to_tensor(truth[first : first + batch]), maker.context(asked[first : first + batch])
        known = known_frames(whole[:, :, given], given, frames)
        noise = torch.Generator().manual_seed(10_000 + number)
        methods = {
            "guidance": maker.guided([known]),
            "replacement": with_posterior_replacement(maker.denoiser, known),
            "replacement_marginal": with_marginal_replacement(
                maker.denoiser, maker.schedule, known, lambda: torch.randn(whole.shape, generator=noise)
            ),
        }
        for name in made:
            made[name].append(to_array(maker.sample(methods[name], whole.shape, number, context)))
        report(first + len(whole))
    clips = {name: np.concatenate(parts) for name, parts in made.items()}
    if not others:
        clips["linear blending"] = blend(truth, given)
    return {"scores": {k: mean_scores(v, truth, missing) for k, v in clips.items()}, "clips": {"truth": truth, **clips}}


def blend(truth: np.ndarray, given: list[int]) -> np.ndarray:
    """Each missing frame as the mean, weighted by nearness, of the given ones before and after it."""
    made = truth.copy()
    for a, b in zip(given, given[1:]):
        for i in range(a + 1, b):
            made[:, i] = truth[:, a] + (truth[:, b] - truth[:, a]) * (i - a) / (b - a)
    return made


def enlarge(maker: Maker, asked: list[Scene], report, factor: int = 2) -> dict:
    """From clips of the model's trained size to ``factor`` times as large ones."""
    small, frames = maker.net.config.size, maker.net.config.frames
    truth = np.stack([render(scene, frames, small * factor) for scene in asked])
    made, bicubic = [], []
    batch = maker.protocol.batch
    for number, first in enumerate(range(0, len(asked), batch)):
        whole, context = to_tensor(truth[first : first + batch]), maker.context(asked[first : first + batch])
        low = downsample(whole, (small, small))
        made.append(to_array(maker.sample(maker.guided([LowResolution(low)]), whole.shape, number, context)))
        flat = rearrange(low, "n c t h w -> (n t) c h w")
        large = F.interpolate(flat, scale_factor=factor, mode="bicubic")
        bicubic.append(to_array(rearrange(large, "(n t) c h w -> n c t h w", t=frames)))
        report(first + len(whole))
    clips = {"guidance": np.concatenate(made), "bicubic": np.concatenate(bicubic)}
    scores = {k: mean_scores(v, truth, list(range(frames))) for k, v in clips.items()}
    return {"scores": scores, "clips": {"truth": truth, **clips}}


def extend(maker: Maker, asked: list[Scene], report, given=5, length=128, window=16) -> dict:
    """The share of clips whose thing still has its colour and shape in the last window; the captions of others as "lost"."""
    size, made = maker.net.config.size, []
    truth = np.stack([render(scene, window, size)[:given] for scene in asked])
    batch = maker.protocol.batch
    for number, first in enumerate(range(0, len(asked), batch)):
        known, context = to_tensor(truth[first : first + batch]), maker.context(asked[first : first + batch])
        shape = (known.shape[0], 3, window, size, size)

        def make(measurements, start: int) -> Tensor:
            seed = number * length + start
            return maker.sample(maker.guided(list(measurements)), shape, seed, context)

        blocks = stream(make, length, window, maker.protocol.overlap, extension(known))
        made.append(to_array(torch.cat(list(blocks), dim=2)))
        report(first + len(known))
    clips = np.concatenate(made)
    ends = [observe(clip[-window:]) for clip in clips]
    one = [len(end.things) == 1 for end in ends]
    colour = [ok and end.things[0].colour == s.things[0].colour for ok, end, s in zip(one, ends, asked)]
    shape = [ok and end.things[0].shape == s.things[0].shape for ok, end, s in zip(one, ends, asked)]
    ground = [end.background == s.background for end, s in zip(ends, asked)]
    both = [all(marks) for marks in zip(colour, shape)]
    marks = {"one_thing": one, "colour": colour, "shape": shape, "background": ground, "colour_and_shape": both}
    scores = {k: float(np.mean(v)) for k, v in marks.items()}
    lost = [caption(scene) for scene, kept in zip(asked, both) if not kept]
    return {"scores": scores, "clips": {"guidance": clips}, "lost": lost}


TASKS: dict[str, Callable] = {
    "prediction": lambda maker, asked, report: frames_given(maker, asked, list(range(5)), 16, True, report),
    "between2": lambda maker, asked, report: frames_given(maker, asked, list(range(0, 15, 2)), 15, False, report),
    "between4": lambda maker, asked, report: frames_given(maker, asked, list(range(0, 13, 4)), 13, False, report),
    "enlarge": enlarge,
    "extension": extend,
}


def run(path: Path, protocol: Protocol, report=lambda done: None) -> dict:
    """One task; see `TASKS`. Only motions that can go on for ever are extended."""
    asked = scenes(protocol, REPEATING if protocol.task == "extension" else ())
    return TASKS[protocol.task](Maker(path, protocol), asked, report)


def write_pictures(folder: Path, clips: dict[str, np.ndarray], columns: int = 16) -> None:
    """One PNG for each kind of clips (N T H W 3 in [0, 1]): a clip a row, at most ``columns`` frames, evenly spaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in clips.items():
        shown = np.linspace(0, made.shape[1] - 1, min(columns, made.shape[1])).round().astype(int)
        grid = rearrange(torch.from_numpy(made[:, shown] * 255), "n t h w c -> (n h) (t w) c")
        write_picture(folder / f"{name}.png", grid.round().byte())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidcore.metrics.completion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write what was made there, as PNGs")
    add_protocol(parser, Protocol(""))
    arguments = vars(parser.parse_args())
    path, pictures = arguments.pop("model"), arguments.pop("pictures")
    protocol = Protocol(**arguments)
    found = run(path, protocol, lambda done: print(f"{done}/{protocol.clips}", flush=True))
    print_record(path, protocol, **{name: value for name, value in found.items() if name != "clips"})
    if pictures:
        write_pictures(pictures, found["clips"])


if __name__ == "__main__":
    main()
