"""CMD's motion model as a first-class host MODEL on motion latents, and its autoencoder under the host's care."""

import hashlib

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import torch
from torch import Tensor

from ..vidcore import weights
from ..vidcore.codec import content_motion
from ..vidcore.codec.content_motion import ContentMotionCodec, ContentMotionConfig, Encoded
from ..vidcore.systems.cmd import MotionConfig, MotionDiT
from ..vidcore.systems.cmd.checkpoint import from_info
from .host_place import patchable, place
from .host_vdm import EpsSampling, VSampling, X0Sampling

# Where a MODEL keeps its content frames, N C H W in [-1, 1], among its transformer options.
CONTENT = "vidcore_content_frames"

# ------------------------------------------------------------------------------------------------------------ the MODEL


class MotionLatents(comfy.latent_formats.LatentFormat):
    """Latents that are motion, B D T (H' + W'); the preview shows three channels of them as a picture."""

    spacial_downscale_ratio = 1

    def __init__(self, channels: int = 8):
        self.latent_channels = channels
        self.latent_rgb_factors = [[float(i == channel) for i in range(3)] for channel in range(channels)]


class HostMotionDiT(MotionDiT):
    """The network under the host's calling convention."""

    def __init__(self, config: MotionConfig, device=None, dtype=None, operations=None):
        super().__init__(config, operations, device, dtype)
        self.dtype = dtype

    @patchable
    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, **kwargs):
        content = transformer_options.get(CONTENT)
        if content is None:
            raise ValueError(
                "this model makes the motion of a given content frame, and has none; please put Attach Content Frame "
                "between the model and the sampler."
            )
        parts = len(transformer_options.get("cond_or_uncond", [0]))
        clips = len(x) // parts
        if len(content) not in (1, clips):
            raise ValueError(
                f"{len(content)} content frames were attached, and there are {clips} motion latents; please give one "
                "content frame for all of them, or one for each."
            )
        content = content.to(x).repeat(parts if len(content) == clips else len(x), 1, 1, 1)
        log_snr = self.config.schedule.log_snr(timesteps.double()).float()
        return super().forward(x, log_snr, context, content=content)


class MotionModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, device=device, unet_model=HostMotionDiT)
        sampling = {"eps": EpsSampling, "v": VSampling, "x0": X0Sampling}[model_config.unet_config["config"].prediction]
        self.model_sampling = sampling(model_config)


class MotionSupport(comfy.supported_models_base.BASE):
    """What the host needs to know to place the model."""

    unet_extra_config = {}

    def __init__(self, config: MotionConfig):
        super().__init__({"config": config})
        self.latent_format = MotionLatents(config.latent)
        self.sampling_settings["schedule"] = config.schedule
        # The host reserves area * bytes * 0.01 * factor MiB. About 20 maps of the width are alive, and as many for
        # the content frame's tokens, which the host does not count.
        self.memory_usage_factor = 40 * config.width / config.patch**2 / (0.01 * 2**20)

    def get_model(self, state_dict, prefix="", device=None):
        return MotionModel(self, device=device)


def load_motion_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The network of a checkpoint as a host MODEL. Raises `weights.WeightsError` if the file does not fit."""
    net, info = weights.load(path, "net.")
    return place(MotionSupport(from_info(info)[0]), net, path, load_motion_model, disable_dynamic)


# ------------------------------------------------------------------------------------------------------------ the codec


class HostCodec:
    """The autoencoder, placed and paged by the host as a VAE is.

    Args:
        path: a checkpoint that holds one.

    Raises:
        weights.WeightsError: if it does not fit.
    """

    def __init__(self, path: str, disable_dynamic: bool = False):
        tensors, info = weights.load(path, "codec.")
        self.config: ContentMotionConfig = content_motion.from_info(info)
        self.fingerprint = _fingerprint(tensors)  # which autoencoder a motion latent is of
        device, offload = comfy.model_management.vae_device(), comfy.model_management.vae_offload_device()
        self.dtype = comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float32])
        net = ContentMotionCodec(self.config, comfy.ops.manual_cast, offload, self.dtype).eval().requires_grad_(False)
        weights.check(ContentMotionCodec(self.config, device="meta"), tensors, "autoencoder")
        comfy.model_management.archive_model_dtypes(net)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(net, load_device=device, offload_device=offload)
        # In the type that it computes in, which it reads off them.
        tensors = {name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        net.load_state_dict(tensors, assign=self.patcher.is_dynamic())
        self.patcher.cached_patcher_init = (_codec_patcher, (path,))

    def encode(self, clip: Tensor) -> Encoded:
        """A window B C T H W, pixels in [-1, 1] or latents, to its content frame and motion, on the host's device."""
        chunk = self._load(clip.shape)
        encoded = self.patcher.model.encode(clip.to(self.patcher.load_device, torch.float32), chunk)
        device = comfy.model_management.intermediate_device()
        return Encoded(*(x.to(device, torch.float32) for x in (encoded.content, encoded.motion, encoded.importance)))

    def decode(self, content: Tensor, motion: Tensor) -> Tensor:
        """The inverse: a content frame B 1 C H W and motion B D T (H' + W') to a window B C T H W."""
        shape = (*content.shape[:1], content.shape[2], motion.shape[2], *content.shape[3:])
        chunk = self._load(shape)
        device = self.patcher.load_device
        clip = self.patcher.model.decode(content.to(device), motion.to(device), chunk)
        return clip.to(comfy.model_management.intermediate_device(), torch.float32)

    def _load(self, shape: tuple[int, ...]) -> int:
        """Ask the host for room and say how much to work on at once (`TimeSformerBlock.forward`), 0 for all."""
        config, size = self.config, comfy.model_management.dtype_size(self.dtype)
        tokens = min(shape[2], config.frames) * (shape[3] // config.patch) * (shape[4] // config.patch)
        # A block keeps its input and output, and inside it a feed-forward layer eight times as wide and its product.
        whole = tokens * config.width * 24 * size * shape[0]
        device = self.patcher.load_device
        comfy.model_management.load_models_gpu([self.patcher], memory_required=whole)
        free = comfy.model_management.get_free_memory(device)
        if whole <= free / 2:
            return 0
        return max(1, int(shape[0] * min(shape[2], config.frames) * free / 4 / whole))


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _codec_patcher(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """What the host calls for a copy of the autoencoder without the weight paging that it calls dynamic."""
    return HostCodec(path, disable_dynamic).patcher
