"""SampleVideo: noise to clip, with this pack's samplers beside the host's."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from .parts import check_estimate, needs_sound, parts_of
from .samplers import PAPER_SCHEDULE, SAMPLERS, SCHEDULES, make_sampler, make_sigmas


class SampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SampleVideo",
            display_name="Sample Video",
            category="video/sampling",
            description="Denoises a clip with any diffusion model in ComfyUI; knows the samplers of the video papers.",
            search_aliases=["ksampler video", "video sampler", "vdm", "ancestral", "ddim", "denoise video"],
            inputs=[
                io.Model.Input("model", tooltip="The model that denoises."),
                io.Conditioning.Input("positive", tooltip="What to show, from CLIP Text Encode."),
                io.Conditioning.Input(
                    "negative", tooltip="What to steer away from. An empty prompt is the unconditional case of the papers."
                ),
                io.Latent.Input("latent_image", tooltip="The clip to start from, for example Empty Video Latent."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The only source of randomness: the same seed gives the same clip.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=10000, tooltip="Denoising steps; more are slower and finer."
                ),
                io.Float.Input(
                    "guidance_scale", default=3.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Classifier-free guidance; 1 is off, higher follows the prompt more and varies less. "
                    "This is 1 + w of the papers.",
                ),
                io.Combo.Input(
                    "sampler", options=SAMPLERS, default=SAMPLERS[0],
                    tooltip="ddim: deterministic. vdm_ancestral, vdm_predictor_corrector: those of Video Diffusion Models; "
                    "the second evaluates the model twice per step. edm_heun: Snap Video's, twice too. The rest are "
                    "ComfyUI's.",
                ),
                io.Combo.Input(
                    "schedule", options=SCHEDULES, default=PAPER_SCHEDULE,
                    tooltip="How the steps are spread. uniform_time: evenly over the model's own time, as in the papers.",
                ),
                io.Float.Input(
                    "gamma", default=0.3, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="For VDM's samplers only: how much noise each step adds, from the least (0) to the most (1) "
                    "that the theory allows. The paper uses 0.3 for text.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01, optional=True,
                    tooltip="1 starts from pure noise; less keeps more of the given clip.",
                ),
                io.Float.Input(
                    "delta", default=0.1, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="For vdm_predictor_corrector only: the size of its Langevin step. The paper uses 0.1.",
                ),
                io.Int.Input(
                    "start_at_step", default=0, min=0, max=10000, optional=True, advanced=True,
                    tooltip="Leaves out this many steps at the noisy end, for a clip that already has noise of that step.",
                ),
                io.Boolean.Input(
                    "add_noise", default=True, optional=True, advanced=True,
                    tooltip="Off: the clip already holds its noise, as from DDIM Invert.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The denoised clip, for VAE Decode.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        guidance_scale,
        sampler,
        schedule,
        gamma=0.3,
        denoise=1.0,
        delta=0.1,
        start_at_step=0,
        add_noise=True,
    ) -> io.NodeOutput:
        latent = dict(latent_image)
        samples = comfy.sample.fix_empty_latent_channels(
            model,
            latent["samples"],
            latent.pop("downscale_ratio_spacial", None),
            latent.pop("downscale_ratio_temporal", None),
        )
        check_latent(model, samples)
        if start_at_step >= steps:
            raise ValueError(f"start_at_step ({start_at_step}) must be below steps ({steps}), or nothing is left to do")
        sigmas = make_sigmas(model.get_model_object("model_sampling"), schedule, sampler, steps, denoise)[start_at_step:]
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        if not add_noise:
            noise = noise * 0
        show = latent_preview.prepare_callback(model, sigmas.shape[-1] - 1)

        def callback(step, x0, x, total):
            check_estimate(x0)
            show(step, x0, x, total)

        latent["samples"] = comfy.sample.sample_custom(
            model,
            noise,
            guidance_scale,
            make_sampler(sampler, gamma, delta),
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return io.NodeOutput(latent)


def check_latent(model, samples) -> None:
    """Refuse samples of a LATENT, nested or not, that the model cannot take, before any work.

    Raises:
        ValueError: saying what the model takes and what came.
    """
    form, parts = model.get_model_object("latent_format"), parts_of(samples)
    dimensions, channels = form.latent_dimensions + 2, form.latent_channels
    if len(parts) == 1 and needs_sound(model):
        raise ValueError(
            "this model makes video and sound at once, and the latent has no sound. Please use its Empty AV Latent node, or "
            "join one of each by Concat AV Latent."
        )
    if len(parts) > 1:  # the model may count the channels of the part with most; previews are of the video
        channels = len(form.latent_rgb_factors or ()) or channels
    if parts[0].ndim != dimensions or parts[0].shape[1] != channels:
        axes = {4: "height x width", 5: "frames x height x width"}.get(dimensions, f"{dimensions - 2} axes")
        came = " with ".join(" x ".join(map(str, part.shape)) for part in parts)
        raise ValueError(
            f"this model takes latents of batch x {channels} x {axes}; this one is {came}. "
            "Please use the Empty Latent node that belongs to the model (Empty Video Latent for models from Load Video "
            "Model), or encode with the model's own VAE."
        )
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("the latent holds NaN or infinite numbers; please check the node that made it.")
