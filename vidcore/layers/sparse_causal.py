"""Sparse-causal attention (Tune-A-Video, arXiv 2212.11565, section 3.2): self-attention of an image model, across frames."""

from collections.abc import Callable

import torch
from torch import Tensor

# (queries N L C, keys N M C, values N M C) -> N L C
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sparse_causal(q: Tensor, k: Tensor, v: Tensor, frames: int, attend: Attend) -> Tensor:
    """Queries of frame i attend to the first frame and to frame i - 1; the frame before the first is the first.

    In the paper's terms K = W_K [z_1, z_{i-1}] and V = W_V [z_1, z_{i-1}]. The projections work on each token alone, so they
    are done once per frame before this, and only their results are joined. Frames 1 and 2 both have the first frame twice;
    keys that stand twice leave softmax's average as it is, so once is enough. No frame after the first sees itself, and a
    clip of one frame has plain self-attention.

    Args:
        q, k, v: (B frames) L C, the frames of a clip one after another.
        frames: frames per clip.
        attend: softmax attention.

    Returns:
        (B frames) L C.

    Raises:
        ValueError: if ``frames`` does not divide the batch.
    """
    if frames < 1 or q.shape[0] % frames:
        raise ValueError(f"a batch of {q.shape[0]} pictures cannot be clips of {frames} frames")
    q, k, v = (x.unflatten(0, (-1, frames)) for x in (q, k, v))  # B T L C
    if frames < 3:
        return _attend(attend, q, *(x[:, :1].expand(-1, frames, -1, -1) for x in (k, v))).flatten(0, 1)
    seen = zip(q.split([2, frames - 2], dim=1), _Seen.apply(k), _Seen.apply(v))  # of frames 1 and 2, and of later ones
    return torch.cat([_attend(attend, *parts) for parts in seen], dim=1).flatten(0, 1)


class _Seen(torch.autograd.Function):
    """Of tokens B T L C those that each frame sees: frames 1 and 2 the first's, B 2 L C, later ones two, B (T - 2) 2L C.

    The same as joining slices. On the way back PyTorch would fill a whole clip with zeros for each slice and add those.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        late = x.new_empty(x.shape[0], x.shape[1] - 2, 2, *x.shape[2:])
        late[:, :, 0] = x[:, :1]
        late[:, :, 1] = x[:, 1:-1]
        return x[:, :1].repeat(1, 2, 1, 1), late.flatten(2, 3)

    @staticmethod
    def backward(ctx, early: Tensor, late: Tensor) -> Tensor:
        first, before = late.unflatten(2, (2, -1)).unbind(2)
        out = late.new_empty(first.shape[0], first.shape[1] + 2, *first.shape[2:])
        out[:, 0] = first.sum(1) + early.sum(1)
        out[:, 1:-1] = before
        out[:, -1] = 0
        return out


def _attend(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attend`` with clips and frames as one batch: B T L C in and out."""
    return attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2])
