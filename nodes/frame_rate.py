"""SetFrameRate: the frame rate and original size that a model is asked for (Snap Video, arXiv 2402.14797)."""

import node_helpers
from comfy_api.latest import io

from .host_snap import INTERVAL, ROWS


class SetFrameRate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SetFrameRate",
            display_name="Set Frame Rate",
            category="video/conditioning",
            description="Asks a model that knows frame rates (Snap Video) for clips of this rate, as if taken from videos "
            "of this height.",
            search_aliases=["fps", "frame rate", "resolution", "snap video", "motion speed"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What to show; use this node on the negative prompt as well."),
                io.Float.Input(
                    "frame_rate", default=24.0, min=0.0, max=1000.0, step=0.1, round=0.001,
                    tooltip="Frames per second, above 0: fewer show more motion.",
                ),
                io.Int.Input(
                    "original_height", default=0, min=0, max=16384, optional=True, advanced=True,
                    tooltip="Rows of the video that such a clip would come from; more is sharper. 0: the model's own.",
                ),
                io.Boolean.Input(
                    "still", default=False, optional=True, advanced=True,
                    tooltip="Ask for a picture, whose frames are all alike: an infinite frame rate.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For Sample Video or any sampler; other models take no notice.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, conditioning, frame_rate, original_height=0, still=False) -> io.NodeOutput:
        if not still and not frame_rate > 0:
            raise ValueError(
                f"frame_rate must be above 0 frames per second, got {frame_rate:g}; for a picture, whose frames are all "
                "alike, please switch on 'still'"
            )
        values = {INTERVAL: 0.0 if still else 1 / frame_rate}
        if original_height:
            values[ROWS] = original_height
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, values))
