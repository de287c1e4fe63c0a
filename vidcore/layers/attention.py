"""Attention over space and over time: long sequences through one call, the few frames of a clip with written-out weights.

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

# So many are attended to one by one, each by operations of its own; guidance makes two of one clip.
FEW_CLIPS = 4


def head_count(channels: int, head_width: int) -> int:
    """Heads of ``head_width`` channels each, at least one.

    Raises:
        ValueError: if they do not divide ``channels``.
    """
    heads = max(1, channels // head_width)
    if channels % heads:
        raise ValueError(f"heads of width {head_width} do not fit into {channels} channels; please choose a width that does")
    return heads


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head softmax attention by PyTorch's fused kernels.

    Args:
        q: queries, N L (heads d).
        k, v: keys and values, N M (heads d).
        heads: number of heads.
        bias: added to the logits before softmax, N heads L M, or None.

    Returns:
        N L (heads d).
    """
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    kind = q.dtype
    if q.device.type == "cpu" and kind == torch.bfloat16:  # the CPU kernel's backward is several times slower in bfloat16
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast("cpu", enabled=False):
        # Where there is one part it is no slice, on whose way back PyTorch would copy everything.
        parts = [[x] if len(x) <= MAX_BATCH else x.split(MAX_BATCH) for x in (q, k, v)]
        masks = [None] * len(parts[0]) if bias is None else bias.to(q.dtype).split(MAX_BATCH)
        made = [F.scaled_dot_product_attention(*each, attn_mask=mask) for *each, mask in zip(*parts, masks, strict=True)]
    out = made[0] if len(made) == 1 else torch.cat(made)
    return rearrange(out, "n h l d -> n l (h d)").to(kind)


def attention_over_frames(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
    """Softmax attention in which each place's tokens see one another across the frames of their clip.

    Kernels for long sequences spend most of their time on tiles that a short clip does not fill. While the weights are no
    more numbers than the queries they are written out, for a few clips one by one: there are views then of what is
    multiplied, where all of them at once would be copied first.

    Args:
        q, k, v: (B frames) L (heads d), the frames of a clip one after another.
        frames: frames per clip.
        heads: number of heads.

    Returns:
        (B frames) L (heads d).
    """
    clips, places, width = len(q) // frames, q.shape[1], q.shape[2] // heads
    if frames > width:
        q, k, v = (rearrange(x, "(b t) l c -> (b l) t c", t=frames) for x in (q, k, v))
        return rearrange(attention(q, k, v, heads), "(b l) t c -> (b t) l c", l=places)
    parts, made = [x.chunk(clips) if 1 < clips <= FEW_CLIPS else [x] for x in (q, k, v)], []
    for part in zip(*parts, strict=True):
        q, k, v = (rearrange(x, "(b t) l (h d) -> (b l h) t d", t=frames, h=heads) for x in part)
        weight = (q @ k.transpose(1, 2) * width**-0.5).softmax(dim=-1)
        made.append(rearrange(weight @ v, "(b l h) t d -> (b t) l h d", l=places, h=heads))
    return (made[0] if len(made) == 1 else torch.cat(made)).flatten(2)


class SpatialAttention(nn.Module):
    """Self-attention among the pixels of one frame; frames are the batch (VDM section 3)."""

    def __init__(self, channels: int, head_width: int, operations=nn, **factory):
        super().__init__()
        self.heads = head_count(channels, head_width)
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

    Positions enter as in Shaw et al. 2018 (arXiv 1803.02155): a learned vector per offset j - i is added to key j as seen
    from query i (eq. 4) and another one to value j (eq. 3). Without the second, frames that look alike, as frames of
    pure noise do, could not tell where in the clip they are, whatever the weights of the attention.

    In a joint batch the last ``images`` frames of each sample are independent pictures: each attends only to itself
    (VDM section 3), and softmax over one key is the identity, so they take their value and skip the attention.

    Args:
        max_frames: the longest clip whose offsets have vectors of their own; larger offsets share the outermost one.
    """

    def __init__(self, channels: int, head_width: int, max_frames: int, operations=nn, **factory):
        super().__init__()
        self.heads, self.max_frames = head_count(channels, head_width), max_frames
        self.norm = group_norm(channels, operations, **factory)
        self.qkv = operations.Linear(channels, 3 * channels, bias=False, **factory)
        self.out = operations.Linear(channels, channels, **factory)
        self.key_offset = operations.Embedding(2 * max_frames - 1, channels // self.heads, **factory)
        self.value_offset = operations.Embedding(2 * max_frames - 1, channels // self.heads, **factory)

    @torch.no_grad()
    def init_places(self) -> None:
        """Show every frame its place from the first step of training: sinusoids of the offset as values, no keys.

        What a word such as "left" asks of a frame depends on both the word and the place. While either is faint, neither
        alone helps, and training stays on that plateau.
        """
        width = self.value_offset.weight.shape[1]
        offset = torch.arange(1 - self.max_frames, self.max_frames)[:, None]
        rates = self.max_frames ** -torch.linspace(0, 1, width // 2)
        waves = torch.cat([torch.sin(offset * rates), torch.cos(offset * rates)], dim=1)
        self.value_offset.weight.zero_()[:, : waves.shape[1]] = waves.to(self.value_offset.weight)
        self.key_offset.weight.zero_()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with relative positions, each N T (heads d). A clip is short, so the T x T weights are written out."""
        frames = torch.arange(q.shape[1], device=q.device)
        reach = self.max_frames - 1
        offset = (frames[None] - frames[:, None]).clamp(-reach, reach) + reach  # i j
        q, k, v = (rearrange(x, "n t (h d) -> n h t d", h=self.heads) for x in (q, k, v))
        logits = q @ k.transpose(-1, -2) + torch.einsum("nhid,ijd->nhij", q, self.key_offset(offset).to(q.dtype))
        weight = (logits * q.shape[-1] ** -0.5).softmax(dim=-1)
        mixed = weight @ v + torch.einsum("nhij,ijd->nhid", weight, self.value_offset(offset).to(q.dtype))
        return rearrange(mixed, "n h t d -> n t (h d)")

    def forward(self, x: Tensor, frames: int, images: int = 0) -> Tensor:
        """x: (B frames) C H W, of whose ``frames`` the last ``images`` are independent pictures; same shape out."""
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "(b t) c h w -> (b h w) t c", t=frames)
        clip = frames - images
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        if clip > 1:
            v = torch.cat([self.attend(q[:, :clip], k[:, :clip], v[:, :clip]), v[:, clip:]], dim=1)
        tokens = self.out(v)
        return x + rearrange(tokens, "(b h w) t c -> (b t) c h w", b=x.shape[0] // frames, h=height)
