"""HARIVO's two losses as one part that any trainer of clips can add to its own (arXiv 2410.07763)."""

import torch
from torch import Tensor, nn

from .contrast import FeatureQueue, ProjectionHead, decoupled_contrastive
from .wire import Watched


class ClipLosses(nn.Module):
    """Weighted contrastive and attention loss of a batch of clips; head and queue are its state.

    Args:
        features: channels of the bottleneck.
        contrast, attention: weights of the losses; 0 leaves one out.
        queue: features of earlier clips that each clip is held against.
    """

    def __init__(self, features: int, contrast: float, attention: float, queue: int = 64):
        super().__init__()
        self.contrast, self.attention = contrast, attention
        self.head, self.queue = ProjectionHead(features), FeatureQueue(queue, features)

    def forward(
        self, watched: Watched, frames: int, generator: torch.Generator, images: int = 0, clips: Tensor | None = None
    ) -> Tensor:
        """What is added to the loss of the evaluation that was watched.

        Args:
            watched: of a batch (B (frames + images)).
            frames: of each clip.
            generator: draws the two frames of a clip that are a positive pair.
            images: independent pictures behind each clip's frames, which take no part.
            clips: the number of each clip, from 0, where clips come again: none is held against itself. By default all that
                is in the queue is of others.
        """
        features = watched.features.unflatten(0, (-1, frames + images))
        first, second = (features[:, i] for i in torch.randperm(frames, generator=generator)[:2].tolist())
        total = first.sum() * 0
        own = torch.full((len(first),), -2, device=first.device) if clips is None else clips  # -2 is nobody's number
        if self.contrast:
            others = self.head(self.queue.negatives(own))
            total = total + self.contrast * decoupled_contrastive(self.head(first), self.head(second), others)
        if self.attention:
            total = total + self.attention * watched.regularised(frames, images)
        self.queue.push(first, own.clamp(min=0))
        return total
