"""Where Tune-A-Video's temporal attention stands in the host's image models: last in each transformer block."""

from collections.abc import Callable
from dataclasses import dataclass

from ..wire import InOrder, frames_per_clip


@dataclass(frozen=True)
class WithTemporal:
    """The forward of the host's transformer block, a layer that sees all frames of a clip last.

    Args:
        block: the block's own forward.
        temporal: (tokens (B frames) L C, frames, strength) -> the same shape.
        strength: of what ``temporal`` adds.
    """

    block: Callable
    temporal: Callable
    strength: float = 1.0

    def __call__(self, x, context=None, transformer_options={}):
        x = self.block(x, context=context, transformer_options=transformer_options)
        return InOrder.apply(self.temporal(x, frames_per_clip(len(x), transformer_options), self.strength))
