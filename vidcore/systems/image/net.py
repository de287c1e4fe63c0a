"""The U-Net of latent diffusion (Rombach et al. 2022, arXiv 2112.10752) under the names of its published weights.

Stable Diffusion 1.x and the shipped image model are of this kind. Inside ComfyUI the host's own class runs such weights;
this one is for training without it, and gives the same numbers.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...layers.attention import attention
from .config import UNetConfig

GROUPS = 32


def time_features(time: Tensor, width: int) -> Tensor:
    """Sinusoids of a time step from 0 to 1000, shape N, may be fractional; N ``width``."""
    rates = torch.exp(torch.arange(width // 2, device=time.device) * (-math.log(1e4) / (width // 2)))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Two convolutions with the time's embedding added between them; N C H W."""

    def __init__(self, channels: int, out: int, embedding: int):
        super().__init__()
        self.width = out
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        # The name of the last convolution is its place behind the dropout of the published code.
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, out), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Attention of tokens N L C to themselves, or to a context N M E. ``attend`` is what joins queries, keys and values."""

    attend = staticmethod(attention)

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class GatedLinear(nn.Module):
    """x W * gelu(x V) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Four times as wide inside; the last layer's name is its place behind the dropout of the published code."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; tokens N L C and text N M E.

    It is told the picture's size for the sake of layers that hooks put behind it.
    """

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.n_heads = heads
        self.attn1, self.attn2 = Attention(width, heads, width), Attention(width, heads, context)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """The pixels of a picture as tokens of one transformer block; N C H W."""

    def __init__(self, channels: int, heads: int, context: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        tokens = rearrange(self.proj_in(self.norm(x)), "n c h w -> n (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, context, size)
        return x + self.proj_out(rearrange(tokens, "n (h w) c -> n c h w", h=size[0]))


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Enlarges by nearest neighbour to ``size``."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class ImageUNet(nn.Module):
    """Pictures with noise, their time and text, to the network's prediction.

    Args:
        config: sizes.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, base, embedding = config, config.channels, 4 * config.channels
        self.time_embed = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        width, kept, levels = base, [base], list(enumerate(config.multipliers))

        def stage(channels: int, out: int, level: int) -> list[nn.Module]:
            made: list[nn.Module] = [Residual(channels, out, embedding)]
            if config.attention[level]:
                made.append(SpatialTransformer(out, config.heads_of(out), config.context))
            return made

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(config.in_channels, base, 3, padding=1)])])
        for level, multiplier in levels:
            for _ in range(config.blocks):
                self.input_blocks.append(nn.ModuleList(stage(width, multiplier * base, level)))
                width = multiplier * base
                kept.append(width)
            if level + 1 < len(levels):
                self.input_blocks.append(nn.ModuleList([Downsample(width)]))
                kept.append(width)
        middle = [Residual(width, width, embedding), SpatialTransformer(width, config.heads_of(width), config.context)]
        self.middle_block = nn.ModuleList([*middle, Residual(width, width, embedding)])
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(levels):
            for number in range(config.blocks + 1):
                made = stage(width + kept.pop(), multiplier * base, level)
                width = multiplier * base
                if level and number == config.blocks:
                    made.append(Upsample(width))
                self.output_blocks.append(nn.ModuleList(made))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, config.out_channels, 3, padding=1))

    @torch.no_grad()
    def init_weights(self) -> "ImageUNet":
        """PyTorch's own draws, and zeros where residual branches and the output end, as its authors train it."""
        last = [self.out[-1]]
        last += [m.out_layers[-1] for m in self.modules() if isinstance(m, Residual)]
        last += [m.proj_out for m in self.modules() if isinstance(m, SpatialTransformer)]
        for layer in last:
            layer.weight.zero_()
            layer.bias.zero_()
        return self

    def transformers(self) -> list[tuple[str, TransformerBlock]]:
        """All transformer blocks with their names, in the order in which they run."""
        return [(name, part) for name, part in self.named_modules() if isinstance(part, TransformerBlock)]

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """x: N C H W with noise; time: N, from 0 to 1000; context: N L E, the text's tokens. Returns N C H W."""
        embedding = self.time_embed(time_features(time, self.config.channels).to(x.dtype))
        kept: list[Tensor] = []
        for stage in self.input_blocks:
            x = _run(stage, x, embedding, context)
            kept.append(x)
        x = _run(self.middle_block, x, embedding, context)
        for stage in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            x = _run(stage, x, embedding, context, kept[-1].shape[2:] if kept else None)
        return self.out(x)


def _run(stage: nn.ModuleList, x: Tensor, embedding: Tensor, context: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """One entry of the network's lists: its parts one after another, each with what it takes."""
    for part in stage:
        if isinstance(part, Residual):
            x = part(x, embedding)
        elif isinstance(part, SpatialTransformer):
            x = part(x, context)
        elif isinstance(part, Upsample):
            x = part(x, size)
        else:
            x = part(x)
    return x
