"""The weights that Snap Video's network begins training with (arXiv 2402.14797 gives none; all of this is ours).

Begun as transformers usually are, small trainings draw each patch by itself: what a latent reads, tells others and writes
is found last. So here latents begin at places, spread over those of their group, and attend by place from the first step:
they read patches around their own, look at latents a small step away, and patches read the latents around them.
"""

import math
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from .net import FIT

# How much frames, rows and columns count in where a head looks, one line a head, from the first again after the last.
BROAD = 0.3
AXES = [(1, 1, 1), (BROAD, 1, 1), (1, BROAD, BROAD), (BROAD, 1, BROAD), (1, 1, BROAD), (1, BROAD, 1)]
LENGTH = 4.0  # of the waves of one axis
# Sharpness of attention, and the deviation, in patches, of the step that a head looks away: between patches and
# latents, then among latents.
READ_GAIN, READ_STEP = 0.6, 0.7
COMPUTE_GAIN, COMPUTE_STEP = 0.5, 1.5
BRANCH = 0.5  # of what attention and feed-forward layers add, so that tokens first of all stay what they are


def waves(count: int, pairs: int) -> Tensor:
    """Cosines and sines of ``count`` places in a row, count x 2 pairs: half a wave over all, one, one and a half..."""
    angle = (torch.arange(count)[:, None] + 0.5) * torch.arange(1, pairs + 1) * (math.pi / count)
    return torch.cat([angle.cos(), angle.sin()], dim=1) * (LENGTH / pairs**0.5)


def turn(count: int, pairs: int, step: float) -> Tensor:
    """The matrix that takes the `waves` of a place to those of the place ``step`` further on."""
    angle = torch.arange(1, pairs + 1) * (step * math.pi / count)
    cos, sin = angle.cos().diag(), angle.sin().diag()
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


@torch.no_grad()
def start_at_places(net: "FIT") -> None:
    """Set places of patches, latents, and the queries and keys of all attention but that to the conditions."""
    config, sizes = net.config, net.place.shape[:3]
    most = min(config.head_width, config.latent_head_width) // 6  # a head holds the pairs of three axes
    pairs = [min(count, most) for count in sizes]
    total = 2 * sum(pairs)

    frame, row, column = (waves(count, number) for count, number in zip(sizes, pairs))
    own = [frame[:, None, None], row[:, None], column]
    nn.init.zeros_(net.place)
    net.place[..., :total] = torch.cat([wave.expand(*sizes, -1) for wave in own], dim=-1)

    rows, columns = config.groups
    places = rearrange(net.place[..., :total], "t (r h) (s w) c -> (r s) (t h w) c", r=rows, s=columns)
    each = config.latents // len(places)
    index = ((torch.arange(each) + 0.5) * places.shape[1] / each).long()
    nn.init.normal_(net.latents, std=0.1)
    net.latents[:, :total] += places[:, index].flatten(0, 1)

    def look(query: Tensor, key: Tensor, heads: int, gain: float, step: float) -> None:
        for head, (q, k) in enumerate(zip(query.chunk(heads), key.chunk(heads))):
            weight = torch.cat([torch.full((2 * n,), float(part)) for n, part in zip(pairs, AXES[head % len(AXES)])])
            k[:, :total] = nn.init.orthogonal_(torch.empty(len(k), total)) * gain * weight
            steps = (torch.randn(3) * step).tolist()
            q[:, :total] = k[:, :total] @ torch.block_diag(*[turn(*axis) for axis in zip(sizes, pairs, steps)])

    for block in net.blocks:
        for layer in (block.read, block.write):
            key = layer.to_kv.weight[: layer.to_q.out_features]
            look(layer.to_q.weight, key, layer.heads, READ_GAIN, READ_STEP)
        for layer in block.compute:
            query, key, _ = layer.qkv.weight.chunk(3)
            look(query, key, layer.heads, COMPUTE_GAIN, COMPUTE_STEP)
        for name, weight in block.named_parameters():
            if name.endswith(("out.weight", "back.weight")):
                weight.mul_(BRANCH)
