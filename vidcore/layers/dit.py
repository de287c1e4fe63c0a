"""Transformer block with adaptive layer norm (DiT, arXiv 2212.09748, section 3.2: adaLN-Zero)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention


class DiTBlock(nn.Module):
    """Self-attention and a feed-forward layer, each scaled, shifted and gated by the conditioning vector.

    Args:
        width: channels of the tokens and of the conditioning vector.
        heads: of the attention; they divide ``width``.
    """

    def __init__(self, width: int, heads: int, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, eps=1e-6, elementwise_affine=False, **factory)
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.out = operations.Linear(width, width, **factory)
        self.norm2 = operations.LayerNorm(width, eps=1e-6, elementwise_affine=False, **factory)
        self.into = operations.Linear(width, 4 * width, **factory)
        self.back = operations.Linear(4 * width, width, **factory)
        self.condition = operations.Linear(width, 6 * width, **factory)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: N L C; c: N C; same shape as x out."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(F.silu(c))[:, None].chunk(6, dim=-1)
        h = modulate(self.norm1(x), shift1, scale1)
        x = x + gate1 * self.out(attention(*self.qkv(h).chunk(3, dim=-1), self.heads))
        h = modulate(self.norm2(x), shift2, scale2)
        return x + gate2 * self.back(F.gelu(self.into(h), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift
