"""Temporal self-attention of Tune-A-Video (arXiv 2212.11565, section 3.2): each pixel's tokens attend across the frames."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention_over_frames
from .embed import grid_positions


class FrameAttention(nn.Module):
    """x + W_O attention(norm(x)) over the frames at one place; the last part of an inflated transformer block.

    In the paper there are no positions and no mask, so the order of the frames enters only through sparse-causal attention;
    with ``order`` (ours) queries, keys and values also see sinusoids of the frame's number. W_O and its
    bias start at zero, so that an inflated network begins as it was. (The official code zeroes W_O alone, and so does not.)
    The norm has no weights: the official code has some and never trains them.

    Args:
        width: channels of the tokens.
        heads: of the block's own attention.
        order: whether frames know their number.
    """

    def __init__(self, width: int, heads: int, operations=nn, order: bool = False, **factory):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width} channels")
        self.heads, self.order = heads, order
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_k = operations.Linear(width, width, bias=False, **factory)
        self.to_v = operations.Linear(width, width, bias=False, **factory)
        self.to_out = operations.Linear(width, width, **factory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Queries, keys and values uniform in +-1 / sqrt(width), as PyTorch draws them; the output zero."""
        for layer in (self.to_q, self.to_k, self.to_v):
            bound = layer.in_features**-0.5
            layer.weight.copy_(torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator))
        self.to_out.weight.zero_()
        self.to_out.bias.zero_()

    def forward(self, x: Tensor, frames: int, strength: float = 1.0, more: Tensor | None = None) -> Tensor:
        """x: (B frames) L C, the frames of a clip one after another; same shape out.

        ``strength`` scales what is added; ``more`` is what the tokens see of their surroundings, in the shape of x.
        """
        tokens = F.layer_norm(x, x.shape[-1:])
        if more is not None:
            tokens = tokens + more
        if self.order:
            numbers = grid_positions((frames,), x.shape[-1], x.device)[0].to(x)
            tokens = tokens + numbers.repeat(x.shape[0] // frames, 1)[:, None]
        mixed = attention_over_frames(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), frames, self.heads)
        return torch.add(x, self.to_out(mixed), alpha=strength)
