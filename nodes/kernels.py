"""A way back through the host's kernels.

Fused kernels of comfy_kitchen have no gradient. The host leaves most of them alone while it trains, but not all: those in
the networks of Cosmos Predict 2 and MiniMax H3 raise an error, and so do newer ones, of VAEs. Each has a plain form beside
it, whose gradient this takes.

Others stand aside while gradients are taken. SageAttention's results are cut off from what it was given, so that PyTorch
takes the gradient of the rest of the network without a word; FlashAttention has a way back that the host's operator around
it hides; comfy_kitchen's attention in 8 bits has none; products in 8 bits fail, and the host falls back with a line in the
log for each layer. Where neither memory nor PyTorch's attention is at hand, the host takes a few keys at a time, and writes
over what it computes.

Nor does what the host calls its compiler fit (since 0.35): it gives the memory of a network's block to the next one, and
replays blocks as CUDA graphs, while the way back needs what all of them have left.
"""

import contextlib
import functools
from collections.abc import Callable

import comfy.ldm.modules.attention as attention
import comfy.ldm.modules.sub_quadratic_attention as sub_quadratic
import comfy.model_prefetch
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import comfy_kitchen
except ImportError:  # the host once worked without
    comfy_kitchen = None

KERNELS = (
    "adaln", "rms_adaln", "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1", "rms_rope",
    "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1", "group_norm_stats3d", "group_norm_silu_pad3d", "fp16_conv3d",
)  # fmt: skip


def _sage(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, attn_mask=None, **_) -> Tensor:
    """`sageattn` and `sageattn3_blackwell`, by PyTorch."""
    if tensor_layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, scale=sm_scale)
    return out.transpose(1, 2) if tensor_layout == "NHD" else out


def _flash(q, k, v, dropout_p=0.0, causal=False, softmax_scale=-1.0) -> Tensor:
    """The host's `flash_attn_wrapper` without the operator; its scale is -1 for the usual one."""
    scale = None if softmax_scale == -1.0 else softmax_scale
    return attention.flash_attn_func(q, k, v, dropout_p=dropout_p, causal=causal, softmax_scale=scale)


def _all_keys(query, key_t, value, **how) -> Tensor:
    """The host's `efficient_dot_product_attention` with all keys at a time, still for a few queries."""
    return sub_quadratic.efficient_dot_product_attention(query, key_t, value, **how | {"kv_chunk_size": key_t.shape[-1]})


def _int8(q, k, v, *, scale=None, attn_mask=None) -> Tensor:
    """comfy_kitchen's `int8_attention`, by PyTorch; keys may have fewer heads than queries."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _packed(q, k, v, *, scale=None, attn_mask=None) -> Callable[[], Tensor]:
    """`prequantize_int8_attention`, which takes the same and leaves the rest to `int8_attention_from_prequantized`."""
    return functools.partial(_int8, q, k, v, scale=scale, attn_mask=attn_mask)


def _unpacked(packed: Callable[[], Tensor]) -> Tensor:
    return packed()


def _no_product(layer, x) -> None:
    """`fp8_linear` where it cannot: the host then takes the weights in the input's precision."""


def _not_here(device=None) -> bool:
    """What there is on no device: then the host goes without it."""
    return False


STAND_INS = (
    (attention, "sageattn", _sage),
    (attention, "sageattn3_blackwell", _sage),
    (attention, "flash_attn_wrapper", _flash),
    (attention, "efficient_dot_product_attention", _all_keys),
    (comfy_kitchen, "int8_attention", _int8),
    (comfy_kitchen, "prequantize_int8_attention", _packed),
    (comfy_kitchen, "int8_attention_from_prequantized", _unpacked),
    (comfy_kitchen, "sol_attn_is_available", _not_here),  # sparse attention
    (comfy.model_prefetch, "malloc_graph_enabled", _not_here),  # the host's compiler
    (comfy.ops, "fp8_linear", _no_product),
)


@contextlib.contextmanager
def stand_ins():
    """Inside, kernels without a way back are replaced, whichever the host was started with."""
    found = [(module, name, getattr(module, name), ours) for module, name, ours in STAND_INS if hasattr(module, name)]
    for module, name, _, ours in found:
        setattr(module, name, ours)
    try:
        yield
    finally:
        for module, name, theirs, _ in found:
            setattr(module, name, theirs)


@functools.cache
def give_kernels_gradients() -> None:
    """Registers them with PyTorch, once a process; what kernels compute stays as it is."""
    if comfy_kitchen is None:
        return
    from comfy_kitchen.backends import eager

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
