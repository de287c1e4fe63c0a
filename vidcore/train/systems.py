"""What the training loop needs to know of each system: its network, its loss, and the file it becomes."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import weights
from ..codec import content_motion
from ..codec.content_motion import ContentMotionCodec, ContentMotionConfig, load_codec, reconstruction_loss
from ..systems.cmd import MotionConfig, MotionDiT, motion_loss
from ..systems.cmd import checkpoint as cmd
from ..systems.harivo import ClipLosses
from ..systems.harivo.wire import Watched
from ..systems.snap import FIT, SnapConfig, images_as_clips, snap_loss
from ..systems.snap import checkpoint as snap
from ..systems.snap.stages import enlarge, second_stage, shrink
from ..systems.vdm import UNet3D, VDMConfig, vdm_loss
from ..systems.vdm import checkpoint as vdm
from ..systems.vdm.grow import grow
from ..text import TextConfig, TextEncoder
from ..text.load import load_text
from .image_systems import IMAGE_SYSTEMS

if TYPE_CHECKING:
    from .data import Batch


class VDM:
    """The 3-D U-Net, and the text encoder that is trained along with it; on demand with HARIVO's losses."""

    model, takes_images = VDMConfig, True
    forgets = ("losses.",)

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts that train, fresh or from ``config.start_from``."""
        words = _words(config)
        module = nn.ModuleDict({"net": UNet3D(config.model).init_weights(), "text": TextEncoder(words)}).train()
        if config.contrast or config.attention_loss:
            width = module["net"].middle[-1].res.conv2.out_channels
            module["losses"] = ClipLosses(width, config.contrast, config.attention_loss, config.queue)
        if config.start_from:
            net, text = vdm.load_vdm(root / config.start_from)
            if (net.config.blocks, net.config.attention_sizes) != (config.model.blocks, config.model.attention_sizes):
                net = grow(net, config.model)
            weights.load_into(module["net"], net.state_dict(), "network")
            weights.load_into(module["text"], text.state_dict(), "text encoder")
        return module

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step."""
        context, image_context = module["text"](batch.tokens), None
        if batch.image_tokens is not None:
            image_context = module["text"](batch.image_tokens.flatten(0, 1)).unflatten(0, batch.image_tokens.shape[:2])
        net, more = module["net"], module["losses"] if "losses" in module else None
        watched = Watched(net.middle[-1], _attentions(net) if more is not None and more.attention else [])
        with watched if more is not None else contextlib.nullcontext():
            loss = vdm_loss(
                net,
                batch.clips,
                generator,
                context,
                phase.images,
                image_context,
                phase.drop_context,
                phase.time_power,
            )
        if more is not None and phase.frames > 1:
            loss = loss + more(watched, phase.frames, generator, phase.images)
        return loss

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return vdm.to_info(config.model, module["text"].config, seed=config.seed, steps=steps)


def _attentions(net: UNet3D) -> list:
    """The layers of attention over space on the way up, whose maps HARIVO's attention loss compares."""
    layers = [part.spatial for part in net.up if getattr(part, "spatial", None) is not None]
    return [(layer.qkv, None, layer.heads) for layer in layers]


class ContentMotion:
    """CMD's autoencoder, which needs no text."""

    model, takes_images = ContentMotionConfig, False

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts that train, fresh or from ``config.start_from``."""
        codec = ContentMotionCodec(config.model).init_weights()
        if config.start_from:
            weights.load_into(codec, content_motion.load_codec(root / config.start_from).state_dict(), "autoencoder")
        return nn.ModuleDict({"codec": codec}).train()

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step."""
        return reconstruction_loss(module["codec"], batch.clips, generator, phase.recolour)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return content_motion.to_info(config.model, seed=config.seed, steps=steps)


