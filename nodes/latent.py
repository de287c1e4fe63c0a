"""EmptyVideoLatent: an empty clip for models that work on pixels."""

import comfy.model_management
import torch
from comfy_api.latest import io

MAX_SIZE = 4096
MAX_FRAMES = 1024


class EmptyVideoLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EmptyVideoLatent",
            display_name="Empty Video Latent",
            category="video/latent",
            description="An empty clip in pixel space, the size of the video to make, for models from Load Video Model.",
            search_aliases=["empty clip", "pixel latent", "video size", "new video"],
            inputs=[
                io.Int.Input(
                    "width", default=32, min=8, max=MAX_SIZE, step=8,
                    tooltip="Width in pixels. Best the size that the model was trained on; its card says which.",
                ),
                io.Int.Input("height", default=32, min=8, max=MAX_SIZE, step=8, tooltip="Height in pixels."),
                io.Int.Input("frames", default=8, min=1, max=MAX_FRAMES, tooltip="Frames per clip; 1 makes a picture."),
                io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="How many clips to make at once."),
            ],
            outputs=[io.Latent.Output(tooltip="Batch x 3 x frames x height x width, all zero.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, width, height, frames, batch_size) -> io.NodeOutput:
        device = comfy.model_management.intermediate_device()
        needed = batch_size * 3 * frames * height * width * 4
        free = comfy.model_management.get_free_memory(device)
        if needed > free / 4:  # sampling holds several such tensors beside the network's own
            raise ValueError(
                f"{batch_size} clip(s) of {frames} frames of {width}x{height} take {needed / 2**30:.1f} GiB, and "
                f"sampling needs several times that; {free / 2**30:.1f} GiB are free. "
                "Please lower width, height, frames or batch_size."
            )
        return io.NodeOutput({"samples": torch.zeros([batch_size, 3, frames, height, width], device=device)})
