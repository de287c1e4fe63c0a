"""Sizes of Snap Video's networks, the paper's by name (arXiv 2402.14797, its table of architectures)."""

from dataclasses import dataclass

from ...edm import EDM, sigma_in


@dataclass(frozen=True)
class SnapConfig:
    """A FIT that denoises clips of one size.

    Args:
        frames, height, width: of the clips, in frames and pixels.
        channels: of a frame.
        patch: pixels a side of a patch token, of one frame.
        group: rows and columns of patches in a group, which spans all frames.
        token: channels of a patch token.
        latents: latent tokens in all; every group has an equal share. The paper's table says 768 without saying whether of
            each group or of all: its run times are possible for all alone.
        latent_width: channels of a latent token.
        blocks, layers: FIT blocks, and self-attention layers in each.
        head_width, latent_head_width: of a head where patches ask, and where latents do.
        condition: channels of a conditioning token.
        context: channels of the text tokens; 0 for a model without text.
        dropout: after self-attention.
        interval: the time between frames where nobody says another, in seconds, or whatever the model was trained with.
        low_height: of the second stage: rows of the first stage's clip, which its input has beside the noisy one; both sides
            are enlarged by the same whole number. 0 for a first stage.
        padding: rows of zeros that the network itself adds below each frame, and cuts off again, so that patches and groups
            fit: the paper's 36 rows become 40.
        sigma_in, sigma_data: of the diffusion, see `vidcore.edm.EDM`.
    """

    frames: int = 16
    height: int = 40
    width: int = 64
    channels: int = 3
    patch: int = 4
    group: tuple[int, int] = (5, 4)
    token: int = 768
    latents: int = 512
    latent_width: int = 1024
    blocks: int = 6
    layers: int = 4
    head_width: int = 48
    latent_head_width: int = 64
    condition: int = 768
    context: int = 4096
    dropout: float = 0.1
    interval: float = 1 / 24
    low_height: int = 0
    sigma_in: float = sigma_in(16, 64)
    sigma_data: float = 1.0
    padding: int = 0

    def __post_init__(self):
        height = self.height + self.padding
        rows, columns = height / self.patch / self.group[0], self.width / self.patch / self.group[1]
        if rows % 1 or columns % 1 or self.latents % int(rows * columns):
            raise ValueError(
                f"{self.width}x{height} pixels in patches of {self.patch} must divide into groups of {self.group[0]} "
                f"rows and {self.group[1]} columns, and those the {self.latents} latents"
            )
        factor = self.height // self.low_height if self.low_height else 1
        if self.low_height and (self.height % self.low_height or self.width % factor):
            raise ValueError(
                f"{self.width}x{self.height} pixels must be a whole number of times the first stage's clip of "
                f"{self.low_height} rows"
            )

    @property
    def low_resolution(self) -> bool:
        """Whether this is a second stage."""
        return self.low_height > 0

    @property
    def low_size(self) -> tuple[int, int]:
        """Height and width of the first stage's clip, which a second stage enlarges."""
        return self.low_height, self.width * self.low_height // self.height

    @property
    def edm(self) -> EDM:
        """Noise levels and preconditioning."""
        return EDM(self.sigma_in, self.sigma_data)

    @property
    def stride(self) -> int:
        """The height and width of the clips it is trained on, which recipes have square."""
        return self.height

    @property
    def longest(self) -> int:
        """The frames of every clip."""
        return self.frames

    @property
    def fixed(self) -> tuple[int, int, int]:
        """Frames, height and width: it takes no others."""
        return self.frames, self.height, self.width

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches, padding included."""
        return (self.height + self.padding) // self.patch, self.width // self.patch

    @property
    def groups(self) -> tuple[int, int]:
        """Rows and columns of groups."""
        return self.patches[0] // self.group[0], self.patches[1] // self.group[1]

    @classmethod
    def tiny(cls) -> "SnapConfig":
        """Small enough for a unit test, with every kind of part present."""
        return cls(
            frames=4, height=16, width=16, group=(2, 2), token=16, latents=8, latent_width=24, blocks=2, layers=2,
            head_width=8, latent_head_width=8, condition=12, context=20, sigma_in=sigma_in(4, 64),
        )  # fmt: skip


_LARGE = dict(
    token=1024, latents=768, latent_width=3072, head_width=64, latent_head_width=128, condition=1024,
)  # fmt: skip

CONFIGS: dict[str, SnapConfig] = {
    "tiny": SnapConfig.tiny(),
    "500m": SnapConfig(height=36, padding=4),
    "3.9b": SnapConfig(**_LARGE, height=36, padding=4),
    "3.9b_upsampler": SnapConfig(**_LARGE, height=288, width=512, group=(18, 16), low_height=36, sigma_in=sigma_in(16, 512)),
}
