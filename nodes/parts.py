"""Latents of several parts: a video and its sound, as models that make both at once have them (LTX-2, MiniMax H3).

Between nodes the host has their samples nested, the video first. While it samples they are packed: one flat tensor B 1 N,
beside a list of the parts' shapes.
"""

from collections.abc import Sequence

import comfy.latent_formats
import comfy.utils
import torch


def parts_of(samples) -> list[torch.Tensor]:
    """The parts of a LATENT's samples, the video first; most have one."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def check_estimate(x0: torch.Tensor) -> None:
    """Stops a sampler whose estimate of the clip, of any shape, is none, before it goes on for nothing.

    Raises:
        ValueError: if it holds NaN or infinite numbers.
    """
    if not all(torch.isfinite(part).all() for part in parts_of(x0)):
        raise ValueError(
            "the model's estimate of the clip became NaN or infinite. A model that overflows in half precision does so "
            "(please start ComfyUI with --bf16-unet or --fp32-unet), and one that a node for another kind of model has "
            "patched, such as ModelSamplingDiscrete, or that is guided too strongly."
        )


def needs_sound(model) -> bool:
    """Whether a MODEL cannot make a video without its sound."""
    return isinstance(model.get_model_object("latent_format"), getattr(comfy.latent_formats, "MiniMaxH3AV", ()))


def packed(shapes: Sequence[torch.Size] | None) -> bool:
    """Whether parts of these shapes are packed into one tensor."""
    return shapes is not None and len(shapes) > 1


def video_of(state: torch.Tensor, shapes: Sequence[torch.Size] | None) -> torch.Tensor:
    """The video of a state that may be packed."""
    return comfy.utils.unpack_latents(state, shapes)[0] if packed(shapes) else state


def shapes_of(conds: list[dict] | None) -> Sequence[torch.Size] | None:
    """The shapes that conditions hold, once the host has prepared them for sampling; None where a model needs none."""
    for cond in conds or []:
        if "latent_shapes" in cond.get("model_conds", {}):
            return cond["model_conds"]["latent_shapes"].cond
    return None
