"""The shipped image model as a first-class host MODEL: the host's U-Net on folded pixels."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..vidcore import weights
from ..vidcore.systems.image import ImageConfig, from_info, unet_arguments
from .host_place import place
from .host_vdm import X0Sampling


class Pixels(comfy.latent_formats.LatentFormat):
    """Latents that are pictures, B 3 H W in [-1, 1]."""

    latent_channels = 3
    spacial_downscale_ratio = 1

    def __init__(self):
        self.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class FoldedUNet(UNetModel):
    """The host's network between folding pixels into channels and unfolding them; time in [0, 1]."""

    def __init__(self, config: ImageConfig, device=None, dtype=None, operations=None):
        super().__init__(**unet_arguments(config), device=device, dtype=dtype, operations=operations)
        self.config = config

    def fold(self, x):
        """Pictures B 3 H W as the network has them. Raises ValueError for sizes that it cannot take."""
        if x.shape[-1] % self.config.stride or x.shape[-2] % self.config.stride:
            raise ValueError(
                f"this model makes pictures whose width and height are multiples of {self.config.stride}, "
                f"and was asked for {x.shape[-1]}x{x.shape[-2]}"
            )
        return F.pixel_unshuffle(x, self.config.patch)

    def unfold(self, x):
        """The inverse of `fold`."""
        return F.pixel_shuffle(x, self.config.patch)

    def _forward(self, x, timesteps=None, *args, **kwargs):  # inside what a MODEL wraps around the network
        return self.unfold(super()._forward(self.fold(x), 1000 * timesteps, *args, **kwargs))


class ImageModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, device=device, unet_model=FoldedUNet)
        model_config.unet_config["model_channels"] = self.diffusion_model.model_channels  # where FreeU looks
        self.model_sampling = X0Sampling(model_config)


class ImageSupport(comfy.supported_models_base.BASE):
    """What the host needs to know to place the model."""

    unet_extra_config = {}
    latent_format = Pixels
    memory_usage_factor = 0.1

    def __init__(self, config: ImageConfig):
        super().__init__({"config": config})
        self.sampling_settings["schedule"] = config.schedule

    def get_model(self, state_dict, prefix="", device=None):
        return ImageModel(self, device=device)


def load_image_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The network of a checkpoint as a host MODEL. Raises `weights.WeightsError` if the file does not fit."""
    net, info = weights.load(path, "net.")
    config, _ = from_info(info)
    return place(ImageSupport(config), net, path, load_image_model, disable_dynamic)
