"""LoadVideoModel: a checkpoint of ours becomes a host MODEL, CLIP and VAE."""

import comfy.model_patcher
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..vidcore import weights
from ..vidcore.codec import content_motion
from ..vidcore.systems import image
from ..vidcore.systems.cmd import checkpoint as cmd
from ..vidcore.systems.harivo import checkpoint as harivo
from ..vidcore.systems.snap import checkpoint as snap
from ..vidcore.systems.vdm import checkpoint as vdm
from .content_motion import Codec
from .folders import FOLDER
from .host_cmd import HostCodec, load_motion_model
from .host_image import load_image_model
from .host_snap import load_snap_model
from .host_text import load_clip
from .host_vdm import load_model

# Files that this node loads, by their system: what checks their description.
READERS = {
    vdm.SYSTEM: vdm.from_info,
    image.SYSTEM: image.from_info,
    cmd.SYSTEM: cmd.from_info,
    content_motion.SYSTEM: content_motion.from_info,
    snap.SYSTEM: snap.from_info,
}


class LoadVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadVideoModel",
            display_name="Load Video Model",
            category="video/loaders",
            description="Loads a VidCore video model: the diffusion model, its text encoder, its VAE and its codec.",
            search_aliases=["video diffusion", "vdm", "load checkpoint video", "vidcore"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A .safetensors file from models/video_diffusion, or one that ships with VidCore.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The video diffusion model, for SampleVideo, KSampler or SamplerCustomAdvanced."),
                io.Clip.Output(tooltip="The model's own text encoder, for CLIP Text Encode."),
                io.Vae.Output(tooltip="Turns the model's clips into images and back, for VAE Decode and VAE Encode."),
                Codec.Output(
                    "codec",
                    tooltip="The content-motion autoencoder of a CMD model, for Encode and Decode Content Motion. Other "
                    "models have none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        path = folder_paths.get_full_path(FOLDER, model_name)
        if path is None:
            known = ", ".join(folder_paths.get_filename_list(FOLDER)) or "none"
            return f"no video model {model_name!r}; found in models/{FOLDER} and in VidCore: {known}"
        try:
            info = weights.read_info(path)
            if info["system"] == harivo.SYSTEM:
                return f"{model_name} is a motion module for an image model; please use Load Motion Module."
            READERS.get(info["system"], vdm.from_info)(info)
        except weights.WeightsError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model_name) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, model_name)
        system = weights.read_info(path)["system"]
        if system == content_motion.SYSTEM:  # for those who train their own
            lacks = ExecutionBlocker(f"{model_name} is an autoencoder alone; please use its output codec.")
            return io.NodeOutput(lacks, lacks, pixel_vae(clips=False), HostCodec(path))
        if system == cmd.SYSTEM:
            return io.NodeOutput(load_motion_model(path), load_clip(path), pixel_vae(clips=False), HostCodec(path))
        if system == image.SYSTEM:
            return io.NodeOutput(load_image_model(path), load_clip(path), pixel_vae(clips=False), None)
        load = load_snap_model if system == snap.SYSTEM else load_model
        return io.NodeOutput(load(path), load_clip(path), pixel_vae(), None)


class PixelVAE(comfy.sd.VAE):
    """The host's pixel-space VAE, which says so when it is given latents that are not pixels."""

    def __init__(self):
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})

    def decode(self, samples_in, *args, **kwargs):
        if samples_in.shape[1] != 3:
            raise ValueError(
                f"this VAE decodes clips and pictures of 3 channels; these latents have {samples_in.shape[1]}. Motion "
                "latents are decoded by Decode Content Motion, others by the VAE of their model."
            )
        return super().decode(samples_in, *args, **kwargs)


def pixel_vae(clips: bool = True) -> comfy.sd.VAE:
    """The host's pixel-space VAE; for ``clips`` told that latents have a time axis, or it would decode only frame 0."""
    vae = PixelVAE()
    if clips:
        vae.latent_dim = 3
        # As the host's VAEs for videos have it: frames by a function. Encoding in tiles asks for it.
        vae.upscale_ratio = vae.downscale_ratio = (lambda frames: frames, 1, 1)
    vae.patcher.cached_patcher_init = (_pixel_vae_patcher, ())
    return vae


def _pixel_vae_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """What the host calls for a copy of the VAE without the weight paging that it calls dynamic."""
    return pixel_vae().patcher
