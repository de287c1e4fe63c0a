"""What Tune-A-Video adds to which image model."""

from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["frame", "clip"]


@dataclass(frozen=True)
class Block:
    """One transformer block of the image model.

    Args:
        name: where it stands in the network, such as "input_blocks.1.1.transformer_blocks.0".
        width: channels of its tokens.
        heads: of its attention.
    """

    name: str
    width: int
    heads: int


@dataclass(frozen=True)
class TuneConfig:
    """The inflation of one image model.

    Args:
        blocks: its transformer blocks, in the order in which the network runs them.
        norm: "frame": group norms see one frame, as in the image model, so that an inflated network that was not tuned
            treats every frame's features alike. "clip": those of residual blocks and the output see the whole clip, as in
            Tune-A-Video's code.
        order: whether temporal attention sees the frames' numbers. The paper's does not, and leaves the motion to the noise
            that inversion finds; with it the layers can learn where things are in which frame. Ours.

    Raises:
        ValueError: if ``norm`` is neither, or there are no blocks.
    """

    blocks: tuple[Block, ...]
    norm: Norm = "frame"
    order: bool = False

    def __post_init__(self):
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}; got {self.norm!r}")
        if not self.blocks:
            raise ValueError("an image model to inflate needs transformer blocks")


def stable_diffusion_blocks() -> tuple[Block, ...]:
    """The 16 blocks of Stable Diffusion 1.x, named as in its original code (Rombach et al. 2022, arXiv 2112.10752)."""
    places = [("input", n) for n in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", n) for n in range(3, 12)]
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
    names = ["middle_block.1" if part == "middle" else f"{part}_blocks.{number}.1" for part, number in places]
    return tuple(Block(f"{name}.transformer_blocks.0", width, 8) for name, width in zip(names, widths, strict=True))
