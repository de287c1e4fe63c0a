"""What HARIVO adds to which image model (arXiv 2410.07763)."""

from dataclasses import dataclass

from ..tune_a_video import Block


@dataclass(frozen=True)
class HarivoConfig:
    """A motion module for one layout of image models.

    Args:
        blocks: the image model's transformer blocks, in the order in which it runs them; each gets a temporal layer.
        channels: of what the network denoises; without an inpainting model's others.
        context: width of the text tokens.
        frame_tokens: tokens for each frame that are put behind the text's; 0 for none.
        mapping: channels inside the mapping network; 0 for none.
        frames: of the clips that it was trained on, for the record.
        convolution: whether temporal layers also convolve over neighbouring pixels and frames.

    Raises:
        ValueError: if there are no blocks, or a number is negative.
    """

    blocks: tuple[Block, ...]
    channels: int
    context: int
    frame_tokens: int = 4
    mapping: int = 64
    frames: int = 16
    convolution: bool = False

    def __post_init__(self):
        if not self.blocks:
            raise ValueError("an image model that is to move needs transformer blocks")
        if min(self.channels, self.context) < 1 or min(self.frame_tokens, self.mapping) < 0 or self.frames < 2:
            raise ValueError(f"a number of the motion module is out of range: {self}")
