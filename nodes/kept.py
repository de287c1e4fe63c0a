"""Values that a way back needs, kept from what is written over them afterwards."""

import contextlib
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .checkpoint import keep_copies


class _Value:
    """What an operation saved for its way back."""

    __slots__ = ("tensor", "__weakref__")

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


class _CopyBeforeWriting(TorchDispatchMode):
    """Copies saved values just before an operation writes over the memory they stand in, or over a part of it."""

    def __init__(self):
        super().__init__()
        # By their memory, which is not freed, and so no other's, while a value that was not copied stands in it.
        self.saved: dict[int, list[weakref.ref[_Value]]] = {}

    def save(self, tensor: torch.Tensor) -> _Value:
        value = _Value(tensor)
        self.saved.setdefault(tensor.untyped_storage()._cdata, []).append(weakref.ref(value))
        return value

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation._schema.is_mutable:
            for number, argument in enumerate(operation._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[number] if number < len(args) else kwargs.get(argument.name)
                    for tensor in written if isinstance(written, (list, tuple)) else (written,):
                        if isinstance(tensor, torch.Tensor):
                            self._copy(tensor.untyped_storage()._cdata)
        # Or a tensor class of another pack (GGUF's weights) would be put around what is a plain tensor without this mode.
        with torch._C.DisableTorchFunctionSubclass():
            return operation(*args, **kwargs)

    def _copy(self, memory: int) -> None:
        for reference in self.saved.pop(memory, ()):
            if (value := reference()) is not None:
                value.tensor = value.tensor.clone()


@contextlib.contextmanager
def kept():
    """Inside, operations may write over what the way back needs; it gets what was there.

    PyTorch's `allow_mutation_on_saved_tensors` is meant for this, but it knows values by their addresses (2.11 does). When
    it has copied one, another that comes to stand there is taken for it, and the gradient is wrong without a word. Nor does
    it see that a value is a part of what is written over.
    """
    mode = _CopyBeforeWriting()
    token = keep_copies.set(True)  # in blocks that run again on the way back
    try:
        with torch.autograd.graph.saved_tensors_hooks(mode.save, lambda value: value.tensor), mode:
            yield
    finally:
        keep_copies.reset(token)
