"""A copy of a model whose weights stay where they are loaded."""

import dataclasses
import functools
import inspect
import types
import weakref

import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor

KEY = "vidcore_follow"
# Of a model whose weights come and go: the copy whose weights stay, and what the host wants beside that for a clone.
_copies: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_beside: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def still(patcher):
    """A clone whose weights stay: those that the host pages in and out may be gone before the way back needs them.

    The host loads one copy of the model for all such clones, as long as there is one of them.
    """
    patcher = patcher.clone()
    if not patcher.is_dynamic():
        return patcher
    follow(patcher)
    model = _copies[patcher.model]() if patcher.model in _copies else None
    clone = patcher.clone(disable_dynamic=True, model_override=None if model is None else (model, _beside[model]))
    if model is None:
        settle(clone.model)
        _copies[patcher.model] = weakref.ref(clone.model)
        _beside[clone.model] = clone.get_clone_model_override()[1]
    return clone


def follow(patcher) -> None:
    """Let what stands around parts of a MODEL's network stand around those of another copy, wherever the host makes one.

    It does so for `still`, for LoRAs that come and go by hooks where weights are paged, and to train LoRAs.
    """
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow)


def _follow(patcher, clone) -> None:
    if clone.model is patcher.model:
        return
    others = dict(clone.model.named_modules())
    others = {id(part): others[name] for name, part in patcher.model.named_modules() if name in others}
    for place, patch in clone.object_patches.items():
        clone.object_patches[place] = moved(patch, others)


def settle(model: torch.nn.Module) -> None:
    """Weights in the type that the host wants them in: some layers of such a clone have that of the file instead."""
    for part in model.modules():
        for name, weight in part._parameters.items():
            wanted = getattr(part, f"{name}_comfy_model_dtype", None)
            if weight is not None and wanted not in (None, weight.dtype) and not isinstance(weight, QuantizedTensor):
                part._parameters[name] = torch.nn.Parameter(weight.to(wanted), requires_grad=False)


def moved(patch, others: dict[int, torch.nn.Module]):
    """A patch that stands around methods of modules, around those of others instead.

    Args:
        patch: a method, a `functools.partial`, a dataclass of such things, or something else, which stays.
        others: by the id of a module, the one that takes its place.
    """
    go = functools.partial(moved, others=others)
    if inspect.ismethod(patch) and id(patch.__self__) in others:
        return types.MethodType(patch.__func__, others[id(patch.__self__)])  # whatever stands around that just now
    if isinstance(patch, functools.partial):
        return functools.partial(
            go(patch.func), *map(go, patch.args), **{key: go(part) for key, part in patch.keywords.items()}
        )
    if dataclasses.is_dataclass(patch) and not isinstance(patch, type):
        parts = {field.name: getattr(patch, field.name) for field in dataclasses.fields(patch) if field.init}
        changed = {name: new for name, part in parts.items() if (new := go(part)) is not part}
        return dataclasses.replace(patch, **changed) if changed else patch
    return patch
