"""Transformer block with divided space-time attention (TimeSformer, Bertasius et al. 2021, arXiv 2102.05095, section 3).

CMD's autoencoder is made of them (arXiv 2403.14148, section 3.1). Positions (`embed.grid_positions`) are
added to the tokens before the first block.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import attention


class _Attention(nn.Module):
    """Pre-norm self-attention along the second to last axis of tokens N L C, plus its input."""

    def __init__(self, width: int, heads: int, head_width: int, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.norm = operations.LayerNorm(width, **factory)
        self.qkv = operations.Linear(width, 3 * heads * head_width, bias=False, **factory)
        self.out = operations.Linear(heads * head_width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attention(*self.qkv(self.norm(x)).chunk(3, dim=-1), self.heads))


class _FeedForward(nn.Module):
    """Pre-norm GEGLU layer four times as wide (Shazeer 2020, arXiv 2002.05202, eq. 6), plus its input."""

    def __init__(self, width: int, operations=nn, **factory):
        super().__init__()
        self.norm = operations.LayerNorm(width, **factory)
        self.into = operations.Linear(width, 8 * width, **factory)
        self.out = operations.Linear(4 * width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.into(self.norm(x)).chunk(2, dim=-1)
        return x + self.out(value * F.gelu(gate))


class TimeSformerBlock(nn.Module):
    """Attention over time at each place, then over the places of each frame, then a feed-forward layer.

    Args:
        width: channels of the tokens.
        heads, head_width: of both attentions.
    """

    def __init__(self, width: int, heads: int, head_width: int, operations=nn, **factory):
        super().__init__()
        self.time = _Attention(width, heads, head_width, operations, **factory)
        self.space = _Attention(width, heads, head_width, operations, **factory)
        self.feed_forward = _FeedForward(width, operations, **factory)

    def forward(self, x: Tensor, chunk: int = 0) -> Tensor:
        """x: B T H W C, same shape out.

        Args:
            chunk: how many of the independent rows of each part (places for time, frames for space and feed-forward) are
                worked on at once, to bound memory; 0 does all. The result is the same.
        """
        batch, frames, height = x.shape[:3]
        x = _in_chunks(self.time, rearrange(x, "b t h w c -> (b h w) t c"), chunk * height)
        x = rearrange(x, "(b h w) t c -> (b t) (h w) c", b=batch, h=height)
        x = _in_chunks(lambda rows: self.feed_forward(self.space(rows)), x, chunk)
        return rearrange(x, "(b t) (h w) c -> b t h w c", b=batch, h=height)


def _in_chunks(work, rows: Tensor, size: int) -> Tensor:
    """``work`` on at most ``size`` rows at a time."""
    if not size or len(rows) <= size:
        return work(rows)
    return torch.cat([work(part) for part in rows.split(size)])
