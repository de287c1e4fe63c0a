"""A folder of real videos and pictures with captions, as training data.

Every file is decoded once, at the size that training takes; what comes of it is kept beside the model under a hash of the
file's content, so that a file that moves or is renamed is not decoded again. Files that cannot serve are named, with the
reason, and left out: a run never stops for one, nor puts another in its place.
"""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..video import VideoError, probe, read_blocks

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FASTEST = 1000  # frames per second; files that state more state nonsense


class DataError(ValueError):
    """A folder cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Item:
    """A usable file: its frames at the size of training, and what it shows.

    Args:
        name: of the file.
        caption: lower or upper case, any punctuation.
        frames: their number; 1 for a picture.
        rate: frames per second; 0 for a picture.
        kept: the safetensors file with ``frames``, uint8 T H W 3.
        size: height and width there.
        latents: the safetensors file with their latents' ``mean`` and ``deviation``, T C h w, if there is one.
    """

    name: str
    caption: str
    frames: int
    rate: float
    kept: Path
    size: tuple[int, int]
    latents: Path | None = None

    def read(self, indices: Iterable[int]) -> Tensor:
        """Frames by number, uint8 T H W 3."""
        with safe_open(self.kept, framework="pt") as file:
            part = file.get_slice("frames")
            return torch.cat([part[i : i + 1] for i in indices])

    def read_latents(self, indices: Iterable[int], rng: np.random.Generator) -> Tensor:
        """Latents of frames by number, drawn from their Gaussians; float32 T h w C."""
        indices = list(indices)
        with safe_open(self.latents, framework="pt") as file:
            parts = (file.get_slice(name) for name in ("mean", "deviation"))
            mean, deviation = (torch.cat([part[i : i + 1] for i in indices]).float() for part in parts)
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        return (mean + deviation * noise).movedim(1, -1)


def captions_in(folder: Path, name: str = "*") -> dict[str, str]:
    """What lists in the folder say of files, by file name or by name without ending.

    JSON lines with ``file`` and ``caption`` (or ``text``), and CSV with ``videoid`` and ``name``, as WebVid's lists are, or
    with ``file`` and ``caption``. ``name``: of one list, instead of all.
    """
    found, lists = {}, sorted(folder.glob(name))
    for path in (path for path in lists if path.suffix == ".jsonl"):
        for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            found[str(row.get("file", ""))] = str(row.get("caption", row.get("text", "")))
    for path in (path for path in lists if path.suffix == ".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key, text = row.get("file") or row.get("videoid"), row.get("caption") or row.get("name")
                if key and text:
                    found[key] = text
    return found


def scan(
    folder: Path,
    cache: Path,
    sizes: tuple[tuple[int, int], ...],
    shortest: float,
    report: Callable[[str], None] = print,
    share: tuple[int, int] = (0, 1),
) -> tuple[list[Item], list[Item]]:
    """The usable videos and pictures of a folder, decoded and kept.

    Args:
        folder: with videos and pictures, and beside each a ``.txt`` with its caption, or lists (`captions_in`); or with
            shards of them, as `in_shard` reads them.
        cache: folder for what is kept.
        sizes: heights and widths to scale and cut to; each file takes the one whose shape is nearest to its own.
        shortest: seconds that a video must last at least.
        report: called with a line for every file that is left out.
        share: (i, n) looks at every n-th file from the i-th on alone, so that n processes can decode a folder together.

    Raises:
        DataError: if there is no such folder, or no usable video in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    cache.mkdir(parents=True, exist_ok=True)
    listed, found = captions_in(folder), {VIDEOS: [], PICTURES: []}
    for number, path in enumerate(_files(folder, cache, report)):
        if number % share[1] != share[0]:
            continue
        kind = next(kind for kind in found if path.suffix.lower() in kind)
        try:
            item = _keep(path, cache, sizes, listed)
            if kind is VIDEOS and item.frames < shortest * item.rate:
                raise VideoError(f"{path.name} lasts {item.frames / item.rate:.2f} s, and training takes {shortest:.2f} s.")
            found[kind].append(item)
        except (VideoError, UnicodeDecodeError) as error:
            report(f"left out: {error}")
    if not found[VIDEOS]:
        raise DataError(f"{folder} has no usable video; it takes {', '.join(VIDEOS)}, {shortest:.2f} s long or longer")
    return found[VIDEOS], found[PICTURES]


