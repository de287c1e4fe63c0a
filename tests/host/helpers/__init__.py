"""A node pack for the tests alone: conditioning of any width, so that a model can run without its text encoder; and more."""

import hashlib
import logging
from unittest.mock import patch

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from torch._dynamo.utils import counters


class RandomConditioning:
    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("CONDITIONING",), "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"tokens": ("INT", {"default": 8}), "width": ("INT", {"default": 768}), "seed": ("INT", {})}}

    def make(self, tokens, width, seed):
        generator = torch.Generator().manual_seed(seed)
        words = torch.randn(1, tokens, width, generator=generator)
        return ([[words, {"pooled_output": torch.randn(1, 1280, generator=generator)}]],)


class HashWeights:
    """The SHA-256 of a MODEL's own weights, without its patches, whether or not they are applied just now."""

    CATEGORY, RETURN_TYPES, FUNCTION, OUTPUT_NODE = "tests", (), "hash", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def hash(self, model, after):
        found = hashlib.sha256()
        for key, weight in model.model.state_dict().items():
            weight = model.backup[key].weight if key in model.backup else weight
            found.update(weight.contiguous().cpu().view(torch.uint8).numpy())
        return {"ui": {"text": [found.hexdigest()]}}


class ShareWeights:
    """Whether two MODELs have the same weights, in the same memory."""

    CATEGORY, RETURN_TYPES, FUNCTION, OUTPUT_NODE = "tests", (), "tell", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("MODEL",), "second": ("MODEL",)}}

    def tell(self, first, second):
        return {"ui": {"text": [str(first.model is second.model)]}}


class ChangeSkips:
    """A tenth more of each skip connection of a U-Net, written over it, as a ControlNet is added, or beside it.

    The factor is a tensor made while the node runs, as those of adapters are.
    """

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "change"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "in_place": ("BOOLEAN", {"default": True})}}

    def change(self, model, in_place):
        model = model.clone()
        factor = torch.full((1,), 1.1)
        model.set_model_output_block_patch(
            lambda h, skip, options: (h, skip.mul_(factor.to(skip)) if in_place else skip * factor.to(skip))
        )
        return (model,)


class NoAttention:
    """An attention of its own for every layer, as packs bring faster ones; this one finds nothing."""

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "override"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def override(self, model):
        model = model.clone()
        nothing = lambda attention, *args, **kwargs: torch.zeros_like(attention(*args, **kwargs))  # noqa: E731
        model.model_options["transformer_options"]["optimized_attention_override"] = nothing
        return (model,)


class CutOffAttention:
    """The host's attention as another node's of its own, without a way back, as SageAttention has none.

    With ``registered`` it is one of PyTorch's custom operators, whose way back is an error.
    """

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "override"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "registered": ("BOOLEAN", {"default": False})}}

    def override(self, model, registered):
        @torch.no_grad()
        def cut_off(attention, q, k, v, heads, **kwargs):
            return attention(q, k, v, heads, **kwargs)

        def operator(attention, q, k, v, heads, **kwargs):
            return copied(cut_off(attention, q, k, v, heads, **kwargs) + 0 * q)

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = operator if registered else cut_off
        return (model,)


@torch.library.custom_op("vidcore_tests::copied", mutates_args=())
def copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class Tiles:
    """The network sees both halves of the pictures, in one batch or one after the other, as TiledDiffusion lets it.

    That has ``@torch.inference_mode()`` on what does it, and keeps one canvas for all steps.
    """

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "cut"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "batch": ("BOOLEAN", {}), "inference": ("BOOLEAN", {})}}

    def cut(self, model, batch, inference):
        model = model.clone()
        kind = TilesWithoutGradients if inference else SomeTiles
        model.set_model_unet_function_wrapper(kind(batch))
        return (model,)


class SomeTiles:
    def __init__(self, batch):
        self.batch, self.canvas = batch, None

    def __call__(self, network, arguments):
        x, sigma, given = arguments["input"], arguments["timestep"], arguments["c"]
        halves = x.chunk(2, dim=-1)
        if self.batch:
            given = {name: torch.cat([v, v]) if torch.is_tensor(v) else v for name, v in given.items()}
            made = network(torch.cat(halves), sigma.repeat(2), **given).chunk(2)
        else:
            made = [network(half, sigma, **given) for half in halves]
        if self.canvas is None or self.canvas.shape != x.shape:
            self.canvas = torch.zeros_like(x)
        self.canvas.zero_()
        self.canvas[..., : halves[0].shape[-1]] += made[0]
        self.canvas[..., halves[0].shape[-1] :] += made[1]
        return self.canvas * torch.ones_like(x)


class TilesWithoutGradients(SomeTiles):
    @torch.inference_mode()
    def __call__(self, network, arguments):
        return super().__call__(network, arguments)


class CompileModel:
    """What the host's TorchCompileModel does, with any of PyTorch's backends ("aot_eager" spares minutes), and for parts of
    the network, as other packs do by the same call.
    """

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "compile"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "backend": ("STRING", {}), "parts": ("STRING", {})}}

    def compile(self, model, backend, parts):
        model = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model, backend, {"guard_filter_fn": skip_torch_compile_dict}, keys=parts.split())
        return (model,)


class CompiledGraphs:
    """How many graphs this process has compiled, and why some were broken, a reason a line."""

    CATEGORY, RETURN_TYPES, FUNCTION, OUTPUT_NODE = "tests", (), "tell", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return float("nan")

    def tell(self):
        return {"ui": {"text": [str(counters["stats"]["unique_graphs"]), *counters["graph_break"]]}}


class SplitOverTwo:
    """The host's MultiGPU CFG Split, with the processor under two names as its two GPUs; the log says what runs on each."""

    CATEGORY, RETURN_TYPES, FUNCTION = "tests", ("MODEL",), "split"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def split(self, model):
        devices = [torch.device("cpu"), torch.device("cpu", 0)]

        def tell(executor, x, timesteps, context, y, control, options, **kwargs):
            logging.info("a split's part runs on %s", options.get("multigpu_thread_device"))
            return executor(x, timesteps, context, y, control, options, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "tell", tell)
        with patch.object(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices):
            return MultiGPUCFGSplitNode.execute(model, max_gpus=2).result


NODES = (
    RandomConditioning, HashWeights, ChangeSkips, NoAttention, CutOffAttention, Tiles, CompileModel, CompiledGraphs,
    ShareWeights, SplitOverTwo,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in NODES}
