"""Reconstruction guidance (VDM section 3.1, eq. 7 and 8).

What is known, x^a, is a measurement of the clip. With q(x^a | z_t) taken as N(x-hat^a(z_t), (sigma_t^2 / alpha_t^2) I)::

    x~ = x-hat(z_t) - (w_r alpha_t / 2) grad_{z_t} || x^a - x-hat^a(z_t) ||^2        (the sum of squares, not their mean)

and where x^a are values of the clip itself, they stand in x~ as they are. A sampler whose step follows
q(z_s | z_t, x) then keeps z^a at x^a plus noise, which is the paper's replacement, and gives x^a at the end exactly.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..schedule import CosineSchedule, alpha_sigma, expand_as
from .measure import Known, Measurement, Packed

# An estimate this many times larger than it was before guidance will not come back.
DIVERGED = 20.0


class GuidanceDiverged(ValueError):
    """The guided estimate ran away; the message says what to lower."""


def reconstruct(
    denoise: Callable[[Tensor], Tensor],
    z: Tensor,
    alpha: float | Tensor,
    measurements: Sequence[Measurement],
    weight: float | Sequence[float],
    clip: float | None = None,
) -> Tensor:
    """x~ at z_t, by one evaluation of ``denoise`` and one walk back through it.

    Args:
        denoise: z_t -> x-hat, differentiable.
        z: z_t = alpha x + sigma eps, B C T H W (any process; where the state is z / c, pass alpha / c for alpha), or a flat
            state whose ``measurements`` are all `Packed`.
        alpha: the signal's scale in z, a number or broadcastable to ``z``.
        measurements: what is known; none at all gives x-hat.
        weight: w_r, one for all or one for each measurement. At 0 nothing is differentiated, and x~ is x-hat with the
            known values in place.
        clip: bound of x~ in absolute value, applied after guidance; None for none.

    Returns:
        x~, shaped as ``z``, without a graph.

    Raises:
        ValueError: if ``denoise`` keeps no way back to z.
        GuidanceDiverged: if x~ is not finite or is far larger than x-hat and the known values.
    """
    weights = list(weight) if isinstance(weight, Sequence) else [weight] * len(measurements)
    if not any(weights):
        with torch.no_grad():
            x0 = denoise(z)
    else:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            x0 = denoise(leaf)
            pairs = [(w, m) for w, m in zip(weights, measurements, strict=True) if w]
            error = sum(w * m.residual(x0).float().square().sum() for w, m in pairs)
            if not error.requires_grad:
                raise ValueError(
                    "the model's estimate has no gradient, which guidance needs: a part of the model, or a patch on it, "
                    "computes without (torch.no_grad, torch.inference_mode). Please take that patch out, or set weight to 0."
                )
            (gradient,) = torch.autograd.grad(error, leaf)
        plain = x0.detach()
        x0 = plain - alpha / 2 * gradient
        _check_size(x0, plain, float(error.detach()) / max(weights), max(weights))
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    for known in measurements:
        if isinstance(known, (Known, Packed)):
            x0 = known.put(x0)
    return x0


def _check_size(guided: Tensor, plain: Tensor, error: float, weight: float) -> None:
    size, before = (float(x.float().square().mean().sqrt()) for x in (guided, plain))
    # The known values may rightly be larger than an estimate that misses them by much.
    allowed = DIVERGED * (before + (error / plain.numel()) ** 0.5 + 1.0)
    if not size <= allowed:
        raise GuidanceDiverged(
            f"reconstruction guidance diverged: the estimate grew from {before:.3g} to {size:.3g} (root mean square). "
            f"Please lower its weight (now {weight:g}) or let it act on fewer steps."
        )


def with_reconstruction(
    denoiser: Callable[..., Tensor],
    schedule: CosineSchedule,
    measurements: Sequence[Measurement],
    weight: float,
    clip: float | None = None,
) -> Callable[..., Tensor]:
    """A denoiser ``(z, t, **conditions) -> x~`` around ``denoiser``, which may already be guided towards a text."""

    def denoise(z: Tensor, t: Tensor, **conditions) -> Tensor:
        alpha, _ = alpha_sigma(schedule.log_snr(t.double()).float())
        return reconstruct(lambda z: denoiser(z, t, **conditions), z, expand_as(alpha, z), measurements, weight, clip)

    return denoise
