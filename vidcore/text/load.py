"""The parts of a text-conditioned model file: its network and its text encoder."""

import os
from collections.abc import Callable

from torch import nn

from .. import weights
from .encoder import TextConfig, TextEncoder


def load_with_text(path: str | os.PathLike, from_info: Callable, network: Callable) -> tuple[nn.Module, TextEncoder]:
    """Network and text encoder of a file, in evaluation mode on the CPU.

    Args:
        path: a file of ours, with tensors under ``net.`` and ``text.``.
        from_info: the file's description -> the configs of network and text encoder, and perhaps more.
        network: the first config -> the network.

    Raises:
        weights.WeightsError: if the file or its tensors do not fit.
    """
    tensors, info = weights.load(path)
    model, text = from_info(info)[:2]
    net, encoder = network(model), TextEncoder(text)
    weights.load_into(net, weights.part(tensors, "net."), "network")
    weights.load_into(encoder, weights.part(tensors, "text."), "text encoder")
    return net.eval(), encoder.eval()


def load_text(path: str | os.PathLike) -> TextEncoder:
    """The text encoder of a file, whatever else is in it, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    tensors, info = weights.load(path, "text.")
    encoder = TextEncoder(weights.entry(info, "text", TextConfig))
    weights.load_into(encoder, tensors, "text encoder")
    return encoder.eval()
