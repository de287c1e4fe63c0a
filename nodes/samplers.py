"""This pack's samplers as the host's SAMPLER objects."""

from functools import partial

import comfy.model_sampling
import comfy.samplers
import torch

from ..vidcore.sample import Level, ancestral_step, ddim_step
from ..vidcore.sample import sample as walk

PAPER_SCHEDULE = "uniform_time"
SCHEDULES = [PAPER_SCHEDULE, *comfy.samplers.SCHEDULER_NAMES]
# Ours first; the host's "ddim" is its Euler sampler, which ours equals, so the name is listed once.
OURS = ["ddim", "vdm_ancestral"]
SAMPLERS = [*OURS, *(name for name in comfy.samplers.SAMPLER_NAMES if name not in OURS)]


def make_sampler(name: str, gamma: float = 0.3) -> comfy.samplers.Sampler:
    """A SAMPLER by its name in `SAMPLERS`; ``gamma`` belongs to vdm_ancestral."""
    if name == "ddim":
        return comfy.samplers.KSAMPLER(_sampler_function(ddim_step))
    if name == "vdm_ancestral":
        return comfy.samplers.KSAMPLER(_sampler_function(partial(ancestral_step, gamma=gamma)))
    return comfy.samplers.sampler_object(name)


def make_sigmas(sampling, schedule: str, sampler: str, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """``steps + 1`` noise levels in the host's sigma, from high to 0.

    Args:
        sampling: the MODEL's model_sampling.
        schedule: a name in `SCHEDULES`.
        sampler: a name in `SAMPLERS`; a few of the host's want their last but one level left out.
        denoise: the share of the whole schedule to walk, counted from its clean end.
    """
    total = max(steps, int(steps / denoise))
    skip = sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    # The host's sgm_uniform is an even grid over the model's own timestep with both ends met, which is the papers' grid.
    name = "sgm_uniform" if schedule == PAPER_SCHEDULE else schedule
    sigmas = comfy.samplers.calculate_sigmas(sampling, name, total + skip)
    if skip:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas[-(steps + 1) :]


def host_level(sampling, sigma: float) -> tuple[Level, float]:
    """The noise level behind the host's ``sigma``, and the factor from the host's state to z = alpha x + sigma eps.

    Flow models hold z itself with alpha = 1 - sigma; all others hold z / alpha, with sigma standing for sigma / alpha.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return Level(1 - sigma, sigma), 1.0
    alpha = (1 + sigma**2) ** -0.5
    return Level(alpha, sigma * alpha), alpha


def _sampler_function(step):
    """A function under the host's calling convention for samplers, around one step of ours."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = extra_args or {}
        sampling = model.inner_model.inner_model.model_sampling
        levels, scales = zip(*(host_level(sampling, float(s)) for s in sigmas.double()))
        # On the CPU, as the host draws its starting noise, so that a seed gives the same clip on every device.
        generator = torch.Generator().manual_seed(extra_args.get("seed") or 0)
        torch.randn(x.shape, generator=generator)  # the starting noise was this draw: do not repeat it

        def denoise(z, i):
            state = z / scales[i]
            x0 = model(state.float(), sigmas[i] * x.new_ones(x.shape[0]), **extra_args)
            if callback is not None:
                callback({"x": state, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
            return x0

        def noise():
            return torch.randn(x.shape, generator=generator).to(x)

        return walk(denoise, x * scales[0], list(levels), step, noise) / scales[-1]

    return function
