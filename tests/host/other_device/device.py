"""A device of PyTorch's beside the CPU, for machines without a GPU: memory of its own, and the CPU's arithmetic.

As on a GPU, its tensors do not meet the CPU's, have no NumPy arrays, and come into being where they are asked for. PyTorch
brings what this needs for backends written in Python; the operations themselves run on the CPU's tensors within.
"""

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
MEMORY = 8 << 30
aten = torch.ops.aten
# These may be given tensors of both devices, as on a GPU.
MEETING = {
    aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip


class Module:
    """What PyTorch asks of `torch.other`."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def set_device(self, device):
        pass

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


_setup_privateuseone_for_python_backend(rename=NAME, backend_module=Module())
DEVICE = torch.device(NAME, 0)


class OtherTensor(torch.Tensor):
    """A tensor on `DEVICE`; ``inner`` is the CPU's."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self, **_):
        return f"{self.inner!r} on {NAME}"

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, **_):
        raise TypeError(f"can't convert a tensor on {NAME} to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_, **__):
        self.numpy()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def outer(value):
    return OtherTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, OtherTensor) else value


def inner(value):
    return value.inner if isinstance(value, OtherTensor) else value


def run(operation, args, kwargs):
    """An operation on the CPU's tensors within, with the result on the device that it belongs to."""
    if operation is aten._fused_sdp_choice.default:
        return 0  # the plain form, whose parts come here again
    if operation is aten._has_compatible_shallow_copy_type.default:
        return False  # a module that moves gets new parameters
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    others = [value for value in tensors if isinstance(value, OtherTensor)]
    if operation not in MEETING and len(others) < len(tensors) and any(not may_meet(value) for value in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu in {operation}")
    names = [argument.name for argument in operation._schema.arguments]
    if "device" in names and len(args) > names.index("device"):  # given by its place
        args, kwargs = args[:1], {**dict(zip(names[1:], args[1:])), **kwargs}
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
    computed = operation(*tree_map(inner, args), **tree_map(inner, kwargs | ({"device": "cpu"} if asked else {})))
    if operation is aten.copy_.default and not isinstance(args[0], OtherTensor):
        return args[0]
    if asked is not None and asked.type == "cpu":
        return computed
    base, returns = others[0], operation._schema.returns
    views = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    if views and torch.is_inference_mode_enabled() and not base.is_inference():
        with torch.inference_mode(False):  # a view is what it is a view of
            return tree_map(outer, computed)
    return return_and_correct_aliasing(operation, args, kwargs, tree_map(outer, computed))


def may_meet(value) -> bool:
    """Whether a tensor may meet those of the device: one that is there, or a number."""
    return isinstance(value, OtherTensor) or value.ndim == 0


def _made(operation):
    def make(*args, **kwargs):
        kept = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
        return OtherTensor(operation(*args, **kept, device="cpu"))

    return make


def _copy(source, target, non_blocking=False):
    inner(target).copy_(inner(source))
    return target


LIBRARY = torch.library.Library("aten", "IMPL")
for operation in (
    aten.empty.memory_format, aten.empty_strided.default, aten.arange.default, aten.arange.start, aten.arange.start_step,
    aten.eye.default, aten.eye.m,
):  # fmt: skip
    LIBRARY.impl(operation.name().removeprefix("aten::").removesuffix(".default"), _made(operation), "PrivateUse1")
# Where PyTorch itself goes past `__torch_dispatch__`.
LIBRARY.impl("_copy_from", _copy, "PrivateUse1")
LIBRARY.impl("copy_", lambda target, source, non_blocking=False: _copy(source, target), "PrivateUse1")
LIBRARY.impl("_local_scalar_dense", lambda value: inner(value).item(), "PrivateUse1")
