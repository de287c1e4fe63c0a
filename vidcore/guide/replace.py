"""The replacement method (Song et al. 2021, arXiv 2011.13456; VDM section 3.1), the baseline of reconstruction guidance.

While the clip is denoised, the known part of the state is overwritten by x^a with noise. That leaves the unknown part
to follow its own x-hat, without the pull of x^a that VDM's eq. 6 asks for.
"""

from collections.abc import Callable

from torch import Tensor

from ..schedule import CosineSchedule, alpha_sigma, expand_as
from .measure import Known


def with_posterior_replacement(denoiser: Callable[..., Tensor], known: Known) -> Callable[..., Tensor]:
    """z_s^a drawn from q(z_s^a | x^a, z_t^a): x^a stands in for x-hat^a, and the sampler's own step does the rest.

    Exactly that for the ancestral sampler with gamma = 0; DDIM draws the same with its variance at zero.
    """

    def denoise(z: Tensor, t: Tensor, **conditions) -> Tensor:
        return known.put(denoiser(z, t, **conditions))

    return denoise


def with_marginal_replacement(
    denoiser: Callable[..., Tensor], schedule: CosineSchedule, known: Known, noise: Callable[[], Tensor]
) -> Callable[..., Tensor]:
    """z_t^a drawn afresh from q(z_t^a | x^a) before every evaluation; ``noise()`` gives standard noise shaped as z."""

    def denoise(z: Tensor, t: Tensor, **conditions) -> Tensor:
        alpha, sigma = (expand_as(s, z) for s in alpha_sigma(schedule.log_snr(t.double()).float()))
        z = Known(alpha * known.target + sigma * noise(), known.mask).put(z)
        return known.put(denoiser(z, t, **conditions))

    return denoise
