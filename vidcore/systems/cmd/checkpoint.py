"""CMD in one safetensors file: the motion model, its text encoder and the autoencoder."""

import dataclasses
import os

from ... import weights
from ...codec import content_motion
from ...codec.content_motion import ContentMotionCodec, ContentMotionConfig
from ...text import TextConfig, TextEncoder
from ...text.load import load_with_text
from .config import MotionConfig
from .net import MotionDiT

SYSTEM = "cmd"


def to_info(model: MotionConfig, text: TextConfig, codec: ContentMotionConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds where the weights come from."""
    parts = {"model": model, "text": text, "codec": codec}
    return {"system": SYSTEM, **{name: dataclasses.asdict(config) for name, config in parts.items()}, **about}


def from_info(info: dict) -> tuple[MotionConfig, TextConfig, ContentMotionConfig]:
    """The inverse of `to_info`. Raises `weights.WeightsError` if this is not a CMD model."""
    return *weights.from_info(info, SYSTEM, MotionConfig, TextConfig), content_motion.from_info(info)


def load_cmd(path: str | os.PathLike) -> tuple[MotionDiT, TextEncoder, ContentMotionCodec]:
    """The parts of a file, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    return *load_with_text(path, from_info, MotionDiT), content_motion.load_codec(path)
