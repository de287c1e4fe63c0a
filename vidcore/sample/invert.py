"""DDIM inversion: from a clip to the noise that DDIM makes it from (Song et al. 2021, arXiv 2010.02502, section 4.3).

One DDIM step from level t down to s, solved for where it came from, in two forms that say the same at the solution::

    z_t = (alpha_t / alpha_s) (z_s - sigma_s eps) + sigma_t eps,      eps = eps-hat(z_t, t)        (1)
    z_t = alpha_t x + (sigma_t / sigma_s) (z_s - alpha_s x),          x   = x-hat(z_t, t)          (2)

The unknown z_t is on both sides. Tune-A-Video's code, as others do, takes eps-hat(z_s, t) in (1), which sampling does not
walk back exactly. Repeating the formula with the z_t just found is a fixed-point iteration, and at its limit the walk
back is exact. It settles faster the less the right side depends on z_t: (1) where there is little noise, (2) where
there is much, since eps-hat follows z in strong noise and x-hat in weak. Every step needs only (alpha, sigma) and
x-hat, so this holds for every parameterisation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..denoise import to_eps
from .ddim import ddim_step
from .loop import Level, sample


def hold_noise(z: Tensor, eps: Tensor, now, then) -> Tensor:
    """Form (1): ``z`` = z_s with its noise ``eps`` taken up from `Level` ``now`` = s to ``then`` = t."""
    return then.alpha / now.alpha * (z - now.sigma * eps) + then.sigma * eps


def invert(
    denoise: Callable[[Tensor, int], Tensor],
    z: Tensor,
    levels: list[Level],
    iterations: int = 3,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Walk a clip from ``levels[0]`` up to ``levels[-1]``.

    Args:
        denoise: (z, i) -> x-hat at ``levels[i]``.
        z: the clip at ``levels[0]``, any shape.
        levels: noise levels from low to high: the sampler's own, turned round.
        iterations: fixed-point iterations per step after the first guess, each one evaluation; at 0 this is Tune-A-Video's
            inversion, form (1) throughout.
        callback: called as (evaluations done, x-hat, z) after each of them; raising from it stops the walk.

    Returns:
        z at ``levels[-1]``.

    Raises:
        ValueError: if the levels do not rise.
    """
    ratios = [level.sigma / level.alpha if level.alpha else float("inf") for level in levels]
    if any(low >= high for low, high in zip(ratios, ratios[1:])):
        raise ValueError("inversion needs noise levels that rise from step to step")
    done = 0
    for i, (now, then) in enumerate(zip(levels, levels[1:]), start=1):
        found, noisy = z, iterations > 0 and now.sigma * then.sigma > now.alpha * then.alpha
        best, least = None, float("inf")
        for _ in range(1 + iterations):
            x0 = denoise(found, i)
            if noisy:  # form (2) is DDIM's own step, upwards
                new = ddim_step(z, x0, now, then)
            else:
                new = hold_noise(z, to_eps(x0, found, then.alpha, then.sigma), now, then)
            # Where the network is steep, iterations may drift away again: keep the one that agreed best with itself.
            apart = float((new - found).float().square().mean())
            if apart < least:
                best, least = new, apart
            found, done = new, done + 1
            if callback is not None:
                callback(done, x0, new)
        z = new if best is None else best
    return z


def round_trip_error(
    denoise: Callable[[Tensor, int], Tensor],
    clip: Tensor,
    noise: Tensor,
    levels: list[Level],
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> float:
    """How far DDIM from ``noise``, down the same levels, ends from ``clip``: root mean square, relative to the clip's own.

    Args:
        denoise, levels: as in `invert`; ``levels`` rise.
        clip: at ``levels[0]``.
        noise: what `invert` made of it.
        callback: as in `loop.sample`.
    """
    last = len(levels) - 1
    again = sample(lambda z, i: denoise(z, last - i), noise, levels[::-1], ddim_step, callback=callback)
    size = clip.float().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return float((again - clip).float().square().mean().sqrt() / size)
