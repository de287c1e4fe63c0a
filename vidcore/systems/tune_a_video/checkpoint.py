"""A tuned clip as one small safetensors file: what was trained, on which clip, for which image model."""

import math
import os
from dataclasses import asdict

from torch import Tensor

from ... import weights
from .config import Block, TuneConfig
from .net import TunedLayers

SYSTEM = "tune_a_video"
# Rounding to bfloat16 moves a weight by up to 0.4 %, to 8 bits by 6 %; other models differ by more.
SAME_BASE = 0.03


def to_info(config: TuneConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds the clip, its text, and how it was tuned."""
    return {
        "system": SYSTEM,
        "blocks": [asdict(b) for b in config.blocks],
        "norm": config.norm,
        "order": config.order,
        **about,
    }


def from_info(info: dict) -> TuneConfig:
    """The inflation that a file is for.

    Raises:
        weights.WeightsError: if the file is of another system, or names what this version does not know.
    """
    if info.get("system") != SYSTEM:
        raise weights.WeightsError(f"expected a tuned clip ('{SYSTEM}'), this file holds '{info.get('system')}'.")
    try:
        return TuneConfig(tuple(Block(**b) for b in info["blocks"]), info["norm"], info.get("order", False))
    except (KeyError, TypeError, ValueError) as error:
        raise weights.WeightsError(f"the file's description does not fit this version of VidCore: {error}.") from None


def load_tuned(path: str | os.PathLike) -> tuple[TunedLayers, Tensor, dict]:
    """(layers in evaluation mode on the CPU, float32, the base model's fingerprint, info). Raises `weights.WeightsError`."""
    tensors, info = weights.load(path)
    layers = TunedLayers(from_info(info), device="meta")
    weights.check(layers, weights.part(tensors, "layers."), "tuned")
    if "base" not in tensors:
        raise weights.WeightsError("the file does not say which image model it was made for.")
    layers.load_state_dict(weights.part(tensors, "layers."), assign=True)
    return layers.float().eval().requires_grad_(False), tensors["base"], info


def distance(fingerprint: Tensor, other: Tensor) -> float:
    """How far apart two fingerprints, some weights of each model, are, in units of the first's length."""
    if fingerprint.shape != other.shape:
        return math.inf
    return float((fingerprint - other).float().norm() / fingerprint.float().norm())


def same_base(fingerprint: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints are of one model up to rounding in low precision."""
    return distance(fingerprint, other) <= SAME_BASE
