"""A small text-to-image model in the host's own U-Net class, for trying offline what is made for image models."""

from .config import SYSTEM, ImageConfig, from_info, to_info, unet_arguments

__all__ = ["SYSTEM", "ImageConfig", "from_info", "to_info", "unet_arguments"]
