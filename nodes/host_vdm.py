"""A VDM network as a first-class host MODEL, so that stock samplers, previews and offloading work on it."""

import math

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch

from ..vidcore import weights
from ..vidcore.schedule import CosineSchedule
from ..vidcore.systems.vdm import UNet3D, VDMConfig
from ..vidcore.systems.vdm.checkpoint import from_info
from .host_place import patchable, place


class PixelClips(comfy.latent_formats.LatentFormat):
    """Latents that are clips, B 3 T H W in [-1, 1]; the preview shows every frame, as a contact sheet."""

    latent_channels = 3
    latent_dimensions = 3
    spacial_downscale_ratio = 1
    temporal_downscale_ratio = 1

    def __init__(self):
        self.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        self.latent_rgb_factors_reshape = contact_sheet


def contact_sheet(clip: torch.Tensor) -> torch.Tensor:
    """The frames of the first clip of B C T H W as one picture 1 C h w, in reading order, at least 256 pixels wide."""
    frames = clip[0].movedim(1, 0)  # T C H W
    columns = math.ceil(math.sqrt(len(frames)))
    blank = -len(frames) % columns
    frames = torch.cat([frames, frames.new_full((blank, *frames.shape[1:]), -1)])
    rows = frames.unflatten(0, (-1, columns))  # R K C H W
    sheet = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[None]
    enlarge = max(1, 256 // sheet.shape[-1])
    return sheet.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)


class CosineSampling(comfy.model_sampling.ModelSamplingContinuousEDM):
    """VDM's cosine schedule in the host's variables: sigma_host = sigma / alpha, timestep = the paper's t in [0, 1]."""

    def __init__(self, model_config):
        torch.nn.Module.__init__(self)
        self.schedule: CosineSchedule = model_config.sampling_settings["schedule"]
        t = torch.linspace(0, 1, 1000, dtype=torch.float64)
        sigmas = self.sigma(t)
        self.sigma_data = 1.0
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("log_sigmas", sigmas.log())

    def timestep(self, sigma):
        return self.schedule.time(-2 * sigma.double().log()).clamp(0, 1).float()

    def sigma(self, timestep):
        # Double, since tan near its pole loses three digits in float32.
        return torch.exp(-self.schedule.log_snr(timestep.double()) / 2).float()

    def percent_to_sigma(self, percent):
        if percent <= 0.0:
            return 999999999.9
        if percent >= 1.0:
            return 0.0
        return float(self.sigma(torch.tensor(1.0 - percent, dtype=torch.float64)))


class EpsSampling(CosineSampling, comfy.model_sampling.EPS):
    pass


class VSampling(CosineSampling, comfy.model_sampling.V_PREDICTION):
    """With the host's state x = z / alpha, its x-hat = alpha^2 x - sigma v is VDM's alpha z - sigma v."""


class X0Sampling(CosineSampling, comfy.model_sampling.X0):
    pass


class HostUNet3D(UNet3D):
    """The network under the host's calling convention."""

    def __init__(self, config: VDMConfig, device=None, dtype=None, operations=None):
        super().__init__(config, operations, device, dtype)
        self.dtype = dtype

    @patchable
    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, **kwargs):
        return super().forward(x, self.config.schedule.log_snr(timesteps.double()).float(), context)


class VDMModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, device=device, unet_model=HostUNet3D)
        sampling = {"eps": EpsSampling, "v": VSampling, "x0": X0Sampling}[model_config.unet_config["config"].prediction]
        self.model_sampling = sampling(model_config)


class VDMSupport(comfy.supported_models_base.BASE):
    """What the host needs to know to place the model: its types, its latent format, how much memory it takes."""

    unet_extra_config = {}
    latent_format = PixelClips

    def __init__(self, config: VDMConfig):
        super().__init__({"config": config})
        self.sampling_settings["schedule"] = config.schedule
        # The host reserves area * bytes * 0.01 * factor MiB. About 60 maps of the base width are alive at full size.
        self.memory_usage_factor = 60 * config.channels / config.patch**2 / (0.01 * 2**20)

    def get_model(self, state_dict, prefix="", device=None):
        return VDMModel(self, device=device)


def load_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The network of a checkpoint as a host MODEL.

    The host calls this again for a copy on another device, or without the weight paging that it calls dynamic.

    Raises:
        weights.WeightsError: if the file or its tensors do not fit.
    """
    net, info = weights.load(path, "net.")
    config, _ = from_info(info)
    return place(VDMSupport(config), net, path, load_model, disable_dynamic)
