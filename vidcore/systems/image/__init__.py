"""A small text-to-image model in the layout of Stable Diffusion, for trying offline what is made for image models."""

from .config import STABLE_DIFFUSION, SYSTEM, ImageConfig, UNetConfig, from_info, to_info, unet_arguments
from .model import PixelUNet, load_image
from .net import ImageUNet, TransformerBlock
from .stable_diffusion import LatentUNet

__all__ = [
    "STABLE_DIFFUSION", "SYSTEM", "ImageConfig", "ImageUNet", "LatentUNet", "PixelUNet", "TransformerBlock",
    "UNetConfig", "from_info", "load_image", "to_info", "unet_arguments",
]  # fmt: skip
