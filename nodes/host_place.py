"""From a checkpoint of ours to a MODEL that the host places, casts, pages and patches like its own."""

import functools
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base

from ..vidcore import weights
from .still import settle
from .whole import WholeLayers


def place(
    support: comfy.supported_models_base.BASE, net: dict, path: str, load: Callable, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of the kind that ``support`` describes, with the weights ``net``.

    Args:
        path, load: ``load(path)`` makes the model anew. The host calls it for a copy on another device, or for one
            without the weight paging that it calls dynamic.
        disable_dynamic: without that paging.

    Raises:
        weights.WeightsError: if the tensors do not fit.
    """
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    count = sum(tensor.numel() for tensor in net.values())
    dtype = comfy.model_management.unet_dtype(model_params=count, supported_dtypes=support.supported_inference_dtypes)
    cast = comfy.model_management.unet_manual_cast(dtype, load_device, support.supported_inference_dtypes)
    support.set_inference_dtype(dtype, cast, device=load_device)

    model = support.get_model(net)
    wanted = type(model.diffusion_model)(support.unet_config["config"], device="meta", operations=WholeLayers)
    weights.check(wanted, net, "network")
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(net, assign=patcher.is_dynamic())
    if not patcher.is_dynamic():  # else the host casts as it pages
        settle(model)
    patcher.cached_patcher_init = (load, (path,))
    return patcher


def patchable(forward: Callable) -> Callable:
    """The forward of a network under the host's calling convention, inside what a MODEL wraps around it (EasyCache does)."""

    @functools.wraps(forward)
    def call(self, x, timesteps, context=None, control=None, transformer_options={}, **kwargs):
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            functools.partial(forward, self), self, comfy.patcher_extension.get_all_wrappers(kind, transformer_options)
        )
        return executor.execute(x, timesteps, context, control, transformer_options, **kwargs)

    return call
