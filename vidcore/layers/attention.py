"""Attention over space and over time, both through one call.

Every layer takes ``operations``, a namespace that provides Linear, GroupNorm, Embedding...: `torch.nn` in the core,
the host's own (which cast and page weights) inside ComfyUI.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .norm import group_norm

# CUDA kernels index the batch by a 16-bit grid axis, so a larger one is split.
MAX_BATCH = 65535


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head softmax attention, the only one in the core.

    Args:
        q: queries, N L (heads d).
        k, v: keys and values, N M (heads d).
        heads: number of heads.
        bias: added to the logits before softmax, N heads L M, or None.

    Returns:
        N L (heads d).
    """
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    parts = [
        F.scaled_dot_product_attention(
            q[i : i + MAX_BATCH],
            k[i : i + MAX_BATCH],
            v[i : i + MAX_BATCH],
            attn_mask=None if bias is None else bias[i : i + MAX_BATCH],
        )
        for i in range(0, q.shape[0], MAX_BATCH)
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return rearrange(out, "n h l d -> n l (h d)")


class SpatialAttention(nn.Module):
    """Self-attention among the pixels of one frame; frames are the batch (VDM section 3)."""

    def __init__(self, channels: int, head_width: int, operations=nn, **factory):
        super().__init__()
        self.heads = max(1, channels // head_width)
        self.norm = group_norm(channels, operations, **factory)
        self.qkv = operations.Linear(channels, 3 * channels, bias=False, **factory)
        self.out = operations.Linear(channels, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x: N C H W, any N; same shape out."""
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        tokens = self.out(attention(*self.qkv(tokens).chunk(3, dim=-1), self.heads))
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=height)


class TemporalAttention(nn.Module):
    """Self-attention among the frames at one pixel, with learned relative positions; pixels are the batch (VDM section 3).

    Position enters as Shaw et al. 2018 (arXiv 1803.02155, eq. 4): a learned vector per offset j - i is added to key j as
    seen from query i, which is a query-dependent bias on the logits. Their value term (eq. 3) is left out, which that
    paper's section 4.3 finds sufficient and which lets the one attention call above serve here too.

    In a joint batch the last ``images`` frames of each sample are independent pictures: each attends only to itself
    (VDM section 3), and softmax over one key is the identity, so they take their value and skip the attention.

    Args:
        max_frames: the longest clip whose offsets have vectors of their own; larger offsets share the outermost one.
    """

    def __init__(self, channels: int, head_width: int, max_frames: int, operations=nn, **factory):
        super().__init__()
        self.heads, self.max_frames = max(1, channels // head_width), max_frames
        self.norm = group_norm(channels, operations, **factory)
        self.qkv = operations.Linear(channels, 3 * channels, bias=False, **factory)
        self.out = operations.Linear(channels, channels, **factory)
        self.offset = operations.Embedding(2 * max_frames - 1, channels // self.heads, **factory)

    def relative_bias(self, q: Tensor) -> Tensor:
        """The logits' bias q_i . a_{j-i} / sqrt(d) for queries N T (heads d); returns N heads T T."""
        frames = torch.arange(q.shape[1], device=q.device)
        reach = self.max_frames - 1
        offset = self.offset((frames[None] - frames[:, None]).clamp(-reach, reach) + reach).to(q.dtype)  # i j d
        q = rearrange(q, "n i (h d) -> n h i d", h=self.heads)
        return torch.einsum("nhid,ijd->nhij", q, offset) * q.shape[-1] ** -0.5

    def forward(self, x: Tensor, frames: int, images: int = 0) -> Tensor:
        """x: (B frames) C H W, of whose ``frames`` the last ``images`` are independent pictures; same shape out."""
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "(b t) c h w -> (b h w) t c", t=frames)
        clip = frames - images
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        mixed = v
        if clip > 1:
            moving = slice(0, clip)
            mixed = attention(q[:, moving], k[:, moving], v[:, moving], self.heads, self.relative_bias(q[:, moving]))
            if images:
                mixed = torch.cat([mixed, v[:, clip:]], dim=1)
        tokens = self.out(mixed)
        return x + rearrange(tokens, "(b h w) t c -> (b t) c h w", b=x.shape[0] // frames, h=height)