class CMD:
    """CMD's motion model on a trained autoencoder, which goes into the file as it is, and the text encoder.

    The text encoder is trained along, or is that of ``text_from``, as it is.
    """

    model, takes_images = MotionConfig, False

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts of the file. Raises `weights.WeightsError` if the autoencoder's latents are not the model's."""
        codec, model = load_codec(root / config.codec_from).requires_grad_(False), config.model
        found = (codec.config.latent, codec.config.channels, codec.config.frames)
        wanted = (model.latent, model.content_channels, model.frames)
        if found != wanted:
            raise weights.WeightsError(
                f"{config.codec_from} makes motion of {found[0]} channels and content of {found[1]} from clips of "
                f"{found[2]} frames; the recipe's model is for {wanted[0]}, {wanted[1]} and {wanted[2]}."
            )
        text = _text(config, root)  # before the network: so seeds have drawn them
        module = nn.ModuleDict({"net": MotionDiT(model).init_weights(), "text": text, "codec": codec})
        if config.start_from:
            net, text, _ = cmd.load_cmd(root / config.start_from)
            weights.load_into(module["net"], net.state_dict(), "network")
            weights.load_into(module["text"], text.state_dict(), "text encoder")
        return module.train()

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step."""
        with torch.no_grad():
            encoded = module["codec"].encode(batch.clips)
        context = module["text"](batch.tokens)
        motion, content = encoded.motion.float(), encoded.content[:, 0].float()
        return motion_loss(module["net"], motion, content, generator, context, phase.drop_context, phase.time_power)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        text, codec = module["text"].config, module["codec"].config
        return cmd.to_info(config.model, text, codec, seed=config.seed, steps=steps)


class Snap:
    """One stage of Snap Video, and the text encoder: trained along with it, or that of ``text_from``, as it is."""

    model, takes_images = SnapConfig, True

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts that train, fresh or from ``config.start_from``, which for a second stage may be a first one."""
        module = nn.ModuleDict({"net": FIT(config.model).init_weights(), "text": _text(config, root)})
        if config.start_from:
            net, text = snap.load_snap(root / config.start_from)
            if config.model.low_resolution and not net.config.low_resolution:
                net = second_stage(net, config.model)
            weights.load_into(module["net"], net.state_dict(), "network")
            if not config.text_from:
                weights.load_into(module["text"], text.state_dict(), "text encoder")
        return module.train()

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step; each image of the batch is a clip of its own."""
        frames = config.model.frames
        x, context, interval = batch.clips[:, :, :frames], module["text"](batch.tokens), batch.interval
        if batch.image_tokens is not None:
            pictures = batch.clips[:, :, frames:].movedim(2, 1).flatten(0, 1)
            x = torch.cat([x, images_as_clips(pictures, frames)])
            context = torch.cat([context, module["text"](batch.image_tokens.flatten(0, 1))])
            interval = torch.cat([interval, interval.new_zeros(len(pictures))])
        size = torch.full((len(x),), float(config.model.height), device=x.device)
        low = enlarge(shrink(x, config.model), x.shape[3:]) if config.model.low_resolution else None
        return snap_loss(
            module["net"], x, generator, interval, size, context, phase.drop_context, low, phase.self_conditioning,
            phase.noisier,
        )  # fmt: skip

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return snap.to_info(config.model, module["text"].config, seed=config.seed, steps=steps)


def _text(config, root: Path) -> TextEncoder:
    """A fresh text encoder, or that of ``config.text_from``, which does not train."""
    if config.text_from:
        return load_text(root / config.text_from).requires_grad_(False)
    return TextEncoder(_words(config))


def with_words(config, root: Path):
    """The recipe with the words of the text encoder that does not train, where it names one."""
    frozen = config.text_from or config.image_from
    if not frozen:
        return config
    words = weights.entry(weights.read_info(root / frozen), "text", TextConfig)
    return replace(config, words=words.words, text_length=words.length)


def _words(config) -> TextConfig:
    return TextConfig(config.words, config.text_length, config.text_width, config.text_layers)


SYSTEMS = {vdm.SYSTEM: VDM, content_motion.SYSTEM: ContentMotion, cmd.SYSTEM: CMD, snap.SYSTEM: Snap, **IMAGE_SYSTEMS}
