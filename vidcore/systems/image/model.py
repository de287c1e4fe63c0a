"""An image model on pixels: its network with folding around it, and its text encoder."""

import os

import torch.nn.functional as F
from torch import Tensor

from ...schedule import CosineSchedule
from ...text import TextEncoder
from ...text.load import load_with_text
from .config import ImageConfig, from_info
from .net import ImageUNet


class PixelUNet(ImageUNet):
    """`ImageUNet` between folding pixels into channels and unfolding them.

    Args:
        sizes: of the model.
    """

    prediction = "x0"

    def __init__(self, sizes: ImageConfig):
        super().__init__(sizes.unet)
        self.sizes = sizes

    @property
    def schedule(self) -> CosineSchedule:
        """Of its noise."""
        return self.sizes.schedule

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """z: N 3 H W with noise; t: N, from 0 to 1; context: N L E. Returns x-hat, N 3 H W."""
        return self.estimate(z, self.inner(self.fold(z), t, context), t)

    def fold(self, z: Tensor) -> Tensor:
        """N 3 H W -> N (3 p p) H/p W/p."""
        return F.pixel_unshuffle(z, self.sizes.patch)

    def inner(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The network itself, on folded pixels."""
        return super().forward(x, 1000 * t, context)

    def estimate(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """x-hat N 3 H W from the output for noisy pixels z at time t: what `fold` folded, unfolded."""
        return F.pixel_shuffle(output, self.sizes.patch)


def load_image(path: str | os.PathLike) -> tuple[PixelUNet, TextEncoder]:
    """Network and text encoder from a file, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    return load_with_text(path, from_info, PixelUNet)