def _files(folder: Path, cache: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """Videos and pictures of a folder, those of its shards unpacked one at a time."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (*VIDEOS, *PICTURES):
            yield path
        elif path.suffix.lower() == ".tar":
            try:
                yield from in_shard(path, cache)
            except (tarfile.TarError, OSError) as error:
                report(f"left out: the rest of {path.name} ({error}); is the file cut short?")


def in_shard(path: Path, cache: Path) -> Iterator[Path]:
    """Videos and pictures of a WebDataset shard, each as a file that is there until the next one is asked for.

    A shard is a tar file in which what belongs together has one name up to the first dot: ``000.mp4`` with ``000.txt``, or
    with ``000.json`` that has "caption" or "text". Folders inside it are part of the name.

    Raises:
        tarfile.TarError, OSError: where it breaks off.
    """
    captions, media = {}, []
    with tarfile.open(path) as shard:
        for member in shard:
            key, _, ending = member.name.rpartition("/")[2].partition(".")
            key, ending = (member.name.rpartition("/")[0], key), "." + ending.lower()
            if not member.isfile():
                continue
            if ending in (".txt", ".json"):
                text = shard.extractfile(member).read().decode("utf-8", "replace").strip()
                captions[key] = _caption(text) if ending == ".json" else text
            elif ending in (*VIDEOS, *PICTURES):
                media.append((key, ending, member))
        for key, ending, member in media:
            # Names in the archive are never paths here: what is unpacked lies in a folder of its own.
            with tempfile.TemporaryDirectory(dir=cache) as own:
                file = Path(own) / f"{path.stem}-{re.sub(r'[^0-9A-Za-z_-]', '_', key[1])}{ending}"
                with open(file, "wb") as out:
                    shutil.copyfileobj(shard.extractfile(member), out)
                if captions.get(key):
                    file.with_suffix(".txt").write_text(captions[key], encoding="utf-8")
                yield file


def _caption(text: str) -> str:
    """Of a JSON object. "" where there is none."""
    try:
        row = json.loads(text)
    except ValueError:
        return ""
    return str(row.get("caption") or row.get("text") or "") if isinstance(row, dict) else ""


def _keep(path: Path, cache: Path, sizes: tuple[tuple[int, int], ...], listed: dict[str, str]) -> Item:
    """A file's `Item`, decoded unless it was before. Raises `VideoError` if it cannot serve."""
    beside = path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else listed.get(path.name, listed.get(path.stem))
    if not text:
        raise VideoError(f"{path.name} has no caption, neither in {beside.name} nor in a list.")
    digest = _digest(path)
    shape, info = _shape(cache, digest), None
    if shape is None:
        info = probe(path)
        shape = info.height, info.width
    size = nearest_size(shape, sizes)
    kept = cache / f"{digest}-{size[0]}x{size[1]}.safetensors"
    if not kept.exists():
        info = info or probe(path)
        rate = 0.0 if path.suffix.lower() in PICTURES else float(info.rate)
        if rate > FASTEST or (rate <= 0 and path.suffix.lower() in VIDEOS):
            raise VideoError(f"{path.name} states {rate:.0f} frames per second.")
        blocks = read_blocks(path, None if rate else range(1))
        part = kept.with_suffix(f".{os.getpid()}.part")  # other processes may decode the same file
        frames = torch.cat([cut(block, size) for block in blocks])
        save_file({"frames": frames}, part, {"rate": repr(rate), "shape": json.dumps(shape)})
        os.replace(part, kept)
    with safe_open(kept, framework="pt") as file:
        frames, rate = file.get_slice("frames").get_shape()[0], float(file.metadata()["rate"])
    return Item(path.name, text, frames, rate, kept, size)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()[:24]


def _shape(cache: Path, digest: str) -> tuple[int, int] | None:
    """Height and width of a file as it was when it was decoded, if it was."""
    for kept in cache.glob(f"{digest}-*.safetensors"):
        with safe_open(kept, framework="pt") as file:
            return tuple(json.loads(file.metadata()["shape"]))
    return None


def nearest_size(shape: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size of ``sizes`` whose ratio of height to width is nearest to that of ``shape``, as a factor."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * shape[1] / shape[0])))


def cut(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 T H W 3 scaled until ``size``, height and width, is just covered, and the middle of that; uint8 T h w 3."""
    height, width = frames.shape[1:3]
    factor = max(size[0] / height, size[1] / width)
    shape = max(size[0], round(height * factor)), max(size[1], round(width * factor))
    parts = []
    for part in frames.split(64):
        x = F.interpolate(part.movedim(-1, 1).float(), shape, mode="bilinear", antialias=True, align_corners=False)
        top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
        parts.append(x[:, :, top : top + size[0], left : left + size[1]].round().clamp(0, 255).byte().movedim(1, -1))
    return torch.cat(parts).contiguous()


def words_in(caption: str) -> list[str]:
    """As `vidcore.text.Vocabulary` reads them."""
    return re.findall(r"[^\W_]+", caption.lower())


def in_order(count: int, first: int, number: int, seed: int) -> list[int]:
    """Which of ``count`` items draws ``first`` to ``first + number - 1`` are: each once in every round, in random order."""
    rounds = {(first + i) // count for i in range(number)}
    orders = {r: np.random.default_rng((seed, r)).permutation(count) for r in rounds}
    return [int(orders[(first + i) // count][(first + i) % count]) for i in range(number)]


def frame_numbers(item: Item, frames: int, interval: float, rng: np.random.Generator, from_start: bool = False) -> list[int]:
    """``frames`` frame numbers ``interval`` seconds apart (0: successive ones), from a random place or the start on."""
    stride = interval * item.rate if interval else 1.0
    room = item.frames - 1 - (frames - 1) * stride
    start = 0.0 if from_start else rng.uniform(0, max(room, 0.0))
    return [min(item.frames - 1, round(start + i * stride)) for i in range(frames)]
