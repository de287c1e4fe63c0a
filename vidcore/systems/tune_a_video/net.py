"""What Tune-A-Video trains (arXiv 2212.11565, section 3.2), as layers beside an image model that stays as it is."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.frame_attention import FrameAttention
from .config import TuneConfig


def added_query(project: Callable[[Tensor], Tensor], change: Tensor, tokens: Tensor, strength: float = 1.0) -> Tensor:
    """(W_Q + strength change) tokens, with W_Q inside ``project``, a linear layer without bias.

    The sum is taken after the products, so that a change far below the rounding of W_Q in half precision still counts.
    """
    return torch.add(project(tokens), F.linear(tokens, change.to(tokens)), alpha=strength)


class TunedBlock(nn.Module):
    """All that is trained of one transformer block: the changes of two W_Q, and temporal attention.

    Args:
        width, heads: of the block.
        order: whether frames know their number, see `FrameAttention`.
    """

    def __init__(self, width: int, heads: int, order: bool = False, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.self_query = nn.Parameter(torch.zeros(width, width, **factory))  # of sparse-causal attention
        self.text_query = nn.Parameter(torch.zeros(width, width, **factory))  # of cross-attention
        self.temporal = FrameAttention(width, heads, operations, order, **factory)


class TunedLayers(nn.Module):
    """The `TunedBlock` of each block of a model, in the order of ``config.blocks``."""

    def __init__(self, config: TuneConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            TunedBlock(b.width, b.heads, config.order, operations, device, dtype) for b in config.blocks
        )

    def init_weights(self, seed: int) -> "TunedLayers":
        """The start of tuning: nothing changes a picture yet, and what does is drawn from ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for block in self.blocks:
                block.self_query.zero_()
                block.text_query.zero_()
                block.temporal.init_weights(generator)
        return self
