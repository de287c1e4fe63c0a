"""HARIVO: a frozen image model that moves (Kwon et al. 2024, arXiv 2410.07763)."""

from .config import HarivoConfig
from .contrast import FeatureQueue, ProjectionHead, decoupled_contrastive
from .losses import ClipLosses
from .net import MotionModule
from .regularise import attention_map, temporal_regularised

__all__ = [
    "ClipLosses", "FeatureQueue", "HarivoConfig", "MotionModule", "ProjectionHead", "attention_map", "decoupled_contrastive",
    "temporal_regularised",
]  # fmt: skip
