"""``python -m vidcore.score``: scores of videos, each printed with the protocol that it was made by.

``videos MADE TRUE`` compares two folders whose videos have the same names, frame by frame: PSNR, SSIM, flicker, and with
``--warp-error`` what of their change is not motion.
``protocol NAME --true FOLDER`` scores a model (``--model``), or the videos that one made (``--made``), as a paper did: FVD,
FID, inception score, CLIP similarity. ``--weights`` is the folder with the extractors' files: i3d.safetensors,
c3d.safetensors, inception.safetensors, clip/; ``python benchmarks/convert_extractor.py --help`` says where to get them.
``extract VIDEOS OUT.safetensors`` writes features of a folder's clips, from one extractor.
``features MADE.safetensors TRUE.safetensors`` compares two sets of features, each a file with ``features`` N D of clips
(FVD) or pictures (FID), from whatever extractor: Fréchet distance; with ``logits`` N classes in the first one also its
inception score.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import weights
from .data.folder import VIDEOS
from .metrics.clips import Cut, clips_of, videos_in
from .metrics.extract import KINDS, load_extractor
from .metrics.frechet import Moments, frechet_distance, inception_score
from .metrics.make import load
from .metrics.pixels import flicker, psnr, ssim
from .metrics.protocol import read_protocol, run
from .metrics.record import add_protocol
from .metrics.warp import warp_error
from .video import VideoError, read_frames

PART = 1024  # features at a time


def score_videos(made: Path, true: Path, warp: bool = False) -> dict:
    """Mean scores of the videos of ``made`` beside those of the same name in ``true``; with ``warp`` also their warp errors.

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
        errors = (warp_error(one), warp_error(two)) if warp else ()
        rows.append((psnr(one, two), ssim(one, two), flicker(one), flicker(two), *errors))
    scores = ("psnr", "ssim", "flicker", "flicker_of_true", "warp_error", "warp_error_of_true")
    means = dict(zip(scores, np.mean(rows, axis=0).tolist()))
    return {"videos": len(names), "sizes": sorted(sizes), **means}


def _size(clip: Tensor) -> str:
    return f"{clip.shape[0]}x{clip.shape[2]}x{clip.shape[1]}"


def score_features(made: Path, true: Path, splits: int) -> dict:
    """Fréchet distance of two files of features, and the inception score of the first where it has logits.

    Raises:
        ValueError: if a file cannot be read, has no features, or too few.
    """
    sets, found, made_by = [], {}, []
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
                made_by.append(json.loads((file.metadata() or {}).get(weights.METADATA_KEY, "{}")).get("made_by"))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no safetensors file with 'features' N D: {error}") from None
    if len(sets[0].mean) != len(sets[1].mean):
        raise ValueError(f"features of {len(sets[0].mean)} and of {len(sets[1].mean)} entries are of two extractors")
    if None not in made_by and made_by[0] != made_by[1]:
        raise ValueError(f"the two files were not made in one way: {made_by[0]} and {made_by[1]}")
    hashes = {f"sha256_{k}": hashlib.sha256(p.read_bytes()).hexdigest() for k, p in (("made", made), ("true", true))}
    counts = {"made": sets[0].count, "true": sets[1].count, "entries": len(sets[0].mean)}
    return {**counts, **hashes, "frechet_distance": frechet_distance(*sets), **found}


