"""EDM with an input scale: the diffusion of Snap Video (arXiv 2402.14797), on that of EDM (arXiv 2206.00364).

Neighbouring pixels of a clip are alike, so the mean of T s^2 of them shows through noise that hides each one, and a network
can cheat where it should learn. Snap Video therefore makes the signal fainter by ``sigma_in = s sqrt(T)``, for T frames and
s times the 64 pixels that EDM's noise levels are tuned for, and sees::

    x_sigma = x / sigma_in + sigma eps

The formulas below are the paper's in their self-consistent form. With ``sigma_in = 1`` the denoiser is EDM's, and the
network's output the negative of that of EDM's network.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import expand_as


@dataclass(frozen=True)
class EDM:
    """Noise levels and preconditioning. Symbols: k = ``sigma_in``, d = ``sigma_data``, s = sigma.

    Args:
        sigma_in: k, 1 for EDM.
        sigma_data: d, the data's standard deviation; 1 in Snap Video, 0.5 in EDM.
        sigma_min, sigma_max, rho: of the sampling grid (EDM eq. 5).
        mean, std: of ln sigma in training (EDM table 1).

    Raises:
        ValueError: if a number is out of range.
    """

    sigma_in: float = 1.0
    sigma_data: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        if min(self.sigma_in, self.sigma_data, self.rho, self.std) <= 0 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_in, sigma_data, rho and std must be above 0, and 0 < sigma_min < sigma_max; got {self}")

    def add_noise(self, x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """x_sigma; ``sigma`` of shape B or a scalar."""
        return x / self.sigma_in + expand_as(sigma, x) * eps

    # ------------------------------------------------------------------------------------------- preconditioning

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(d^2 / k^2 + s^2): the network's input has variance 1."""
        return (self.sigma_data**2 / self.sigma_in**2 + sigma**2).rsqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        """k d^2 / (k s^2 + d^2)."""
        k, d = self.sigma_in, self.sigma_data
        return k * d**2 / (k * sigma**2 + d**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-k s d sqrt(s^2 + d^2) / (d^2 + k s^2)."""
        k, d = self.sigma_in, self.sigma_data
        return -k * sigma * d * (sigma**2 + d**2).sqrt() / (d**2 + k * sigma**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(s) / 4, what the network is told of the noise."""
        return sigma.log() / 4

    def target(self, x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """What the network should output, v / (d sqrt(s^2 + d^2)) with v = d^2 eps - s x; its variance is 1."""
        s, d = expand_as(sigma, x), self.sigma_data
        return (d**2 * eps - s * x) / (d * (s**2 + d**2).sqrt())

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(s) = 1 / d^2 + 1 / s^2, of the denoiser's squared error; the same for every k."""
        return self.sigma_data**-2 + sigma**-2

    def network_weight(self, sigma: Tensor) -> Tensor:
        """lambda c_out^2 = (s^2 + d^2)^2 / (s^2 + d^2 / k)^2: the same loss as a weight of the network's squared error."""
        d = self.sigma_data
        return ((sigma**2 + d**2) / (sigma**2 + d**2 / self.sigma_in)) ** 2

    def denoise(self, net: Callable[..., Tensor], x_sigma: Tensor, sigma: Tensor, **conditions) -> Tensor:
        """x-hat = D(x_sigma; s) = c_skip x_sigma + c_out F(c_in x_sigma; c_noise).

        Args:
            net: F, called as ``net(scaled, c_noise, **conditions)``, with ``c_noise`` of shape B.
            x_sigma: B C T H W.
            sigma: of shape B, above 0.
        """
        scaled = expand_as(self.c_in(sigma), x_sigma) * x_sigma
        output = net(scaled, self.c_noise(sigma), **conditions).float()
        return expand_as(self.c_skip(sigma), x_sigma) * x_sigma + expand_as(self.c_out(sigma), x_sigma) * output

    # ---------------------------------------------------------------------------------------------- noise levels

    def training_sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise levels to train at, e^N(mean, std^2), shape B."""
        return (self.mean + self.std * torch.randn(batch, generator=generator)).exp()

    def sigmas(self, steps: int) -> Tensor:
        """The sampling grid of ``steps + 1`` levels from sigma_max to sigma_min, and 0 (EDM eq. 5); float64.

        Raises:
            ValueError: if ``steps`` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1, dtype=torch.float64)])


def sigma_in(frames: int, size: int) -> float:
    """Snap Video's input scale s sqrt(T) for clips of ``frames`` and a width of ``size`` pixels."""
    return size / 64 * math.sqrt(frames)
