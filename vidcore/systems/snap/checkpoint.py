"""Snap Video in one safetensors file: a network of one stage and its text encoder."""

import dataclasses
import os

from ... import weights
from ...text import TextConfig, TextEncoder
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
    tensors, info = weights.load(path)
    model, text = from_info(info)
    net, encoder = FIT(model), TextEncoder(text)
    weights.load_into(net, weights.part(tensors, "net."), "network")
    weights.load_into(encoder, weights.part(tensors, "text."), "text encoder")
    return net.eval(), encoder.eval()
