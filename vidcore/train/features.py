"""What a frozen autoencoder and text encoder make of a folder, once: latents and text features in safetensors.

Each file is named by what it was made from and by what: the same video under another name is not encoded again, and another
autoencoder's latents are never taken for this one's. They are kept in half precision.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..systems.image.stable_diffusion import AUTOENCODER, TEXT, load_autoencoder, load_clip_text
from .processes import rank_and_count, wait

if TYPE_CHECKING:
    from .config import TrainConfig
    from .data import Folder

FRAMES = 4  # that are encoded at once


class CaptionList:
    """Captions as the numbers of a table's rows; row 0 is the empty one. Used where a `Vocabulary` is."""

    def __init__(self, captions: tuple[str, ...]):
        self.number = {caption: i for i, caption in enumerate(captions)}

    def encode(self, caption: str) -> list[int]:
        """Its number, alone in a list."""
        return [self.number[caption]]


class CaptionTable(nn.Module):
    """Text features by number, in the place of a text encoder.

    Args:
        table: N L C; row 0 is that of the empty caption.
    """

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: ... 1, of `CaptionList`; features B L C."""
        return self.table[tokens[..., 0]].float()


def digest_of(path: Path, prefix: str) -> str:
    """Of the tensors of one part of a checkpoint."""
    found = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(n for n in file.keys() if n.startswith(prefix)):  # noqa: SIM118
            found.update(name.encode())
            found.update(file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def with_latents(folder: "Folder", checkpoint: Path, cache: Path, device: torch.device, report: Callable) -> "Folder":
    """The folder with the latents of all its videos, those that are missing made now; each process makes its share.

    Args:
        folder: of `open_folder`.
        checkpoint: whose autoencoder encodes.
        cache: folder for what is kept.
        device: where it runs.
        report: called with a line on what is done.
    """
    cache.mkdir(parents=True, exist_ok=True)
    digest, (rank, count) = digest_of(checkpoint, AUTOENCODER), rank_and_count()
    videos = [replace(item, latents=cache / f"{item.kept.stem}-{digest}.safetensors") for item in folder.videos]
    missing = sorted({item.latents: item for item in videos if not item.latents.exists()}.values(), key=lambda i: i.latents)
    if missing[rank::count]:
        autoencoder = load_autoencoder(checkpoint).to(device)
        for number, item in enumerate(missing[rank::count]):
            with torch.inference_mode():
                numbers = (range(item.frames)[first : first + FRAMES] for first in range(0, item.frames, FRAMES))
                blocks = (item.read(block).to(device).movedim(-1, 1) for block in numbers)
                parts = [autoencoder.encode(block.float() / 127.5 - 1) for block in blocks]
            mean, deviation = (torch.cat([p[i] for p in parts]).half().cpu().contiguous() for i in (0, 1))
            _write(item.latents, {"mean": mean, "deviation": deviation})
            if number % 50 == 0 or number + 1 == len(missing[rank::count]):
                report(f"latents: {min(len(missing), (number + 1) * count)} of {len(missing)} videos")
    wait()
    return replace(folder, videos=videos)


def caption_table(captions: tuple[str, ...], checkpoint: Path, tokenizer: Path, cache: Path) -> CaptionTable:
    """Text features of captions, those that are missing made now.

    Raises:
        weights.WeightsError: as `load_clip_text` does.
    """
    cache.mkdir(parents=True, exist_ok=True)
    digest = digest_of(checkpoint, TEXT)
    files = [
        cache / f"{hashlib.sha256(json.dumps([digest, text]).encode()).hexdigest()[:32]}.safetensors" for text in captions
    ]
    missing = {file: text for file, text in zip(files, captions) if not file.exists()}
    if missing and rank_and_count()[0] == 0:
        with torch.random.fork_rng(devices=[]):  # a network that is built draws weights: the run's draws stay what they are
            encoder = load_clip_text(checkpoint, tokenizer)
        for file, text in missing.items():
            _write(file, {"features": encoder([text])[0].half().contiguous()})
    wait()
    return CaptionTable(torch.stack([load_file(file)["features"] for file in files]))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, part)
    os.replace(part, path)


def caches(config: "TrainConfig", root: Path) -> tuple[Path, Path]:
    """Folders for latents and for text features, beside the model."""
    beside = (root / config.output).parent
    return beside / "latent_cache", beside / "text_cache"
