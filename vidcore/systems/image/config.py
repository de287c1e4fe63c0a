"""Sizes of the image model, and its description in a checkpoint."""

import dataclasses
from dataclasses import dataclass

from ... import weights
from ...schedule import CosineSchedule
from ...text import TextConfig

SYSTEM = "image"


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a latent-diffusion U-Net (Rombach et al. 2022, arXiv 2112.10752).

    Args:
        in_channels, out_channels: of latents with noise, and of what is predicted.
        channels: of the first level; a multiple of 32.
        multipliers: channels of each level, in units of ``channels``.
        attention: for each level, whether its blocks attend to pixels and text; the middle always does.
        blocks: residual blocks per level; one more on the way up.
        context: width of the text tokens.
        heads: of attention; 0 takes as many as ``head_width`` goes into the channels.
        head_width: channels per head.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    attention: tuple[bool, ...] = (True, True, True, False)
    blocks: int = 2
    context: int = 768
    heads: int = 8
    head_width: int = 0

    def heads_of(self, width: int) -> int:
        """Heads of an attention of so many channels."""
        return self.heads or width // self.head_width


STABLE_DIFFUSION = UNetConfig()  # 1.x


@dataclass(frozen=True)
class ImageConfig:
    """A latent-diffusion U-Net (Rombach et al. 2022, arXiv 2112.10752) on pixels, which predicts x0.

    Args:
        patch: pixels folded into channels before the network, and unfolded after it.
        channels: of the first level; a multiple of 32, the host's number of groups.
        multipliers: channels of each level, in units of ``channels``; every level has cross-attention to the text.
        blocks: residual blocks per level.
        head_width: channels per attention head.
        context: width of the text tokens.
        log_snr_min, log_snr_max: ends of the cosine schedule.
    """

    patch: int = 2
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    head_width: int = 32
    context: int = 128
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    @property
    def schedule(self) -> CosineSchedule:
        return CosineSchedule(self.log_snr_min, self.log_snr_max)

    @property
    def unet(self) -> UNetConfig:
        """The network between folding pixels into channels and unfolding them."""
        pixels, levels = 3 * self.patch**2, len(self.multipliers)
        return UNetConfig(
            pixels, pixels, self.channels, self.multipliers, (True,) * levels, self.blocks, self.context, 0, self.head_width
        )

    @property
    def longest(self) -> int:
        """It knows single pictures."""
        return 1

    @property
    def stride(self) -> int:
        """What width and height must be multiples of, in pixels."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


def unet_arguments(config: ImageConfig) -> dict:
    """What the host's ``UNetModel`` is built with."""
    levels = len(config.multipliers)
    pixels = 3 * config.patch**2
    return {
        "image_size": 32,
        "in_channels": pixels,
        "out_channels": pixels,
        "model_channels": config.channels,
        "num_res_blocks": [config.blocks] * levels,
        "channel_mult": list(config.multipliers),
        "num_head_channels": config.head_width,
        "use_spatial_transformer": True,
        "transformer_depth": [1] * (levels * config.blocks),
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * (levels * (config.blocks + 1)),
        "context_dim": config.context,
        "legacy": False,
    }


def to_info(model: ImageConfig, text: TextConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds where the weights come from."""
    return {"system": SYSTEM, "model": dataclasses.asdict(model), "text": dataclasses.asdict(text), **about}


def from_info(info: dict) -> tuple[ImageConfig, TextConfig]:
    """The sizes in a file's description.

    Raises:
        weights.WeightsError: if the description is of another system, or names what this version does not know.
    """
    return weights.from_info(info, SYSTEM, ImageConfig, TextConfig)
