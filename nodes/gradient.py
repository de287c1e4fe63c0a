"""Differentiating a host MODEL inside a node.

The host runs nodes, and loads weights, under `torch.inference_mode()`; autograd refuses tensors made there. `gradients`
leaves that mode for a while, and swaps such weights for ordinary tensors one by one (so there is never a second copy of the
model). Where an operation refuses something else that was made there (a hint, a patch), `Safeguards` hands it a copy.
Compiled parts of a network are traced without that, for PyTorch's compiler cannot follow it.
"""

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

import comfy.model_management
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._pytree import tree_map_only

from .attention_gradient import OVERRIDE, with_way_back
from .checkpoint import OVERWRITTEN
from .kept import kept
from .kernels import give_kernels_gradients, stand_ins

Result = TypeVar("Result")
# What PyTorch calls a function that its `inference_mode` and `no_grad` stand around.
DECORATED = "decorate_context"


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy that autograd accepts; call outside inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


class _Copies(TorchFunctionMode):
    """Gives every operation a copy of each inference tensor among its arguments; a tensor is copied once."""

    def __init__(self):
        super().__init__()
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the original stays alive, so its id stays its own

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_inference():
            return tensor
        if id(tensor) not in self.copies:
            with torch._C.DisableTorchFunction():
                self.copies[id(tensor)] = (tensor, tensor.clone().detach())  # nobody asks for a patch's own gradient
        return self.copies[id(tensor)][1]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _any_inference(args) or _any_inference(kwargs.values()):  # seldom, and rebuilding all arguments takes longer
            args, kwargs = tree_map_only(torch.Tensor, self._copy, (args, kwargs))
        return function(*args, **kwargs)


def _any_inference(values: Iterable) -> bool:
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_inference():
                return True
        elif isinstance(value, (tuple, list)):
            if _any_inference(value):
                return True
        elif isinstance(value, dict) and _any_inference(value.values()):
            return True
    return False


@contextlib.contextmanager
def _without_copies():
    """Inside, operations get their arguments as they are."""
    modes = []
    while isinstance(mode := _get_current_function_mode(), _Copies):
        mode.__exit__(None, None, None)
        modes.append(mode)
    try:
        yield
    finally:
        for mode in reversed(modes):
            mode.__enter__()


class _CompiledPart(torch.nn.Module):
    """A compiled network, or a part of one, that gets copies of its arguments, and makes none within.

    A patch in it may hold an inference tensor of its own, as adapters do: then it runs as it was before it was compiled, and
    copies are made.
    """

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.net, name)

    def forward(self, *args, **kwargs):
        if _any_inference(args) or _any_inference(kwargs.values()):
            args, kwargs = tree_map_only(torch.Tensor, plain, (args, kwargs))
        try:
            with _without_copies():
                return self.net(*args, **kwargs)
        except RuntimeError as error:
            if "Inference tensors cannot be saved for backward" not in str(error):
                raise
            warnings.warn("A patch holds a tensor of its own, so where gradients are taken the model runs uncompiled.")
        return self.net._orig_mod(*args, **kwargs)


@contextlib.contextmanager
def _prepared_calls(base):
    """Inside, what other nodes put into a model, in its place anew for each call, lets the way back through.

    Compiled parts become `_CompiledPart`s, and another node's attention is given a way back where it has none.
    """
    call = getattr(base, "_apply_model", None)
    if call is None:  # a ControlNet, a VAE
        yield
        return
    overrides: dict[int, Callable] = {}  # each holds what it stands for, so an id stays its own

    def apply_model(x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        if OVERRIDE in transformer_options:
            override = transformer_options[OVERRIDE]
            attention = overrides.setdefault(id(override), with_way_back(override))
            transformer_options = {**transformer_options, OVERRIDE: attention}
        found = []
        if "torch._dynamo" in sys.modules:  # else nobody has compiled anything
            children = [(part, name, m) for part in base.modules() for name, m in part._modules.items()]
            found = [c for c in children if hasattr(c[2], "_orig_mod") and not isinstance(c[2], _CompiledPart)]
        for part, name, module in found:
            part._modules[name] = _CompiledPart(module)
        try:
            return call(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for part, name, module in found:
                part._modules[name] = module

    own = base.__dict__.get("_apply_model")
    base._apply_model = apply_model
    try:
        yield
    finally:
        del base._apply_model
        if own is not None:  # somebody else had replaced it, or gradients are taken within gradients
            base._apply_model = own


def without_decorator(model_options: dict) -> dict:
    """The host's options, with the function around the network as it is below PyTorch's ``@torch.inference_mode()``.

    Or another such decorator, under which nothing has a gradient. TiledDiffusion has it on what cuts pictures into tiles.
    """
    around = model_options.get("model_function_wrapper")
    if inspect.ismethod(around):
        function, bound = around.__func__, (around.__self__,)
    elif inspect.isfunction(around):
        function, bound = around, ()
    else:
        function, bound = getattr(type(around), "__call__", None), (around,)
    if getattr(getattr(function, "__code__", None), "co_name", "") != DECORATED:
        return model_options
    return {**model_options, "model_function_wrapper": functools.partial(function.__wrapped__, *bound)}


def unlock(module: torch.nn.Module) -> None:
    """Swap a module's inference parameters and buffers for ordinary ones that want no gradient, one by one."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_inference():
                part._parameters[name] = torch.nn.Parameter(value.detach().clone(), requires_grad=False)
            elif value is not None and value.requires_grad:
                value.requires_grad_(False)
        for name, value in part._buffers.items():
            if value is not None and value.is_inference():
                part._buffers[name] = value.clone()


@contextlib.contextmanager
def gradients(modules):
    """Inside, operations on ``modules`` record gradients with respect to inputs that ask for them."""
    give_kernels_gradients()
    with torch.inference_mode(False), torch.enable_grad():
        for module in modules:
            unlock(module)
        # The host has kernels without a way back, and leaves them alone while it trains.
        before, comfy.model_management.in_training = comfy.model_management.in_training, True
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(stand_ins())
                for module in modules:
                    stack.enter_context(_prepared_calls(module))
                yield
        finally:
            comfy.model_management.in_training = before


# What errors say, and what helps against them.
REMEDIES = {
    OVERWRITTEN: kept,
    "Inference tensors cannot be saved for backward": _Copies,
    "Inplace update to inference tensor outside InferenceMode": _Copies,
}


class Safeguards:
    """What lets a way back through a host's model that was not written for one.

    The host may write over values that the way back needs, as it adds a ControlNet's residuals, and patches and hints may
    be inference tensors. What helps against either makes every operation slower, some of them several times, and most
    models need neither. So each begins with the first error that asks for it, and what was being done is done again.

    Args:
        module: what has buffers that the work changes; they are put back first.
    """

    def __init__(self, module: torch.nn.Module | None = None):
        self.module = module
        self.begun: list[Callable] = []

    def __call__(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns; it goes forth and back through the model, inside `gradients`."""
        while True:
            buffers = [] if self.module is None else [(buffer, buffer.clone()) for buffer in self.module.buffers()]
            try:
                with contextlib.ExitStack() as stack:
                    for remedy in self.begun:
                        stack.enter_context(remedy())
                    return work()
            except RuntimeError as error:
                remedy = next((remedy for text, remedy in REMEDIES.items() if text in str(error)), None)
                if remedy is None or remedy in self.begun:
                    raise
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            self.begun.append(remedy)
