"""The deterministic sampler of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0)."""

from torch import Tensor

from ..denoise import to_eps


def ddim_step(z: Tensor, x0: Tensor, now, then, noise: Tensor | None = None) -> Tensor:
    """z_s = alpha_s x-hat + sigma_s eps-hat, with eps-hat = (z_t - alpha_t x-hat) / sigma_t.

    Args:
        z: z_t, any shape.
        x0: x-hat at z_t, same shape.
        now, then: `Level` t and the lower level s.
        noise: not used.
    """
    return then.alpha * x0 + then.sigma * to_eps(x0, z, now.alpha, now.sigma)
