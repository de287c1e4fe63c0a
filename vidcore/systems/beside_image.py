"""An image model that stays as it is, with the layers of HARIVO or of Tune-A-Video beside it; what the nodes do in ComfyUI.

For training and sampling without the host, on image models of the layout of Stable Diffusion (`image.ImageUNet`): the small
one on pixels, or Stable Diffusion 1.x itself on latents.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..layers.attention import attention
from ..layers.sparse_causal import sparse_causal
from ..schedule import alpha_sigma
from .harivo import HarivoConfig, MotionModule
from .harivo.wire import Watched, moved_input
from .image import LatentUNet, PixelUNet
from .tune_a_video import Block, TuneConfig, TunedLayers

SAMPLES = 16  # weights of each block by which a model is known again


class BesideImage(nn.Module):
    """Layers beside an image model, which moves to devices with them, but is no part of their state.

    Args:
        net: the image model.
    """

    def __init__(self, net: PixelUNet | LatentUNet):
        super().__init__()
        self._beside = [net.eval().requires_grad_(False)]  # in a list, so that it is not registered as a part
        self.frames = 1

    @property
    def net(self) -> PixelUNet | LatentUNet:
        """The image model."""
        return self._beside[0]

    def _apply(self, fn, recurse=True):
        self.net._apply(fn)
        return super()._apply(fn, recurse)

    def watched(self, maps: bool) -> Watched:
        """What HARIVO's losses look at: the bottleneck, and with ``maps`` self-attention on the way up."""
        up = [part for name, part in self.net.transformers() if name.startswith("output") and maps]
        return Watched(self.net.middle_block[-1], [(part.attn1.to_q, part.attn1.to_k, part.n_heads) for part in up])


class MovingImage(BesideImage):
    """An image model with HARIVO's motion module (arXiv 2410.07763).

    Args:
        net: the image model.
        module: made for it, as `motion_config` says.
    """

    def __init__(self, net: PixelUNet | LatentUNet, module: MotionModule):
        super().__init__(net)
        self.module, self.strength, self._tokens = module, 1.0, None
        for (_, part), layer in zip(net.transformers(), module.temporal, strict=True):
            part.register_forward_hook(self._moving(layer))

    def _moving(self, layer: nn.Module):
        def hook(_, inputs, out):  # of a transformer block, which is given tokens, context and size
            return layer(out, self.frames, inputs[2], self._tokens, self.strength) if self.strength else out

        return hook

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """z: clips B C T H W with noise; t: B, from 0 to 1; context: B L E. Returns x-hat, B C T H W."""
        self.frames = z.shape[2]
        level = alpha_sigma(self.net.schedule.log_snr(t.double()).float())[1]
        z, t = rearrange(z, "b c t h w -> (b t) c h w"), t.float().repeat_interleave(self.frames)
        x, context = self.net.fold(z), context.repeat_interleave(self.frames, dim=0)
        x, context, self._tokens = moved_input(self.module, x, context, level, self.frames, self.strength)
        out = self.net.estimate(z, self.net.inner(x, t, context), t)
        return rearrange(out, "(b t) c h w -> b c t h w", t=self.frames)


class InflatedImage(BesideImage):
    """An image model with Tune-A-Video's changes (arXiv 2212.11565): sparse-causal attention, W_Q, temporal attention.

    Args:
        net: the image model.
        layers: made for it, with group norms per frame.

    Raises:
        ValueError: if the layers were tuned with group norms over the clip, which the host's nodes alone do.
    """

    def __init__(self, net: PixelUNet | LatentUNet, layers: TunedLayers):
        super().__init__(net)
        if layers.config.norm != "frame":
            raise ValueError("layers that were tuned with norms over the clip work in ComfyUI's Load Tuned Video alone")
        self.layers = layers
        for (_, part), tuned in zip(net.transformers(), layers.blocks, strict=True):
            part.attn1.to_q.register_forward_hook(_changed(tuned, "self_query"))
            part.attn2.to_q.register_forward_hook(_changed(tuned, "text_query"))
            part.attn1.attend = self._sparse_causal
            part.register_forward_hook(lambda _, inputs, out, tuned=tuned: tuned.temporal(out, self.frames))

    def _sparse_causal(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return sparse_causal(q, k, v, self.frames, lambda *parts: attention(*parts, heads))

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """z: clips B C T H W with noise; t: B, from 0 to 1; context: B L E. Returns x-hat, B C T H W."""
        self.frames = z.shape[2]
        frames, context = rearrange(z, "b c t h w -> (b t) c h w"), context.repeat_interleave(self.frames, dim=0)
        out = self.net(frames, t.float().repeat_interleave(self.frames), context)
        return rearrange(out, "(b t) c h w -> b c t h w", t=self.frames)


def _changed(tuned: nn.Module, name: str):
    """A hook that adds a change of W_Q to what the projection gives."""
    return lambda _, inputs, out: out + F.linear(inputs[0], getattr(tuned, name).to(inputs[0]))


def blocks_of(net: PixelUNet | LatentUNet) -> tuple[Block, ...]:
    """Names and sizes of an image model's transformer blocks, in the order in which they run."""
    return tuple(Block(name, part.attn1.to_q.in_features, part.n_heads) for name, part in net.transformers())


def motion_config(net: PixelUNet | LatentUNet, frames: int, **sizes) -> HarivoConfig:
    """The motion module that fits an image model; ``sizes`` are the other fields of `HarivoConfig`."""
    return HarivoConfig(blocks_of(net), net.config.out_channels, net.config.context, frames=frames, **sizes)


def tune_config(net: PixelUNet | LatentUNet, order: bool) -> TuneConfig:
    """The inflation that fits an image model."""
    return TuneConfig(blocks_of(net), "frame", order)


def fingerprint(net: PixelUNet | LatentUNet) -> Tensor:
    """A few weights of every block's keys, by which `tune_a_video.checkpoint.same_base` knows the model again; float32."""
    samples = []
    for _, part in net.transformers():
        flat = part.attn1.to_k.weight.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long()
        samples.append(flat[places.to(flat.device)].float().cpu())
    return torch.cat(samples)
