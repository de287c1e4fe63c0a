"""The one sampling loop."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedule import CosineSchedule, alpha_sigma


class Level(NamedTuple):
    """A noise level: z = alpha x + sigma eps. Any process fits; variance preserving has alpha^2 + sigma^2 = 1."""

    alpha: float
    sigma: float


# (z_t, x-hat, level t, level s, noise or None) -> z_s
Step = Callable[[Tensor, Tensor, Level, Level, Tensor | None], Tensor]
# (z_s, x-hat at z_s, level s, noise) -> z_s at the same level
Corrector = Callable[[Tensor, Tensor, Level, Tensor], Tensor]


def sample(
    denoise: Callable[[Tensor, int], Tensor],
    z: Tensor,
    levels: list[Level],
    step: Step,
    noise: Callable[[], Tensor] | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    corrector: Corrector | None = None,
) -> Tensor:
    """Walk from ``levels[0]`` to ``levels[-1]``.

    Args:
        denoise: (z, i) -> x-hat at ``levels[i]``.
        z: the state at ``levels[0]``, any shape.
        levels: noise levels from high to low. Where the last has sigma 0, the last step returns x-hat, the mean.
        step: one of this package's steps.
        noise: draws fresh standard noise shaped as ``z``, for stochastic steps.
        callback: called as (i, x-hat, z) once per level; raising from it stops the walk.
        corrector: run after every step but the last, at the level reached, with an evaluation of its own.
    """
    for i, (now, then) in enumerate(zip(levels, levels[1:])):
        x0 = denoise(z, i)
        if callback is not None:
            callback(i, x0, z)
        if then.sigma == 0:
            z = then.alpha * x0
        else:
            z = step(z, x0, now, then, noise() if noise is not None else None)
            if corrector is not None:
                z = corrector(z, denoise(z, i + 1), then, noise())
    return z


def uniform_times(steps: int) -> Tensor:
    """The paper's grid: ``steps + 1`` even times from 1 down to 0 (VDM section 2), float64."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def sample_clip(
    denoiser: Callable[..., Tensor],
    schedule: CosineSchedule,
    shape: tuple[int, ...],
    steps: int,
    step: Step,
    seed: int,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    corrector: Corrector | None = None,
    **conditions,
) -> Tensor:
    """A clip from nothing but a seed: z_1 ~ N(0, I), the paper's grid, and x-hat itself at the end.

    Args:
        denoiser: called as ``denoiser(z, t, **conditions)``; a `Denoiser`, guided or not.
        schedule: its schedule.
        shape: B C T H W.
        steps: steps of the walk, and network evaluations, of which a corrector makes nearly twice as many.
        step: `ddim_step`, or `ancestral_step` with its gamma bound.
        corrector: `langevin_step`, its delta bound or not; None for none.
        seed: of all noise.
    """
    generator = torch.Generator().manual_seed(seed)
    times = uniform_times(steps)
    pairs = zip(*(s.tolist() for s in alpha_sigma(schedule.log_snr(times))))
    levels = [Level(*pair) for pair in pairs][:-1] + [Level(1.0, 0.0)]

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    def denoise(z: Tensor, i: int) -> Tensor:
        return denoiser(z, times[i].expand(shape[0]), **conditions)

    return sample(denoise, draw(), levels, step, draw, callback, corrector)
