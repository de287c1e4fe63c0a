"""Residual block and resampling of the factorised 3-D U-Net.

A 1x3x3 convolution over B C T H W is the same arithmetic as a 3x3 convolution with the frames as batch; the second form
needs no copies and keeps every norm's statistics inside one frame, which joint image-video training relies on.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import group_norm


class ResBlock(nn.Module):
    """Pre-activation residual block; the conditioning vector is added between its convolutions (VDM section 3)."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, operations=nn, **factory):
        super().__init__()
        self.norm1 = group_norm(channels, operations, **factory)
        self.conv1 = operations.Conv2d(channels, out, 3, padding=1, **factory)
        self.condition = operations.Linear(embedding, out, **factory)
        self.norm2 = group_norm(out, operations, **factory)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = operations.Conv2d(out, out, 3, padding=1, **factory)
        self.skip = nn.Identity() if channels == out else operations.Conv2d(channels, out, 1, **factory)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: N C H W; embedding: N E; returns N out H W."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.condition(F.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Downsample(nn.Module):
    """Halves height and width by averaging 2x2 pixels; frames are untouched."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class Upsample(nn.Module):
    """Doubles height and width by nearest neighbour; frames are untouched."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
