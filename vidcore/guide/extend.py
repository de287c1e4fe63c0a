"""Clips longer than the model's: windows that stream, each guided by what the last one made (VDM section 3.1)."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .measure import Known, Measurement, known_frames

# (measurements of the window, its first frame's number) -> the window's frames, B C window H W
MakeWindow = Callable[[Sequence[Measurement], int], Tensor]
# (first frame's number, the number after its last) -> what is known of a window
Evidence = Callable[[int, int], Sequence[Measurement]]


def first_frames(frames: Tensor, window: int) -> Known:
    """What a window of ``window`` frames knows of the one before it: its own first frames, B C K H W."""
    return known_frames(frames, range(frames.shape[2]), window)


def stream(
    make: MakeWindow,
    length: int,
    window: int,
    overlap: int,
    evidence: Evidence = lambda start, stop: (),
    remember: Callable[[Tensor, int], Measurement] = first_frames,
) -> Iterator[Tensor]:
    """A clip of any length, window after window, in constant memory.

    Every window but the first knows the ``overlap`` frames before it, and all that ``evidence`` tells about it. The last
    one ends with the clip, so it may know more.

    Args:
        make: samples one window.
        length: frames of the clip, at least ``window``.
        window: frames per window.
        overlap: frames that successive windows share.
        evidence: what is known beside.
        remember: (frames shared with the window before, ``window``) -> the measurement that holds the next window to them.

    Yields:
        B C T' H W blocks of new frames, in order, ``length`` in all.

    Raises:
        ValueError: if the numbers do not fit.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"the overlap must be at least 0 and below the window of {window} frames, got {overlap}")
    if length < window:
        raise ValueError(f"the clip must have at least the window's {window} frames, got {length}")
    start, done, last = 0, 0, None
    while done < length:
        measurements, shared = list(evidence(start, start + window)), done - start
        if shared:
            measurements.append(remember(last[:, :, -shared:], window))
        last = make(measurements, start)
        yield last[:, :, shared:]
        done = start + window
        start = min(done - overlap, length - window)


def extension(frames: Tensor) -> Evidence:
    """A clip that goes on after the given first frames, B C K H W (VDM's block-autoregressive extension)."""

    def evidence(start: int, stop: int) -> list[Known]:
        given = frames[:, :, start:stop]
        return [first_frames(given, stop - start)] if given.shape[2] else []

    return evidence


def places_between(frames: Tensor, factor: int, start: int, stop: int) -> tuple[Tensor, list[int]]:
    """Those of ``frames`` (B C K H W, ``factor`` apart in the clip) that fall into a window, and where in it they stand."""
    first = -(-start // factor)
    given = frames[:, :, first : (stop - 1) // factor + 1]
    return given, [factor * (first + i) - start for i in range(given.shape[2])]


def interpolation(frames: Tensor, factor: int) -> Evidence:
    """``factor`` times the frame rate: K given frames, B C K H W, stand ``factor`` apart in (K - 1) factor + 1."""

    def evidence(start: int, stop: int) -> list[Known]:
        given, places = places_between(frames, factor, start, stop)
        return [known_frames(given, places, stop - start)] if places else []

    return evidence
