"""Embeddings of noise level, place and text."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def log_snr_features(log_snr: Tensor, width: int) -> Tensor:
    """Sinusoidal features of a log-SNR of any shape; adds a last axis of even size ``width``.

    The log-SNR is first squashed to [0, 1] by atan(exp(-lambda / 2)) * 2 / pi, the time at which an unclipped cosine
    schedule reaches it, so both ends of the range stay distinguishable.
    """
    time = torch.atan(torch.exp(-log_snr.float() / 2)) * (2 / math.pi)
    rates = torch.exp(torch.linspace(0, math.log(1e4), width // 2, device=log_snr.device))
    angles = time[..., None] * 1000 / rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def place_features(frames: int, width: int, device=None) -> Tensor:
    """Where each frame stands in its clip: cos(pi k u) for k = 1 to ``width``, u from 0 (first) to 1 (last); T width."""
    u = torch.linspace(0, 1, frames, device=device)
    return torch.cos(math.pi * u[:, None] * torch.arange(1, width + 1, device=device))


def grid_positions(sizes: tuple[int, ...], width: int, device=None) -> list[Tensor]:
    """Sinusoids of each coordinate of a grid, to be added to its tokens: for each axis a tensor n x ``width``.

    Every axis has its own third (half, quarter...) of the channels, so that the sum tells all of them apart. Any size works:
    the waves are from one step a radian to one in 10000.
    """
    share = width // len(sizes) // 2  # waves per axis
    rates = torch.exp(torch.arange(share, device=device) * (-math.log(1e4) / share))
    found = []
    for number, size in enumerate(sizes):
        angles = torch.arange(size, device=device)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        before = number * 2 * share
        found.append(F.pad(waves, (before, width - before - 2 * share)))
    return found


class AttentionPooling(nn.Module):
    """Token embeddings N L D -> one vector N E: each head averages its values under a learned query (VDM section 5.3.1).

    The score layer is the learned query folded into the key projection. Nothing has a bias, so all-zero tokens give the
    zero vector: zero tokens are the paper's unconditional embedding.
    """

    def __init__(self, width: int, out: int, heads: int = 8, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.score = operations.Linear(width, heads, bias=False, **factory)
        self.value = operations.Linear(width, out, bias=False, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = self.score(tokens).softmax(dim=1)  # N L heads
        values = self.value(tokens).unflatten(-1, (self.heads, -1))  # N L heads E/heads
        return torch.einsum("nlh,nlhe->nhe", weights, values).flatten(1)
