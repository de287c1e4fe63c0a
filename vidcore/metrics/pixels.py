"""Scores of clips by their pixels (PSNR, SSIM, flicker), and of their frames by their features (consistency)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian (Wang et al. 2004)


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1], any shape; infinite where both are the same."""
    return float(-10 * (made.double() - true.double()).square().mean().log10())


def ssim(made: Tensor, true: Tensor) -> float:
    """Mean structural similarity of frames (Wang, Bovik, Sheikh, Simoncelli 2004), each channel alone.

    Args:
        made, true: T H W C in [0, 1], at least 11 pixels high and wide.

    Raises:
        ValueError: if the shapes differ or are too small.
    """
    if made.shape != true.shape or made.ndim != 4 or min(made.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM compares clips T H W C of one shape, {WINDOW} pixels or more a side; got {tuple(made.shape)} and "
            f"{tuple(true.shape)}"
        )
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = (-places.square() / (2 * DEVIATION**2)).exp()
    kernel = torch.outer(weights, weights)[None, None] / weights.sum() ** 2
    x, y = (rearrange(clip.double(), "t h w c -> (t c) 1 h w") for clip in (made, true))

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel)

    m, n = mean(x), mean(y)
    spread, other, shared = mean(x * x) - m * m, mean(y * y) - n * n, mean(x * y) - m * n
    a, b = 0.01**2, 0.03**2
    return float(((2 * m * n + a) * (2 * shared + b) / ((m * m + n * n + a) * (spread + other + b))).mean())


def flicker(clip: Tensor) -> float:
    """The mean absolute change of pixels T H W C from frame to frame. Motion counts too: compare clips of like motion.

    Raises:
        ValueError: for fewer than two frames.
    """
    if len(clip) < 2:
        raise ValueError(f"flicker needs two frames or more, got {len(clip)}")
    return float((clip[1:].double() - clip[:-1].double()).abs().mean())


def frame_consistency(features: Tensor) -> float:
    """The mean cosine between the features of all pairs of frames, times 100 (Tune-A-Video, arXiv 2212.11565, section 5).

    Args:
        features: of an image encoder, T D; CLIP's in the paper.

    Raises:
        ValueError: for fewer than two frames.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"frame consistency needs features T D of two frames or more, got {tuple(features.shape)}")
    unit, count = F.normalize(features.double(), dim=1), len(features)
    return float(100 * (unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))
