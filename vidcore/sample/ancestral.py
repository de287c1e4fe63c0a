"""The ancestral sampler of Video Diffusion Models, with interpolated variance (VDM eq. 4 and 5)."""

import math

from torch import Tensor


def ancestral_step(z: Tensor, x0: Tensor, now, then, noise: Tensor, gamma: float = 0.3) -> Tensor:
    """Draw z_s from the reverse step at z_t.

    With lambda = log(alpha^2 / sigma^2) and r = e^(lambda_t - lambda_s)::

        mean = r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x-hat
        var  = (s~^2)^(1 - gamma) (sigma_{t|s}^2)^gamma
        s~^2 = (1 - r) sigma_s^2,     sigma_{t|s}^2 = (1 - r) sigma_t^2

    Args:
        z: z_t, any shape.
        x0: x-hat at z_t, same shape.
        now, then: `Level` t and the lower level s ; alpha_s and sigma_s above 0.
        noise: standard normal, same shape.
        gamma: 0 for the lower bound on the entropy of the reverse step, 1 for the upper; log-variance is interpolated.
    """
    ratio = (now.alpha * then.sigma / (now.sigma * then.alpha)) ** 2
    # r alpha_s / alpha_t, written so that it holds at alpha_t = 0, where flow models start.
    keep = now.alpha * then.sigma**2 / (now.sigma**2 * then.alpha)
    mean = keep * z + (1 - ratio) * then.alpha * x0
    log_variance = math.log1p(-ratio) + 2 * ((1 - gamma) * math.log(then.sigma) + gamma * math.log(now.sigma))
    return mean + math.exp(log_variance / 2) * noise
