"""Image models, and what trains beside a frozen one: what the training loop needs to know of each."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import weights
from ..codec.content_motion import load_codec
from ..objective import Noised, add_noise, drop, squared_error
from ..systems import harivo, image, tune_a_video
from ..systems.beside_image import InflatedImage, MovingImage, fingerprint, motion_config, tune_config
from ..systems.harivo import ClipLosses, MotionModule
from ..systems.harivo.checkpoint import SYSTEM as HARIVO
from ..systems.harivo.checkpoint import to_info as harivo_info
from ..systems.image import ImageConfig, LatentUNet, PixelUNet, load_image
from ..systems.image.stable_diffusion import is_checkpoint, load_autoencoder, load_net
from ..systems.tune_a_video import TunedLayers
from ..text.load import load_text
from .features import CaptionTable, caches, caption_table

if TYPE_CHECKING:
    from .data import Batch

# What ComfyUI calls a model of this kind, for the record that its loaders compare.
HOSTS_NAME = {PixelUNet: "ImageModel", LatentUNet: "BaseModel"}


class Image:
    """A text-to-image model in the layout of Stable Diffusion; its text encoder is that of ``text_from``, as it is."""

    model, takes_images = ImageConfig, False

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The parts of the file, fresh or from ``config.start_from``."""
        net = PixelUNet(config.model).init_weights()
        if config.start_from:
            weights.load_into(net, image.load_image(root / config.start_from)[0].state_dict(), "network")
        return nn.ModuleDict({"net": net.train(), "text": load_text(root / config.text_from).requires_grad_(False)})

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step, on the first frame of each clip."""
        return image_loss(module, batch.clips[:, :, 0], batch, config, phase, generator)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        return image.to_info(config.model, module["text"].config, seed=config.seed, steps=steps)


def image_loss(module: nn.ModuleDict, x: Tensor, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
    """`objective.squared_error` of an image model on pictures N 3 H W."""
    noised = add_noise(x, config.model.schedule, generator, phase.time_power)
    context = drop(module["text"](batch.tokens), phase.drop_context, generator)
    return squared_error("x0", module["net"](noised.z, noised.t.float(), context), x, noised)


@dataclass(frozen=True)
class ContentConfig(ImageConfig):
    """The image model's sizes, for training on clips."""

    @property
    def longest(self) -> int:
        return 1024


class Content(Image):
    """CMD's content model (arXiv 2403.14148, section 3.2): an image model of content frames that ``codec_from`` makes."""

    model = ContentConfig
    forgets = ("codec.",)

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The image model's parts, and the autoencoder, which is not in the file."""
        module = Image.build(config, root)
        module["codec"] = load_codec(root / config.codec_from).requires_grad_(False)
        return module

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step."""
        with torch.no_grad():
            pictures = module["codec"].encode(batch.clips).content[:, 0].float()
        return image_loss(module, pictures, batch, config, phase, generator)


@dataclass(frozen=True)
class HarivoSizes:
    """A recipe's ``model`` for "harivo".

    Args:
        frames: of a clip.
        frame_tokens, mapping, convolution: as in `HarivoConfig`.
        contrast, attention_loss: weights of the two losses; 0 leaves one out.
        queue: features of other clips that a clip is held against.
    """

    frames: int = 16
    frame_tokens: int = 4
    mapping: int = 64
    convolution: bool = False
    contrast: float = 0.001
    attention_loss: float = 0.001
    queue: int = 64
    stride: int = dataclasses.field(default=8, init=False)

    @property
    def longest(self) -> int:
        return self.frames


class Harivo:
    """HARIVO's motion module beside the image model ``image_from`` (arXiv 2410.07763)."""

    model, takes_images = HarivoSizes, False
    forgets = ("losses.",)

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The moving image model, of which the module alone trains, and the losses."""
        net, text = load_base(config, root)
        sizes = config.model
        parts = dict(frame_tokens=sizes.frame_tokens, mapping=sizes.mapping, convolution=sizes.convolution)
        module = MotionModule(motion_config(net, sizes.frames, **parts)).init_weights(config.seed)
        if config.start_from:
            weights.load_into(module, harivo.checkpoint.load_motion(root / config.start_from)[0].state_dict(), "motion")
        losses = ClipLosses(net.middle_block[-1].width, sizes.contrast, sizes.attention_loss, sizes.queue)
        moving = MovingImage(net, module).train()
        moving.net.eval()
        return _WithText({"moving": moving, "losses": losses}, text)

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step."""
        moving, x = module["moving"], batch.clips
        noised = add_noise(x, moving.net.schedule, generator, phase.time_power)
        context = context_of(module.text, batch.tokens, phase.drop_context, generator)
        with moving.watched(bool(config.model.attention_loss)) as watched:
            error = base_error(moving.net, moving(noised.z, noised.t, context), x, noised)
        return error + module["losses"](watched, x.shape[2], generator)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        recipe, made = dataclasses.asdict(config.model), module["moving"].module.config
        return harivo_info(made, base=HOSTS_NAME[type(module["moving"].net)], seed=config.seed, steps=steps, recipe=recipe)

    @staticmethod
    def export(tensors: dict[str, Tensor], module: nn.ModuleDict) -> dict[str, Tensor]:
        """The file's tensors: the motion module, and what tells its image model."""
        return {**_renamed(tensors, "moving.module.", "module."), "base": fingerprint(module["moving"].net)}


