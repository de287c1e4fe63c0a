"""Sizes of CMD's motion model, the paper's by name (arXiv 2403.14148, section 3.2 and table 5)."""

from dataclasses import dataclass

from ...denoise import Prediction
from ...schedule import CosineSchedule


@dataclass(frozen=True)
class MotionConfig:
    """A DiT on motion latents, its content frame and text.

    Args:
        latent: D, channels of the motion latent.
        frames: T of the motion latents it is trained on, a multiple of ``patch``.
        entries: H' + W', entries of a frame's motion latent, a multiple of ``patch``.
        patch: entries a side of a token of the picture T x (H' + W').
        content_channels: of the content frame; 3 for pixels.
        content_patch: pixels a side of a token of the content frame.
        width, depth, heads: of the transformer.
        context: width of the text tokens; 0 for an unconditional model.
        prediction: what the net outputs; the paper's is "eps".
    """

    latent: int = 8
    frames: int = 16
    entries: int = 64
    patch: int = 2
    content_channels: int = 3
    content_patch: int = 4
    width: int = 1024
    depth: int = 24
    heads: int = 16
    context: int = 1024
    prediction: Prediction = "eps"
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    @property
    def schedule(self) -> CosineSchedule:
        return CosineSchedule(self.log_snr_min, self.log_snr_max)

    @property
    def stride(self) -> int:
        """Height and width of a clip must be multiples of this many pixels."""
        return self.content_patch

    @property
    def longest(self) -> int:
        """The longest clip that has one content frame."""
        return self.frames

    @classmethod
    def tiny(cls) -> "MotionConfig":
        """Small enough for a unit test; fits `ContentMotionConfig.tiny`."""
        return cls(
            latent=3, frames=4, entries=10, content_channels=3, content_patch=4, width=32, depth=2, heads=2, context=16,
            prediction="v",
        )  # fmt: skip


CONFIGS: dict[str, MotionConfig] = {
    "tiny": MotionConfig.tiny(),
    "ucf101": MotionConfig(),  # DiT-L/2
    "webvid_sd15": MotionConfig(content_channels=4, width=1152, depth=28),  # DiT-XL/2
    "webvid_sd21": MotionConfig(entries=96, content_channels=4, content_patch=8, width=1152, depth=28),
}
