"""Group norm whose statistics are taken over a whole clip, of a layer made for single pictures."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor


def norm_over_clip(norm: Callable[[Tensor], Tensor], x: Tensor, frames: int) -> Tensor:
    """``norm``, a group norm for N C H W, with one mean and variance per group and clip instead of per frame.

    Tune-A-Video's code has it so in residual blocks and before the output (not at the entry of transformers), since its
    5-D tensors pass through plain GroupNorm; frames then influence one another through the statistics.

    Args:
        x: (B frames) C H W, the frames of a clip one after another.
    """
    tall = rearrange(x, "(b t) c h w -> b c (t h) w", t=frames)
    return rearrange(norm(tall), "b c (t h) w -> (b t) c h w", t=frames)
