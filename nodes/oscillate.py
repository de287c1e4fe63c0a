"""OscillatingGuidance: a guidance scale that changes from step to step, for any MODEL (Ho et al. 2022, arXiv 2210.02303)."""

import comfy.patcher_extension
from comfy_api.latest import io

from ..vidcore.guide.cfg import oscillating

KEY = "vidcore_oscillating"


class OscillatingGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OscillatingGuidance",
            display_name="Oscillating Guidance",
            category="video/guidance",
            description="Follows the prompt strongly at every second step only, which keeps colours from burning out where "
            "the guidance scale is high (Imagen Video).",
            search_aliases=["cfg schedule", "guidance interval", "imagen video", "oversaturation", "cfg"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                io.Float.Input(
                    "low", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="The guidance scale of the steps between; 1 is off and costs half. The sampler's own scale is "
                    "the high one.",
                ),
                io.Int.Input(
                    "first_steps", default=5, min=0, max=10000,
                    tooltip="Steps at the start that all have the high scale, before it goes down and up in turn.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for any sampler that has a guidance scale.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, low, first_steps) -> io.NodeOutput:
        def predict(executor, x, timestep, model_options=None, seed=None):
            """PREDICT_NOISE: the sampler's scale, replaced for this one evaluation."""
            guider, options = executor.class_obj, model_options or {}
            if "negative" not in guider.conds:
                raise ValueError(
                    "Oscillating Guidance changes the guidance scale between a positive and a negative prompt, and this "
                    "sampler has no negative one. Please use Sample Video, KSampler or CFGGuider."
                )
            grid = options["transformer_options"]["sample_sigmas"]
            high, scale = guider.cfg, oscillating(guider.cfg, low, grid[:-1], first_steps)
            guider.cfg = scale(float(timestep.flatten()[0]))
            try:
                return executor(x, timestep, model_options, seed)
            finally:
                guider.cfg = high

        model = model.clone()
        kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, predict)
        return io.NodeOutput(model)
