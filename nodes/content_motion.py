"""Encode and Decode Content Motion, Attach Content Frame: a clip as one picture and its motion (CMD, arXiv 2403.14148)."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .convert import clip_to_images, decode_frames, encode_frames, images_to_clip, latent_axes
from .host_cmd import CONTENT, HostCodec, HostMotionDiT

Codec = io.Custom("CONTENT_MOTION_CODEC")
# What a motion LATENT remembers beside its samples: the autoencoder and the size of the content frame that it is of.
OF = "content_motion"

CODEC_INPUT = Codec.Input("codec", tooltip="The content-motion autoencoder, from Load Video Model.")
VAE_INPUT = io.Vae.Input(
    "vae", optional=True, tooltip="Only for autoencoders that work on an image model's latents: that model's VAE."
)


class EncodeContentMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EncodeContentMotion",
            display_name="Encode Content Motion",
            category="video/content motion",
            description="Splits a clip into one picture of what is in it and a small latent of how it moves. Edit the "
            "picture with any image node, then put both together again with Decode Content Motion.",
            search_aliases=["cmd", "content frame", "motion latent", "video to image", "edit video as image"],
            inputs=[
                CODEC_INPUT,
                io.MultiType.Input(
                    "frames", [io.Image, io.Video],
                    tooltip="The clip. One longer than the autoencoder's window becomes several content frames in a row.",
                ),
                VAE_INPUT,
            ],
            outputs=[
                io.Image.Output("content", tooltip="One content frame for each window of the clip."),
                io.Latent.Output("motion", tooltip="Batch x channels x frames x (rows + columns of patches)."),
                io.Image.Output(
                    "importance",
                    tooltip="For each frame how much of it is in the content frame, white most. Where several frames are, "
                    "the content frame is a mixture, and an edit of it there has no clear meaning.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, codec, frames, vae=None) -> io.NodeOutput:
        if not isinstance(frames, Tensor):
            frames = frames.get_components().images
        if not torch.isfinite(frames).all():
            raise ValueError("the clip holds NaN or infinite numbers; please check the node that made it.")
        clip = to_codec(codec, frames, vae)
        check_size(codec, clip.shape[3:], "frames")
        windows = clip.split(codec.config.frames, dim=2)
        bar, contents, motions, pictures = comfy.utils.ProgressBar(len(windows)), [], [], []
        for window in windows:
            comfy.model_management.throw_exception_if_processing_interrupted()
            encoded = codec.encode(window)
            contents.append(encoded.content.movedim(1, 2))  # 1 C 1 H W, as if a clip
            motions.append(encoded.motion)
            weight = encoded.importance[0].mean(dim=0)  # T H W
            pictures.append(weight / weight.max())
            bar.update(1)
        content, pictures = torch.cat(contents, dim=2), torch.cat(pictures)
        motion = {"samples": torch.cat(motions, dim=2), OF: {"codec": codec.fingerprint, "size": list(content.shape[3:])}}
        importance = comfy.utils.common_upscale(
            pictures[:, None], frames.shape[2], frames.shape[1], "nearest-exact", "disabled"
        )
        return io.NodeOutput(from_codec(codec, content, vae), motion, importance.movedim(1, -1).expand(-1, -1, -1, 3))


class DecodeContentMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DecodeContentMotion",
            display_name="Decode Content Motion",
            category="video/content motion",
            description="Makes a clip of a content frame and a motion latent: of one clip, edited, or of two clips, so that "
            "the content of one moves as the other.",
            search_aliases=["cmd", "content frame", "motion latent", "motion transfer", "animate image"],
            inputs=[
                CODEC_INPUT,
                io.Image.Input(
                    "content",
                    tooltip="The content frames: one for each window of the motion, or one for each clip of its batch.",
                ),
                io.Latent.Input("motion", tooltip="From Encode Content Motion, or sampled."),
                VAE_INPUT,
            ],
            outputs=[io.Image.Output("frames", tooltip="The clip; those of a batch follow one another.")],
        )

    @classmethod
    def execute(cls, codec, content, motion, vae=None) -> io.NodeOutput:
        frames = to_codec(codec, content, vae)
        samples, about = motion["samples"], motion.get(OF, {})
        check_motion(codec, samples, about)
        size = content_size(codec, frames.shape[3:], samples.shape[3], about.get("size"))
        notice = None
        if size != tuple(frames.shape[3:]):
            notice = f"The content frame was resized from {frames.shape[4]}x{frames.shape[3]} to {size[1]}x{size[0]}."
            frames = comfy.utils.common_upscale(frames[0].movedim(0, 1), size[1], size[0], "bicubic", "disabled")
            frames = frames.movedim(0, 1)[None]
            if codec.config.channels == 3:
                frames = frames.clamp(-1, 1)
        clips = len(samples)
        each = -(-samples.shape[2] // codec.config.frames)  # content frames of one clip
        count = frames.shape[2]
        if count == 1 and each == 1:
            frames = frames.expand(-1, -1, clips, -1, -1)
        elif count != clips * each:
            raise ValueError(
                f"{clips} motion latent(s) of {samples.shape[2]} frames need {clips * each} content frame(s), one for each "
                f"{codec.config.frames} frames; got {count}. Please give them in order, as Encode Content Motion does."
            )
        bar, made = comfy.utils.ProgressBar(clips * each), []
        windows = [part for one in samples.split(1) for part in one.split(codec.config.frames, dim=2)]
        for own, movement in zip(frames.split(1, dim=2), windows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            made.append(from_codec(codec, codec.decode(own.movedim(2, 1), movement), vae))
            bar.update(1)
        return io.NodeOutput(torch.cat(made), ui=ui.PreviewText(notice) if notice else None)


class AttachContentFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AttachContentFrame",
            display_name="Attach Content Frame",
            category="video/content motion",
            description="Tells a motion model which picture to move, and gives the empty motion latent to sample from.",
            search_aliases=["cmd", "content frame", "image to video", "animate image", "motion model"],
            inputs=[
                io.Model.Input("model", tooltip="The motion model, from Load Video Model."),
                CODEC_INPUT,
                io.Image.Input(
                    "content",
                    tooltip="The content frame, from an image model or Encode Content Motion; each of a batch gets a motion "
                    "of its own.",
                ),
                VAE_INPUT,
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model, for Sample Video or any sampler. Both halves of guidance see the frame."
                ),
                io.Latent.Output("motion", tooltip="Empty motion of the autoencoder's number of frames, one per picture."),
            ],
        )

    @classmethod
    def execute(cls, model, codec, content, vae=None) -> io.NodeOutput:
        frames = to_codec(codec, content, vae)
        net = model.get_model_object("diffusion_model")
        if not isinstance(net, HostMotionDiT):
            raise ValueError(
                "Attach Content Frame works on motion models, which Load Video Model loads from a CMD file; this is "
                f"{type(model.model).__name__}."
            )
        if (net.config.latent, net.config.content_channels) != (codec.config.latent, codec.config.channels):
            raise ValueError(
                f"the model is for motion of {net.config.latent} channels and content of {net.config.content_channels}, the "
                f"autoencoder for {codec.config.latent} and {codec.config.channels}; please load both from one file."
            )
        check_size(codec, frames.shape[3:], "content frame", net.config.content_patch)
        rows, columns = (side // codec.config.patch for side in frames.shape[3:])
        model = model.clone()
        model.model_options["transformer_options"][CONTENT] = frames[0].movedim(1, 0)
        shape = (frames.shape[2], codec.config.latent, codec.config.frames, rows + columns)
        empty = torch.zeros(shape, device=comfy.model_management.intermediate_device())
        return io.NodeOutput(model, {"samples": empty, OF: {"codec": codec.fingerprint, "size": list(frames.shape[3:])}})


# -------------------------------------------------------------------------------------------------------------- checking


def to_codec(codec: HostCodec, images: Tensor, vae) -> Tensor:
    """IMAGE as the autoencoder takes it: a clip 1 C T H W of pixels in [-1, 1], or of latents by the VAE."""
    if codec is None:
        raise ValueError("the loaded model has no content-motion autoencoder; please load a CMD model for that.")
    if codec.config.channels == 3 and vae is None:
        return images_to_clip(images)
    if vae is None:
        raise ValueError(
            f"this autoencoder works on latents of {codec.config.channels} channels; please connect the VAE that makes them."
        )
    if latent_axes(vae) != 4 or vae.latent_channels != codec.config.channels:
        raise ValueError(
            f"this autoencoder works on {'pixels' if codec.config.channels == 3 else 'latents'} of {codec.config.channels} "
            f"channels, one frame at a time; the VAE makes latents of {vae.latent_channels} channels. Please connect "
            + ("none." if codec.config.channels == 3 else "the VAE of the image model that it was trained with.")
        )
    return encode_frames(vae, images)


def from_codec(codec: HostCodec, clip: Tensor, vae) -> Tensor:
    """The inverse of `to_codec`."""
    if vae is None:
        return clip_to_images(clip).clamp(0, 1)
    return decode_frames(vae, clip)


def check_size(codec: HostCodec, size: tuple[int, int], what: str, other: int = 1) -> None:
    """Refuse sizes that the patches do not divide."""
    patch = max(codec.config.patch, other)  # one divides the other in every published size
    if size[0] % patch or size[1] % patch or 0 in size:
        fit = [max(patch, side // patch * patch) for side in size]
        raise ValueError(
            f"the {what} must have a width and height that are multiples of {patch}; got {size[1]}x{size[0]}. Please crop "
            f"or resize, for example to {fit[1]}x{fit[0]}."
        )


def check_motion(codec: HostCodec, samples: Tensor, about: dict) -> None:
    """Refuse a LATENT that is not this autoencoder's motion."""
    if samples.ndim != 4 or samples.shape[1] != codec.config.latent:
        raise ValueError(
            f"expected a motion latent of batch x {codec.config.latent} x frames x entries, as Encode Content Motion makes "
            f"it; got {' x '.join(map(str, samples.shape))}."
        )
    if about.get("codec", codec.fingerprint) != codec.fingerprint:
        raise ValueError(
            "this motion latent is of another autoencoder; please decode it with the model that it was made with."
        )
    if not torch.isfinite(samples).all():
        raise ValueError("the motion latent holds NaN or infinite numbers; please check the node that made it.")


def content_size(codec: HostCodec, size: tuple[int, int], entries: int, known: list[int] | None) -> tuple[int, int]:
    """The height and width that the content frame must have for a motion latent of so many entries a frame.

    A motion latent from a file does not remember its size; then only the sum of both sides is known, and the content frame
    keeps its shape as well as it can.
    """
    patch, (height, width) = codec.config.patch, size
    if known:
        fit = (known[0], known[1])
    else:
        rows = round(entries * height / (height + width))
        fit = (rows * patch, (entries - rows) * patch)
    if abs(height / width - fit[0] / fit[1]) > 0.1 * fit[0] / fit[1]:
        raise ValueError(
            f"this motion is of a content frame of {fit[1]}x{fit[0]}; got one of {width}x{height}. Please crop it to that "
            "shape."
        )
    return fit
