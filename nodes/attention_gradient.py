"""A way back through attention that another node puts in place of the host's.

SageAttention, the most usual one, is made for inference: what it returns is cut off from its queries, keys and values, and
PyTorch takes the gradient of the rest of the network without a word.
"""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

# What another node puts in place of attention, among the host's transformer_options.
OVERRIDE = "optimized_attention_override"
# Kernels of 8 or 4 bits are this near to exact attention, and what is further away computes something else.
ALIKE = 0.2


def with_way_back(override: Callable) -> Callable:
    """Another node's attention; where that has no way back, and computes the same, the attention that it stands for.

    Args:
        override: (the host's attention, queries, keys, values, ...) -> what that would return.

    Returns:
        The same with a way back. What has none and computes something else is left as it is, and the log says so.
    """
    known: dict[tuple, bool] = {}  # whether the host's attention is needed, for arguments of some shapes

    @torch.compiler.disable
    def attend(attention: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs):
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in (q, k, v)):
            return override(attention, q, k, v, *args, **kwargs)
        shapes = (q.shape, k.shape, q.dtype, kwargs.get("mask") is None)
        needed = known.get(shapes)
        if needed is None:
            needed = _is_cut_off(override, attention, (q, k, v), args, kwargs)
            if needed is not None:
                known[shapes] = needed
        return override(attention, q, k, v, *args, **kwargs) if needed is False else attention(q, k, v, *args, **kwargs)

    return attend


def _is_cut_off(
    override: Callable, attention: Callable, tokens: tuple[Tensor, ...], args: tuple, kwargs: dict
) -> bool | None:
    """Whether ``override`` computes what ``attention`` does and no gradient comes back from it.

    None where both are zero, as of an empty prompt's values, which tells nothing of others.
    """
    leaves = [x.detach().requires_grad_() for x in tokens]
    # What these calls save is not for the memory saver, which counts what its blocks save.
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of kernels without a way back
        made = override(attention, *leaves, *args, **kwargs)
        with contextlib.suppress(RuntimeError):  # "no autograd formula was registered", "does not require grad"
            if any(x is not None for x in torch.autograd.grad(made.float().sum(), leaves, allow_unused=True)):
                return False
        with torch.no_grad():
            exact = attention(*leaves, *args, **kwargs).float()
    if not made.any() and not exact.any():
        return None
    if (made.detach().float() - exact).norm() <= ALIKE * exact.norm():
        return True
    _say_cut_off()
    return False


@functools.cache
def _say_cut_off() -> None:
    """Once a process."""
    logging.warning(
        "VidCore: a patch on this model brings an attention of its own, which no gradient comes back from. Guidance and "
        "training go on without that part of it; for exact gradients, please take the patch out."
    )
