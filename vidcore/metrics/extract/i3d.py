"""Inflated Inception (Carreira, Zisserman 2017, arXiv 1705.07750, figure 3), whose class scores are FVD's features.

Names of layers and weights are those of the common PyTorch port, so that files converted from it load as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the four branches of each Inception block: 1x1; 1x1 and 3x3x3; the same again; 1x1 behind the pool.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64), "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64), "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128), "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
CLASSES = 400  # of Kinetics-400
SIZE = 224


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """B C T H W with TensorFlow's "same" zeros, one more of them at the end where their number is odd."""
    pads = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
        total = max(k - (s if n % s == 0 else n % s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(_padded(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm and ReLU; or a plain convolution with a bias, for the class scores."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, plain: bool = False):
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=plain)
        self.bn = None if plain else nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_padded(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, sizes: tuple[int, ...]):
        super().__init__()
        one, two, wide, three, narrow, four = sizes
        self.b0 = Unit(channels, one)
        self.b1a, self.b1b = Unit(channels, two), Unit(two, wide, 3)
        self.b2a, self.b2b = Unit(channels, three), Unit(three, narrow, 3)
        self.b3b = Unit(channels, four)
        self.width = one + wide + narrow + four

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """The RGB stream, 12.7 million parameters."""

    width = CLASSES

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        width = 192
        for name, sizes in MIXED.items():
            block = Mixed(width, sizes)
            self.add_module(name, block)
            width = block.width
        self.logits = Unit(width, CLASSES, plain=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores before the softmax, B 400, twice: as features and as logits.

        Args:
            x: B 3 T 224 224 in [-1, 1], of at least 9 frames.
        """
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        x = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))
        scores = x.mean(dim=(2, 3, 4))
        return scores, scores

    @staticmethod
    def prepare(clips: Tensor) -> Tensor:
        """uint8 B T H W 3 to what the network reads: bilinear without antialiasing, as the numbers in papers were made."""
        return resized(clips, SIZE) / 127.5 - 1


def resized(clips: Tensor, size: int, align_corners: bool = False) -> Tensor:
    """uint8 B T H W 3 to float32 B 3 T size size in [0, 255], bilinear without antialiasing."""
    batch, frames = clips.shape[:2]
    x = clips.flatten(0, 1).movedim(-1, 1).float()
    x = F.interpolate(x, (size, size), mode="bilinear", align_corners=align_corners)
    return x.unflatten(0, (batch, frames)).transpose(1, 2)
