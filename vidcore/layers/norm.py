"""Group normalisation with the field's usual 32 groups where the width allows."""

import math

from torch import nn


def group_norm(channels: int, operations=nn, **factory) -> nn.Module:
    """GroupNorm over N C H W with as many groups as divide ``channels``, up to 32, of at least four channels each."""
    return operations.GroupNorm(math.gcd(32, max(1, channels // 4)), channels, **factory)
