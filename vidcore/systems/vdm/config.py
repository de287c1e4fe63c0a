"""Sizes of the factorised 3-D U-Net, the paper's by name (its appendix A)."""

from dataclasses import dataclass, replace

from ...denoise import Prediction
from ...schedule import CosineSchedule


@dataclass(frozen=True)
class VDMConfig:
    """One network and its process.

    Args:
        frames, size: the clip it is trained on, frames x size x size pixels. Other lengths and sizes also run.
        channels: base width; level i is ``channels * multipliers[i]`` wide.
        blocks: residual blocks per level on the way down (one more on the way up).
        patch: squares of patch x patch pixels are folded into channels before the first layer; 1 is the paper's.
        places: waves that tell the conditioning vector where in its clip each frame stands; 0, none, is the paper's.
        attention_sizes: spatial and temporal attention exist where the feature map is this many pixels wide.
        head_width: width of one attention head.
        embedding: width of the conditioning vector.
        embedding_layers: layers of the network that mixes log-SNR and text into it.
        context: width of the text tokens; 0 for an unconditional model.
        max_frames: longest clip with relative positions of its own; 0 means ``frames``.
        prediction: what the net outputs: the paper's "eps" or "v", or "x0" for nets too narrow to carry the noise through.
    """

    frames: int = 16
    size: int = 64
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    attention_sizes: tuple[int, ...] = (8, 16, 32)
    head_width: int = 64
    embedding: int = 1024
    embedding_layers: int = 4
    dropout: float = 0.0
    context: int = 0
    in_channels: int = 3
    max_frames: int = 0
    prediction: Prediction = "eps"
    patch: int = 1
    places: int = 0
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    @property
    def schedule(self) -> CosineSchedule:
        return CosineSchedule(self.log_snr_min, self.log_snr_max)

    @property
    def stride(self) -> int:
        """Height and width of a clip must be multiples of this many pixels."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def longest(self) -> int:
        return self.max_frames or self.frames

    @classmethod
    def tiny(cls) -> "VDMConfig":
        """Small enough for a unit test, with every kind of part present."""
        return cls(
            frames=4, size=16, channels=8, multipliers=(1, 2), blocks=1, attention_sizes=(8,), head_width=8,
            embedding=32, embedding_layers=2, context=16, prediction="v",
        )  # fmt: skip


_TEXT_SMALL = VDMConfig(channels=128, context=1024)

CONFIGS: dict[str, VDMConfig] = {
    "tiny": VDMConfig.tiny(),
    "ucf101": VDMConfig(dropout=0.1),
    "bair": VDMConfig(channels=128, multipliers=(1, 2, 3, 4), blocks=3, embedding_layers=2, dropout=0.1, prediction="v"),
    "kinetics600": VDMConfig(embedding_layers=2, dropout=0.1, prediction="v"),
    "text_small": _TEXT_SMALL,
    "text_large": replace(_TEXT_SMALL, channels=256),
    "text_9x128": replace(_TEXT_SMALL, frames=9, size=128, multipliers=(1, 2, 4, 8, 16), head_width=128),
}