@dataclass(frozen=True)
class TuneSizes:
    """A recipe's ``model`` for "tune_a_video".

    Args:
        frames: of the clip.
        order: as in `TuneConfig`.
    """

    frames: int = 24
    order: bool = False
    stride: int = dataclasses.field(default=8, init=False)

    @property
    def longest(self) -> int:
        return self.frames


class TuneAVideo:
    """Tune-A-Video's layers beside the image model ``image_from``, on one clip (arXiv 2212.11565)."""

    model, takes_images = TuneSizes, False

    @staticmethod
    def build(config, root: Path) -> nn.ModuleDict:
        """The inflated image model, of which the layers alone train."""
        net, text = load_base(config, root)
        layers = TunedLayers(tune_config(net, config.model.order)).init_weights(config.seed)
        if config.start_from:
            weights.load_into(layers, tune_a_video.load_tuned(root / config.start_from)[0].state_dict(), "tuned")
        inflated = InflatedImage(net, layers).train()
        inflated.net.eval()
        return _WithText({"inflated": inflated}, text)

    @staticmethod
    def loss(module: nn.ModuleDict, batch: "Batch", config, phase, generator: torch.Generator) -> Tensor:
        """The objective of one step: one noise level serves all frames of a clip."""
        inflated, x = module["inflated"], batch.clips
        noised = add_noise(x, inflated.net.schedule, generator, phase.time_power)
        context = context_of(module.text, batch.tokens, phase.drop_context, generator)
        return base_error(inflated.net, inflated(noised.z, noised.t, context), x, noised)

    @staticmethod
    def info(config, module: nn.ModuleDict, steps: int) -> dict:
        """The description that goes into the exported file."""
        about = dict(
            frames=config.model.frames, seed=config.seed, steps=steps, base=HOSTS_NAME[type(module["inflated"].net)]
        )
        return tune_a_video.to_info(module["inflated"].layers.config, **about)

    @staticmethod
    def export(tensors: dict[str, Tensor], module: nn.ModuleDict) -> dict[str, Tensor]:
        """The file's tensors: the layers, and what tells their image model."""
        return {**_renamed(tensors, "inflated.layers.", "layers."), "base": fingerprint(module["inflated"].net)}


def load_base(config, root: Path) -> tuple[PixelUNet | LatentUNet, nn.Module]:
    """The frozen image model that ``config.image_from`` names, and what gives its text features.

    Raises:
        weights.WeightsError: if the file, or the tokenizer's folder, does not fit.
    """
    path = root / config.image_from
    if not is_checkpoint(path):
        return load_image(path)
    net = load_net(path)
    if config.samples_every:
        net.keep_autoencoder(load_autoencoder(path))
    return net, caption_table(config.words, path, root / config.tokenizer, caches(config, root)[1])


def context_of(text: nn.Module, tokens: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Text features, of some clips those of no text: the empty caption's of a table, zeros of our own encoder."""
    if isinstance(text, CaptionTable):
        return text(drop(tokens, probability, generator))
    return drop(text(tokens), probability, generator)


def base_error(net: PixelUNet | LatentUNet, estimate: Tensor, x: Tensor, noised: Noised) -> Tensor:
    """`objective.squared_error` of an estimate of x, in what the image model itself was trained to predict."""
    if net.prediction == "x0":
        return squared_error("x0", estimate, x, noised)
    return squared_error("eps", (noised.z - noised.alpha * estimate) / noised.sigma, x, noised)


class _WithText(nn.ModuleDict):
    """Parts that train, with a text encoder that does not, and is no part of their state."""

    def __init__(self, parts: dict[str, nn.Module], text: nn.Module):
        super().__init__(parts)
        self._text = [text.requires_grad_(False)]

    @property
    def text(self) -> nn.Module:
        return self._text[0]

    def _apply(self, fn, recurse=True):
        self.text._apply(fn)
        return super()._apply(fn, recurse)


def _renamed(tensors: dict[str, Tensor], prefix: str, to: str) -> dict[str, Tensor]:
    return {to + name: value for name, value in weights.part(tensors, prefix).items()}


IMAGE_SYSTEMS = {image.SYSTEM: Image, "content": Content, HARIVO: Harivo, tune_a_video.SYSTEM: TuneAVideo}
