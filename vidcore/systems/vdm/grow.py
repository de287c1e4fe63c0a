"""A trained network as a deeper one that computes the same, to train on where the smaller one has stopped learning.

What is added starts as the identity: residual blocks and attention whose last layer is zero (as in Net2Net's deepening,
Chen et al. 2016, arXiv 1511.05641, section 3.2).
"""

from dataclasses import replace

import torch

from ...layers.attention import TemporalAttention
from ...weights import WeightsError
from .config import VDMConfig
from .net import UNet3D


def _blocks(config: VDMConfig) -> dict[tuple[str, int, int], str]:
    """The residual blocks' names by (way, level, place); a level's last on the way up has place -1, whatever the number."""
    names, levels = {}, len(config.multipliers)
    at = 0
    for level in range(levels):
        for place in range(config.blocks):
            names["down", level, place] = f"down.{at + place}."
        at += config.blocks + 1  # and one that halves the size
    at = 0
    for level in reversed(range(levels)):
        for place in range(config.blocks + 1):
            names["up", level, -1 if place == config.blocks else place] = f"up.{at + place}."
        at += config.blocks + 2
    return names


@torch.no_grad()
def grow(net: UNet3D, config: VDMConfig) -> UNet3D:
    """``net`` as a network of ``config`` with the same output.

    Args:
        net: the trained network.
        config: as its config, but for more ``blocks`` or more ``attention_sizes``.

    Returns:
        A new network, initialised for training where ``net`` has nothing.

    Raises:
        WeightsError: if ``config`` differs in anything else or asks for less.
    """
    old = net.config
    same = replace(old, blocks=config.blocks, attention_sizes=config.attention_sizes) == config
    if not same or config.blocks < old.blocks or not set(old.attention_sizes) <= set(config.attention_sizes):
        raise WeightsError(
            f"a network grows by blocks and attention_sizes alone; it has {old}, and was asked to become {config}"
        )
    grown = UNet3D(config).init_weights()
    for module in grown.modules():
        if isinstance(module, TemporalAttention):
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.zeros_(module.out.bias)
    before, after, tensors = _blocks(old), _blocks(config), grown.state_dict()
    renamed = {before[role]: after[role] for role in before}
    for name, value in net.state_dict().items():
        prefix = next((p for p in renamed if name.startswith(p)), "")
        tensors[renamed.get(prefix, "") + name.removeprefix(prefix)].copy_(value)
    for role in set(after) - set(before):
        if role[0] == "up":  # takes what comes from below, and nothing of what came from the way down
            skip = grown.get_submodule(after[role] + "res.skip")
            torch.nn.init.zeros_(skip.bias)
            torch.nn.init.dirac_(skip.weight)
    return grown
