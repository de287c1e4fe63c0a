"""Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) as FID has it: TensorFlow's weights of 2015, and its pools.

Names of layers and weights are torchvision's. It differs from torchvision's network in three ways: averages leave zeros at
the border out, the last block's pool takes the largest value, and there are 1008 classes.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .i3d import resized

SIZE, CLASSES = 299, 1008


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, channels: int, out: int, kernel, **how):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, bias=False, **how)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)
_SIDE, _FLAT, _TALL = dict(padding=1), dict(padding=(0, 3)), dict(padding=(3, 0))


class Block(nn.Module):
    """Branches side by side, each a chain of convolutions, and a pool.

    Args:
        channels: in.
        branches: chains of (name, out, kernel, how) in the order of the output's channels; a chain that ends in a tuple of
            two names splits there into both.
        pool: the last branch, and before it ``branch_pool`` of ``pooled`` channels where there are any.
    """

    def __init__(self, channels: int, branches: Sequence, pool, pooled: int = 0):
        super().__init__()
        self.chains, self.pool, self.width = [], pool, pooled or channels
        for branch in branches:
            width, chain = channels, []
            for name, out, kernel, how in branch:
                ends = list(zip(name, kernel, how)) if isinstance(name, tuple) else [(name, kernel, how)]
                for one, size, padding in ends:
                    self.add_module(one, Convolution(width, out, size, **padding))
                chain.append([one for one, _, _ in ends])
                width = out * len(ends)
            self.chains.append(chain)
            self.width += width
        self.branch_pool = Convolution(channels, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for chain in self.chains:
            h = x
            for ends in chain:
                h = torch.cat([self.get_submodule(name)(h) for name in ends], dim=1)
            made.append(h)
        pooled = self.pool(x)
        return torch.cat([*made, pooled if self.branch_pool is None else self.branch_pool(pooled)], dim=1)


def _a(channels: int, pooled: int) -> Block:
    five = [("branch5x5_1", 48, 1, {}), ("branch5x5_2", 64, 5, dict(padding=2))]
    three = [("branch3x3dbl_1", 64, 1, {}), ("branch3x3dbl_2", 96, 3, _SIDE), ("branch3x3dbl_3", 96, 3, _SIDE)]
    return Block(channels, ([("branch1x1", 64, 1, {})], five, three), _average, pooled)


def _b(channels: int) -> Block:
    twice = [("branch3x3dbl_1", 64, 1, {}), ("branch3x3dbl_2", 96, 3, _SIDE), ("branch3x3dbl_3", 96, 3, dict(stride=2))]
    return Block(channels, ([("branch3x3", 384, 3, dict(stride=2))], twice), _halve)


def _c(channels: int, width: int) -> Block:
    flat, tall = (1, 7), (7, 1)
    once = [("branch7x7_1", width, 1, {}), ("branch7x7_2", width, flat, _FLAT), ("branch7x7_3", 192, tall, _TALL)]
    twice = [
        ("branch7x7dbl_1", width, 1, {}), ("branch7x7dbl_2", width, tall, _TALL), ("branch7x7dbl_3", width, flat, _FLAT),
        ("branch7x7dbl_4", width, tall, _TALL), ("branch7x7dbl_5", 192, flat, _FLAT),
    ]  # fmt: skip
    return Block(channels, ([("branch1x1", 192, 1, {})], once, twice), _average, 192)


def _d(channels: int) -> Block:
    three = [("branch3x3_1", 192, 1, {}), ("branch3x3_2", 320, 3, dict(stride=2))]
    seven = [
        ("branch7x7x3_1", 192, 1, {}), ("branch7x7x3_2", 192, (1, 7), _FLAT), ("branch7x7x3_3", 192, (7, 1), _TALL),
        ("branch7x7x3_4", 192, 3, dict(stride=2)),
    ]  # fmt: skip
    return Block(channels, (three, seven), _halve)


def _e(channels: int, pool) -> Block:
    def split(name: str):
        return (f"{name}a", f"{name}b"), 384, ((1, 3), (3, 1)), (dict(padding=(0, 1)), dict(padding=(1, 0)))

    once = [("branch3x3_1", 384, 1, {}), split("branch3x3_2")]
    twice = [("branch3x3dbl_1", 448, 1, {}), ("branch3x3dbl_2", 384, 3, _SIDE), split("branch3x3dbl_3")]
    return Block(channels, ([("branch1x1", 320, 1, {})], once, twice), pool, 192)


class InceptionV3(nn.Module):
    """23.9 million parameters."""

    width = 2048

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(768, 128), _c(768, 160), _c(768, 160), _c(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _d(768), _e(1280, _average), _e(2048, _largest)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features N 2048 of the last average pool, and class scores N 1008.

        Args:
            x: N 3 299 299 in [-1, 1].
        """
        for part in self.children():
            if part is self.fc:
                x = x.mean(dim=(2, 3))
                return x, part(x)
            if part in (self.Conv2d_3b_1x1, self.Mixed_5b):
                x = _halve(x)
            x = part(x)

    @staticmethod
    def prepare(clips: Tensor) -> Tensor:
        """uint8 N 1 H W 3 to what the network reads."""
        return resized(clips, SIZE)[:, :, 0] / 127.5 - 1
