"""This pack's samplers as the host's SAMPLER objects, and the node that hands them out."""

from functools import partial

import comfy.model_sampling
import comfy.samplers
import torch
from comfy_api.latest import io

from ..vidcore.sample import Level, ancestral_step, ddim_step, langevin_step
from ..vidcore.sample import sample as walk
from ..vidcore.sample.heun import Churn, heun_sample

PAPER_SCHEDULE = "uniform_time"
SCHEDULES = [PAPER_SCHEDULE, *comfy.samplers.SCHEDULER_NAMES]
# Ours first; the host's "ddim" is its Euler sampler, which ours equals, so the name is listed once.
OURS = ["ddim", "vdm_ancestral", "vdm_predictor_corrector"]
HEUN = "edm_heun"
SAMPLERS = [*OURS, HEUN, *(name for name in comfy.samplers.SAMPLER_NAMES if name not in OURS)]


def make_sampler(name: str, gamma: float = 0.3, delta: float = 0.1) -> comfy.samplers.Sampler:
    """A SAMPLER by its name in `SAMPLERS`; ``gamma`` belongs to the two of VDM, ``delta`` to the predictor-corrector."""
    if name == HEUN:
        return make_heun(Churn())
    if name not in OURS:
        return comfy.samplers.sampler_object(name)
    step = ddim_step if name == "ddim" else partial(ancestral_step, gamma=gamma)
    corrector = partial(langevin_step, delta=delta) if name == "vdm_predictor_corrector" else None
    return comfy.samplers.KSAMPLER(_sampler_function(step, corrector))


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


def host_level(sampling, sigma: float | torch.Tensor) -> tuple[Level, float | torch.Tensor]:
    """The noise level behind the host's ``sigma``, and the factor from the host's state to z = alpha x + sigma eps.

    Flow models hold z itself with alpha = 1 - sigma; all others hold z / alpha, with sigma standing for sigma / alpha.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return Level(1 - sigma, sigma), 1.0
    alpha = (1 + sigma**2) ** -0.5
    return Level(alpha, sigma * alpha), alpha


def walker(model, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict | None):
    """What a function under the host's calling convention for samplers is called with, in the core's terms.

    Returns:
        denoise: (z, i) -> x-hat at ``sigmas[i]``.
        levels: the `Level` of every sigma.
        scales: for every sigma, the factor from the host's state to z = alpha x + sigma eps.
    """
    sampling = model.inner_model.inner_model.model_sampling
    levels, scales = zip(*(host_level(sampling, float(s)) for s in sigmas.double()))

    def denoise(z, i):
        return model((z / scales[i]).float(), sigmas[i] * x.new_ones(x.shape[0]), **(extra_args or {}))

    return denoise, list(levels), scales


def _sampler_function(step, corrector=None):
    """A function under the host's calling convention for samplers, around one step of ours."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        denoise, levels, scales = walker(model, x, sigmas, extra_args)
        # On the CPU, as the host draws its starting noise, so that a seed gives the same clip on every device.
        generator = torch.Generator().manual_seed((extra_args or {}).get("seed") or 0)
        torch.randn(x.shape, generator=generator)  # the starting noise was this draw: do not repeat it

        def noise():
            return torch.randn(x.shape, generator=generator).to(x)

        def report(i, x0, z):
            if callback is not None:
                sigma = sigmas[i]
                callback({"x": z / scales[i], "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})

        return walk(denoise, x * scales[0], levels, step, noise, report, corrector) / scales[-1]

    return function


def make_heun(churn: Churn) -> comfy.samplers.Sampler:
    """EDM's second-order sampler as a SAMPLER."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        generator = torch.Generator().manual_seed((extra_args or {}).get("seed") or 0)
        torch.randn(x.shape, generator=generator)  # the starting noise was this draw: do not repeat it

        def noise():
            return torch.randn(x.shape, generator=generator).to(x)

        def denoise(y, s):
            return model(y, s * x.new_ones(x.shape[0]), **(extra_args or {}))

        def report(i, x0, y):
            if callback is not None:
                callback({"x": y, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})

        return heun_sample(denoise, x, sigmas, churn, noise, report)

    return comfy.samplers.KSAMPLER(function)


class SamplerEDMHeun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SamplerEDMHeun",
            display_name="Sampler EDM Heun",
            category="video/sampling",
            description="EDM's second-order sampler with its stochasticity, as in Snap Video, for SamplerCustomAdvanced.",
            search_aliases=["heun", "edm", "churn", "snap video", "second order sampler"],
            inputs=[
                io.Float.Input(
                    "s_churn", default=0.0, min=0.0, max=1000.0, step=1.0, round=0.001,
                    tooltip="How much noise is renewed, spread over all steps. 0 is deterministic.",
                ),
                io.Float.Input(
                    "s_tmin", default=0.0, min=0.0, max=100000.0, step=0.01, round=0.0001, optional=True, advanced=True,
                    tooltip="Noise is renewed at levels (sigma) from here on.",
                ),
                io.Float.Input(
                    "s_tmax", default=100000.0, min=0.0, max=100000.0, step=0.01, round=0.0001, optional=True, advanced=True,
                    tooltip="Noise is renewed at levels up to here.",
                ),
                io.Float.Input(
                    "s_noise", default=1.0, min=0.0, max=10.0, step=0.001, round=0.0001, optional=True, advanced=True,
                    tooltip="The deviation of renewed noise; a little above 1 keeps detail.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Two evaluations a step. EDM's own grid is the scheduler 'karras'.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_churn, s_tmin=0.0, s_tmax=100000.0, s_noise=1.0) -> io.NodeOutput:
        if s_tmin > s_tmax:
            raise ValueError(f"s_tmin ({s_tmin}) must not be above s_tmax ({s_tmax})")
        return io.NodeOutput(make_heun(Churn(s_churn, s_tmin, s_tmax, s_noise)))


class SamplerVDM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SamplerVDM",
            display_name="Sampler VDM",
            category="video/sampling",
            description="The samplers of Video Diffusion Models as a SAMPLER, for SamplerCustomAdvanced and any model.",
            search_aliases=["ancestral", "predictor corrector", "langevin", "ddim", "vdm sampler"],
            inputs=[
                io.Combo.Input(
                    "sampler", options=OURS, default="vdm_ancestral",
                    tooltip="vdm_predictor_corrector follows every ancestral step by one of Langevin dynamics, and so "
                    "evaluates the model twice per step.",
                ),
                io.Float.Input(
                    "gamma", default=0.3, min=0.0, max=1.0, step=0.01,
                    tooltip="How much noise each ancestral step adds, from the least (0) to the most (1) that the theory "
                    "allows. The paper has 0.3 for text, and 0 with the corrector.",
                ),
                io.Float.Input(
                    "delta", default=0.1, min=0.0, max=1.0, step=0.01, tooltip="Size of a Langevin step; 0.1 in the paper."
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, sampler, gamma, delta) -> io.NodeOutput:
        return io.NodeOutput(make_sampler(sampler, gamma, delta))
