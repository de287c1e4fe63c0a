"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, appendix G.1), by the names of its weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS, EPSILON = 32, 1e-6


@dataclass(frozen=True)
class KLConfig:
    """Sizes; by default those of Stable Diffusion 1 and 2, 83.7 million parameters.

    Args:
        channels: of the first level; a multiple of 32.
        multipliers: channels of each level, in units of ``channels``; each level but the last halves the picture.
        blocks: residual blocks per level on the way down; one more on the way up.
        latent: channels of the latents.
        scale: what latents are multiplied with before diffusion sees them.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 4
    scale: float = 0.18215


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)


class Residual(nn.Module):
    """Two convolutions; N C H W."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """Of the pixels to each other, one head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


class Resize(nn.Module):
    """Half as large, with a zero more at the right and the bottom; or twice as large by nearest neighbour."""

    def __init__(self, width: int, larger: bool):
        super().__init__()
        self.larger, self.conv = larger, nn.Conv2d(width, width, 3, 1 if larger else 2, 1 if larger else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.larger else F.pad(x, (0, 1, 0, 1)))


def _middle(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"block_1": Residual(width, width), "attn_1": Attention(width), "block_2": Residual(width, width)})


def _level(channels: int, out: int, blocks: int, resize: str | None) -> nn.ModuleDict:
    """Residual blocks under ``block``, and a `Resize` under the name ``resize`` where there is one."""
    made = nn.ModuleDict({"block": nn.ModuleList([Residual(channels if i == 0 else out, out) for i in range(blocks)])})
    if resize:
        made[resize] = Resize(out, resize == "upsample")
    return made


class Encoder(nn.Module):
    """Pictures N 3 H W to twice the latents' channels, N 2C H/8 W/8 with four levels."""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (channels, out) in enumerate(zip([config.channels, *widths], widths)):
            self.down.append(_level(channels, out, config.blocks, "downsample" if i + 1 < len(widths) else None))
        self.mid = _middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], 2 * config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level["block"]:
                x = block(x)
            x = level["downsample"](x) if "downsample" in level else x
        for part in self.mid.values():
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """The way back. Its levels are numbered from the largest picture, and run from the smallest."""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            _level(channels, out, config.blocks + 1, "upsample" if i else None)
            for i, (channels, out) in enumerate(zip(above, widths))
        )
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for part in self.mid.values():
            z = part(z)
        for level in reversed(self.up):
            for block in level["block"]:
                z = block(z)
            z = level["upsample"](z) if "upsample" in level else z
        return self.conv_out(F.silu(self.norm_out(z)))


class KLAutoencoder(nn.Module):
    """Pictures to a Gaussian over latents, and latents to pictures.

    Args:
        config: sizes.
    """

    def __init__(self, config: KLConfig = KLConfig()):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent, 2 * config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 1)

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents as diffusion sees them, each N C h w.

        Args:
            pictures: N 3 H W in [-1, 1], height and width multiples of 8 with four levels.

        Raises:
            ValueError: for other sizes.
        """
        stride = 2 ** (len(self.config.multipliers) - 1)
        if pictures.shape[2] % stride or pictures.shape[3] % stride:
            raise ValueError(f"height and width must be multiples of {stride}, got {tuple(pictures.shape[2:])}")
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return mean * self.config.scale, torch.exp(0.5 * log_variance.clamp(-30, 20)) * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures N 3 H W, about [-1, 1], from latents as diffusion sees them."""
        return self.decoder(self.post_quant_conv(latents / self.config.scale))
