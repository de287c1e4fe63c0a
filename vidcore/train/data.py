"""Batches of the procedural shapes or of a folder; step n's batch is a function of the seed and n alone.

Of several processes each draws its own share of it.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.folder import DataError, Item, frame_numbers, in_order, scan, words_in
from ..data.shapes import REPEATING, Scene, caption, random_scene, render
from ..text import Vocabulary
from .config import Phase, TrainConfig
from .processes import rank_and_count, share, wait


@dataclass
class Batch:
    """Clips with their captions.

    Args:
        clips: B C (frames + images) H W in [-1, 1].
        tokens: B L.
        image_tokens: B images L, or None.
        interval: the time from one frame to the next, as a part of the whole motion; shape B.
        whole: clips of the batch that this is a part of; 0 if it is the whole.
    """

    clips: Tensor
    tokens: Tensor
    image_tokens: Tensor | None
    interval: Tensor
    whole: int = 0

    def __post_init__(self):
        self.whole = self.whole or len(self.clips)

    def to(self, device: torch.device) -> "Batch":
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.clips), move(self.tokens), move(self.image_tokens), move(self.interval), self.whole)

    def split(self, size: int) -> list["Batch"]:
        """Its clips in order, at most ``size`` at a time; 0 keeps them together."""
        size = size or len(self.clips)
        images = [None] * len(self.clips) if self.image_tokens is None else self.image_tokens.split(size)
        parts = zip(self.clips.split(size), self.tokens.split(size), images, self.interval.split(size))
        return [Batch(*part, self.whole) for part in parts]


def random_part(scene: Scene, times: np.ndarray, size: int, crop: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random ``crop`` x ``crop`` part of a scene's frames, with its things inside where they fit."""
    x, y, radius, _ = np.array([thing.pose(float(u)) for thing in scene.things for u in times]).T
    kept = []
    for place in (y, x):
        low, high = (place - radius).min() * size, (place + radius).max() * size
        # From where the last edge is just inside to where the first one is; the other way around what does not fit.
        first, last = np.clip(np.sort([np.ceil(high) - crop, np.floor(low)]), 0, size - crop).astype(int)
        start = int(rng.integers(first, last + 1))
        kept.append(slice(start, start + crop))
    return kept[0], kept[1]


def shapes_batch(
    phase: Phase, vocabulary: Vocabulary, seed: int, step: int, rank: int = 0, own: slice = slice(None)
) -> Batch:
    """Clips with captions, and for joint training ``phase.images`` random frames of other scenes after each.

    Of its clips only ``own`` are drawn and returned.
    """
    rng = np.random.default_rng((seed, rank, step))

    def example(frames: int):
        scene = random_scene(rng, phase.two, False, phase.sizes, phase.backgrounds, phase.motions, phase.shapes)
        # A picture shows a motion's caption at a random moment, a clip the whole motion.
        times = rng.random(1) if frames == 1 else np.linspace(0, 1, frames)
        rate = 1.0
        if frames > 1 and phase.rates != (1.0,):
            rate = float(rng.choice(phase.rates))
            times = times * rate + rng.random() * (1 - rate)
        if (
            phase.anywhere
            and frames > 1
            and all(t.motion in REPEATING for t in scene.things)
            and rng.random() < phase.anywhere
        ):
            times = times + rng.random()
        part = random_part(scene, times, phase.size, phase.crop, rng) if phase.crop else None
        return partial(render, scene, frames, phase.size, times, part), vocabulary.encode(caption(scene, rng)), rate / frames

    clips, tokens, image_tokens, intervals = [], [], [], []
    for _ in range(phase.batch):
        clip, words, interval = example(phase.frames)
        pictures = [example(1) for _ in range(phase.images)]
        clips.append([clip, *(picture for picture, _, _ in pictures)])
        tokens.append(words)
        image_tokens.append([w for _, w, _ in pictures])
        intervals.append(interval if phase.frames > 1 else 0.0)
    pixels = np.stack([np.concatenate([draw() for draw in clip]) for clip in clips[own]])
    return Batch(
        torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1,
        torch.tensor(tokens[own]),
        torch.tensor(image_tokens[own]) if phase.images else None,
        torch.tensor(intervals[own]),
        phase.batch,
    )


