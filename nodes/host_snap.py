"""Both stages of Snap Video as first-class host MODELs."""

import math
from collections import OrderedDict

import comfy.conds
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch

from ..vidcore import weights
from ..vidcore.edm import EDM
from ..vidcore.schedule import expand_as
from ..vidcore.systems.snap import FIT, SnapConfig
from ..vidcore.systems.snap.checkpoint import from_info
from .host_place import patchable, place
from .host_vdm import PixelClips

# What Set Frame Rate puts into a CONDITIONING.
INTERVAL, ROWS = "vidcore_frame_interval", "vidcore_original_rows"
# Where a MODEL keeps the clip to enlarge, among its transformer options: 1 C T H W, corrupted, and ln of how much.
LOW = "vidcore_low_resolution"


class SnapSampling(comfy.model_sampling.ModelSamplingContinuousEDM):
    """EDM with an input scale in the host's variables: its state is sigma_in x_sigma, and its sigma is sigma_in sigma."""

    def __init__(self, model_config):
        torch.nn.Module.__init__(self)
        self.edm: EDM = model_config.sampling_settings["edm"]
        self.set_parameters(
            self.edm.sigma_in * self.edm.sigma_min, self.edm.sigma_in * self.edm.sigma_max, self.edm.sigma_data
        )

    def timestep(self, sigma):
        return self.edm.c_noise(sigma / self.edm.sigma_in)

    def sigma(self, timestep):
        return self.edm.sigma_in * (4 * timestep).exp()

    def calculate_input(self, sigma, noise):
        s = expand_as(sigma / self.edm.sigma_in, noise)
        return self.edm.c_in(s) * noise / self.edm.sigma_in

    def calculate_denoised(self, sigma, model_output, model_input):
        s = expand_as(sigma / self.edm.sigma_in, model_input)
        return self.edm.c_skip(s) * model_input / self.edm.sigma_in + self.edm.c_out(s) * model_output

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class HostFIT(FIT):
    """The network under the host's calling convention. Latents of one evaluation condition the next (self-conditioning)."""

    KEPT = 8  # conditionings whose latents are remembered

    def __init__(self, config: SnapConfig, device=None, dtype=None, operations=None):
        super().__init__(config, operations, device, dtype)
        self.dtype = dtype
        # By the host's name for a conditioning in one run of a sampler: where the noise was last, and the latents then.
        self.seen: OrderedDict[object, tuple[float, torch.Tensor]] = OrderedDict()

    @patchable
    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, interval=None, size=None, **kwargs):
        config, now = self.config, float(timesteps.flatten()[0])
        interval = x.new_full((len(x),), config.interval) if interval is None else interval
        size = x.new_full((len(x),), float(config.height)) if size is None else size
        low = None
        if config.low_resolution:
            if LOW not in transformer_options:
                raise ValueError(
                    "this model is a second stage, which enlarges a clip, and has none; please use Upsample Video Cascade."
                )
            clip, level = transformer_options[LOW]
            low = {"low_resolution": clip.to(x).expand_as(x), "corruption": x.new_full((len(x),), level)}
        names = transformer_options.get("uuids", [])
        previous = self.recall(names, now, len(x)) if names else None
        made, latents = super().forward(
            x, timesteps, context, interval=interval.flatten().float(), size=size.flatten().float(), previous=previous,
            **(low or {}),
        )  # fmt: skip
        if names:
            for name, part in zip(names, latents.detach().chunk(len(names))):
                self.seen[name] = now, part
                self.seen.move_to_end(name)
            while len(self.seen) > self.KEPT:
                self.seen.popitem(last=False)
        return made

    def recall(self, names: list, now: float, count: int) -> torch.Tensor | None:
        """The latents to condition on, if every conditioning has some from as much noise or more."""
        each = count // len(names)
        found = [self.seen.get(name) for name in names]
        # A sampler may put some noise back (EDM's churn, at most a factor of sqrt(2)); inversion goes up by more.
        fits = all(f is not None and now <= f[0] + math.log(1.5) / 4 and len(f[1]) == each for f in found)
        return torch.cat([f[1] for f in found]) if fits else None


class SnapModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, device=device, unet_model=HostFIT)
        self.model_sampling = SnapSampling(model_config)

    def extra_conds(self, **kwargs):
        found = super().extra_conds(**kwargs)
        for name, key in (("interval", INTERVAL), ("size", ROWS)):
            if kwargs.get(key) is not None:
                found[name] = comfy.conds.CONDRegular(torch.tensor([float(kwargs[key])]))
        return found


class SnapSupport(comfy.supported_models_base.BASE):
    """What the host needs to know to place the model."""

    unet_extra_config = {}
    latent_format = PixelClips

    def __init__(self, config: SnapConfig):
        super().__init__({"config": config})
        self.sampling_settings["edm"] = config.edm
        # The host reserves area * bytes * 0.01 * factor MiB: the feed-forward layer of the patches, and some maps more.
        self.memory_usage_factor = 12 * config.token / config.patch**2 / (0.01 * 2**20)

    def get_model(self, state_dict, prefix="", device=None):
        return SnapModel(self, device=device)


def forget(executor, *args, **kwargs):
    """Runs a sampler that begins and ends without latents: a guider, and the names it gives, may serve several runs."""
    seen = executor.class_obj.model_patcher.model.diffusion_model.seen
    seen.clear()
    try:
        return executor(*args, **kwargs)
    finally:
        seen.clear()


def load_snap_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The network of a checkpoint as a host MODEL. Raises `weights.WeightsError` if the file does not fit."""
    net, info = weights.load(path, "net.")
    patcher = place(SnapSupport(from_info(info)[0]), net, path, load_snap_model, disable_dynamic)
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "vidcore_self_conditioning", forget)
    return patcher
