"""Longer, smoother and larger clips from any MODEL, in windows under reconstruction guidance (VDM section 3.1)."""

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..vidcore.guide.extend import extension, first_frames, interpolation, places_between, stream
from ..vidcore.guide.measure import Decoded, LowResolution, Measurement
from .conditions import FrameConditions
from .convert import (
    clip_to_images,
    clip_to_latent,
    decode_frames,
    encode_frames,
    frames_per_latent,
    images_to_clip,
    latent_to_clip,
    whole_latents,
)  # fmt: skip
from .guide import Decoder, Guide, guided, is_motion
from .parts import check_estimate, needs_sound
from .samplers import PAPER_SCHEDULE, SAMPLERS, SCHEDULES, make_sampler, make_sigmas
from .still import still


def common_inputs(weight: float) -> list:
    """What all three nodes ask for, after the frames."""
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="The only source of randomness: the same seed gives the same clip.",
        ),
        io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Denoising steps per window."),
        io.Float.Input(
            "guidance_scale", default=3.0, min=0.0, max=100.0, step=0.1, round=0.01,
            tooltip="Classifier-free guidance towards the prompt; 1 is off.",
        ),
        io.Combo.Input("sampler", options=SAMPLERS, default=SAMPLERS[0], tooltip="As in Sample Video."),
        io.Combo.Input("schedule", options=SCHEDULES, default=PAPER_SCHEDULE, tooltip="As in Sample Video."),
        io.Float.Input(
            "weight", default=weight, min=0.0, max=100000.0, step=0.1, round=0.001,
            tooltip="How strongly new frames follow what is known (w_r). 0 is the replacement method.",
        ),
        io.Int.Input(
            "window", default=8, min=2, max=1024,
            tooltip="Frames that the model makes at once: best the length it was trained on. The model's memory grows with "
            "it, not with the length of the clip.",
        ),
        io.Int.Input("overlap", default=2, min=0, max=1023, tooltip="Frames that a window and the next one share."),
    ]  # fmt: skip


MEMORY_SAVER = io.Boolean.Input(
    "memory_saver", default=False, optional=True, advanced=True,
    tooltip="Keeps less for the way back through the model and computes it again: slower, less memory.",
)  # fmt: skip

MODEL_INPUTS = [
    io.Model.Input("model", tooltip="Any model whose frames see one another: a video model, or an image model patched so."),
    io.Conditioning.Input("positive", tooltip="What the clip shows."),
    io.Conditioning.Input("negative", tooltip="What to steer away from."),
    io.Vae.Input("vae", tooltip="The model's VAE."),
]


class Windows:
    """Samples windows of one clip, one after another, with one progress bar."""

    def __init__(
        self, model, conditions, count, seed, steps, guidance_scale, sampler, schedule, weight, memory_saver=False,
    ):  # fmt: skip
        self.model, self.conditions, self.weight, self.memory_saver = model, conditions, weight, memory_saver
        self.seed, self.scale = seed, guidance_scale
        self.sampler = make_sampler(sampler)
        self.sigmas = make_sigmas(model.get_model_object("model_sampling"), schedule, sampler, steps)
        self.bar, self.done = comfy.utils.ProgressBar(count * steps), 0
        self.total = count * steps
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def report(self, step, x0, x, total):
        check_estimate(x0)
        preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
        self.bar.update_absolute(self.done + step + 1, self.total, preview)

    def make(self, measurements, start: int, shape: torch.Size) -> torch.Tensor:
        """One window of ``shape`` 1 C T h w in the model's own space, first frame ``start``; measurements likewise."""
        axes = self.model.get_model_object("latent_format").latent_dimensions + 2
        empty = clip_to_latent(torch.zeros(shape), axes)
        seed = (self.seed + start) % 2**64  # noise of its own for every window; seeds end there
        model = self.model
        for measurement in measurements:
            build = lambda base, shape, measurement=measurement: measurement  # noqa: E731
            vae = measurement.decode.patcher if isinstance(measurement, Decoded) else None
            model = guided(model, Guide(build, self.weight, float("inf"), 0.0, memory_saver=self.memory_saver, vae=vae))
        latent = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(empty, seed),
            self.scale,
            self.sampler,
            self.sigmas,
            *self.conditions.of(start, (shape[2] - 1) * self.conditions.pack + 1),
            empty,
            callback=self.report,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        self.done += len(self.sigmas) - 1
        return model.model.process_latent_in(latent_to_clip(latent))


