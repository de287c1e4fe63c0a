"""The clips that a motion module is trained on: a folder of videos with captions, or frames of another node."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ..vidcore.video.read import VideoError, read_frames
from .motion_run import Clip
from .tune_run import check_clip, posterior

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v")


def list_videos(folder: str) -> list[Path]:
    """The videos in a folder inside ComfyUI's input folder, by name.

    Raises:
        ValueError: if there is no such folder, it lies outside, or it holds no videos.
    """
    root = os.path.realpath(folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(root, folder))
    if os.path.commonpath([root, path]) != root:
        raise ValueError(f"the folder {folder!r} does not lie inside ComfyUI's input folder; please put the videos there")
    if not os.path.isdir(path):
        raise ValueError(f"there is no folder {folder!r} in ComfyUI's input folder")
    found = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"the folder {folder!r} has no videos; it takes {', '.join(SUFFIXES)}")
    return found


@dataclass
class Texts:
    """CONDITIONING for clips, each text encoded once.

    Args:
        clip: the text encoder, or None.
        caption: for clips that have no text of their own.
        positive: in place of ``caption``, or None.
    """

    clip: object | None
    caption: str
    positive: list | None
    encoded: dict[str, list] = field(default_factory=dict)

    def find(self, source: Path | None) -> str | None:
        """What the .txt file beside a video says, or else the caption for all; None where ``positive`` stands for it.

        Raises:
            ValueError: if there is text and nothing to encode it.
        """
        beside = source.with_suffix(".txt") if source else None
        own = beside.read_text(encoding="utf-8").strip() if beside and beside.is_file() else None
        if own is None and self.positive is not None:
            return None
        if self.clip is None:
            raise ValueError(
                f"{beside.name if own else 'caption'} is text, and there is nothing to encode it. Please connect clip"
                f"{'' if own else ', or positive in place of the caption'}."
            )
        return self.caption if own is None else own

    def encode(self, text: str | None) -> list:
        """The CONDITIONING of what `find` found."""
        if text is None:
            return self.positive
        if text not in self.encoded:
            self.encoded[text] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self.encoded[text]


def read_clip(path: Path, every: int, most: int) -> torch.Tensor:
    """Every so many-th frame of a video, at most ``most``, as IMAGE. Raises ValueError if it cannot be read."""
    try:
        frames = read_frames(path)[::every][:most]
    except VideoError as error:
        raise ValueError(f"{error} Please take it out of the folder, or convert it.") from error
    return frames.float() / 255


def fit(frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Frames at the size asked for, the middle cut out; 0 keeps theirs."""
    if not width and not height:
        return frames
    width, height = width or frames.shape[2], height or frames.shape[1]
    return comfy.utils.common_upscale(frames.movedim(-1, 1), width, height, "area", "center").movedim(1, -1)


def collect(texts: Texts, vae, folder, frames, length, every, width, height, most) -> list[Clip]:
    """All clips as latents with their texts. Everything is checked before the first one is encoded.

    Raises:
        ValueError: if there are none, one is too short or cannot be read, or their sizes differ.
    """
    sources = [(path.name, path, texts.find(path)) for path in (list_videos(folder) if folder.strip() else [])]
    if frames is not None:
        sources.append(("the frames", frames, texts.find(None)))
    if not sources:
        raise ValueError("there is nothing to train on; please name a folder of videos, or connect frames")
    found, sizes = [], {}
    for name, source, text in sources:
        pictures = source[::every][:most] if torch.is_tensor(source) else read_clip(source, every, most)
        if len(pictures) < length:
            raise ValueError(
                f"{name} has {len(pictures)} frames (every {every}), and a step takes {length}. Please give longer clips, a "
                "smaller `length`, or a smaller `every`."
            )
        pictures = fit(pictures[..., :3], width, height)
        check_clip(pictures, vae, "Training a motion module")
        sizes.setdefault(tuple(pictures.shape[1:3]), name)
        found.append((name, pictures, text))
    if len(sizes) > 1:
        kinds = ", ".join(f"{name} {size[1]}x{size[0]}" for size, name in sizes.items())
        raise ValueError(f"the clips have different sizes ({kinds}). Please give width and height, and all are cut to that.")
    return [Clip(name, *posterior(vae, pictures), texts.encode(text)) for name, pictures, text in found]
