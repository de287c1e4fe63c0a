"""C3D (Tran et al. 2015, arXiv 1412.0767) tuned on UCF-101: the inception score and "FID" of papers on UCF-101 (VDM's too).

What surrounds the network follows TGAN v2 (Saito et al. 2020, arXiv 1811.09245), from where those weights are known:
clips of 16 frames of 64x64, enlarged to 112x112, blue first, less the mean clip.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .i3d import resized

SIZE, FRAMES, CLASSES = 112, 16, 101
# Convolutions between two pools, with their channels.
LEVELS = ((("conv1a", 64),), (("conv2a", 128),), (("conv3a", 256), ("conv3b", 256)), (("conv4a", 512), ("conv4b", 512)),
          (("conv5a", 512), ("conv5b", 512)))  # fmt: skip


class C3D(nn.Module):
    """78.4 million parameters. ``mean`` is the mean clip of its training, in [0, 255]."""

    width = 4096

    def __init__(self):
        super().__init__()
        width = 3
        for level in LEVELS:
            for name, out in level:
                self.add_module(name, nn.Conv3d(width, out, 3, padding=1))
                width = out
        self.fc6, self.fc7, self.fc8 = nn.Linear(width * 16, 4096), nn.Linear(4096, 4096), nn.Linear(4096, CLASSES)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIZE, SIZE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features B 4096 (fc7 after its ReLU) and class scores B 101.

        Args:
            x: B 3 16 112 112, blue first, in [0, 255].

        Raises:
            ValueError: if the clips have not 16 frames.
        """
        if x.shape[2] != FRAMES:
            raise ValueError(f"C3D reads clips of {FRAMES} frames, got {x.shape[2]}")
        x = x - self.mean
        for number, level in enumerate(LEVELS):
            for name, _ in level:
                x = F.relu(self.get_submodule(name)(x))
            pool = (2, 2, 2) if number else (1, 2, 2)
            x = F.max_pool3d(x, pool, ceil_mode=True)  # at the last level 7 x 7 to 4 x 4
        features = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return features, self.fc8(features)

    @staticmethod
    def prepare(clips: Tensor) -> Tensor:
        """uint8 B T H W 3 to what the network reads."""
        return resized(clips, SIZE, align_corners=True).flip(1)
