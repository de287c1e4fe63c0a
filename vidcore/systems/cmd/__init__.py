"""CMD: content-frame motion-latent decomposition (Yu et al. 2024, arXiv 2403.14148)."""

from .config import CONFIGS, MotionConfig
from .loss import motion_loss
from .net import MotionDiT

__all__ = ["CONFIGS", "MotionConfig", "MotionDiT", "motion_loss"]
