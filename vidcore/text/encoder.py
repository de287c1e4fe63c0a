"""A pre-norm transformer over word tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import attention
from .vocabulary import PAD


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder.

    Args:
        words: the vocabulary in token order, see `Vocabulary`.
        length: tokens per prompt.
        width, layers, heads: of the transformer; ``width`` is also that of the output.
    """

    words: tuple[str, ...]
    length: int = 24
    width: int = 128
    layers: int = 2
    heads: int = 4


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, operations, **factory):
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, **factory)
        self.qkv = operations.Linear(width, 3 * width, bias=False, **factory)
        self.out = operations.Linear(width, width, **factory)
        self.norm2 = operations.LayerNorm(width, **factory)
        self.wide = operations.Linear(width, 4 * width, **factory)
        self.narrow = operations.Linear(4 * width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attention(*self.qkv(self.norm1(x)).chunk(3, dim=-1), self.heads))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class TextEncoder(nn.Module):
    """Token numbers N L -> embeddings N L D.

    Places without a word are zero, and so is a prompt without words, the unconditional embedding.
    """

    def __init__(self, config: TextConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.config = config
        self.word = operations.Embedding(len(config.words) + 1, config.width, **factory)
        self.position = operations.Embedding(config.length, config.width, **factory)
        self.layers = nn.ModuleList(_Layer(config.width, config.heads, operations, **factory) for _ in range(config.layers))
        self.norm = operations.LayerNorm(config.width, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: N L of integers, L at most ``config.length``."""
        x = self.word(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) * (tokens != PAD)[:, :, None]
