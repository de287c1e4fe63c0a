"""What is known about a clip: differentiable measurements of x-hat (VDM section 3.1).

Every measurement answers ``residual(x0)``, the difference x^a - A(x-hat) between what is known and what the estimate
says, in any shape; guidance lowers its squared sum. A `Known` measurement also says which values are known directly, and
so may a `Packed` one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Downsampling = Literal["area", "bilinear"]


class Measurement(Protocol):
    def residual(self, x0: Tensor) -> Tensor: ...


def _finite(what: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{what} hold NaN or infinite values; please check where they come from")


@dataclass(frozen=True)
class Known:
    """Values that are given: frames, or pixels under a mask.

    Args:
        target: what is known, broadcastable to B C T H W; ignored where ``mask`` is 0.
        mask: 1 where known and 0 elsewhere, broadcastable to B C T H W.
    """

    target: Tensor
    mask: Tensor

    def residual(self, x0: Tensor) -> Tensor:
        return self.mask.to(x0) * (self.target.to(x0) - x0)

    def put(self, x0: Tensor) -> Tensor:
        """``x0`` with the known values in place."""
        return torch.where(self.mask.to(x0.device) > 0.5, self.target.to(x0), x0)


def known_frames(frames: Tensor, index: Sequence[int], length: int) -> Known:
    """A `Known` of whole frames.

    Args:
        frames: B C K H W.
        index: where each stands in the clip, in any order; negative counts from the end.
        length: frames of the whole clip.

    Raises:
        ValueError: if an index is out of range or repeated, the counts differ, or a value is not finite.
    """
    if len(index) != frames.shape[2]:
        raise ValueError(f"{frames.shape[2]} known frames came with {len(index)} frame numbers; each needs one")
    wrong = [i for i in index if not -length <= i < length]
    if wrong:
        raise ValueError(f"frame numbers {wrong} lie outside a clip of {length} frames (0 to {length - 1})")
    place = [i % length for i in index]
    if len(set(place)) < len(place):
        raise ValueError(f"frame numbers {list(index)} name a frame twice; each known frame needs a place of its own")
    _finite("the known frames", frames)
    target = frames.new_zeros(*frames.shape[:2], length, *frames.shape[3:])
    target[:, :, place] = frames
    mask = frames.new_zeros(1, 1, length, 1, 1)
    mask[:, :, place] = 1
    return Known(target, mask)


@dataclass(frozen=True)
class LowResolution:
    """A smaller version of the clip, or of some of its frames.

    Args:
        target: B C K h w.
        mode: how the clip is made smaller: "area" averages, "bilinear" is the paper's (for a factor of 2 the same).
        frames: the clip's frames that it shows; all by default.
    """

    target: Tensor
    mode: Downsampling = "area"
    frames: tuple[int, ...] | None = None

    def residual(self, x0: Tensor) -> Tensor:
        x0 = x0 if self.frames is None else x0[:, :, list(self.frames)]
        return self.target.to(x0) - downsample(x0, self.target.shape[-2:], self.mode)


def downsample(x: Tensor, size: Sequence[int], mode: Downsampling = "area") -> Tensor:
    """B C T H W to B C T h w, each frame alone."""
    flat = rearrange(x, "b c t h w -> (b t) c h w")
    small = F.interpolate(flat, tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)
    return rearrange(small, "(b t) c h w -> b c t h w", t=x.shape[2])


@dataclass(frozen=True)
class TemporalAverage:
    """Means of successive groups of frames, as of a camera with a slow shutter.

    Args:
        target: B C K H W; the clip has a multiple of K frames.
    """

    target: Tensor

    def residual(self, x0: Tensor) -> Tensor:
        groups = self.target.shape[2]
        if x0.shape[2] % groups:
            raise ValueError(f"a clip of {x0.shape[2]} frames has no {groups} equal groups of frames to average")
        return self.target.to(x0) - x0.unflatten(2, (groups, -1)).mean(3)


@dataclass(frozen=True)
class FrameDifferences:
    """That successive frames are alike: guidance lowers sum_f ||x-hat_(f+1) - x-hat_f||^2, and so steadies a clip.

    HARIVO (arXiv 2410.07763) calls this mitigating gradient sampling. Its formula is not public; this form is ours.
    """

    def residual(self, x0: Tensor) -> Tensor:
        return x0[:, :, 1:] - x0[:, :, :-1]


@dataclass(frozen=True)
class Packed:
    """A measurement of a video that is packed with more, such as its sound: flat states B 1 N that begin with it.

    Args:
        measurement: of the video.
        shape: of the video, B C T H W.
    """

    measurement: Measurement
    shape: Sequence[int]

    def video(self, x0: Tensor) -> Tensor:
        """The video of a state, B C T H W."""
        return x0[:, 0, : math.prod(self.shape[1:])].unflatten(1, tuple(self.shape[1:]))

    def residual(self, x0: Tensor) -> Tensor:
        return self.measurement.residual(self.video(x0))

    def put(self, x0: Tensor) -> Tensor:
        """``x0`` with the known values in place, if values of the video are known."""
        if not isinstance(self.measurement, Known):
            return x0
        video = self.measurement.put(self.video(x0)).flatten(1)[:, None]
        return torch.cat([video, x0[..., video.shape[2] :]], dim=2)


@dataclass(frozen=True)
class Decoded:
    """A measurement of the decoded clip, for models that work on latents.

    Args:
        decode: latents B C T h w to pixels B 3 T H W, differentiable.
        measurement: of the pixels.
    """

    decode: Callable[[Tensor], Tensor]
    measurement: Measurement

    def residual(self, x0: Tensor) -> Tensor:
        return self.measurement.residual(self.decode(x0))
