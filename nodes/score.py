"""ScoreVideo: numbers and a plot for a clip, alone or beside the clip that it should be."""

import hashlib
import json
import math

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw
from torch import Tensor

from ..vidcore.metrics.pixels import flicker, frame_consistency, psnr, ssim
from ..vidcore.metrics.warp import warp_error as warp_error_of

WIDTH, HEIGHT, MARGIN = 768, 200, 58  # of a curve's panel in the plot


class ScoreVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreVideo",
            display_name="Score Video",
            category="video/metrics",
            description="Measures a clip: how much it changes from frame to frame, how near it is to another one (PSNR, "
            "SSIM), and how much its frames look alike, and like a prompt, to CLIP; with a plot over the frames.",
            search_aliases=["psnr", "ssim", "flicker", "metric", "compare videos", "frame consistency", "clip score"],
            inputs=[
                io.Image.Input("images", tooltip="The clip, frames as a batch."),
                io.Image.Input(
                    "reference", optional=True,
                    tooltip="The clip that it should be, of the same length and size, for PSNR and SSIM.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="A CLIP image encoder, from Load CLIP Vision, for frame consistency as in Tune-A-Video.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The text encoder of the same CLIP, from Load CLIP, for likeness to the prompt.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True,
                    tooltip="What the clip should show; needs both encoders.",
                ),
                io.Boolean.Input(
                    "warp_error", default=False, optional=True,
                    tooltip="Also measures what of the change between frames is not motion, by optical flow. Needs OpenCV.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="scores", tooltip="All numbers with what they were measured on, as JSON."),
                io.Image.Output(display_name="plot", tooltip="The scores over the frames."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, images, reference=None, clip_vision=None, clip=None, prompt="", warp_error=False) -> io.NodeOutput:
        if len(images) < 2:
            raise ValueError(f"Score Video measures a clip of two frames or more, got {len(images)}. Please give a batch.")
        if reference is not None and reference.shape != images.shape:
            raise ValueError(
                f"images is {_size(images)} and reference {_size(reference)}; please scale and cut them to one size and "
                "length."
            )
        for name, frames in (("images", images), ("reference", reference)):
            if frames is not None and not torch.isfinite(frames).all():
                raise ValueError(f"{name} holds NaN or infinite values; the model that made it most likely overflowed.")
        missing = [name for name, given in (("clip", clip), ("clip_vision", clip_vision)) if given is None]
        if prompt.strip() and missing:
            raise ValueError(
                f"Likeness to the prompt takes both encoders of one CLIP. Please connect {' and '.join(missing)}."
            )
        text_features = projected(clip, prompt) if prompt.strip() else None  # before long work: it may not fit
        changes = [flicker(images[i : i + 2]) for i in range(len(images) - 1)]
        scores = {"clip": _size(images), "sha256": _digest(images), "flicker": float(np.mean(changes))}
        curves = {"change from the frame before": [math.nan, *changes]}
        if reference is not None:
            progress, pairs = comfy.utils.ProgressBar(len(images)), []
            for made, true in zip(images.split(1), reference.split(1)):
                comfy.model_management.throw_exception_if_processing_interrupted()
                pairs.append((psnr(made, true), ssim(made, true)))
                progress.update(1)
            curves |= {"PSNR in dB": [p for p, _ in pairs], "SSIM": [s for _, s in pairs]}
            scores |= {"reference_sha256": _digest(reference), "psnr": psnr(images, reference)}
            scores |= {"ssim": float(np.mean(curves["SSIM"])), "flicker_of_reference": flicker(reference)}
        if clip_vision is not None:
            features = torch.cat([clip_vision.encode_image(part)["image_embeds"].float().cpu() for part in images.split(16)])
            scores["frame_consistency"] = frame_consistency(features)
        if text_features is not None:
            if text_features.shape[1] != features.shape[1]:
                raise ValueError(
                    f"clip gives {text_features.shape[1]} numbers for a text and clip_vision {features.shape[1]} for a "
                    "picture: they are of two models. Please load both halves of one CLIP."
                )
            curves["likeness to the prompt"] = torch.cosine_similarity(features, text_features).tolist()
            scores |= {"prompt": prompt, "clip_similarity": float(np.mean(curves["likeness to the prompt"]))}
        if warp_error:
            curves["warp error"] = [math.nan, *(pair_error(images[i : i + 2]) for i in range(len(images) - 1))]
            scores["warp_error"] = float(np.nanmean(curves["warp error"][1:]))
        text = json.dumps({k: v if _is_value(v) else None for k, v in scores.items()}, indent=1)
        plot = torch.from_numpy(np.stack([np.asarray(draw(curves))])).float() / 255
        return io.NodeOutput(text, plot, ui=ui.PreviewImage(plot, cls=cls))


def pair_error(images: Tensor) -> float:
    """`warp_error` of two frames, unless the person pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    return warp_error_of(images)


def projected(clip, prompt: str) -> Tensor:
    """A text in the space that CLIP shares with pictures, 1 D.

    Raises:
        ValueError: if the text encoder is not CLIP's, or its projection is none (zeros, the identity, not finite). Where a
            file has no projection the host leaves memory as it was, so this cannot always be told.
    """
    both = clip.cond_stage_model
    found = [(letter, getattr(both, f"clip_{letter}")) for letter in "glh" if hasattr(both, f"clip_{letter}")]
    if not found or not hasattr(found[0][1].transformer, "text_projection"):
        raise ValueError("clip is not the text encoder of a CLIP model. Please load one with Load CLIP, such as clip_l.")
    letter, encoder = found[0]
    tokens = clip.tokenize(prompt)
    clip.load_model(tokens)
    weight = encoder.transformer.text_projection.weight.float()
    if not torch.isfinite(weight).all() or not weight.any() or torch.equal(weight, torch.eye(len(weight)).to(weight)):
        raise ValueError(
            "This text encoder came without the projection that makes texts comparable with pictures, as those of Stable "
            "Diffusion checkpoints do. Please load the whole CLIP with Load CLIP."
        )
    encoder.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        return encoder.encode_token_weights(tokens[letter])[1].float().cpu()
    finally:
        encoder.reset_clip_options()


def draw(curves: dict[str, list[float]]) -> Image.Image:
    """Panels one below the other: a curve over the frames, its range and mean. Values that are not finite are gaps."""
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(curves)), "white")
    pen = ImageDraw.Draw(picture)
    for panel, (name, values) in enumerate(curves.items()):
        finite = [v for v in values if math.isfinite(v)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        mean = f"{np.mean(finite):.4g}" if finite else "infinite: the clips are equal"
        top, bottom = panel * HEIGHT + 28, (panel + 1) * HEIGHT - 24
        pen.text((MARGIN, panel * HEIGHT + 8), f"{name}, mean {mean}", fill="black")
        pen.rectangle((MARGIN, top, WIDTH - 12, bottom), outline="#bbbbbb")
        for value, y in ((high, top), (low, bottom - 10)):
            pen.text((4, y), f"{value:.3g}", fill="#666666")
        pen.text((MARGIN, bottom + 4), "frame 1", fill="#666666")
        pen.text((WIDTH - 40, bottom + 4), str(len(values)), fill="#666666")
        last = None
        for i, value in enumerate(values):
            if not math.isfinite(value):
                last = None
                continue
            x = MARGIN + (WIDTH - 12 - MARGIN) * i / max(1, len(values) - 1)
            y = bottom - (bottom - top) * ((value - low) / (high - low) if high > low else 0.5)
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#1f5fbf")
            if last is not None:
                pen.line((*last, x, y), fill="#1f5fbf", width=2)
            last = (x, y)
    return picture


def _is_value(value) -> bool:
    """False for infinity and NaN, which JSON does not know."""
    return not isinstance(value, float) or math.isfinite(value)


def _size(images: Tensor) -> str:
    return f"{len(images)} frames of {images.shape[2]}x{images.shape[1]}"


def _digest(images: Tensor) -> str:
    """Of the pixels as 8-bit numbers, by which a record knows its clip again."""
    return hashlib.sha256((images * 255).round().clamp(0, 255).byte().cpu().numpy().tobytes()).hexdigest()[:16]
