"""DDIMInvert: the noise from which a MODEL makes a clip (Song et al. 2021; Tune-A-Video, arXiv 2212.11565)."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from server import PromptServer

from ..vidcore.sample import invert, round_trip_error
from .guide import without_caches
from .parts import check_estimate, parts_of, video_of
from .sample import check_latent
from .samplers import PAPER_SCHEDULE, SCHEDULES, host_level, make_sigmas, walker

METHODS = ["fixed_point", "ddim"]


class DDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DDIMInvert",
            display_name="DDIM Invert",
            category="video/sampling",
            description="Finds the noise from which a model makes the given clip or pictures, so that sampling from it "
            "with another prompt edits them.",
            search_aliases=["inversion", "unsample", "ddim inversion", "edit video", "tune-a-video", "reverse sampling"],
            inputs=[
                io.Model.Input("model", tooltip="Any model. Sample with the same one."),
                io.Conditioning.Input(
                    "positive", tooltip="What the clip shows now, or an empty prompt, as Tune-A-Video uses."
                ),
                io.Latent.Input("latent_image", tooltip="The clip or pictures, from VAE Encode."),
                io.Int.Input(
                    "steps", default=50, min=1, max=10000,
                    tooltip="Steps of the whole schedule; sample with the same number.",
                ),
                io.Combo.Input(
                    "schedule", options=SCHEDULES, default=PAPER_SCHEDULE,
                    tooltip="How the steps are spread; sample with the same one. (In KSampler uniform_time is sgm_uniform.)",
                ),
                io.Combo.Input(
                    "method", options=METHODS, default=METHODS[0],
                    tooltip="ddim: one evaluation per step, as Tune-A-Video does; sampling comes back only roughly. "
                    "fixed_point: repeats each step until it can be walked back.",
                ),
                io.Int.Input(
                    "iterations", default=3, min=1, max=100, optional=True,
                    tooltip="For fixed_point: how often each step is repeated; each costs one evaluation.",
                ),
                io.Int.Input(
                    "start_at_step", default=0, min=0, max=10000, optional=True,
                    tooltip="Inverts up to the noise of this step: 0 is all the way. Start sampling at the same step; "
                    "later ones keep more of the clip.",
                ),
                io.Int.Input(
                    "end_at_step", default=10000, min=0, max=10000, optional=True, advanced=True,
                    tooltip="Begins at the noise of this step instead of the clean clip, with noise added from the seed. "
                    "One or two below `steps` helps pixel models, whose clips are too smooth to hold noise.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, optional=True,
                    tooltip="For end_at_step: the noise that is added.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="For a guidance_scale other than 1."),
                io.Float.Input(
                    "guidance_scale", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True, advanced=True,
                    tooltip="Classifier-free guidance while inverting; 1, none, is best in nearly all cases.",
                ),
                io.Boolean.Input(
                    "round_trip", default=True, optional=True, advanced=True,
                    tooltip="Samples back once, to say how far that ends from the given clip; off saves that time.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="The noise, as a LATENT: for Sample Video or KSampler (Advanced) with add_noise off, or for "
                    "SamplerCustomAdvanced with Disable Noise."
                ),
                io.Float.Output(
                    "round_trip_error",
                    tooltip="How far sampling back ends from the clip, relative to its size; 0 is exact, -1 not measured.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, latent_image, steps, schedule, method, iterations=3, start_at_step=0, end_at_step=10000,
        seed=0, negative=None, guidance_scale=1.0, round_trip=True,
    ) -> io.NodeOutput:  # fmt: skip
        latent = dict(latent_image)
        latent.pop("noise_mask", None)
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        check_latent(model, samples)
        if guidance_scale != 1 and negative is None:
            raise ValueError(
                f"a guidance_scale of {guidance_scale} needs a negative prompt; please connect one, or set it to 1"
            )
        end_at_step = min(end_at_step, steps)
        if start_at_step >= end_at_step:
            raise ValueError(
                f"start_at_step ({start_at_step}) must be below end_at_step ({end_at_step}), or there is nothing to invert"
            )
        sampling = model.get_model_object("model_sampling")
        sigmas = make_sigmas(sampling, schedule, "ddim", steps)[start_at_step : end_at_step + 1].flip(0)
        if host_level(sampling, float(sigmas[-1]))[0].alpha < 1e-6:
            raise ValueError(
                "this model's first step begins in pure noise, and its latents cannot say then which noise it is. "
                f"Please set start_at_step to {start_at_step + 1} or more, here and where you sample."
            )
        tries = 1 + (iterations if method == "fixed_point" else 0)
        shapes = [part.shape for part in parts_of(samples)]
        walk = _Walk(model, shapes, tries, round_trip, len(sigmas) - 1, cls.hidden.unique_id)
        noise = comfy.sample.prepare_noise(samples, seed) * float(sigmas[0] > 0)
        # Guidance on the model may look at both prompts even where the scale asks for one.
        latent["samples"] = comfy.sample.sample_custom(
            without_caches(model), noise, guidance_scale, comfy.samplers.KSAMPLER(walk), sigmas, positive,
            positive if negative is None else negative, samples, disable_pbar=True, seed=seed,
        )  # fmt: skip
        return io.NodeOutput(latent, walk.error)


class _Walk:
    """The inversion under the host's calling convention for samplers, with progress and a preview of x-hat."""

    def __init__(self, model, shapes: list[torch.Size], tries: int, round_trip: bool, steps: int, node: str):
        self.shapes, self.tries, self.round_trip, self.node, self.error = shapes, tries, round_trip, node, -1.0
        self.total = steps * (tries + round_trip)
        self.bar = comfy.utils.ProgressBar(self.total)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def report(self, done: int, x0: torch.Tensor, z: torch.Tensor) -> None:
        check_estimate(x0)
        preview = None
        if self.previewer:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", video_of(x0, self.shapes))
        self.bar.update_absolute(done, self.total, preview)

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        denoise, levels, scales = walker(model, x, sigmas, extra_args)
        clip, steps = x * scales[0], len(levels) - 1
        noise = invert(denoise, clip, levels, self.tries - 1, self.report)
        if self.round_trip:
            first = steps * self.tries + 1
            self.error = round_trip_error(denoise, clip, noise, levels, lambda i, x0, z: self.report(first + i, x0, z))
            if self.node and PromptServer.instance is not None:
                PromptServer.instance.send_progress_text(f"round trip error {100 * self.error:.2g} %", self.node)
        return noise / scales[-1]
