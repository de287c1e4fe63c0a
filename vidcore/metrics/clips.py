"""Clips of a folder of videos as the measures read them: which, which frames, at what size; from a seed alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.folder import VIDEOS, captions_in, cut, in_order
from ..video import VideoError, probe, read_frames


@dataclass(frozen=True)
class Cut:
    """How clips are taken from videos; frames are scaled to cover the size (bilinear, antialiased), and cut in the middle.

    Args:
        frames: of a clip.
        height, width: in pixels.
        rate: frames per second; 0 takes successive frames of each video.
        seed: of the order of the videos, and of the place of the clip in each.
    """

    frames: int = 16
    height: int = 64
    width: int = 64
    rate: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if min(self.frames, self.height, self.width) < 1 or self.rate < 0:
            raise ValueError(f"frames, height and width must be at least 1, and rate 0 or more: {self}")


def videos_in(folder: Path, names: Path | None = None) -> list[Path]:
    """Its videos, sorted; with a file of ``names`` (paths in the folder, one a line, up to a space) those alone.

    Raises:
        ValueError: if there is no such folder, no video in it, or one of the names is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if names is None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS)
    else:
        if not names.is_file():
            raise ValueError(f"there is no list {names}")
        found = [folder / line.split()[0] for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise ValueError(f"{len(missing)} videos of {names.name} are not in {folder}, the first is {missing[0]}")
    if not found:
        raise ValueError(f"no videos in {folder}; it takes {', '.join(VIDEOS)}")
    return found


def clips_of(videos: list[Path], count: int, cut_as: Cut, report=print) -> Iterator[tuple[Path, Tensor]]:
    """``count`` clips, each (its video, uint8 T H W 3): one of every video in random order, then one more, and so on.

    Videos that cannot be read or are too short are named and passed over.

    Raises:
        ValueError: if none can be used.
    """
    made, draw, useless = 0, 0, set()
    while made < count:
        (number,) = in_order(len(videos), draw, 1, cut_as.seed)
        rng, draw, path = np.random.default_rng((cut_as.seed, draw)), draw + 1, videos[number]
        if path in useless:
            continue
        try:
            clip = _clip(path, cut_as, rng)
        except VideoError as error:
            report(f"left out: {error}")
            useless.add(path)
            if len(useless) == len(videos):
                raise ValueError(f"none of the {len(videos)} videos can be used; the last one: {error}") from None
            continue
        made += 1
        yield path, clip


def _clip(path: Path, cut_as: Cut, rng: np.random.Generator) -> Tensor:
    info = probe(path)
    stride = float(info.rate) / cut_as.rate if cut_as.rate else 1.0
    room = info.frames - 1 - (cut_as.frames - 1) * stride
    if room < 0:
        raise VideoError(f"{path.name} has {info.frames} frames, too few for {cut_as.frames} at every {stride:.3g}th.")
    start = rng.uniform(0, room) if cut_as.rate else int(rng.integers(int(room) + 1))
    numbers = [min(info.frames - 1, round(start + i * stride)) for i in range(cut_as.frames)]
    return cut(read_frames(path, numbers), (cut_as.height, cut_as.width))


def captions_from(path: Path) -> list[str]:
    """Captions of a file: lines of a ``.txt``; a ``.jsonl`` or ``.csv`` as for training; MSR-VTT's JSON, ``sentences``.

    Raises:
        ValueError: if the file is missing, or has none.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of captions {path}")
    if path.suffix == ".json":
        try:
            found = [row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))["sentences"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path.name} is not like MSR-VTT's JSON, with a list of 'sentences', each with 'caption'"
            ) from None
    elif path.suffix in (".jsonl", ".csv"):
        found = list(captions_in(path.parent, path.name).values())
    else:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [text for text in found if text]
    if not found:
        raise ValueError(f"{path.name} has no captions")
    return found
