"""From the first stage to the second (arXiv 2402.14797): the clip to enlarge, and the weights to begin from."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...guide.measure import downsample
from ...schedule import expand_as
from ...weights import WeightsError
from .config import SnapConfig
from .net import FIT


def enlarge(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Clips B C T h w at the height and width ``size``, each frame alone, bilinearly (our choice, as is `shrink`'s)."""
    flat = rearrange(low, "b c t h w -> (b t) c h w")
    large = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return rearrange(large, "(b t) c h w -> b c t h w", t=low.shape[2])


def shrink(x: Tensor, config: SnapConfig) -> Tensor:
    """Clips of any size at the first stage's, by the mean over each pixel's area; what has that size stays as it is."""
    return downsample(x, config.low_size)


def corrupt(low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """``low`` B C T H W with noise of the same shape, whose deviation is exp(``level``), shape B."""
    return low + expand_as(level.exp(), low) * noise


@torch.no_grad()
def second_stage(first: FIT, config: SnapConfig) -> FIT:
    """A second stage that begins from a first stage's weights, as in the paper; how they fit is ours.

    Places of patches are enlarged bilinearly. The clip to enlarge has no effect at first, nor has anything that says how
    corrupted it is beyond one more token to read.

    Args:
        first: the trained first stage.
        config: of the second stage, whose sizes are the first's but for height, width, group, low_height and sigma_in.

    Raises:
        WeightsError: if other sizes differ.
    """
    net, own = FIT(config).init_weights(), first.state_dict()
    made, pixels = net.state_dict(), first.patch_in.in_features
    places = rearrange(own["place"], "t h w c -> t c h w")
    places = F.interpolate(places, tuple(made["place"].shape[1:3]), mode="bilinear", align_corners=False)
    own["place"] = rearrange(places, "t c h w -> t h w c")
    own["patch_in.weight"] = F.pad(own["patch_in.weight"], (0, pixels))
    own |= {name: value for name, value in made.items() if name.startswith("corruption_token.")}
    if first.config.low_resolution or {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in made.items()}:
        raise WeightsError(
            "a second stage begins from a first one of the same frames, widths, latents and blocks; it has "
            f"{first.config}, and was asked to become {config}"
        )
    net.load_state_dict(own)
    return net
