"""Decode chosen frames of a video file."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor


class VideoError(ValueError):
    """A file is not a video that can be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds: ``frames`` decodable frames of ``height`` x ``width`` at ``rate`` frames per second.

    Height and width are those of what is shown: of a phone's video that is to be turned, after turning it.
    """

    frames: int
    height: int
    width: int
    rate: Fraction


def _decode(path: str | os.PathLike):
    """Yield (index, frame) of the first video stream, in presentation order."""
    name = Path(path).name
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{name} has no video stream.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield from enumerate(container.decode(stream))
    except FileNotFoundError:
        raise VideoError(f"{name}: no such file.") from None
    except av.FFmpegError as error:
        raise VideoError(f"{name} cannot be decoded ({error}); it may be cut short or not a video.") from None


def probe(path: str | os.PathLike, limit: int | None = None) -> VideoInfo:
    """Count and measure the frames of a file by decoding it: containers often state a wrong count.

    Args:
        path: a video file.
        limit: look and count no further than so many frames.

    Raises:
        VideoError: if there is no such file, no video in it, or it breaks off.
    """
    count, frame = 0, None
    for count, frame in ((i + 1, f) for i, f in _decode(path)):
        if count == limit:
            break
    if frame is None:
        raise VideoError(f"{Path(path).name} has no frames.")
    with av.open(os.fspath(path)) as container:
        rate = container.streams.video[0].average_rate or Fraction(0)
    height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
    return VideoInfo(count, height, width, rate)


def read_frames(path: str | os.PathLike, indices: Iterable[int] | None = None) -> Tensor:
    """Frames by index, in the order asked for; the same index always gives the same pixels.

    Decodes from the start, since seeking by time lands on different frames in different containers.

    Args:
        path: a video file.
        indices: frame numbers from 0, any order, repeats allowed; None for all.

    Returns:
        uint8 T H W 3, RGB, turned as the file says that it be shown.

    Raises:
        VideoError: if the file cannot be read or has no frame of that number.
    """
    wanted = None if indices is None else list(indices)
    if wanted is not None and (not wanted or min(wanted) < 0):
        raise VideoError(f"frame numbers must be 0 or more and at least one, got {wanted}")
    last = None if wanted is None else max(wanted)
    kept: dict[int, np.ndarray] = {}
    needed = None if wanted is None else set(wanted)
    index = -1
    for index, frame in _decode(path):
        if needed is None or index in needed:
            kept[index] = _upright(frame)
        if index == last:
            break
    _check_reached(path, index, last)
    return torch.from_numpy(np.stack([kept[i] for i in (wanted if wanted is not None else range(index + 1))]))


def read_blocks(path: str | os.PathLike, numbers: range | None = None, size: int = 32) -> Iterator[Tensor]:
    """The frames of `read_frames`, at most ``size`` at a time: of a long video the whole does not fit into memory.

    Args:
        path: a video file.
        numbers: a rising range of frame numbers from 0; None for all.
        size: frames of a block.

    Yields:
        uint8 T H W 3, as `read_frames` returns them.

    Raises:
        VideoError: where the file cannot be read, at its end if it lacks a frame of ``numbers``, or if these are none.
    """
    if numbers is not None and not numbers:
        raise VideoError(f"frame numbers must be at least one, got {numbers}")
    last, kept, index = None if numbers is None else numbers[-1], [], -1
    for index, frame in _decode(path):
        if numbers is None or index in numbers:
            kept.append(_upright(frame))
        if len(kept) == size:
            yield torch.from_numpy(np.stack(kept))
            kept = []
        if index == last:
            break
    _check_reached(path, index, last)
    if kept:
        yield torch.from_numpy(np.stack(kept))


def _upright(frame) -> np.ndarray:
    """H W 3, turned as a player turns it: the file says by how many degrees, counterclockwise."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _check_reached(path: str | os.PathLike, index: int, last: int | None) -> None:
    if index < 0 or (last is not None and last > index):
        raise VideoError(f"{Path(path).name} has {index + 1} frames; frame {last or 0} was asked for.")
