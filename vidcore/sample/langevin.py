"""The corrector of the predictor-corrector sampler (Song et al. 2021, arXiv 2011.13456; VDM section 2)."""

from torch import Tensor

from ..denoise import to_eps

# VDM's step size, in every experiment of the paper.
DELTA = 0.1


def langevin_step(z: Tensor, x0: Tensor, now, noise: Tensor, delta: float = DELTA) -> Tensor:
    """One step of Langevin dynamics at a fixed noise level::

        z_s <- z_s - (delta / 2) sigma_s eps-hat(z_s) + sqrt(delta) sigma_s noise

    eps-hat follows from x-hat, so nets that predict eps, v or x share this one form, and where x-hat is guided the
    corrector is too.

    Args:
        z: z_s, any shape.
        x0: x-hat at z_s, same shape.
        now: `Level` s.
        noise: standard normal, same shape.
        delta: step size; 0 leaves ``z`` as it is.
    """
    return z - delta / 2 * now.sigma * to_eps(x0, z, now.alpha, now.sigma) + delta**0.5 * now.sigma * noise
