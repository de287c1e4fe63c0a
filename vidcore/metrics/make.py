"""Clips of a model from captions, for the measures: of VDM, Snap Video, CMD, image models, motion modules."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import weights
from ..codec.pixel import PixelCodec
from ..denoise import Denoiser
from ..guide.cfg import with_cfg
from ..sample import ancestral_step, ddim_step, sample_clip
from ..systems.beside_image import MovingImage
from ..systems.cmd.checkpoint import SYSTEM as CMD
from ..systems.cmd.from_text import ContentThenMotion, load_content_and_motion
from ..systems.harivo.checkpoint import SYSTEM as HARIVO
from ..systems.harivo.checkpoint import load_motion
from ..systems.image import SYSTEM as IMAGE
from ..systems.image import PixelUNet, load_image
from ..systems.snap import FIT
from ..systems.snap.checkpoint import SYSTEM as SNAP
from ..systems.snap.checkpoint import load_snap
from ..systems.snap.sample import make_clips
from ..systems.vdm import UNet3D
from ..systems.vdm.checkpoint import SYSTEM as VDM
from ..systems.vdm.checkpoint import load_vdm
from ..text import Vocabulary


@dataclass(frozen=True)
class Sampling:
    """How clips are made.

    Snap Video's models have ``frames`` and ``size`` of their own, and Heun's sampler. ``strength`` is a motion module's;
    ``motion_guidance_scale`` is for CMD's motion, where ``guidance_scale`` is for its content frame. Batch b's noise has
    seed ``seed`` + b.
    """

    frames: int = 8
    size: int = 32
    sampler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 3.0
    batch: int = 10
    second_steps: int = 20
    second_guidance_scale: float = 1.0
    corruption: float = 0.1
    strength: float = 1.0
    motion_guidance_scale: float = 2.0
    seed: int = 0


def batches(net: nn.Module, encoder: nn.Module, captions: list[str], how: Sampling, second=None) -> Iterator[Tensor]:
    """Clips for captions, ``how.batch`` of them at a time, B 3 T H W in [-1, 1] on the CPU.

    Args:
        net, encoder: of `load`.
        second: net and encoder of a second stage of Snap Video, which enlarges them.

    Raises:
        UnknownWordsError, ValueError: before the first one, if a caption has words that an encoder does not know.
    """
    make, both = MAKERS[type(net)], [tokens_of(e, captions) for e in (encoder, *(second[1:] if second else ()))]
    device = next(net.parameters()).device
    for number, first in enumerate(range(0, len(captions), how.batch)):
        with torch.no_grad():
            rows = slice(first, first + how.batch)
            seed = how.seed + number
            x = make(net, encoder(both[0][rows].to(device)), seed, how)
            if second is not None:
                context = second[1](both[1][rows].to(device))
                steps = (how.second_steps, seed, how.second_guidance_scale)
                x = make_clips(second[0], context, *steps, low=x.clamp(-1, 1), corruption=how.corruption)
            yield PixelCodec().decode(x).cpu()


def tokens_of(encoder: nn.Module, captions: list[str]) -> Tensor:
    """What a text encoder reads of captions, B L. Raises as `Vocabulary.encode` does."""
    vocabulary = Vocabulary(encoder.config.words, encoder.config.length)
    return torch.tensor([vocabulary.encode(text) for text in captions])


def vdm_clips(net: UNet3D, context: Tensor, seed: int, how: Sampling) -> Tensor:
    """Clips B C T H W of the 3-D U-Net."""
    denoiser = Denoiser(net, net.config.prediction, net.config.schedule)
    return _walk(denoiser, net.config.schedule, (3, how.frames, how.size, how.size), context, seed, how)


def image_clips(net: PixelUNet, context: Tensor, seed: int, how: Sampling) -> Tensor:
    """Pictures of an image model, as clips B C 1 H W."""

    def denoiser(z, t, context):
        return net(z[:, :, 0], t.float(), context)[:, :, None]

    return _walk(denoiser, net.schedule, (3, 1, how.size, how.size), context, seed, how)


def moving_clips(net: MovingImage, context: Tensor, seed: int, how: Sampling) -> Tensor:
    """Clips B C T H W of an image model with a motion module."""
    net.strength = how.strength
    return _walk(net, net.net.schedule, (3, how.frames, how.size, how.size), context, seed, how)


def cmd_clips(net: ContentThenMotion, context: Tensor, seed: int, how: Sampling) -> Tensor:
    """Clips B C T H W of CMD: content frames by the image model, then their motion (arXiv 2403.14148, section 3.2)."""
    shape = net.motion_shape(how.frames, how.size)
    for_content, for_motion = context.split(net.widths, dim=-1)
    content = image_clips(net.image, for_content, seed, how)[:, :, 0].to(context)
    denoiser = partial(Denoiser(net.motion, net.motion.config.prediction, net.motion.config.schedule), content=content)
    how = replace(how, guidance_scale=how.motion_guidance_scale)
    # One half of guidance after the other: both see the whole batch's content frames.
    motion = _walk(denoiser, net.motion.config.schedule, shape, for_motion, seed, how, batched=False)
    return net.codec.decode(content[:, None], motion.to(content))


def _walk(
    denoiser: Callable, schedule, shape: tuple[int, ...], context: Tensor, seed: int, how: Sampling, batched: bool = True
) -> Tensor:
    step = {"ddim": ddim_step, "ancestral": partial(ancestral_step, gamma=0.3)}[how.sampler]
    guided = with_cfg(denoiser, how.guidance_scale, batched)

    def on_device(
        z: Tensor, t: Tensor, context: Tensor
    ) -> Tensor:  # noise is drawn on the CPU: a seed means the same anywhere
        return guided(z.to(context.device), t.to(context.device), context=context).to(z)

    return sample_clip(on_device, schedule, (len(context), *shape), how.steps, step, seed, context=context)


def snap_clips(net: FIT, context: Tensor, seed: int, how: Sampling) -> Tensor:
    """Clips B C T H W of a first stage of Snap Video."""
    return make_clips(net, context, how.steps, seed, how.guidance_scale)


MAKERS = {
    UNet3D: vdm_clips, FIT: snap_clips, PixelUNet: image_clips, MovingImage: moving_clips, ContentThenMotion: cmd_clips,
}  # fmt: skip


BESIDE = {HARIVO: "motion module", CMD: "CMD model"}  # systems that make clips with an image model's help


def load(path: Path, image: Path | None = None) -> tuple[nn.Module, nn.Module]:
    """(network, text encoder) of a file.

    Args:
        path: the model.
        image: for a motion module its image model; for CMD's motion model the one that makes content frames.

    Raises:
        weights.WeightsError: if it is of no system that is known here, or lacks its image model.
    """
    system = weights.read_info(path)["system"]
    if system in BESIDE and image is None:
        raise weights.WeightsError(f"a {BESIDE[system]} makes clips with its image model; please name it with --image.")
    if system == HARIVO:
        net, encoder = load_image(image)
        return MovingImage(net, load_motion(path)[0]).eval(), encoder
    if system == CMD:
        return load_content_and_motion(path, image)
    loaders = {VDM: load_vdm, SNAP: load_snap, IMAGE: load_image}
    if system not in loaders:
        known = ", ".join((*loaders, *BESIDE))
        raise weights.WeightsError(f"{path.name} is of the system '{system}', which is not one of {known}.")
    return loaders[system](path)
