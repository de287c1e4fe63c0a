"""A text-conditioned video diffusion model as one safetensors file: the network and its text encoder."""

import dataclasses
import os

from torch import Tensor, nn

from ... import weights
from ...text import TextConfig, TextEncoder
from ...text.load import load_with_text
from .config import VDMConfig
from .net import UNet3D

SYSTEM = "vdm"


def to_info(model: VDMConfig, text: TextConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds where the weights come from."""
    return {"system": SYSTEM, "model": dataclasses.asdict(model), "text": dataclasses.asdict(text), **about}


def from_info(info: dict) -> tuple[VDMConfig, TextConfig]:
    """The sizes in a file's description.

    Raises:
        weights.WeightsError: if the description is of another system, or names what this version does not know.
    """
    return weights.from_info(info, SYSTEM, VDMConfig, TextConfig)


def to_tensors(net: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """All tensors of the two parts, under ``net.`` and ``text.``."""
    parts = {"net.": net, "text.": text}
    return {prefix + name: tensor for prefix, module in parts.items() for name, tensor in module.state_dict().items()}


def load_vdm(path: str | os.PathLike) -> tuple[UNet3D, TextEncoder]:
    """Network and text encoder from a file, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    return load_with_text(path, from_info, UNet3D)
