"""Batches of the procedural shapes; step n's batch is a function of (seed, rank, n) alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.shapes import REPEATING, caption, random_scene, render
from ..text import Vocabulary
from .config import Phase, TrainConfig


@dataclass
class Batch:
    """Clips with their captions.

    Args:
        clips: B C (frames + images) H W in [-1, 1].
        tokens: B L.
        image_tokens: B images L, or None.
        interval: the time from one frame to the next, as a part of the whole motion; shape B.
    """

    clips: Tensor
    tokens: Tensor
    image_tokens: Tensor | None
    interval: Tensor

    def to(self, device: torch.device) -> "Batch":
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.clips), move(self.tokens), move(self.image_tokens), move(self.interval))

    def split(self, size: int) -> list["Batch"]:
        """Its clips in order, at most ``size`` at a time; 0 keeps them together."""
        size = size or len(self.clips)
        images = [None] * len(self.clips) if self.image_tokens is None else self.image_tokens.split(size)
        return [
            Batch(*part) for part in zip(self.clips.split(size), self.tokens.split(size), images, self.interval.split(size))
        ]


def shapes_batch(phase: Phase, vocabulary: Vocabulary, seed: int, step: int, rank: int = 0) -> Batch:
    """Clips with captions, and for joint training ``phase.images`` random frames of other scenes after each."""
    rng = np.random.default_rng((seed, rank, step))

    def example(frames: int):
        scene = random_scene(rng, phase.two, False, phase.sizes, phase.backgrounds, phase.motions, phase.shapes)
        # A picture shows a motion's caption at a random moment, a clip the whole motion.
        times = rng.random(1) if frames == 1 else np.linspace(0, 1, frames)
        rate = 1.0
        if frames > 1 and phase.rates != (1.0,):
            rate = float(rng.choice(phase.rates))
            times = times * rate + rng.random() * (1 - rate)
        if (
            phase.anywhere
            and frames > 1
            and all(t.motion in REPEATING for t in scene.things)
            and rng.random() < phase.anywhere
        ):
            times = times + rng.random()
        return render(scene, frames, phase.size, times), vocabulary.encode(caption(scene, rng)), rate / frames

    clips, tokens, image_tokens, intervals = [], [], [], []
    for _ in range(phase.batch):
        pixels, words, interval = example(phase.frames)
        pictures = [example(1) for _ in range(phase.images)]
        clips.append(np.concatenate([pixels, *(p for p, _, _ in pictures)]))
        tokens.append(words)
        image_tokens.append([w for _, w, _ in pictures])
        intervals.append(interval if phase.frames > 1 else 0.0)
    return Batch(
        torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1,
        torch.tensor(tokens),
        torch.tensor(image_tokens) if phase.images else None,
        torch.tensor(intervals),
    )


@dataclass
class _Steps(Dataset):
    """The batch of each step of a recipe, by the step's number."""

    config: TrainConfig
    vocabulary: Vocabulary

    def __getitem__(self, step: int) -> Batch:
        phase, _ = self.config.at(step)
        return shapes_batch(phase, self.vocabulary, self.config.seed, step)


def batches(config: TrainConfig, vocabulary: Vocabulary, first: int, last: int, workers: int) -> Iterable[Batch]:
    """The batches of steps ``first`` to ``last - 1``, in order, drawn ahead by so many processes, or by none."""
    return DataLoader(_Steps(config, vocabulary), batch_size=None, sampler=range(first, last), num_workers=workers)
