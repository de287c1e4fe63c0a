"""Batches of the procedural shapes; step n's batch is a function of (seed, rank, n) alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.shapes import REPEATING, caption, random_scene, render
from ..text import Vocabulary
from .config import Phase


@dataclass
class Batch:
    """clips: B C (frames + images) H W in [-1, 1]; tokens: B L; image_tokens: B images L, or None."""

    clips: Tensor
    tokens: Tensor
    image_tokens: Tensor | None


def shapes_batch(phase: Phase, vocabulary: Vocabulary, seed: int, step: int, rank: int = 0) -> Batch:
    """Clips with captions, and for joint training ``phase.images`` random frames of other scenes after each."""
    rng = np.random.default_rng((seed, rank, step))

    def example(frames: int):
        scene = random_scene(rng, phase.two, sizes=phase.sizes, backgrounds=phase.backgrounds)
        # A picture shows a motion's caption at a random moment, a clip the whole motion.
        times = rng.random(1) if frames == 1 else np.linspace(0, 1, frames)
        if (
            phase.anywhere
            and frames > 1
            and all(t.motion in REPEATING for t in scene.things)
            and rng.random() < phase.anywhere
        ):
            times = times + rng.random()
        return render(scene, frames, phase.size, times), vocabulary.encode(caption(scene, rng))

    clips, tokens, image_tokens = [], [], []
    for _ in range(phase.batch):
        pixels, words = example(phase.frames)
        pictures = [example(1) for _ in range(phase.images)]
        clips.append(np.concatenate([pixels, *(p for p, _ in pictures)]))
        tokens.append(words)
        image_tokens.append([w for _, w in pictures])
    return Batch(
        torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1,
        torch.tensor(tokens),
        torch.tensor(image_tokens) if phase.images else None,
    )
