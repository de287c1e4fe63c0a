"""The identity codec of pixel-space models: the latent is the clip."""

import torch
from torch import Tensor


class PixelCodec:
    """Latents are clips, B 3 T H W in [-1, 1]."""

    channels = 3
    stride = 1

    def encode(self, clip: Tensor) -> Tensor:
        """The clip itself.

        Raises:
            ValueError: if it is not B 3 T H W or holds values outside [-1, 1].
        """
        if clip.ndim != 5 or clip.shape[1] != self.channels:
            raise ValueError(f"expected a clip B 3 T H W, got shape {tuple(clip.shape)}")
        if clip.numel() and not (clip.min() >= -1.001 and clip.max() <= 1.001):
            raise ValueError(f"expected pixels in [-1, 1], got [{clip.min():.3g}, {clip.max():.3g}]")
        return clip

    def decode(self, latent: Tensor) -> Tensor:
        """The latent, kept to the range of pixels."""
        return torch.clamp(latent, -1, 1)
