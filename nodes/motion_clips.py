"""The clips that a motion module is trained on: a folder of videos with captions, or frames of another node."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from ..vidcore.video.read import VideoError, probe, read_blocks
from .motion_run import Clip
from .tune_run import check_finite, check_size, posterior

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v")
BLOCK = 32  # frames that are decoded and encoded at a time


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


@dataclass(frozen=True)
class Source:
    """A video file, or the frames of another node: what of it is trained on, and its text.

    Args:
        name: of the file, for messages and the record.
        given: the file, or IMAGE.
        numbers: of the frames to use.
        size: height and width, once they are cut to what is asked for.
        text: what `Texts.find` found.
    """

    name: str
    given: Path | torch.Tensor
    numbers: range
    size: tuple[int, int]
    text: str | None

    def blocks(self) -> Iterator[torch.Tensor]:
        """Its frames as IMAGE, some at a time: a video of many large ones would not fit into memory."""
        if torch.is_tensor(self.given):
            pictures = self.given[self.numbers.start : self.numbers.stop : self.numbers.step, ..., :3]
            yield from (fit(block, self.size) for block in pictures.split(BLOCK))
        else:
            yield from (fit(block.float() / 255, self.size) for block in read_blocks(self.given, self.numbers, BLOCK))


def measure(name: str, given, text, every: int, most: int, width: int, height: int) -> Source:
    """A video, decoded once as far as it is used, or frames. Raises ValueError if it cannot be read."""
    if torch.is_tensor(given):
        count, own = len(given), tuple(given.shape[1:3])
    else:
        try:
            info = probe(given, every * (most - 1) + 1)
        except VideoError as error:
            raise ValueError(f"{error} Please take it out of the folder, or convert it.") from error
        count, own = info.frames, (info.height, info.width)
    return Source(name, given, range(0, count, every)[:most], (height or own[0], width or own[1]), text)


def fit(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Frames at that height and width, the middle cut out."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    return comfy.utils.common_upscale(frames.movedim(-1, 1), size[1], size[0], "area", "center").movedim(1, -1)


def encode(source: Source, texts: Texts, vae, bar: comfy.utils.ProgressBar) -> Clip:
    """A source as latents with its text."""
    parts = []
    for block in source.blocks():
        comfy.model_management.throw_exception_if_processing_interrupted()
        parts.append(posterior(vae, block))
        bar.update(len(block))
    return Clip(source.name, *(torch.cat(tensors) for tensors in zip(*parts)), texts.encode(source.text))


def collect(texts: Texts, vae, folder, frames, length, every, width, height, most) -> list[Clip]:
    """All clips as latents with their texts. Everything is checked before the first one is encoded.

    Raises:
        ValueError: if there are none, one is too short or cannot be read, or their sizes differ.
    """
    given = [(path.name, path, texts.find(path)) for path in (list_videos(folder) if folder.strip() else [])]
    if frames is not None:
        check_finite(frames)
        given.append(("the frames", frames, texts.find(None)))
    if not given:
        raise ValueError("there is nothing to train on; please name a folder of videos, or connect frames")
    sources, sizes = [], {}
    for item in given:
        comfy.model_management.throw_exception_if_processing_interrupted()
        source = measure(*item, every, most, width, height)
        if len(source.numbers) < length:
            raise ValueError(
                f"{source.name} has {len(source.numbers)} frames (every {every}), and a step takes {length}. Please give "
                "longer clips, a smaller `length`, or a smaller `every`."
            )
        check_size(len(source.numbers), *source.size, vae, "Training a motion module")
        sizes.setdefault(source.size, source.name)
        sources.append(source)
    if len(sizes) > 1:
        kinds = ", ".join(f"{name} {size[1]}x{size[0]}" for size, name in sizes.items())
        raise ValueError(f"the clips have different sizes ({kinds}). Please give width and height, and all are cut to that.")
    bar = comfy.utils.ProgressBar(sum(len(source.numbers) for source in sources))
    return [encode(source, texts, vae, bar) for source in sources]
