"""DynamicThresholding: keeps strong guidance inside the range of pixels, for any MODEL (Saharia et al. 2022)."""

import comfy.utils
from comfy_api.latest import io

from ..vidcore.guide.threshold import dynamic_threshold
from .parts import packed, shapes_of


class DynamicThresholding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DynamicThresholding",
            display_name="Dynamic Thresholding",
            category="video/guidance",
            description="Keeps colours from burning out at high guidance scales: what goes beyond the range of the data is "
            "scaled back at every step (Imagen, Snap Video).",
            search_aliases=["threshold", "imagen", "snap video", "oversaturation", "cfg", "clip x0"],
            inputs=[
                io.Model.Input("model", tooltip="Any model; made for those that denoise pixels."),
                io.Float.Input(
                    "percentile", default=0.995, min=0.5, max=1.0, step=0.001, round=0.00001,
                    tooltip="The share of values that may keep their place inside the range. 1 only shrinks.",
                ),
                io.Float.Input(
                    "limit", default=1.0, min=0.01, max=1000.0, step=0.1, round=0.001,
                    tooltip="The largest value of the data. 1 for pixels, as in this pack's models; latents of an image "
                    "model have no such limit, and want about 4.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for any sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, percentile, limit) -> io.NodeOutput:
        model = model.clone()

        def threshold(given: dict):
            shapes, x0 = shapes_of(given["cond"]), given["denoised"]
            if not packed(shapes):
                return dynamic_threshold(x0, percentile, limit)
            video, *sounds = comfy.utils.unpack_latents(x0, shapes)  # sound has a range of its own
            # MiniMax H3's is larger while it is sampled, since ComfyUI 0.33.
            scale = getattr(given["model"], "audio_scale", lambda: 1.0)()
            sounds = [dynamic_threshold(sound, percentile, limit * scale) for sound in sounds]
            return comfy.utils.pack_latents([dynamic_threshold(video, percentile, limit), *sounds])[0]

        model.set_model_sampler_post_cfg_function(threshold)
        return io.NodeOutput(model)
