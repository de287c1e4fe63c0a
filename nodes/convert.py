"""Between the host's layouts and the core's: the only place that knows both.

The host has IMAGE T H W C in [0, 1], MASK T H W, and latents of three kinds: frames as a batch, T C h w, for image models,
B C T h w for video models, and motion B D T S. The core has clips B C T H W.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor


def latent_to_clip(latent: Tensor, motion: bool = False) -> Tensor:
    """Samples of a LATENT as B C T h w; a batch of pictures is one clip, ``motion`` a clip of one row a frame."""
    if motion and latent.ndim == 4:
        return latent[:, :, :, None]
    if latent.ndim == 4:
        return latent.movedim(0, 1)[None]
    if latent.ndim == 5:
        return latent
    raise ValueError(
        f"expected a latent of pictures (4 axes) or of video (5 axes), got one of {latent.ndim} axes: "
        f"{' x '.join(map(str, latent.shape))}. Please use an image or video model."
    )


def clip_to_latent(clip: Tensor, axes: int, motion: bool = False) -> Tensor:
    """The inverse of `latent_to_clip`, for a latent of that many ``axes``."""
    if motion:
        return clip[:, :, :, 0]
    return clip[0].movedim(1, 0) if axes == 4 else clip


def latent_axes(vae) -> int:
    """Axes of the latents that a VAE takes."""
    return 5 if vae.latent_dim == 3 else 4


def frames_per_latent(vae) -> int:
    """How many frames a VAE packs into one latent; the very first frame of a clip always has a latent of its own."""
    return int(vae.temporal_compression_decode() or 1) if vae.latent_dim == 3 else 1


def whole_latents(frames: int, pack: int) -> int:
    """The largest number of frames, at most ``frames``, that fills latents of ``pack`` frames: 1 + a multiple, or none."""
    return (frames - 1) // pack * pack + 1 if frames else 0


def encode_frames(vae, images: Tensor) -> Tensor:
    """IMAGE through a VAE to a clip B C T h w, in the LATENT's own scale."""
    return latent_to_clip(vae.encode(images[..., :3]))


def decode_frames(vae, clip: Tensor) -> Tensor:
    """The inverse of `encode_frames`: one clip 1 C t h w, in the LATENT's scale, to IMAGE, on the CPU."""
    decoded = vae.decode(clip_to_latent(clip, latent_axes(vae)))
    return decoded.reshape(-1, *decoded.shape[-3:]).cpu()


def images_to_clip(images: Tensor) -> Tensor:
    """IMAGE T H W C in [0, 1] to pixels 1 C T H W in [-1, 1]."""
    return images[..., :3].permute(3, 0, 1, 2)[None] * 2 - 1


def clip_to_images(clip: Tensor) -> Tensor:
    """The inverse of `images_to_clip`."""
    return (clip[0].permute(1, 2, 3, 0) + 1) / 2


def parse_frames(text: str) -> list[int]:
    """Frame numbers as people write them: "0-4, 8, -1" is 0, 1, 2, 3, 4, 8 and the last.

    Raises:
        ValueError: if it is not such a list.
    """
    numbers: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        span = re.fullmatch(r"(-?\d+)(?:\s*-\s*(\d+))?", part)
        if not span:
            raise ValueError(f"frames must be numbers and spans such as '0-4, 8, -1'; {part!r} is neither")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise ValueError(f"the span {part!r} of frames runs backwards; please write the smaller number first")
        numbers.extend(range(first, last + 1))
    return numbers


def known_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """A host's MASK (white is to be made anew) as 1 where known, 1 1 T h w; one picture serves every frame.

    Raises:
        ValueError: if it has another number of frames than the clip.
    """
    mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.shape[0] not in (1, shape[2]):
        raise ValueError(f"the mask has {mask.shape[0]} frames and the clip {shape[2]}; give one for all, or one for each")
    small = F.interpolate(mask[:, None].float(), shape[-2:], mode="area")[:, 0]
    # A cell of the latent is known only if all of it is.
    return (small < 1e-3).float().expand(shape[2], -1, -1)[None, None]
