"""ReconstructionGuide: what is known about a clip steers any MODEL (VDM section 3.1)."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy_api.latest import io

from ..vidcore.guide.measure import Decoded, Known, LowResolution, Measurement, Packed, TemporalAverage, known_frames
from ..vidcore.guide.reconstruction import reconstruct
from .checkpoint import checkpointed
from .convert import (
    clip_to_latent,
    encode_frames,
    frames_per_latent,
    images_to_clip,
    known_mask,
    latent_axes,
    latent_to_clip,
    parse_frames,
)  # fmt: skip
from .gradient import Safeguards, gradients, plain, without_decorator
from .host_cmd import MotionModel
from .one_device import on_one_device
from .parts import packed, parts_of, video_of
from .samplers import host_level
from .still import still

KEY = "vidcore_reconstruction"
KINDS = ["frames", "mask", "low_resolution", "temporal_average"]
PLACES = ["latent", "pixels"]
CACHES = ("easycache", "lazycache")  # the host's keys


@dataclass(frozen=True)
class Guide:
    """What one ReconstructionGuide node asks for.

    Args:
        build: (the host's BaseModel, the shape B C T h w of the clip) -> the measurement, in the model's own space.
        weight: w_r.
        start, end: noise levels between which it steers, as sigmas of the host.
        every: steer at every so many-th step.
        memory_saver: run the network's blocks again on the way back instead of keeping what they made.
        vae: where the measurement goes through a decoder, the patcher of its VAE.
    """

    build: Callable[[object, torch.Size], Measurement]
    weight: float
    start: float
    end: float
    every: int = 1
    memory_saver: bool = False
    vae: object = None

    def acts(self, sigma: float, step: int) -> bool:
        return self.weight > 0 and self.end <= sigma <= self.start and step % self.every == 0


@dataclass
class Guides:
    """All guides of one MODEL, as the two wrappers that the host calls around sampling."""

    guides: list[Guide]
    measurements: list[Measurement] = field(default_factory=list)
    shapes: list[torch.Size] | None = None
    safeguards: Safeguards = field(default_factory=Safeguards)

    def on_model_patcher_clone(self) -> "Guides":
        return Guides(list(self.guides))

    def sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """OUTER_SAMPLE: everything that can be wrong about the known parts is found before the first step."""
        patcher = executor.class_obj.model_patcher
        self.shapes = kwargs.get("latent_shapes")
        if packed(self.shapes):
            refuse_parts_but_video(self.shapes)
        shape = latent_to_clip(video_of(noise, self.shapes), is_motion(patcher.model)).shape
        self.measurements = [guide.build(patcher.model, shape) for guide in self.guides]
        if packed(self.shapes):
            self.measurements = [Packed(measurement, shape) for measurement in self.measurements]
        self.safeguards = Safeguards()
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        except Exception as error:
            if not out_of_memory(error):
                raise
            # The host's own kind, which makes it unload what it holds.
            raise torch.OutOfMemoryError(
                f"{error}\nReconstruction guidance keeps the model's activations for its gradient. Please turn memory_saver "
                "on in the node that guides, make fewer frames at once, or use a smaller size."
            ) from error
        finally:
            self.measurements = []

    def predict(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE: x~ in place of x-hat."""
        model, options = executor.class_obj.inner_model, model_options or {}
        sigma = float(timestep.flatten()[0])
        grid = options.get("transformer_options", {}).get("sample_sigmas")
        step = 0 if grid is None else int((grid.to(timestep) > timestep.flatten()[0] * (1 + 1e-6)).sum())
        weights = [guide.weight if guide.acts(sigma, step) else 0.0 for guide in self.guides]
        level, scale = host_level(model.model_sampling, sigma)
        motion = is_motion(model)

        def to_clip(state: torch.Tensor) -> torch.Tensor:
            return state if packed(self.shapes) else latent_to_clip(state, motion)

        def denoise(clip: torch.Tensor) -> torch.Tensor:
            return to_clip(executor(clip_to_latent(clip, x.ndim, motion), moment, options, seed).float())

        def steer(z: torch.Tensor, alpha: float) -> torch.Tensor:
            x0 = reconstruct(denoise, to_clip(z), alpha, self.measurements, weights)
            return clip_to_latent(x0, x.ndim, motion)

        if not any(weights):
            moment = timestep
            return steer(x, 1.0)
        with contextlib.ExitStack() as stack:
            others = [part.model for part in getattr(executor.class_obj, "loaded_models", None) or []]  # ControlNets, VAEs
            stack.enter_context(gradients([model, *others]))
            if any(guide.memory_saver for guide in self.guides):
                stack.enter_context(checkpointed(model.diffusion_model))
            moment, options = plain(timestep), without_decorator(options)
            # With the host's state x = z / scale, alpha grad_z is (alpha / scale) grad_x.
            return self.safeguards(lambda: steer(plain(x), level.alpha / scale))


def is_motion(base) -> bool:
    """Whether a model's latents are motion latents."""
    return isinstance(base, MotionModel)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on an accelerator or (where PyTorch has no error of its own for it) in the computer."""
    return (
        comfy.model_management.is_oom(error)
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
    )


def refuse_parts_but_video(shapes: list[torch.Size]) -> None:
    """Raises ValueError for packed latents that do not begin with a video."""
    if len(shapes[0]) != 5:
        raise ValueError(
            "guidance knows latents of several parts where the first is a video, as of video with sound; this one has "
            f"{' and '.join(' x '.join(map(str, shape)) for shape in shapes)}. Please take the guide out."
        )


def without_caches(model, others: Sequence[str] = ()):
    """A clone that runs the network at every step: EasyCache and LazyCache answer some of them from the steps before.

    Args:
        model: a MODEL.
        others: keys of more wrappers that are left out.
    """
    model = model.clone()
    for wrappers in model.wrappers.values():
        for key in (*CACHES, *others):
            wrappers.pop(key, None)
    return model


def network_alone(model):
    """A clone to train with, `still`: it says what the network says, without caches and without what guides sampling.

    Nor with a function around the network that takes no gradients, such as TiledDiffusion's tiles.
    """
    model = without_caches(still(model), [KEY])
    model.model_options = {k: v for k, v in model.model_options.items() if not k.startswith("sampler_")}
    if without_decorator(model.model_options) is not model.model_options:
        del model.model_options["model_function_wrapper"]
    return model


def guided(model, guide: Guide):
    """A clone of a MODEL with one more guide."""
    model = still(model)
    guides: Guides | None = model.get_attachment(KEY)
    if guides is None:
        guides = Guides([])
    guides.guides.append(guide)
    model.set_attachments(KEY, guides)
    # The host loads these together with the model, and so does not move one out for the other.
    model.set_additional_models(KEY, list(dict.fromkeys(g.vae for g in guides.guides if g.vae is not None)))
    wrappers = comfy.patcher_extension.WrappersMP
    for kind, function in ((wrappers.OUTER_SAMPLE, guides.sample), (wrappers.PREDICT_NOISE, guides.predict)):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, function)
    on_one_device(model, "it takes no gradients, by which guidance works.")
    return model


def say(shape) -> str:
    return f"{shape[2]} frames of {shape[4]}x{shape[3]}"


def build_measurement(kind: str, given: torch.Tensor, shape: torch.Size, frames: list[int], mask) -> Measurement:
    """The measurement behind a node's inputs, for a clip of ``shape`` B C T h w; ``given`` is B C K h w in the same space.

    Raises:
        ValueError: if what is given does not fit the clip.
    """
    if not torch.isfinite(given).all():
        raise ValueError("what is known holds NaN or infinite values; please check the node that made it")
    if given.shape[1] != shape[1]:
        raise ValueError(
            f"what is known has {given.shape[1]} channels and the clip {shape[1]}: they come from different models. "
            "Please encode it with this model's VAE."
        )
    if given.shape[0] not in (1, shape[0]):
        raise ValueError(f"what is known holds {given.shape[0]} clips and the latent {shape[0]}; give one for all, or each")
    same_size = given.shape[-2:] == shape[-2:]
    if kind == "low_resolution":
        places = tuple(frames) if frames else None
        count = len(frames) if frames else shape[2]
        if given.shape[2] != count:
            raise ValueError(f"the small clip has {given.shape[2]} frames; {count} are expected")
        if given.shape[3] > shape[3] or given.shape[4] > shape[4] or same_size:
            raise ValueError(
                f"the small clip must be smaller than the clip to make: got {say(given.shape)} for {say(shape)}"
            )
        return LowResolution(given, frames=places)
    if not same_size:
        raise ValueError(
            f"what is known is {say(given.shape)} and the clip to make {say(shape)} (as the model sees them); "
            "width and height must be equal. Please resize one of them."
        )
    if kind == "frames":
        return known_frames(given, frames or range(given.shape[2]), shape[2])
    if kind == "mask":
        if mask is None:
            raise ValueError("for the kind 'mask', please connect a mask: black where the clip is known")
        if given.shape[2] not in (1, shape[2]):
            raise ValueError(f"what is known has {given.shape[2]} frames and the clip {shape[2]}; give one for all, or each")
        return Known(given, known_mask(mask, shape).to(given))
    if shape[2] % given.shape[2]:
        raise ValueError(f"{given.shape[2]} averages do not divide the clip's {shape[2]} frames evenly")
    return TemporalAverage(given)


@dataclass(frozen=True)
class Decoder:
    """Latents in a model's space B C t h w to pixels B 3 T H W in [-1, 1], differentiable.

    Args:
        vae: the host's VAE.
        patcher: its weights, as `still` gives them.
        model: the host's BaseModel.
    """

    vae: object
    patcher: object
    model: object

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        latent = clip_to_latent(self.model.process_latent_out(x0), latent_axes(self.vae))
        pixels = self.patcher.model.decode(latent.to(self.vae.device, self.vae.vae_dtype))
        return latent_to_clip(pixels.float()).to(x0.device)


class ReconstructionGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ReconstructionGuide",
            display_name="Reconstruction Guide",
            category="video/guidance",
            description="Makes any model's clip agree with what is known of it: some frames, some pixels, a smaller "
            "version, or averages over time. The model needs no training for it.",
            search_aliases=["video inpaint", "known frames", "in-between", "extend", "inverse problem", "vdm guidance"],
            inputs=[
                io.Model.Input("model", tooltip="Any model: ours, an image model on a batch of frames, a video model."),
                io.Combo.Input(
                    "kind", options=KINDS,
                    tooltip="What is known. frames: whole frames. mask: the black part of a mask. low_resolution: a "
                    "smaller clip. temporal_average: the mean of each group of successive frames.",
                ),
                io.Float.Input(
                    "weight", default=2.0, min=0.0, max=100000.0, step=0.1, round=0.001,
                    tooltip="How strongly the rest follows what is known (w_r, on the sum of squared errors). "
                    "0 only puts the known values in place.",
                ),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="What is known, as a latent of this model. Of a latent with sound, its video.",
                ),
                io.Image.Input("image", optional=True, tooltip="What is known, as frames; needs the model's vae."),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, to encode the image."),
                io.Mask.Input("mask", optional=True, tooltip="For the kind mask: white is made anew, black is known."),
                io.String.Input(
                    "frames", default="", optional=True,
                    tooltip="Where the known frames stand in the clip, for example 0-4, 8, -1 (-1 is the last). "
                    "Empty: from the first on. For models that pack several frames into one latent, count latent frames.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Steers from this share of the noise schedule on.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Steers up to this share of the noise schedule.",
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=100, optional=True, advanced=True,
                    tooltip="Steers at every so many-th step only; a steered step costs about two plain ones.",
                ),
                io.Combo.Input(
                    "measured_in", options=PLACES, default=PLACES[0], optional=True, advanced=True,
                    tooltip="latent: compare as the model sees it, cheap. pixels: compare the decoded image with the "
                    "model's estimate, through the vae; exact for low_resolution, and costs memory.",
                ),
                io.Boolean.Input(
                    "memory_saver", default=False, optional=True, advanced=True,
                    tooltip="Keeps less for the way back through the model and computes it again: slower, less memory.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, steered; for any sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, kind, weight, latent=None, image=None, vae=None, mask=None, frames="", start_percent=0.0,
        end_percent=1.0, every=1, measured_in="latent", memory_saver=False,
    ) -> io.NodeOutput:  # fmt: skip
        if (latent is None) == (image is None):
            raise ValueError("please connect either a latent or an image that holds what is known, and not both")
        if image is not None and vae is None:
            raise ValueError("to use an image, please connect the model's vae too")
        in_pixels = measured_in == "pixels"
        if in_pixels and image is None:
            raise ValueError("to measure in pixels, please give what is known as an image, with the vae")
        if not start_percent < end_percent:
            raise ValueError(f"start_percent ({start_percent}) must be below end_percent ({end_percent})")
        places = parse_frames(frames)
        patcher = still(vae.patcher) if in_pixels else None
        if latent is not None:
            given = latent_to_clip(parts_of(latent["samples"])[0], is_motion(model.model))
        else:
            given = images_to_clip(image) if in_pixels else encode_frames(vae, image)

        def build(base, shape: torch.Size) -> Measurement:
            if not in_pixels:
                return build_measurement(kind, base.process_latent_in(given), shape, places, mask)
            ratio = vae.spacial_compression_decode()
            count = frames_per_latent(vae) * (shape[2] - 1) + 1
            pixels = torch.Size([shape[0], 3, count, shape[3] * ratio, shape[4] * ratio])
            return Decoded(Decoder(vae, patcher, base), build_measurement(kind, given, pixels, places, mask))

        sampling = model.get_model_object("model_sampling")
        guide = Guide(
            build, weight, sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent), every,
            memory_saver, patcher,
        )  # fmt: skip
        return io.NodeOutput(guided(model, guide))
