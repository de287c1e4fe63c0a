"""Less memory for the way back through a network: its blocks keep what they are given, and run again."""

import contextlib
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch.overrides import _get_current_function_mode

# Whether copies are kept of what blocks are given and of what their second run makes: for networks that write over it.
keep_copies: ContextVar[bool] = ContextVar("vidcore_keep_copies", default=False)
OVERWRITTEN = "modified by an inplace operation"  # as PyTorch says it
UNLIKE = "a block that was run again on the way back computed otherwise; please turn memory_saver off for this model"


def blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The outermost repeated parts of a network: what its lists and sequences hold, not the lists themselves."""
    found = []

    def walk(parent: torch.nn.Module, repeated: bool):
        lists = isinstance(parent, (torch.nn.ModuleList, torch.nn.Sequential))
        if repeated and not lists:
            found.append(parent)
            return
        for child in parent.children():
            walk(child, repeated or lists)

    walk(module, False)
    return found


@contextlib.contextmanager
def checkpointed(module: torch.nn.Module):
    """Inside, each of the network's `blocks` keeps only its inputs and is run again on the way back.

    Some write over their inputs (those of LTX do), or the host does later. Where it happens without `Safeguards` around it,
    the way back raises a RuntimeError, as PyTorch does for other values.
    """
    changed = []
    for block in blocks(module):
        original, own = block.forward, block.__dict__.get("forward")

        def forward(*args, _original=original, **kwargs):
            if not torch.is_grad_enabled():
                return _original(*args, **kwargs)
            return _Checkpoint(_original, args, kwargs).run(args, kwargs)

        block.forward = forward
        changed.append((block, own))
    try:
        yield
    finally:
        for block, own in changed:
            del block.forward
            if own is not None:  # somebody else had replaced it
                block.forward = own


class _Inputs(torch.autograd.Function):
    """Saves tensors as an operation would, so that PyTorch notices, or undoes, what is written over them meanwhile."""

    @staticmethod
    def forward(ctx, start, *tensors):
        ctx.save_for_backward(*tensors)
        return torch.empty(0)


class _Saved:
    """Stands for a value that a block's way back needs, until the block is run again."""


class _Checkpoint:
    """A block's call, whose values for the way back are made by a second one.

    PyTorch's `checkpoint` does this too, but where a block writes over values in its second run, or over inputs in tuples
    or given by name, the gradients are wrong without a word (tried with 2.11).

    Args:
        block: the block's forward; called again with the same arguments, it computes the same.
        args, kwargs: its arguments.
    """

    def __init__(self, block: Callable, args: tuple, kwargs: dict):
        self.block, self.copies = block, keep_copies.get()
        self.mode = _get_current_function_mode()  # such as `_Copies`, which PyTorch leaves while it goes back
        tensors: list[torch.Tensor] = []
        with torch._C.DisableTorchFunction():  # `_Copies` would tell of its copies, not of the arguments
            self.args, self.kwargs = _map(lambda value: _place(value, tensors), (args, kwargs))
        self.inputs = _Inputs.apply(torch.empty(0, requires_grad=True), *tensors)
        self.places: list[weakref.ref[_Saved]] = []  # in the order of saving, the same both times
        self.values: weakref.WeakKeyDictionary[_Saved, tuple[torch.Tensor, int]] = weakref.WeakKeyDictionary()

    def run(self, args: tuple, kwargs: dict):
        """The first call, with the arguments themselves."""
        with torch.autograd.graph.saved_tensors_hooks(self._leave_out, self._value):
            return self.block(*args, **kwargs)

    def _leave_out(self, _) -> _Saved:
        saved = _Saved()
        self.places.append(weakref.ref(saved))
        return saved

    def _value(self, saved: _Saved) -> torch.Tensor:
        if saved not in self.values:
            self._run_again()
            if saved not in self.values:
                raise RuntimeError(UNLIKE)
        value, version = self.values[saved]
        if value._version != version:
            raise RuntimeError(f"a value that the way back through a block needs was {OVERWRITTEN}")
        return value

    def _run_again(self) -> None:
        places, tensors = iter(self.places), self.inputs.grad_fn.saved_tensors

        def given(place):
            if not isinstance(place, _Place):
                return place
            tensor = tensors[place.number]
            return tensor.clone() if self.copies else tensor

        def keep(value: torch.Tensor) -> torch.Tensor:
            place, value = next(places, None), value.detach()
            if place is None:
                raise RuntimeError(UNLIKE)
            if (saved := place()) is not None:  # it still waits for its value
                value = value.clone() if self.copies else value
                self.values[saved] = value, value._version
            return value

        mode = None if _get_current_function_mode() else self.mode
        with torch.enable_grad(), mode or contextlib.nullcontext():
            args, kwargs = _map(given, (self.args, self.kwargs))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                self.block(*args, **kwargs)


class _Place(NamedTuple):
    """Where in a list a tensor stands."""

    number: int


def _place(value, tensors: list[torch.Tensor]):
    """A tensor's place in the list, at whose end it is put; anything else, and what cannot be written over, as it is."""
    if not isinstance(value, torch.Tensor) or value.is_inference():
        return value
    tensors.append(value)
    return _Place(len(tensors) - 1)


def _map(function: Callable, value):
    """Tuples, lists and dictionaries copied, with their leaves mapped; the host rewrites those that say where a block is."""
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(function, item) for item in value)
    return function(value)
