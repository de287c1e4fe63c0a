"""``python -m vidcore.score``: scores of videos, each printed with the protocol that it was made by.

``videos MADE TRUE`` compares two folders whose videos have the same names, frame by frame: PSNR, SSIM, flicker.
``features MADE.safetensors TRUE.safetensors`` compares two sets of features, each a file with ``features`` N D of clips
(FVD) or pictures (FID), from whatever extractor: Fréchet distance; with ``logits`` N classes in the first one also its
inception score.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .data.folder import VIDEOS
from .metrics.frechet import Moments, frechet_distance, inception_score
from .metrics.pixels import flicker, psnr, ssim
from .video import VideoError, read_frames

PART = 1024  # features at a time


def score_videos(made: Path, true: Path) -> dict:
    """Mean scores of the videos of ``made`` beside those of the same name in ``true``.

    Raises:
        ValueError: if there are none, one has no counterpart, or two differ in size or length.
    """
    names = sorted(path.name for path in made.iterdir() if path.suffix.lower() in VIDEOS)
    missing = [name for name in names if not (true / name).is_file()]
    if not names or missing:
        what = f"{', '.join(missing)} not in {true}" if missing else f"no videos in {made}"
        raise ValueError(f"{what}; both folders need videos of the same names")
    rows, sizes = [], set()
    for name in names:
        one, two = (read_frames(folder / name).float() / 255 for folder in (made, true))
        if one.shape != two.shape:
            raise ValueError(f"{name} is {_size(one)} in {made} and {_size(two)} in {true}; they must be alike")
        sizes.add(_size(one))
        rows.append((psnr(one, two), ssim(one, two), flicker(one), flicker(two)))
    means = dict(zip(("psnr", "ssim", "flicker", "flicker_of_true"), np.mean(rows, axis=0).tolist()))
    return {"videos": len(names), "sizes": sorted(sizes), **means}


def _size(clip) -> str:
    return f"{clip.shape[0]}x{clip.shape[2]}x{clip.shape[1]}"


def score_features(made: Path, true: Path, splits: int) -> dict:
    """Fréchet distance of two files of features, and the inception score of the first where it has logits.

    Raises:
        ValueError: if a file cannot be read, has no features, or too few.
    """
    sets, found = [], {}
    for path in (made, true):
        try:
            with safe_open(path, framework="pt") as file:
                part = file.get_slice("features")
                count, width = part.get_shape()
                sets.append(Moments(width))
                for first in range(0, count, PART):
                    sets[-1].add(part[first : first + PART])
                if path == made and "logits" in file.keys():  # noqa: SIM118 (it is no dictionary)
                    found["inception_score"], found["inception_score_deviation"] = inception_score(
                        file.get_tensor("logits"), splits
                    )
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no safetensors file with 'features' N D: {error}") from None
    if len(sets[0].mean) != len(sets[1].mean):
        raise ValueError(f"features of {len(sets[0].mean)} and of {len(sets[1].mean)} entries are of two extractors")
    hashes = {f"sha256_{k}": hashlib.sha256(p.read_bytes()).hexdigest() for k, p in (("made", made), ("true", true))}
    counts = {"made": sets[0].count, "true": sets[1].count, "entries": len(sets[0].mean)}
    return {**counts, **hashes, "frechet_distance": frechet_distance(*sets), **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidcore.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("videos", "features"))
    parser.add_argument("made", type=Path)
    parser.add_argument("true", type=Path)
    parser.add_argument("--splits", type=int, default=10, help="parts of the inception score")
    given = parser.parse_args()
    try:
        if given.kind == "videos":
            found = score_videos(given.made, given.true)
        else:
            found = score_features(given.made, given.true, given.splits)
    except (ValueError, VideoError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps({"kind": given.kind, "files": [given.made.name, given.true.name], **found}))


if __name__ == "__main__":
    main()
