"""Protocols of papers: from true videos and a model, or the clips that one made, to scores, as one small TOML file says.

A protocol has what to take from each side and which scores to take; a record has the protocol, whole, with the hashes of all
extractors, so that only numbers of one protocol are ever compared.
"""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import Cut, captions_from, clips_of, videos_in
from .extract import KINDS, Extractor
from .frechet import Moments, frechet_distance, inception_score
from .make import Sampling, batches, tokens_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "protocols"
SCORES = {"frechet": tuple(KINDS), "inception_score": ("c3d", "inception"), "clip_similarity": ("clip",)}
PROMPTS = ("none", "captions", "folders")
BATCH = 8  # clips of a folder that go through an extractor at once


@dataclass(frozen=True)
class Score:
    """One score.

    Args:
        kind: "frechet" (with "i3d" it is FVD, with "inception" FID), "inception_score" or "clip_similarity".
        extractor: one of `extract.KINDS`.
        pictures: frames of each clip, evenly spaced, that networks of pictures see; 0 for all.
        splits: parts of the inception score.
    """

    kind: str
    extractor: str
    pictures: int = 0
    splits: int = 10

    def __post_init__(self):
        if self.kind not in SCORES:
            raise ValueError(f"score.kind must be one of {', '.join(SCORES)}; got {self.kind!r}")
        if self.extractor not in SCORES[self.kind]:
            raise ValueError(f"{self.kind} takes the extractor {' or '.join(SCORES[self.kind])}; got {self.extractor!r}")
        if self.pictures < 0 or self.splits < 1:
            raise ValueError("score.pictures must be 0 or more, and score.splits 1 or more")

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.extractor}"


@dataclass(frozen=True)
class Protocol:
    """How a model is scored.

    Args:
        about: whose protocol it is, and in what it may differ.
        cut: how clips are taken from true videos, and to what size made ones are brought.
        true_clips, made_clips: how many of each.
        true_list: a file in that folder that names the true videos to take, as UCF-101's ``trainlist01.txt``; "" for all.
        prompts: "none", "captions" of a file in its order, or the names of the true videos' "folders", a word for each
            capital, all equally often.
        sampling: how the model makes clips.
        scores: to take.
    """

    about: str
    cut: Cut
    true_clips: int
    made_clips: int
    sampling: Sampling
    scores: tuple[Score, ...]
    true_list: str = ""
    prompts: str = "none"

    def __post_init__(self):
        if min(self.true_clips, self.made_clips) < 1 or not self.scores:
            raise ValueError("a protocol needs true_clips and made_clips of 1 or more, and at least one [[score]]")
        if self.prompts not in PROMPTS:
            raise ValueError(f"prompts must be one of {', '.join(PROMPTS)}; got {self.prompts!r}")
        if self.prompts == "none" and any(score.kind == "clip_similarity" for score in self.scores):
            raise ValueError("clip_similarity needs prompts")


def read_protocol(name: str) -> Protocol:
    """A protocol of ours by its name, or any by its path.

    Raises:
        ValueError: if there is none, or an entry is unknown or out of range.
    """
    ours = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
    path = ours.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"there is no protocol {name}; ours are {', '.join(ours)}, and a path to a .toml file does, too")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        cut, sampling = Cut(**table.pop("cut", {})), Sampling(**table.pop("sampling", {}))
        scores = tuple(Score(**row) for row in table.pop("score", []))
        return Protocol(**table, cut=cut, sampling=sampling, scores=scores)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path.name}: {error}") from None


@dataclass
class Side:
    """What is kept of the clips of one side: moments of features, class scores, similarities to prompts."""

    moments: dict[str, Moments] = field(default_factory=dict)
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    similar: list[Tensor] = field(default_factory=list)

    def add(self, clips: Tensor, captions: list[str], protocol: Protocol, extractors: dict[str, Extractor]) -> None:
        """uint8 B T H W 3 with what was asked for, "" where nothing was."""
        for score in protocol.scores:
            extractor = extractors[score.extractor]
            seen = clips
            if extractor.of_pictures and score.pictures:
                seen = clips[:, np.linspace(0, clips.shape[1] - 1, score.pictures).round().astype(int)]
            features, scores = extractor(seen)
            if score.kind == "frechet":
                self.moments.setdefault(score.name, Moments(features.shape[1])).add(features)
            elif score.kind == "inception_score":
                self.scores.setdefault(score.name, []).append(scores)
            else:
                texts = extractor.net.texts(captions).repeat_interleave(seen.shape[1], dim=0)
                self.similar.append(F.cosine_similarity(features, texts))


def prompts_of(protocol: Protocol, captions: Path | None, videos: list[Path]) -> list[str]:
    """What to ask for in each clip to be made. Raises ValueError if captions are needed and there are none."""
    if protocol.prompts == "none":
        return [""] * protocol.made_clips
    if protocol.prompts == "captions":
        if captions is None:
            raise ValueError("this protocol asks for captions; please name their file with --captions")
        found = captions_from(captions)
    else:
        found = sorted({words_of(path.parent.name) for path in videos})
    return [found[i % len(found)] for i in range(protocol.made_clips)]


