"""What the training loop needs to know of each system: its network, its loss, and the file it becomes."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import weights
from ..codec import content_motion
from ..codec.content_motion import ContentMotionCodec, ContentMotionConfig, reconstruction_loss
from ..data.shapes import VOCABULARY
from ..systems.vdm import UNet3D, VDMConfig, vdm_loss
from ..systems.vdm import checkpoint as vdm
from ..systems.vdm.grow import grow
from ..text import TextConfig, TextEncoder

if TYPE_CHECKING:
    from .data import Batch


class VDM:
    """The 3-D U-Net, and the text encoder that is trained along with it."""

    model, takes_images = VDMConfig, True

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts that train, fresh or from ``config.start_from``."""
        words = TextConfig(VOCABULARY, config.text_length, config.text_width, config.text_layers)
        module = nn.ModuleDict({"net": UNet3D(config.model).init_weights(), "text": TextEncoder(words)}).train()
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
        return vdm_loss(
            module["net"],
            batch.clips,
            generator,
            context,
            phase.images,
            image_context,
            phase.drop_context,
            phase.time_power,
        )

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return vdm.to_info(config.model, module["text"].config, seed=config.seed, steps=steps)


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
        return reconstruction_loss(module["codec"], batch.clips)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return content_motion.to_info(config.model, seed=config.seed, steps=steps)


SYSTEMS = {vdm.SYSTEM: VDM, content_motion.SYSTEM: ContentMotion}
