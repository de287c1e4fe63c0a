"""CMD from text: an image model makes the content frame, the motion model its motion (arXiv 2403.14148, section 3.2)."""

import os

import torch
from torch import Tensor, nn

from ... import weights
from ...codec.content_motion import ContentMotionCodec
from ...text import TextEncoder
from ..image import PixelUNet, load_image
from .checkpoint import load_cmd
from .net import MotionDiT


class ContentThenMotion(nn.Module):
    """The three networks that a clip goes through.

    Args:
        image: makes content frames.
        motion: makes motion latents for them.
        codec: makes clips of both.
        widths: of the text features of ``image`` and of ``motion``.
    """

    def __init__(self, image: PixelUNet, motion: MotionDiT, codec: ContentMotionCodec, widths: tuple[int, int]):
        super().__init__()
        self.image, self.motion, self.codec, self.widths = image, motion, codec, widths

    def motion_shape(self, frames: int, size: int) -> tuple[int, int, int]:
        """D x T x (H' + W') of the motion latent of a clip of so many frames and pixels a side.

        Raises:
            ValueError: if that is more than a window, or patches do not divide it.
        """
        window, patch = self.codec.config.frames, self.motion.config.patch
        if frames > window or frames % patch:
            raise ValueError(f"this CMD model makes at most {window} frames, a multiple of {patch}; asked for {frames}")
        return self.codec.config.latent, frames, 2 * (size // self.codec.config.patch)


class SharedWords(nn.Module):
    """Two text encoders of the same words, whose features stand side by side: tokens N L to N L (D + E)."""

    def __init__(self, first: TextEncoder, second: TextEncoder):
        super().__init__()
        self.first, self.second, self.config = first, second, first.config

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.first(tokens), self.second(tokens)], dim=-1)


def load_content_and_motion(path: str | os.PathLike, image_path: str | os.PathLike) -> tuple[ContentThenMotion, SharedWords]:
    """A CMD file's networks with the image model that makes content frames, in evaluation mode on the CPU.

    Raises:
        weights.WeightsError: if a file is of another system, works on an image model's latents, or knows other words.
    """
    image, first = load_image(image_path)
    motion, second, codec = load_cmd(path)
    if codec.config.channels != 3:
        raise weights.WeightsError(
            f"{os.path.basename(path)} works on latents of {codec.config.channels} channels; only models of pixels make "
            "clips here. Please make them in ComfyUI."
        )
    if (first.config.words, first.config.length) != (second.config.words, second.config.length):
        raise weights.WeightsError(
            f"{os.path.basename(image_path)} and {os.path.basename(path)} know different words; please name the content "
            "model that was trained with the motion model's text encoder."
        )
    widths = (first.config.width, second.config.width)
    return ContentThenMotion(image, motion, codec, widths).eval(), SharedWords(first, second)
