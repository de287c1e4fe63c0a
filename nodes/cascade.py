"""UpsampleVideoCascade: Snap Video's second stage on any clip (arXiv 2402.14797)."""

import math

import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..vidcore.guide.extend import stream
from ..vidcore.systems.snap.stages import corrupt, enlarge
from .conditions import FrameConditions
from .convert import clip_to_images, images_to_clip
from .extend import MEMORY_SAVER, Windows
from .host_snap import LOW, HostFIT
from .samplers import SAMPLERS, SCHEDULES


class UpsampleVideoCascade(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UpsampleVideoCascade",
            display_name="Upsample Video Cascade",
            category="video/sampling",
            description="Enlarges any clip with the second stage of a cascade (Snap Video), a model trained for that.",
            search_aliases=["snap video", "cascade", "second stage", "video super resolution", "upscale video"],
            inputs=[
                io.Model.Input("model", tooltip="A second stage, from Load Video Model."),
                io.Conditioning.Input("positive", tooltip="What the clip shows."),
                io.Conditioning.Input("negative", tooltip="What to steer away from."),
                io.Image.Input("image", tooltip="The clip to enlarge: of any length, and resized to what the model takes."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The only source of randomness: the same seed gives the same clip.",
                ),
                io.Int.Input(
                    "steps", default=40, min=1, max=10000, tooltip="Denoising steps per window; the paper's are 40."
                ),
                io.Float.Input(
                    "guidance_scale", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Classifier-free guidance towards the prompt; 1 is off.",
                ),
                io.Combo.Input("sampler", options=SAMPLERS, default="edm_heun", tooltip="As in Sample Video."),
                io.Combo.Input("schedule", options=SCHEDULES, default="karras", tooltip="As in Sample Video."),
                io.Float.Input(
                    "corruption", default=0.1, min=0.001, max=10.0, step=0.01, round=0.0001,
                    tooltip="Noise that the given clip gets before the model sees it: more lets the model change more of "
                    "it, and forgives more of its faults. White is 1 and black is -1.",
                ),
                io.Int.Input(
                    "overlap", default=4, min=0, max=1023,
                    tooltip="Frames that a window of a longer clip and the next one share.",
                ),
                io.Float.Input(
                    "weight", default=0.0, min=0.0, max=100000.0, step=0.1, round=0.001, advanced=True,
                    tooltip="How strongly a window follows the frames it shares with the one before, by reconstruction "
                    "guidance (w_r). 0 only replaces them, which is faster.",
                ),
                MEMORY_SAVER,
            ],
            outputs=[io.Image.Output(tooltip="The larger clip, with as many frames.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, image, corruption, overlap, **how) -> io.NodeOutput:
        net = model.get_model_object("diffusion_model")
        if not isinstance(net, HostFIT) or not net.config.low_resolution:
            raise ValueError(
                "Upsample Video Cascade works with a second stage, which Load Video Model loads from a file of one; this is "
                f"{'a first stage' if isinstance(net, HostFIT) else type(model.model).__name__}. Spatial Upsample enlarges "
                "with any other model."
            )
        config = net.config
        if overlap >= config.frames:
            raise ValueError(
                f"overlap must be below the {config.frames} frames that this model makes at once, got {overlap}"
            )
        low, notice = fit(image, config.low_size)
        low = enlarge(low, (config.height, config.width))
        length = low.shape[2]
        if length < config.frames:  # the model makes no fewer: the last frame stands still, and is cut off again
            low = torch.cat([low, low[:, :, -1:].expand(-1, -1, config.frames - length, -1, -1)], dim=2)
        conditions = FrameConditions((positive, negative), length, 0, 1, pictures=False)
        windows = Cascade(low, math.log(corruption), model, conditions, overlap, **how)
        made = torch.cat([clip_to_images(block).clamp(0, 1).cpu() for block in windows.clips()])[:length]
        return io.NodeOutput(made, ui=ui.PreviewText(notice) if notice else None)


def fit(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, str | None]:
    """IMAGE as a clip of the first stage's size, and what was done to it.

    Raises:
        ValueError: if it has another shape, or holds what is not a number.
    """
    if not torch.isfinite(image).all():
        raise ValueError("the frames hold NaN or infinite values; please check the node that made them")
    height, width = image.shape[1:3]
    if abs(width / height * size[0] / size[1] - 1) > 0.05:
        raise ValueError(
            f"this model enlarges clips of the shape {size[1]}x{size[0]}; got {width}x{height}. Please crop or pad the clip "
            "to that shape."
        )
    if (height, width) == size:
        return images_to_clip(image), None
    small = comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), size[1], size[0], "area", "disabled")
    return images_to_clip(small.movedim(1, -1)), f"The clip was resized from {width}x{height} to {size[1]}x{size[0]} first."


class Cascade(Windows):
    """Windows of a clip, each of which sees its own part of the clip to enlarge, corrupted by noise of its own."""

    def __init__(self, low: Tensor, level: float, model, conditions: FrameConditions, overlap: int, **how):
        frames = model.get_model_object("diffusion_model").config.frames
        count = 1 + -(-(low.shape[2] - frames) // (frames - overlap))
        super().__init__(model, conditions, count, **how)
        self.low, self.level, self.plain, self.frames, self.overlap = low, level, model, frames, overlap

    def clips(self):
        """Blocks of new frames 1 C T H W, in order."""
        return stream(self.enlarge, self.low.shape[2], self.frames, self.overlap)

    def enlarge(self, measurements, start: int) -> Tensor:
        clip = self.low[:, :, start : start + self.frames]
        generator = torch.Generator().manual_seed((self.seed + start) % 2**64)
        _, noise = torch.randn(2, *clip.shape, generator=generator)  # the sampler's noise is what the seed gives first
        self.model = self.plain.clone()
        given = corrupt(clip.cpu(), torch.tensor([self.level]), noise)
        self.model.model_options["transformer_options"][LOW] = (given.to(clip), self.level)
        return self.make(measurements, start, clip.shape)
