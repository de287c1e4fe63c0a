"""A way back through the host's kernels.

Fused kernels of comfy_kitchen have no gradient. The host leaves most of them alone while it trains, but not all: those in
the networks of Cosmos Predict 2 and MiniMax H3 raise an error. Each has a plain form beside it, whose gradient this takes.
"""

import functools
from collections.abc import Callable

import torch

KERNELS = (
    "adaln", "rms_adaln", "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1", "rms_rope",
    "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1",
)  # fmt: skip


@functools.cache
def give_kernels_gradients() -> None:
    """Registers them with PyTorch, once a process; what kernels compute stays as it is."""
    try:
        from comfy_kitchen.backends import eager
    except ImportError:  # then the host has none
        return
    for name in KERNELS:
        if hasattr(eager, name) and hasattr(torch.ops.comfy_kitchen, name):
            setup, backward = _gradient(getattr(eager, name))
            torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=setup)


def _gradient(plain: Callable) -> tuple[Callable, Callable]:
    """What `torch.library.register_autograd` takes, for a kernel that computes what ``plain`` does."""

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))
        ctx.others = [None if isinstance(value, torch.Tensor) else (value,) for value in inputs]

    def backward(ctx, *gradients):
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors).detach() if other is None else other[0] for other in ctx.others]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[: len(inputs)]) if needed]
        with torch.enable_grad():
            for i in wanted:
                inputs[i].requires_grad_()
            made = plain(*inputs)
        found: list[torch.Tensor | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, torch.autograd.grad(made, [inputs[i] for i in wanted], gradients)):
            found[i] = gradient
        return tuple(found)

    return setup, backward
