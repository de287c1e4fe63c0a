"""Snap Video: scaled spatiotemporal transformers for text-to-video synthesis (Menapace et al. 2024, arXiv 2402.14797)."""

from .config import CONFIGS, SnapConfig
from .loss import images_as_clips, snap_loss
from .net import FIT

__all__ = ["CONFIGS", "FIT", "SnapConfig", "images_as_clips", "snap_loss"]