def words_of(name: str) -> str:
    """ "ApplyEyeMakeup" to "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)).lower()


def made_by(model: tuple, prompts: list[str], protocol: Protocol) -> Iterator[tuple[Tensor, list[str]]]:
    """Clips of a model (`make.load`, a second stage behind it or None), uint8 B T H W 3, with their prompts."""
    net, encoder, second = model
    first = 0
    for x in batches(net, encoder, prompts, protocol.sampling, second):
        clips = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1)
        yield clips, prompts[first : first + len(x)]
        first += len(x)


def from_folder(videos: list[Path], count: int, protocol: Protocol, report: Callable) -> Iterator[tuple[Tensor, list[str]]]:
    """Clips of videos, uint8 B T H W 3, with the captions in the ``.txt`` files beside them, "" where there is none."""
    part: list[tuple[Path, Tensor]] = []
    for item in chain(clips_of(videos, count, protocol.cut, report), [None]):
        if item is not None:
            part.append(item)
        if part and (item is None or len(part) == BATCH):
            texts = [path.with_suffix(".txt") for path, _ in part]
            captions = [text.read_text(encoding="utf-8").strip() if text.is_file() else "" for text in texts]
            yield torch.stack([clip for _, clip in part]), captions
            part = []


def run(
    protocol: Protocol,
    extractors: dict[str, Extractor],
    true: Path,
    made: Path | tuple,
    captions: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict:
    """The record of a model's scores.

    Args:
        protocol: what to do.
        extractors: by kind, those that its scores name.
        true: folder of true videos.
        made: folder of videos that a model made, or the model itself, (network, text encoder, second stage or None).
        captions: file of captions, where the protocol asks for them.
        report: called with lines on what is done.

    Raises:
        ValueError: before anything is made, if clips are too few for a score, or something is missing.
    """
    check_counts(protocol, extractors)
    videos = videos_in(true, true / protocol.true_list if protocol.true_list else None)
    if isinstance(made, Path):
        theirs = videos_in(made)
        if len(theirs) < protocol.made_clips:
            raise ValueError(f"the protocol takes {protocol.made_clips} made clips, and {made} has {len(theirs)}")
        silent = [path.name for path in theirs if not path.with_suffix(".txt").is_file()]
        if silent and any(score.kind == "clip_similarity" for score in protocol.scores):
            raise ValueError(f"clip_similarity needs a .txt file with the prompt beside each video; {silent[0]} has none")
        makes = from_folder(theirs, protocol.made_clips, protocol, report)
    else:
        prompts = prompts_of(protocol, captions, videos)
        tokens_of(made[1], prompts)
        makes = made_by(made, prompts, protocol)
    sides = {"true": Side(), "made": Side()}
    needs_true = any(score.kind == "frechet" for score in protocol.scores)
    sources = {"true": from_folder(videos, protocol.true_clips, protocol, report) if needs_true else (), "made": makes}
    for name, source in sources.items():
        done = 0
        for clips, texts in source:
            sides[name].add(clips, texts, protocol, extractors)
            done += len(clips)
            report(f"{name}: {done} of {getattr(protocol, f'{name}_clips')} clips")
    return {
        "scores": scores_of(protocol, sides),
        "protocol": dataclasses.asdict(protocol),
        "extractors": {kind: extractor.digest for kind, extractor in extractors.items()},
        "true_videos": _digest(videos),
        "resize": "scaled to cover (bilinear, antialiased), cut in the middle; extractors enlarge as their `prepare` says",
    }


def check_counts(protocol: Protocol, extractors: dict[str, Extractor]) -> None:
    """Raises ValueError if there are too few clips for a score, or for a network's length."""
    for score in protocol.scores:
        extractor = extractors[score.extractor]
        frames = (score.pictures or protocol.cut.frames) if extractor.of_pictures else 1
        for side, clips in (("true", protocol.true_clips), ("made", protocol.made_clips)):
            if score.kind == "frechet" and clips * frames <= extractor.net.width:
                raise ValueError(
                    f"{clips} {side} clips are too few for {score.name}, whose features have {extractor.net.width} entries; "
                    f"please take more than {extractor.net.width // frames}"
                )
        if score.kind == "inception_score" and protocol.made_clips * frames < 2 * score.splits:
            raise ValueError(f"{protocol.made_clips} made clips are too few for {score.splits} splits of {score.name}")


def scores_of(protocol: Protocol, sides: dict[str, Side]) -> dict[str, float]:
    """The scores, by name."""
    found = {}
    for score in protocol.scores:
        made = sides["made"]
        if score.kind == "frechet":
            found[score.name] = frechet_distance(sides["true"].moments[score.name], made.moments[score.name])
        elif score.kind == "inception_score":
            value, deviation = inception_score(torch.cat(made.scores[score.name]), score.splits)
            found |= {score.name: value, f"{score.name}_deviation": deviation}
        else:
            found[score.name] = float(torch.cat(made.similar).mean())
    return found


def _digest(videos: list[Path]) -> str:
    """Of the names and sizes of videos, by which a record knows its data again."""
    names = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in videos)
    return hashlib.sha256(names.encode()).hexdigest()[:16]