@dataclass(frozen=True)
class Folder:
    """A folder of videos as batches.

    Args:
        videos, pictures: of `folder.scan`.
        rate: frames per second; 0 for each video's own.
        from_start: whether clips begin where their videos do.
        turns: of each step which size of `sizes` its batch has, and how many videos of that size earlier ones took; None
            where all have one.
    """

    videos: list[Item]
    pictures: list[Item]
    rate: float
    from_start: bool = False
    turns: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of the videos, sorted."""
        return sorted({item.size for item in self.videos})

    @property
    def words(self) -> tuple[str, ...]:
        """Of all captions."""
        return tuple(sorted({word for item in (*self.videos, *self.pictures) for word in words_in(item.caption)}))

    @property
    def captions(self) -> tuple[str, ...]:
        """The empty one, and those of the videos, each once."""
        return ("", *sorted({item.caption for item in self.videos}))

    def batch(
        self, phase: Phase, vocabulary: Vocabulary, seed: int, step: int, first: int, own: slice = slice(None)
    ) -> Batch:
        """The batch of a step, from draw ``first`` of the videos on; pictures, or frames of other videos, go beside them.

        Of its clips only ``own`` are read.
        """
        clips, tokens, image_tokens, intervals = [], [], [], []
        videos, stills_of_folder = self.videos, self.pictures
        if self.turns is not None:
            size, first = self.sizes[self.turns[0][step]], int(self.turns[1][step])
            videos, stills_of_folder = ([item for item in items if item.size == size] for items in (videos, self.pictures))
        numbers = list(enumerate(in_order(len(videos), first, phase.batch, seed)))
        for place, number in numbers[own]:
            rng, item = np.random.default_rng((seed, step, place)), videos[number]
            interval = float(rng.choice(phase.rates)) / (self.rate or item.rate)
            chosen = frame_numbers(item, phase.frames, interval, rng, self.from_start)
            frames = item.read(chosen).float() / 127.5 - 1 if item.latents is None else item.read_latents(chosen, rng)
            others = stills_of_folder or videos
            stills = [others[i] for i in rng.integers(len(others), size=phase.images)]
            pictures = [still.read([int(rng.integers(still.frames))]).float() / 127.5 - 1 for still in stills]
            clips.append(torch.cat([frames, *pictures]))
            tokens.append(vocabulary.encode(item.caption))
            image_tokens.append([vocabulary.encode(still.caption) for still in stills])
            intervals.append(interval if phase.frames > 1 else 0.0)
        return Batch(
            torch.stack(clips).permute(0, 4, 1, 2, 3).contiguous(),
            torch.tensor(tokens),
            torch.tensor(image_tokens) if phase.images else None,
            torch.tensor(intervals),
            phase.batch,
        )


def open_folder(config: TrainConfig, root: Path, report=print, any_caption: bool = False) -> Folder:
    """The recipe's folder, every file of which is looked at.

    Args:
        any_caption: whether the text encoder reads any words, and any number of them.

    Raises:
        folder.DataError: if it cannot be trained on.
    """
    kinds = [kind for phase in config.phases for kind in (phase, *phase.turns)]
    # At the videos' own rates no length in seconds is known beforehand: their frames are counted below.
    shortest = max((kind.frames - 1) * max(kind.rates) / config.data.rate if config.data.rate else 0.0 for kind in kinds)
    cache = (root / config.output).parent / "video_cache"
    sizes = config.data.sizes or ((kinds[0].size, kinds[0].size),)
    look = partial(scan, root / config.data.folder, cache, sizes, shortest)
    if rank_and_count()[1] > 1:  # each process decodes its part of what is new; then all find everything decoded
        with contextlib.suppress(DataError):
            look(lambda line: None, rank_and_count())
        wait()
    videos, pictures = look(report)
    longest = max(kind.frames for kind in kinds)
    known = set(config.words) if (config.text_from or config.image_from) and not any_caption else None

    def serves(item: Item) -> bool:
        unknown = set(words_in(item.caption)) - known if known is not None else set()
        words, few = len(words_in(item.caption)), not config.data.rate and 0 < item.rate and item.frames < longest
        long = words > config.text_length and not any_caption
        if few:
            report(f"left out: {item.name} has {item.frames} frames, and training takes {longest}.")
        elif long:
            report(f"left out: the caption of {item.name} has {words} words; text_length is {config.text_length}.")
        elif unknown:
            report(f"left out: the text encoder does not know these words of {item.name}: {', '.join(sorted(unknown))}.")
        return not few and not long and not unknown

    videos, pictures = ([item for item in items if serves(item)] for items in (videos, pictures))
    if not videos:
        raise DataError(f"{root / config.data.folder} has no video of {longest} frames or more with a caption that fits")
    if config.system == "tune_a_video" and len(videos) > 1:
        raise DataError(f"Tune-A-Video learns one clip; {root / config.data.folder} has {len(videos)} videos that serve")
    folder = Folder(videos, pictures, config.data.rate, config.data.from_start)
    return replace(folder, turns=size_turns(folder, config)) if len(folder.sizes) > 1 else folder


def size_turns(folder: Folder, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """`Folder.turns`: sizes in random turns, as often as there are videos of them; each size's videos then come in order."""
    share = np.array([sum(item.size == size for item in folder.videos) for size in folder.sizes]) / len(folder.videos)
    turns = np.random.default_rng((config.seed, len(share))).choice(len(share), config.steps, p=share)
    taken, before = np.zeros(len(share), np.int64), np.zeros(config.steps, np.int64)
    for step, turn in enumerate(turns):
        before[step] = taken[turn]
        taken[turn] += config.at(step)[0].batch
    return turns, before


@dataclass
class _Steps(Dataset):
    """The batch of each step of a recipe, by the step's number."""

    config: TrainConfig
    vocabulary: Vocabulary
    folder: Folder | None
    rank: int
    count: int

    def __getitem__(self, step: int) -> Batch:
        phase, _ = self.config.at(step)
        own = share(phase.batch, self.rank, self.count)
        if self.folder is None:
            return shapes_batch(phase, self.vocabulary, self.config.seed, step, own=own)
        return self.folder.batch(phase, self.vocabulary, self.config.seed, step, self.config.clips_before(step), own)


def batches(
    config: TrainConfig, vocabulary: Vocabulary, first: int, last: int, workers: int, folder: Folder | None = None
) -> Iterable[Batch]:
    """This process's share of the batches of steps ``first`` to ``last - 1``, drawn ahead by ``workers`` processes.

    Raises:
        ValueError: if there are more processes than clips in a batch.
    """
    for phase in config.phases:
        for kind in (phase, *phase.turns):
            share(kind.batch, *rank_and_count())
    steps = _Steps(config, vocabulary, folder, *rank_and_count())
    return DataLoader(steps, batch_size=None, sampler=range(first, last), num_workers=workers)
