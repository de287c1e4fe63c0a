"""The denoising objective that the systems share: noise of a random level in, the squared error of an estimate out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .denoise import MAX_X0_WEIGHT, Prediction, target
from .schedule import CosineSchedule, alpha_sigma, expand_as


@dataclass(frozen=True)
class Noised:
    """z = alpha x + sigma eps, with its log-SNR (shape B) and its time t (shape B); alpha and sigma broadcast to z."""

    z: Tensor
    t: Tensor
    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor
    eps: Tensor


def add_noise(x: Tensor, schedule: CosineSchedule, generator: torch.Generator, time_power: float = 1.0) -> Noised:
    """Samples with noise of random levels.

    Args:
        x: clean samples B ....
        schedule: maps time to log-SNR.
        generator: source of times and noise, on the CPU.
        time_power: t is a uniform draw to this power; 1 is the paper's. Below 1, fewer draws fall on low noise, where
            the loss is large and says little about what a clip shows.
    """
    batch = x.shape[0]
    # One uniform offset shared by an even grid: each draw is uniform in [0, 1], their sum varies little.
    t = ((torch.rand(1, generator=generator) + torch.arange(batch) / batch) % 1) ** time_power
    log_snr = schedule.log_snr(t.double()).float().to(x.device)
    alpha, sigma = (expand_as(s, x) for s in alpha_sigma(log_snr))
    eps = torch.randn(x.shape, generator=generator).to(x)
    return Noised(alpha * x + sigma * eps, t.to(x.device), log_snr, alpha, sigma, eps)


def squared_error(prediction: Prediction, output: Tensor, x: Tensor, noised: Noised) -> Tensor:
    """Mean squared error of a network's ``output``, a scalar (VDM eq. 3), a plain mean over all that there is.

    For x0 each sample's error is weighted by SNR + 1, which makes it the error in v (Salimans & Ho 2022, arXiv 2202.00512,
    section 4), up to `MAX_X0_WEIGHT`.
    """
    error = (output.float() - target(prediction, x, noised.eps, noised.alpha, noised.sigma)).square()
    if prediction == "x0":
        error = error * (1 / noised.sigma**2).clamp(max=MAX_X0_WEIGHT)
    return error.mean()


def drop(tokens: Tensor, probability: float, generator: torch.Generator, axes: int = 1) -> Tensor:
    """Text tokens of which some samples, chosen over the first ``axes`` axes, are all zero: the unconditional ones."""
    keep = torch.rand(tokens.shape[:axes], generator=generator) >= probability
    return tokens * expand_as(keep.to(tokens), tokens)
