"""Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458)."""

from .config import CONFIGS, VDMConfig
from .loss import vdm_loss
from .net import UNet3D

__all__ = ["CONFIGS", "UNet3D", "VDMConfig", "vdm_loss"]
