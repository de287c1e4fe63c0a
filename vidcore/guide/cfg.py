"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598; VDM section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional).

    ``scale`` is the host's convention: 1 is no guidance, and the papers' weight w of (1 + w) c - w u is ``scale - 1``.
    For x-hat, eps and v alike, since each is affine in the others at a fixed noise level.
    """
    return unconditional + scale * (conditional - unconditional)


Scale = float | Callable[[float], float]  # one number, or a function of time t in [0, 1]


def within(scale: float, low: float, high: float) -> Callable[[float], float]:
    """Guidance at times in [low, high] only (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
    return lambda t: scale if low <= t <= high else 1.0


def oscillating(high: float, low: float, times: Tensor, first: int = 0) -> Callable[[float], float]:
    """``high`` for the first ``first`` steps, then ``low`` and ``high`` in turn (Ho et al. 2022, arXiv 2210.02303).

    Args:
        times: the times (or noise levels) at which the sampler's steps begin, from high to low; a level between two counts
            as the nearer one's.
        first: steps before the turns begin.
    """
    grid = times.tolist()

    def scale(t: float) -> float:
        step = min(range(len(grid)), key=lambda i: abs(grid[i] - t))
        return high if step < first or (step - first) % 2 else low

    return scale


def with_cfg(denoiser: Callable[..., Tensor], scale: Scale, batched: bool = True) -> Callable[..., Tensor]:
    """A denoiser that is guided towards its ``context``.

    Args:
        denoiser: called as ``denoiser(z, t, context=tokens)``; all-zero tokens are the unconditional ones.
        scale: see `guided`; a number, `within` or `oscillating`. Where it is 1 the network is evaluated once.
        batched: evaluate both halves as one batch; else one after the other, at half the memory.

    Returns:
        A function with the same arguments; for other unconditional tokens (a negative prompt), pass ``negative=``.
        All samples of a batch must be at one time where the scale depends on it.
    """

    def denoise(z: Tensor, t: Tensor, context: Tensor, negative: Tensor | None = None) -> Tensor:
        now = scale(float(t.flatten()[0])) if callable(scale) else scale
        if now == 1:
            return denoiser(z, t, context=context)
        negative = torch.zeros_like(context) if negative is None else negative
        if not batched:
            return guided(denoiser(z, t, context=context), denoiser(z, t, context=negative), now)
        both = denoiser(torch.cat([z, z]), torch.cat([t, t]), context=torch.cat([context, negative]))
        return guided(*both.chunk(2), now)

    return denoise
