"""MitigatingGradientSampling: frames that differ too much are pulled together while sampling (HARIVO, arXiv 2410.07763)."""

from comfy_api.latest import io

from ..vidcore.guide.measure import FrameDifferences
from .guide import Guide, guided


class MitigatingGradientSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MitigatingGradientSampling",
            display_name="Mitigating Gradient Sampling",
            category="video/guidance",
            description="Steadies what any model samples: at every step the clip moves towards one whose successive frames "
            "are alike. Against flicker; too much freezes the motion.",
            search_aliases=["flicker", "smooth video", "steady frames", "temporal consistency", "harivo", "mg sampling"],
            inputs=[
                io.Model.Input("model", tooltip="Any model: a video model, or an image model on a batch of frames."),
                io.Float.Input(
                    "strength", default=0.2, min=0.0, max=100000.0, step=0.05, round=0.001,
                    tooltip="How strongly differences between frames are lowered; 0 is off.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Acts from this share of the noise schedule on.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Acts up to this share of the noise schedule.",
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=100, optional=True, advanced=True,
                    tooltip="Acts at every so many-th step only; such a step costs about two plain ones.",
                ),
                io.Boolean.Input(
                    "memory_saver", default=False, optional=True, advanced=True,
                    tooltip="Keeps less for the way back through the model and computes it again: slower, less memory.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, steadied; for any sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, strength, start_percent=0.0, end_percent=1.0, every=1, memory_saver=False) -> io.NodeOutput:
        if not start_percent < end_percent:
            raise ValueError(f"start_percent ({start_percent}) must be below end_percent ({end_percent})")

        def build(base, shape):
            if shape[2] < 2:
                raise ValueError(
                    "Mitigating Gradient Sampling compares the frames of a clip, and this latent has one alone; please make "
                    "two frames or more."
                )
            return FrameDifferences()

        sampling = model.get_model_object("model_sampling")
        levels = (sampling.percent_to_sigma(percent) for percent in (start_percent, end_percent))
        return io.NodeOutput(guided(model, Guide(build, strength, *levels, every, memory_saver)))
