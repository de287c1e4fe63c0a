"""HARIVO's decoupled contrastive loss on bottleneck features, and the queue of its negatives (arXiv 2410.07763)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1


def decoupled_contrastive(first: Tensor, second: Tensor, negatives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """L_DC = -<z1, z2> / tau + log sum_q exp(<z1, z_q> / tau), with cosine similarities.

    Unlike InfoNCE the sum leaves the positive pair out (decoupled contrastive learning, Yeh et al. 2022, arXiv 2110.06848),
    so how hard a pair is pulled together does not depend on the negatives.

    Args:
        first, second: features of two frames of each clip, B D.
        negatives: features of other clips, N D for all alike or B N D for each clip its own. A feature of zeros counts for
            nothing. Without any the loss is 0, since the logarithm of an empty sum is not a number.
        temperature: tau.

    Returns:
        A scalar, the mean over the clips that have negatives.
    """
    if negatives.ndim == 2:
        negatives = negatives.expand(len(first), -1, -1)
    present = negatives.ne(0).any(dim=-1)
    first, second, negatives = (F.normalize(z.float(), dim=-1) for z in (first, second, negatives))
    positive = (first * second).sum(dim=-1)
    others = torch.einsum("bd,bnd->bn", first, negatives) / temperature
    have = present.any(dim=1)  # chosen by arithmetic: asking which they are would wait for a GPU
    others = others.masked_fill(~present & have[:, None], float("-inf"))
    each = others.logsumexp(dim=1) - positive / temperature
    return torch.where(have, each, 0).sum() / have.sum().clamp(min=1)


class FeatureQueue(nn.Module):
    """The latest features of clips, first in, first out, with the number of the clip that each is of.

    Features are kept as they come, not projected: the projection head trains, so each step projects them anew, and none is
    stale on that account. The buffers are part of the module's state, so that a resumed run goes on with the same queue.

    Args:
        length: how many features it holds.
        width: of a feature.
    """

    def __init__(self, length: int, width: int):
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue holds at least one feature, got {length}")
        self.register_buffer("features", torch.zeros(length, width))
        self.register_buffer("clips", torch.full((length,), -1, dtype=torch.long))  # -1: still empty
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, features: Tensor, clips: Tensor) -> None:
        """Put features B D of the clips numbered ``clips`` (shape B, from 0) in, in place of the oldest.

        With several processes everyone's go in, in the order of the ranks, so that all processes keep the same queue.
        """
        features, clips = _everyones(features.detach().to(self.features)), _everyones(clips.to(self.clips))
        length = len(self.features)
        features, clips = features[-length:], clips[-length:]
        places = (self.next + torch.arange(len(clips), device=clips.device)) % length
        self.features[places], self.clips[places] = features, clips
        self.next.copy_((self.next + len(clips)) % length)

    def negatives(self, clips: Tensor) -> Tensor:
        """For each clip of ``clips`` (shape B) the features of all others, B N D; its own are zeros and count as none."""
        other = (self.clips[None] != clips[:, None].to(self.clips)) & (self.clips >= 0)
        return torch.where(other[..., None], self.features, 0)


def _everyones(x: Tensor) -> Tensor:
    """``x`` of all processes, one after another; of this one alone where there are no others."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class ProjectionHead(nn.Module):
    """g: features to what the loss compares. It is trained along, and thrown away afterwards.

    Args:
        width: of the features.
        out: of what is compared.
    """

    def __init__(self, width: int, out: int = 128):
        super().__init__()
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, features: Tensor) -> Tensor:
        """Features, any leading axes; zeros stay zeros, so that an empty place of a queue stays one."""
        made = self.out(F.silu(self.into(features)))
        return torch.where(features.ne(0).any(dim=-1, keepdim=True), made, 0)
