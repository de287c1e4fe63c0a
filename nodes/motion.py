"""A motion module on the host's image models, by patching a MODEL: its own weights and modules stay as they are."""

import comfy.model_patcher
import comfy.patcher_extension
import torch

from ..vidcore.systems.harivo import HarivoConfig, MotionModule
from ..vidcore.systems.harivo.wire import WithMotion, moved_input
from ..vidcore.systems.wire import frames_per_clip
from .host_image import FoldedUNet
from .inflate import ONE_NETWORK, find_blocks, wrap
from .one_clip import one_clip
from .one_device import on_one_device
from .samplers import host_level
from .sparse_causal import image_unet
from .whole import WholeLayers

KEY = "vidcore_harivo"


def motion_config(model, node: str, frames: int, **sizes) -> HarivoConfig:
    """The motion module that fits a MODEL. Raises ValueError, naming the ``node``, if it is not an image model with text."""
    net = image_unet(model, node)
    context = next((m.attn2.to_k.in_features for m in net.modules() if getattr(m, "attn2", None) is not None), 1)
    return HarivoConfig(find_blocks(net), net.out_channels, context, frames=frames, **sizes)


def new_module(config: HarivoConfig, seed: int) -> MotionModule:
    """A module before its first step, float32, that gradients can reach although nodes run in inference mode."""
    with torch.inference_mode(False):
        return MotionModule(config, WholeLayers, dtype=torch.float32).init_weights(seed)


def add_motion(model, module: MotionModule, patcher: comfy.model_patcher.ModelPatcher, strength: float = 1.0):
    """A clone of a MODEL whose batch is one clip, and moves.

    Args:
        model: an image MODEL with the blocks that the module is made for.
        module: the motion module.
        patcher: it, or what it is a part of, as `inflate.layers_patcher` gives it.
        strength: scales what the module adds; 0 is the image model itself.
    """
    model, key = model.clone(), f"{KEY}_{id(module)}"
    for block, layer in zip(module.config.blocks, module.temporal, strict=True):
        wrap(model, block.name, WithMotion, layer, key, strength)
    sampling, net = model.get_model_object("model_sampling"), model.get_model_object("diffusion_model")
    fold, unfold = (net.fold, net.unfold) if isinstance(net, FoldedUNet) else (lambda x: x,) * 2

    def move(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        """DIFFUSION_MODEL: mapping network in front, frame tokens behind the text. ControlNets have had the plain text."""
        frames = frames_per_clip(len(x), transformer_options)
        level, _ = host_level(sampling, transformer_options["sigmas"].flatten()[0])  # no number: that would wait for a GPU
        x, context, tokens = moved_input(module, fold(x), context, level.sigma, frames, strength)
        options = {**transformer_options, key: tokens}
        return executor(unfold(x), timesteps, context, y, control, options, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, move)
    one_clip(model)
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), patcher])
    on_one_device(model, ONE_NETWORK)
    return model
