"""The second-order sampler of EDM (Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2), as in Snap Video."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity: noise that is put back before each step (algorithm 2). With ``amount`` 0 there is none.

    Args:
        amount: S_churn, spread over all steps.
        low, high: S_tmin and S_tmax, the levels between which it acts.
        noise: S_noise, the standard deviation of what is put back.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0


def heun_sample(
    denoise: Callable[[Tensor, float], Tensor],
    y: Tensor,
    sigmas: Tensor,
    churn: Churn = Churn(),
    noise: Callable[[], Tensor] | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    second_order: bool = True,
) -> Tensor:
    """Walk dy / ds = (y - D(y; s)) / s from ``sigmas[0]`` to ``sigmas[-1]`` for a state y = x + s eps.

    Snap Video's x_sigma = x / sigma_in + sigma eps is such a state once it is multiplied by sigma_in: y = sigma_in x_sigma,
    s = sigma_in sigma (`snap_sample`).

    Args:
        denoise: (y, s) -> x-hat, at any level s.
        y: the state at ``sigmas[0]``, any shape.
        sigmas: levels from high to low; the last may be 0.
        churn: what of the noise is renewed.
        noise: draws fresh standard noise shaped as ``y``; needed for a ``churn`` above 0.
        callback: called as (i, x-hat, y) once per step; raising from it stops the walk.
        second_order: Heun's correction; without it steps are Euler's. Heun takes two evaluations a step, but one in a last
            step to 0.

    Returns:
        The state at ``sigmas[-1]``.
    """
    levels = [float(s) for s in sigmas]
    most = min(churn.amount / max(1, len(levels) - 1), math.sqrt(2) - 1)
    for i, (now, then) in enumerate(zip(levels, levels[1:])):
        if most > 0 and churn.low <= now <= churn.high:
            raised = now * (1 + most)
            y = y + math.sqrt(raised**2 - now**2) * churn.noise * noise()
            now = raised
        x0 = denoise(y, now)
        if callback is not None:
            callback(i, x0, y)
        slope = (y - x0) / now
        ahead = y + (then - now) * slope
        if then > 0 and second_order:
            ahead = y + (then - now) * (slope + (ahead - denoise(ahead, then)) / then) / 2
        y = ahead
    return y


def snap_sample(
    edm,
    net: Callable[..., Tensor],
    shape: tuple[int, ...],
    steps: int,
    seed: int,
    churn: Churn = Churn(),
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    **conditions,
) -> Tensor:
    """A clip from nothing but a seed: x_sigma ~ N(0, sigma_max^2 I) at first, as in Snap Video.

    Args:
        edm: an `EDM`.
        net: F of `EDM.denoise`.
        shape: B C T H W.
        steps: of `EDM.sigmas`; the paper has 256 in the first stage and 40 in the second.
        seed: of all noise.
    """
    generator, k = torch.Generator().manual_seed(seed), edm.sigma_in

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    def denoise(y: Tensor, s: float) -> Tensor:
        return edm.denoise(net, y / k, torch.full((shape[0],), s / k), **conditions)

    sigmas = k * edm.sigmas(steps)
    return heun_sample(denoise, float(sigmas[0]) * draw(), sigmas, churn, draw, callback)
