"""Snap Video in one safetensors file: a network of one stage and its text encoder."""

import dataclasses
import os

from ... import weights
from ...text import TextConfig, TextEncoder
from ...text.load import load_with_text
from .config import SnapConfig
from .net import FIT

SYSTEM = "snap"


def to_info(model: SnapConfig, text: TextConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds where the weights come from."""
    return {"system": SYSTEM, "model": dataclasses.asdict(model), "text": dataclasses.asdict(text), **about}


def from_info(info: dict) -> tuple[SnapConfig, TextConfig]:
    """The inverse of `to_info`. Raises `weights.WeightsError` if this is not a Snap Video model."""
    return weights.from_info(info, SYSTEM, SnapConfig, TextConfig)


def load_snap(path: str | os.PathLike) -> tuple[FIT, TextEncoder]:
    """Network and text encoder of a file, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    return load_with_text(path, from_info, FIT)
