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


def with_cfg(denoiser: Callable[..., Tensor], scale: float, batched: bool = True) -> Callable[..., Tensor]:
    """A denoiser that is guided towards its ``context``.

    Args:
        denoiser: called as ``denoiser(z, t, context=tokens)``; all-zero tokens are the unconditional ones.
        scale: see `guided`; 1 evaluates the network once.
        batched: evaluate both halves as one batch; else one after the other, at half the memory.

    Returns:
        A function with the same arguments; for other unconditional tokens (a negative prompt), pass ``negative=``.
    """

    def denoise(z: Tensor, t: Tensor, context: Tensor, negative: Tensor | None = None) -> Tensor:
        if scale == 1:
            return denoiser(z, t, context=context)
        negative = torch.zeros_like(context) if negative is None else negative
        if not batched:
            return guided(denoiser(z, t, context=context), denoiser(z, t, context=negative), scale)
        both = denoiser(torch.cat([z, z]), torch.cat([t, t]), context=torch.cat([context, negative]))
        return guided(*both.chunk(2), scale)

    return denoise
