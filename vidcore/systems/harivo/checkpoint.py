"""A motion module as one safetensors file: its weights, and the image model that it was trained on."""

import os
from dataclasses import asdict

from torch import Tensor

from ... import weights
from ..tune_a_video import Block
from .config import HarivoConfig
from .net import MotionModule

SYSTEM = "harivo"


def to_info(config: HarivoConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds the clips and how it was trained."""
    return {"system": SYSTEM, "model": asdict(config), **about}


def from_info(info: dict) -> HarivoConfig:
    """The inverse of `to_info`. Raises `weights.WeightsError` if this is not a motion module that this version knows."""
    if info.get("system") != SYSTEM:
        raise weights.WeightsError(f"expected a motion module ('{SYSTEM}'), this file holds '{info.get('system')}'.")
    try:
        sizes = dict(info["model"])
        return HarivoConfig(**{**sizes, "blocks": tuple(Block(**block) for block in sizes["blocks"])})
    except (KeyError, TypeError, ValueError) as error:
        raise weights.WeightsError(f"the file's description does not fit this version of VidCore: {error}.") from None


def load_motion(path: str | os.PathLike) -> tuple[MotionModule, Tensor, dict]:
    """(the module, float32, in evaluation mode on the CPU, its base's fingerprint, info). Raises `weights.WeightsError`."""
    tensors, info = weights.load(path)
    module = MotionModule(from_info(info), device="meta")
    weights.check(module, weights.part(tensors, "module."), "motion")
    if "base" not in tensors:
        raise weights.WeightsError("the file does not say which image model it was trained on.")
    module.load_state_dict(weights.part(tensors, "module."), assign=True)
    return module.float().eval().requires_grad_(False), tensors["base"], info