def check_frames(model, vae, image: torch.Tensor, least: int) -> None:
    """Raises ValueError for frames that these nodes cannot use, and for a VAE that is not the model's."""
    if image.shape[0] < least:
        raise ValueError(f"at least {least} frames are needed, got {image.shape[0]}")
    if not torch.isfinite(image).all():
        raise ValueError("the frames hold NaN or infinite values; please check the node that made them")
    if is_motion(model.model):
        raise ValueError(
            "this model makes motion latents, not frames; please give what is known of a motion to Reconstruction Guide."
        )
    if needs_sound(model):
        raise ValueError(
            "this model makes video and sound at once, and this node frames alone. Please sample a latent with sound, with "
            "Reconstruction Guide for what is known of the video."
        )
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        raise ValueError(
            f"this model's latents have {channels} channels and the VAE's {vae.latent_channels}. Please connect the VAE "
            "that belongs to the model."
        )


def check_size(vae, height: int, width: int) -> None:
    """Raises ValueError for frames that the VAE would crop."""
    ratio = vae.spacial_compression_encode()
    if height % ratio or width % ratio:
        raise ValueError(
            f"the new clip would be {width}x{height}; this model's VAE needs multiples of {ratio}. Please crop or resize "
            "the frames."
        )


def fit_windows(length: int, window: int, overlap: int, pack: int) -> tuple[int, int, int]:
    """Windows that fit a model which packs ``pack`` frames into a latent.

    Returns:
        frames to make (at least ``length``), frames per window, frames that two windows share.

    Raises:
        ValueError: if a window would make nothing new.
    """
    if window <= pack > 1:
        raise ValueError(
            f"this model packs {pack} frames into one latent, so a window of {window} frames holds only one. Please use a "
            f"window of at least {pack + 1}, best the length that the model was trained on."
        )
    if overlap >= window:
        raise ValueError(f"overlap ({overlap}) must be below window ({window}): a window of known frames makes nothing new")
    window, overlap = whole_latents(window, pack), whole_latents(overlap, pack)
    if window >= length:  # one window makes it all
        window = whole_latents(length + pack - 1, pack)
        return window, window, 0
    if pack > 1:  # every window shares whole latents with the next, so the last may make more than is asked for
        length = window + -(-(length - window) // (window - overlap)) * (window - overlap)
    return length, window, overlap


def run_windows(
    model, positive, negative, vae, image, length, evidence, window, overlap, size=None, first=0, **how
) -> torch.Tensor:  # fmt: skip
    """Stream a clip of ``length`` frames and decode it window by window.

    Where the VAE packs several frames into a latent, what two windows share goes through pixels: the first frame of a
    clip has a latent of its own, so a window's last latents are not the next one's first.

    Args:
        evidence: what is known, in the model's own space, of the frames from a number up to another.
        size: height and width of the new clip's latents; the given frames' by default.
        first: frames of the clip that comes out before these; what conditions hold for each frame begins with those.
        how: see `Windows`.

    Returns:
        IMAGE.
    """
    pack = frames_per_latent(vae)
    total, window, overlap = fit_windows(length, window, overlap, pack)
    pictures = model.get_model_object("latent_format").latent_dimensions == 2
    conditions = FrameConditions((positive, negative), first + length, first, pack, pictures)
    known = encode_frames(vae, image[:1])
    shape = torch.Size([1, known.shape[1], (window - 1) // pack + 1, *(size or known.shape[-2:])])
    count = 1 + -(-(total - window) // (window - overlap))
    windows = Windows(model, conditions, count, **how)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return decode_frames(vae, model.model.process_latent_out(latents))

    if pack == 1:
        blocks = stream(lambda known, start: windows.make(known, start, shape), total, window, overlap, evidence)
        return torch.cat([decode(block) for block in blocks])

    def make(known, start: int) -> torch.Tensor:
        return images_to_clip(decode(windows.make(known, start, shape)))

    def remember(frames: torch.Tensor, _) -> Measurement:
        return first_frames(known_latents(model, vae, clip_to_images(frames)), shape[2])

    blocks = stream(make, total, window, overlap, evidence, remember)
    return torch.cat([clip_to_images(block) for block in blocks])[:length]


def known_latents(model, vae, image: torch.Tensor) -> torch.Tensor:
    """IMAGE as a clip in the model's own space."""
    return model.model.process_latent_in(encode_frames(vae, image))


class TemporalUpsample(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TemporalUpsample",
            display_name="Temporal Upsample",
            category="video/guidance",
            description="Makes new frames between the given ones with any model, and keeps the given ones exactly.",
            search_aliases=["frame interpolation", "in-between", "slow motion", "frame rate", "vfi"],
            inputs=[
                *MODEL_INPUTS,
                io.Image.Input("image", tooltip="The frames to keep, at least two."),
                io.Int.Input("factor", default=2, min=2, max=64, tooltip="How many times as many frames per second."),
                *common_inputs(weight=2.0),
                MEMORY_SAVER,
            ],
            outputs=[io.Image.Output(tooltip="(frames - 1) x factor + 1 frames.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, vae, image, factor, **how) -> io.NodeOutput:
        check_frames(model, vae, image, 2)
        check_size(vae, *image.shape[1:3])
        if frames_per_latent(vae) == 1:
            evidence = interpolation(known_latents(model, vae, image), factor)
        else:  # no latent holds a given frame alone
            decode, in_pixels = Decoder(vae, still(vae.patcher), model.model), interpolation(images_to_clip(image), factor)

            def evidence(start: int, stop: int):
                return [Decoded(decode, known) for known in in_pixels(start, stop)]

        length = (image.shape[0] - 1) * factor + 1
        made = run_windows(model, positive, negative, vae, image, length, evidence, **how)
        made[::factor] = image[..., :3].to(made)
        return io.NodeOutput(made)


class ExtendVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ExtendVideo",
            display_name="Extend Video",
            category="video/guidance",
            description="Goes on after the given frames with any model, window after window, to any length.",
            search_aliases=["continue video", "video prediction", "longer video", "autoregressive", "outpaint time"],
            inputs=[
                *MODEL_INPUTS,
                io.Image.Input("image", tooltip="The frames to go on from. They are kept exactly."),
                io.Int.Input("new_frames", default=8, min=1, max=100000, tooltip="How many frames to add."),
                *common_inputs(weight=2.0),
                MEMORY_SAVER,
            ],
            outputs=[io.Image.Output(tooltip="The given frames and the new ones after them.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, vae, image, new_frames, window, overlap, **how) -> io.NodeOutput:
        check_frames(model, vae, image, 1)
        check_size(vae, *image.shape[1:3])
        # Only the last frames matter for what follows.
        pack = frames_per_latent(vae)
        context = image[-whole_latents(min(image.shape[0], max(1, min(overlap, window - 1))), pack) :]
        known = extension(known_latents(model, vae, context))

        def evidence(start: int, stop: int):
            return [] if start else known(0, (stop - 1) // pack + 1)

        length = context.shape[0] + new_frames
        made = run_windows(
            model, positive, negative, vae, image, length, evidence,
            window=window, overlap=max(1, overlap), first=image.shape[0] - context.shape[0], **how,
        )  # fmt: skip
        return io.NodeOutput(torch.cat([image[..., :3].to(made), made[context.shape[0] :]]))


class SpatialUpsample(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpatialUpsample",
            display_name="Spatial Upsample",
            category="video/guidance",
            description="Makes a larger clip that shrinks to the given one, with any model that knows the larger size; "
            "and more frames at once, if asked.",
            search_aliases=["video super resolution", "upscale video", "enlarge", "sr"],
            inputs=[
                *MODEL_INPUTS,
                io.Image.Input("image", tooltip="The small clip."),
                io.Int.Input("factor", default=2, min=2, max=8, tooltip="How many times as wide and high."),
                *common_inputs(weight=8.0),
                io.Int.Input(
                    "time_factor", default=1, min=1, max=64, optional=True, advanced=True,
                    tooltip="How many times the frame rate; 1 keeps it.",
                ),
                MEMORY_SAVER,
            ],
            outputs=[io.Image.Output(tooltip="The larger clip.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, vae, image, factor, time_factor=1, **how) -> io.NodeOutput:
        check_frames(model, vae, image, 1 if time_factor == 1 else 2)
        height, width = (side * factor for side in image.shape[1:3])
        check_size(vae, height, width)
        small, ratio = images_to_clip(image), vae.spacial_compression_encode()
        in_pixels = ratio > 1  # a small picture's latent is not the small version of the large one's
        decode = Decoder(vae, still(vae.patcher), model.model) if in_pixels else None

        def evidence(start: int, stop: int):
            given, places = places_between(small, time_factor, start, stop)
            if not places:
                return []
            measurement = LowResolution(given, frames=tuple(places))
            return [Decoded(decode, measurement) if in_pixels else measurement]

        length = (image.shape[0] - 1) * time_factor + 1
        size = (height // ratio, width // ratio)
        return io.NodeOutput(run_windows(model, positive, negative, vae, image, length, evidence, size=size, **how))
