"""Noise schedules: time t in [0, 1] -> log-SNR -> (alpha, sigma).

A schedule fixes the forward process of Video Diffusion Models (VDM, arXiv 2204.03458), eq. (1)::

    q(z_t | x) = N(alpha_t x, sigma_t^2 I),    lambda_t = log(alpha_t^2 / sigma_t^2)

and is variance preserving: ``alpha_t^2 = sigmoid(lambda_t)``, ``sigma_t^2 = sigmoid(-lambda_t)``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CosineSchedule:
    """The cosine schedule with its log-SNR kept inside a range (VDM, section 2; [-20, 20] in the paper).

    Args:
        log_snr_min: log-SNR at t = 1, where the clip is all noise.
        log_snr_max: log-SNR at t = 0, where the clip is clean.

    Raises:
        ValueError: if ``log_snr_min`` is not below ``log_snr_max``.
    """

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self):
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {self.log_snr_min} and {self.log_snr_max}")

    @property
    def _line(self) -> tuple[float, float]:
        """(a, b) such that tan(a t + b) = sigma_t / alpha_t meets both ends of the range."""
        b = math.atan(math.exp(-self.log_snr_max / 2))
        return math.atan(math.exp(-self.log_snr_min / 2)) - b, b

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = -2 log tan(a t + b), for ``t`` of any shape in [0, 1]; same shape out."""
        a, b = self._line
        return -2 * torch.log(torch.tan(a * t + b))

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: the time at which the schedule reaches ``log_snr``."""
        a, b = self._line
        return (torch.atan(torch.exp(-log_snr / 2)) - b) / a


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a variance-preserving process at ``log_snr`` (any shape), so alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def expand_as(value: Tensor, like: Tensor) -> Tensor:
    """Append axes of size one to ``value`` until it broadcasts against ``like`` from the left."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
