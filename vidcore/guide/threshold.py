"""Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3), as in Snap Video (arXiv 2402.14797)."""

import math

from torch import Tensor


def dynamic_threshold(x0: Tensor, percentile: float = 0.995, limit: float = 1.0) -> Tensor:
    """Bring a denoiser's estimate back into the data's range where strong guidance drives it out.

    For each sample let s be the given percentile of |x-hat|. Where s is above ``limit``, x-hat is clipped to [-s, s] and
    multiplied by ``limit`` / s; elsewhere it is clipped to [-limit, limit].

    Args:
        x0: estimates x-hat, B first.
        percentile: the share of values that stay below s, in (0, 1]; 0.995 is usual, the papers give no number.
        limit: the largest absolute value of the data: 1 for pixels.

    Returns:
        The shape of ``x0``.

    Raises:
        ValueError: if a number is out of range.
    """
    if not 0 < percentile <= 1 or not limit > 0:
        raise ValueError(f"percentile must lie in (0, 1] and limit above 0, got {percentile} and {limit}")
    size = x0[0].numel()
    s = x0.float().abs().flatten(1).kthvalue(max(1, math.ceil(percentile * size)), dim=1).values
    s = s.clamp(min=limit).to(x0).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) * (limit / s)
