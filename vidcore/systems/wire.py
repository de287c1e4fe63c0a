"""Between the host's image models and the layers beside them: which pictures are a clip, and the order of gradients."""

import torch
from torch import Tensor

FRAMES = "vidcore_frames"  # among the host's transformer_options: frames of the clip that is sampled


def frames_per_clip(batch: int, transformer_options: dict) -> int:
    """How many pictures of the host's batch, one after another, are a clip.

    The batch holds every clip once for each of its conditionings, one clip at a time. Where another node cuts pictures into
    tiles it holds several tiles of every clip, again one clip of tiles at a time; so the clip's own frames count, where they
    are known and there are more pictures than that.

    Args:
        batch: pictures in it.
        transformer_options: the host's.
    """
    frames = batch // len(transformer_options.get("cond_or_uncond", [0]))
    whole = transformer_options.get(FRAMES, frames)
    return frames if frames % whole else whole


class InOrder(torch.autograd.Function):
    """x itself, whose gradient goes on with its numbers in the order of x's.

    The gradient of a transformer block's tokens comes from a convolution, in the order of pictures. Every sum of gradients
    in the block would be in that order, and read its other part across memory; every linear layer would copy it.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
