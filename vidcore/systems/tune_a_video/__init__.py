"""Tune-A-Video (Wu et al. 2023, arXiv 2212.11565): one clip teaches an image model its motion."""

from .checkpoint import SYSTEM, from_info, load_tuned, to_info
from .config import Block, TuneConfig
from .edit import edit
from .loss import tune_loss
from .net import TunedBlock, TunedLayers, added_query
from .tune import Tuning, read_loss, sent

__all__ = [
    "SYSTEM", "Block", "TuneConfig", "TunedBlock", "TunedLayers", "Tuning", "added_query", "edit", "from_info", "load_tuned",
    "read_loss", "sent", "to_info", "tune_loss",
]  # fmt: skip