def extract(videos: Path, out: Path, kind: str, file: Path, clips: int, cut: Cut, report=print) -> dict:
    """Write the features of a folder's clips, as `score_features` reads them, with what they were made by.

    Raises:
        ValueError: if the folder, or a file, is not what it should be.
    """
    extractor, parts, done = load_extractor(kind, file, device()), [], 0
    for _, clip in clips_of(videos_in(videos), clips, cut, report):
        parts.append(extractor(clip[None]))
        done += 1
        report(f"{done} of {clips} clips")
    tensors = {"features": torch.cat([features for features, _ in parts])}
    if parts[0][1] is not None:
        tensors["logits"] = torch.cat([scores for _, scores in parts])
    made_by = {
        "extractor": kind,
        "sha256": extractor.digest,
        "frames": cut.frames,
        "size": f"{cut.height}x{cut.width}",
        "rate": cut.rate,
    }
    weights.save(out, tensors, {"system": "features", "made_by": made_by, "clips": clips, "seed": cut.seed})
    return {"file": out.name, **made_by, "clips": clips, "seed": cut.seed}


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def score_protocol(given: argparse.Namespace) -> dict:
    """The record of `metrics.protocol.run` for what was given on the command line. Raises ValueError as it does."""
    protocol = read_protocol(given.protocol)
    if (given.model is None) == (given.made is None):
        raise ValueError("please give either --model, a file, or --made, a folder of videos that it made")
    kinds = {score.extractor for score in protocol.scores}
    files = {kind: given.weights / (kind if kind == "clip" else f"{kind}.safetensors") for kind in sorted(kinds)}
    extractors = {kind: load_extractor(kind, file, device()) for kind, file in files.items()}
    made, model = given.made, {}
    if given.model is not None:
        nets = [load(given.model, given.image), *([load(given.second_stage)] if given.second_stage else [])]
        for part in nets:
            for net in part:
                net.to(device())
        made = (*nets[0], nets[1] if given.second_stage else None)
        named = {"model": given.model, "image": given.image, "second_stage": given.second_stage}
        model = {k: [path.name, _digest(path)] for k, path in named.items() if path is not None}
    return {**model, **run(protocol, extractors, given.true, made, given.captions)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidcore.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("videos")
    command.add_argument("made", type=Path)
    command.add_argument("true", type=Path)
    command.add_argument("--warp-error", action="store_true", help="needs OpenCV")
    command = kinds.add_parser("features")
    command.add_argument("made", type=Path)
    command.add_argument("true", type=Path)
    command.add_argument("--splits", type=int, default=10, help="parts of the inception score")
    command = kinds.add_parser("extract")
    command.add_argument("videos", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--extractor", choices=KINDS, default="i3d")
    command.add_argument("--weights", type=Path, required=True, help="the extractor's file; CLIP's folder")
    command.add_argument("--clips", type=int, default=2048)
    add_protocol(command, Cut())
    command = kinds.add_parser("protocol")
    command.add_argument("protocol", help="ucf101_vdm, ucf101_cmd, ucf101_zero_shot, msrvtt_zero_shot, or a .toml file")
    command.add_argument("--true", type=Path, required=True, help="folder of true videos")
    command.add_argument("--weights", type=Path, required=True, help="folder of extractors")
    command.add_argument("--model", type=Path)
    command.add_argument("--image", type=Path, help="the image model of a motion module, or of CMD's content frames")
    command.add_argument("--second-stage", type=Path)
    command.add_argument("--made", type=Path, help="folder of videos, instead of a model")
    command.add_argument("--captions", type=Path)
    command.add_argument("--out", type=Path, help="where to write the record, too")
    given = parser.parse_args()
    try:
        if given.kind == "videos":
            found = score_videos(given.made, given.true, given.warp_error)
        elif given.kind == "features":
            found = score_features(given.made, given.true, given.splits)
        elif given.kind == "extract":
            cut = Cut(**{name: getattr(given, name) for name in ("frames", "height", "width", "rate", "seed")})
            found = extract(given.videos, given.out, given.extractor, given.weights, given.clips, cut)
        else:
            found = score_protocol(given)
    except (ValueError, VideoError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    files = [given.made.name, given.true.name] if given.kind in ("videos", "features") else []
    record = json.dumps({"kind": given.kind, **({"files": files} if files else {}), **found})
    if given.kind == "protocol" and given.out:
        given.out.write_text(record + "\n", encoding="utf-8")
    print(record)


if __name__ == "__main__":
    main()
