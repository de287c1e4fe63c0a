"""HARIVO's motion module (arXiv 2410.07763), as layers beside an image model that stays as it is.

What is public names the parts and where they stand: a mapping network in front of the U-Net, temporal layers after its
frozen ones, one of them in the bottleneck, and tokens for each frame behind those of the text. Their inner forms are ours.
Mapping network and temporal layers add nothing before the first step of training, which so starts from the image model frame
by frame; the frames' tokens take a little of the attention to the text at once, as any token does.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...layers.attention import attention
from ...layers.embed import grid_positions
from ...layers.frame_attention import FrameAttention
from .config import HarivoConfig

LEVEL_FEATURES = 64  # of the noise level, for the mapping network
PLACE_WAVES = 4  # for each axis of the picture


class Convolution(nn.Module):
    """W_2 silu(W_1 x): W_1 over 3x3 pixels of each frame, W_2 over three frames, to follow what moves.

    Attention across the frames at one place sees a thing only while it is there.

    Args:
        width: channels of the features; half as many inside.
    """

    def __init__(self, width: int, operations=nn, **factory):
        super().__init__()
        self.pixels = operations.Conv2d(width, width // 2, 3, padding=1, **factory)
        self.frames = operations.Linear(3 * (width // 2), width, **factory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """It gives zeros yet."""
        _uniform(self.pixels, generator)
        _zero(self.frames)

    def forward(self, x: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
        """x: (B frames) L C, L the pixels of a picture of ``size``; same shape out. Beyond the first and last frame is 0."""
        h = F.silu(self.pixels(rearrange(x, "n (h w) c -> n c h w", h=size[0])))
        h = F.pad(rearrange(h, "(b t) c h w -> b t (h w) c", t=frames), (0, 0, 0, 0, 1, 1))
        return self.frames(torch.cat([h[:, :-2], h[:, 1:-1], h[:, 2:]], dim=-1).flatten(0, 1))


class TemporalLayer(nn.Module):
    """Attention across the frames at each place, and a feed-forward layer; tokens (B T) L C.

    Both know the frame's number and tokens, and where on the picture they are. The frozen layers see places hardly at all,
    and what "moves left" asks of a frame is that a thing be at one.

    Args:
        width, heads: of the block behind which it stands.
        context: width of a frame's tokens; 0 if frames have none.
        convolution: whether a `Convolution` comes first.
    """

    def __init__(self, width: int, heads: int, context: int, convolution: bool = False, operations=nn, **factory):
        super().__init__()
        self.convolution = Convolution(width, operations, **factory) if convolution else None
        self.attention = FrameAttention(width, heads, operations, order=True, **factory)
        self.place = operations.Linear(2 * PLACE_WAVES, width, **factory)
        self.told = operations.Linear(context, width, bias=False, **factory) if context else None
        self.into = operations.Linear(width, 2 * width, **factory)
        self.out = operations.Linear(2 * width, width, **factory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """No part adds anything yet. Place and tokens are as loud as the features, so that training hears them at once."""
        if self.convolution is not None:
            self.convolution.init_weights(generator)
        self.attention.init_weights(generator)
        for layer in filter(None, (self.place, self.told)):
            _uniform(layer, generator, gain=2.0)
        _uniform(self.into, generator)
        _zero(self.out)

    def forward(
        self, x: Tensor, frames: int, size: tuple[int, int], tokens: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        """Features with the motion's in them.

        Args:
            x: (B frames) L C, the frames of a clip one after another.
            frames: of a clip.
            size: height and width of the picture whose pixels the L tokens are.
            tokens: of each frame, (B frames) count E, where there are any.
            strength: scales what is added.
        """
        more = self.place(places(size, x.device).to(x))[None]
        if self.told is not None:
            told = tokens.mean(dim=1)
            more = more + self.told(F.layer_norm(told, told.shape[-1:]))[:, None]
        if self.convolution is not None:
            x = x + strength * self.convolution(F.layer_norm(x, x.shape[-1:]) + more, frames, size)
        x = self.attention(x, frames, strength, more)
        return x + strength * self.out(F.gelu(self.into(F.layer_norm(x, x.shape[-1:]) + more)))


def places(size: tuple[int, int], device=None) -> Tensor:
    """Where each pixel of a picture is, as parts of its height and width, in cosines of up to two periods; (H W) 8."""
    waves = [_waves(n, device) for n in size]
    rows, columns = waves[0][:, None].expand(*size, -1), waves[1][None].expand(*size, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _waves(count: int, device=None) -> Tensor:
    """cos(pi k u) for k = 1 to 4 at the middles u of ``count`` equal parts of [0, 1]; count 4."""
    u = (torch.arange(count, device=device) + 0.5) / count
    return torch.cos(math.pi * u[:, None] * torch.arange(1, PLACE_WAVES + 1, device=device))


class MappingNetwork(nn.Module):
    """z + m(z, t): from noise that is independent from frame to frame to noise that belongs together.

    Three convolutions over frames, rows and columns, the middle of which sees the noise level.

    Args:
        channels: of the latents.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int, operations=nn, **factory):
        super().__init__()
        self.into = operations.Conv3d(channels, width, 3, padding=1, **factory)
        self.level = operations.Linear(LEVEL_FEATURES, width, **factory)
        self.middle = operations.Conv3d(width, width, 3, padding=1, **factory)
        self.out = operations.Conv3d(width, channels, 3, padding=1, **factory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """m adds nothing yet."""
        for layer in (self.into, self.level, self.middle):
            _uniform(layer, generator)
        _zero(self.out)

    def forward(self, z: Tensor, level: Tensor, strength: float = 1.0) -> Tensor:
        """z: the network's noisy input, B C T H W. level: B, 0 without noise to 1 for noise alone."""
        angles = level.float()[:, None] * 1000 * torch.exp(torch.linspace(0, -9, LEVEL_FEATURES // 2, device=z.device))
        features = torch.cat([angles.sin(), angles.cos()], dim=1).to(z.dtype)
        h = F.silu(self.into(z) + self.level(features)[:, :, None, None, None])
        return z + strength * self.out(F.silu(self.middle(h)))


class FrameTokens(nn.Module):
    """Tokens for each frame, of its number and of the text: u = p_f + attention(p_f, text), e_f = W_O (u + MLP(u)).

    The MLP is there for what neither says alone: where a thing that moves left is in frame 3.

    Args:
        context: width of the text's tokens, and of these.
        count: tokens for each frame.
    """

    def __init__(self, context: int, count: int, operations=nn, **factory):
        super().__init__()
        self.count = count
        self.place = operations.Linear(context, count * context, **factory)
        self.to_k = operations.Linear(context, context, bias=False, **factory)
        self.to_v = operations.Linear(context, context, bias=False, **factory)
        self.wide = operations.Linear(context, 4 * context, **factory)
        self.narrow = operations.Linear(4 * context, context, **factory)
        self.out = operations.Linear(context, context, **factory)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Faint tokens that differ from frame to frame."""
        for layer in (self.place, self.to_k, self.to_v, self.wide, self.narrow, self.out):
            _uniform(layer, generator)

    def forward(self, text: Tensor, frames: int) -> Tensor:
        """text: B L C, one for each clip; (B frames) count C out."""
        numbers = grid_positions((frames,), text.shape[-1], text.device)[0].to(text)
        asked = self.place(numbers).reshape(1, frames * self.count, -1).expand(len(text), -1, -1)
        both = asked + attention(asked, self.to_k(text), self.to_v(text), 1)
        tokens = self.out(both + self.narrow(F.gelu(self.wide(F.layer_norm(both, both.shape[-1:])))))
        return rearrange(tokens, "b (t n) c -> (b t) n c", t=frames)


class MotionModule(nn.Module):
    """All parts, for one image model."""

    def __init__(self, config: HarivoConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        self.config, made = config, dict(operations=operations, device=device, dtype=dtype)
        told = config.context if config.frame_tokens else 0
        self.temporal = nn.ModuleList(
            TemporalLayer(block.width, block.heads, told, config.convolution, **made) for block in config.blocks
        )
        self.mapping = MappingNetwork(config.channels, config.mapping, **made) if config.mapping else None
        self.frame_tokens = FrameTokens(config.context, config.frame_tokens, **made) if config.frame_tokens else None

    def init_weights(self, seed: int) -> "MotionModule":
        """The start of training, drawn from ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        for part in (*self.temporal, self.mapping, self.frame_tokens):
            if part is not None:
                part.init_weights(generator)
        return self


def _uniform(layer: nn.Module, generator: torch.Generator, gain: float = 1.0) -> None:
    """As PyTorch draws weights: uniform in +-1 / sqrt(fan-in), times ``gain``."""
    bound = gain * layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
