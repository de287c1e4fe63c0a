"""Tune-A-Video's layers on the host's image models, by patching a MODEL: its own weights and modules stay as they are."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

from ..vidcore.layers.clip_norm import norm_over_clip
from ..vidcore.systems.tune_a_video import Block, TuneConfig, TunedLayers, added_query
from ..vidcore.systems.tune_a_video.wire import WithTemporal
from ..vidcore.systems.wire import frames_per_clip
from .one_device import on_one_device
from .sparse_causal import add_sparse_causal, image_unet
from .still import follow
from .whole import WholeLayers

KEY = "vidcore_tune_a_video"
# Weights of each block that enter the base model's fingerprint.
SAMPLES = 16
ONE_NETWORK = "layers beside an image model stand around one copy of it."


def wrap(model, place: str, kind, *arguments) -> None:
    """Let ``kind`` stand around the forward of a cloned MODEL's part, whatever stands there already."""
    forward = f"diffusion_model.{place}.forward"
    model.add_object_patch(forward, kind(model.get_model_object(forward), *arguments))
    follow(model)


def find_blocks(net: UNetModel) -> tuple[Block, ...]:
    """The transformer blocks of an image model with cross-attention to text."""
    return tuple(
        Block(name, part.attn1.to_q.in_features, part.n_heads)
        for name, part in net.named_modules()
        if isinstance(part, BasicTransformerBlock) and part.attn2 is not None
    )


def tune_config(model, norm: str = "frame", order: bool = False) -> TuneConfig:
    """The inflation of a MODEL. Raises ValueError if it is not an image model with a U-Net and text."""
    return TuneConfig(find_blocks(image_unet(model, "Tune-A-Video")), norm, order)


def base_weight(model, key: str) -> torch.Tensor:
    """A weight of a MODEL as its file has it, without LoRAs and other patches."""
    return model.backup[key].weight if key in model.backup else comfy.utils.get_attr(model.model, key)


def fingerprint(model, blocks: tuple[Block, ...]) -> torch.Tensor:
    """A few weights of every block, by which `checkpoint.same_base` knows the image model again; float32."""
    samples = []
    for block in blocks:
        flat = base_weight(model, f"diffusion_model.{block.name}.attn1.to_k.weight").flatten()
        places = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long()
        samples.append(flat[places.to(flat.device)].float().cpu())
    return torch.cat(samples)


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """What is on the device as a whole, where the host would leave a part of it behind for want of memory."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load=True)


def layers_patcher(layers: torch.nn.Module, training: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Layers as something that the host places, beside the model; while they are trained, as a whole."""
    kind = WholePatcher if training else comfy.model_patcher.ModelPatcher
    patcher = kind(layers, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())
    patcher.cached_patcher_init = (lambda: layers_patcher(copy.deepcopy(layers)), ())  # for another device
    return patcher


def inflate(model, patcher: comfy.model_patcher.ModelPatcher, strength: float = 1.0):
    """A clone of a MODEL whose batch is one clip: sparse-causal attention, changed queries, temporal attention.

    Args:
        model: an image MODEL with the blocks that the layers are made for.
        patcher: the `TunedLayers`, as `layers_patcher` gives them.
        strength: scales what tuning added; 0 leaves sparse-causal attention alone.
    """
    layers: TunedLayers = patcher.model
    model = model.clone()
    add_sparse_causal(model)
    for block, tuned in zip(layers.config.blocks, layers.blocks, strict=True):
        wrap(model, f"{block.name}.attn1.to_q", _Query, tuned, "self_query", strength)
        wrap(model, f"{block.name}.attn2.to_q", _Query, tuned, "text_query", strength)
        wrap(model, block.name, WithTemporal, tuned.temporal, strength)
    if layers.config.norm == "clip":
        _norm_over_clip(model)
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), patcher])
    on_one_device(model, ONE_NETWORK)
    return model


@dataclass(frozen=True)
class _Query:
    """The forward of a query projection, its change added: ``change`` of ``tuned``, which may become another tensor."""

    project: Callable
    tuned: torch.nn.Module
    change: str
    strength: float

    def __call__(self, tokens):
        return added_query(self.project, getattr(self.tuned, self.change), tokens, self.strength)


def _norm_over_clip(model) -> None:
    """Group norms of residual blocks and output over all frames; they are not told how many, so a wrapper notes it."""
    net, frames = model.get_model_object("diffusion_model"), [1]

    def note(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        frames[0] = frames_per_clip(len(x), transformer_options)
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def over_clip(norm, x):
        return norm_over_clip(norm, x, frames[0])

    names = [
        f"{name}.{part}.0"
        for name, m in net.named_modules()
        if isinstance(m, ResBlock)
        for part in ("in_layers", "out_layers")
    ]
    for name in [*names, "out.0"]:
        forward = f"diffusion_model.{name}.forward"
        model.add_object_patch(forward, partial(over_clip, model.get_model_object(forward)))
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, note)


def new_layers(config: TuneConfig, seed: int) -> TunedLayers:
    """Layers before their first step, float32, that gradients can reach although nodes run in inference mode."""
    with torch.inference_mode(False):
        return TunedLayers(config, WholeLayers, dtype=torch.float32).init_weights(seed)
