"""A rule-based judge: reads shape, colour and motion back from the pixels of a clip. Nothing in it is learned.

It shares the palette's names with `vidcore.data.shapes` and no drawing code: segmentation by distance from the
background, components, centroids, and templates given by their outline's radius as a function of angle.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..data.shapes.scene import BACKGROUNDS, COLOURS, DIRECTIONS, Scene

UNKNOWN = "unknown"
SMALLEST = 0.006  # of the frame's area; less is noise
SAME_COUNT = 0.25  # components of at least this share of the largest count as things
FIT = 0.72  # overlap with the best template below which a shape is unknown
FINE = 4  # subpixels per pixel and axis in a template's coverage
FOLD = {"triangle": 3, "square": 4, "cross": 4, "star": 5}  # rotational symmetry


@dataclass
class Seen:
    """One thing followed through a clip. Lengths are fractions of the frame's width; y points down.

    Args:
        path: T x 2 centroids (x, y); NaN where it was not found.
        area: T, as a fraction of the frame; NaN where it was not found.
        rgb: T x 3, its colour in [0, 1]; NaN where it was not found.
    """

    shape: str
    colour: str
    motion: str
    path: np.ndarray
    area: np.ndarray
    rgb: np.ndarray


@dataclass
class Observation:
    """What a clip shows: the background's name and the things, largest first."""

    background: str
    things: list[Seen]


# ------------------------------------------------------------------------------------------------------- segmentation


def _nearest(rgb: np.ndarray, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(rgb - np.array(palette[name]))))


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components of a boolean H W, each as an array of (row, column), largest first."""
    left = {tuple(p) for p in np.argwhere(mask)}
    found = []
    while left:
        stack, members = [left.pop()], []
        while stack:
            r, c = stack.pop()
            members.append((r, c))
            for neighbour in ((r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        found.append(np.array(members))
    return sorted(found, key=len, reverse=True)


@dataclass
class _Blob:
    """One component of one frame: soft coverage H W in [0, 1], its colour, centroid in pixels, and area in pixels."""

    cover: np.ndarray
    rgb: np.ndarray
    x: float
    y: float
    area: float


def _blobs(frame: np.ndarray, behind: np.ndarray) -> list[_Blob]:
    height, width = frame.shape[:2]
    contrast = np.linalg.norm(frame - behind, axis=-1)
    components = [c for c in _components(contrast > 0.25) if len(c) >= SMALLEST * height * width]
    blobs = []
    for members in components:
        if len(members) < SAME_COUNT * len(components[0]):
            break
        inside = np.zeros((height, width), bool)
        inside[tuple(members.T)] = True
        # The colour of the best-contrasting half: edge pixels are mixed with the background.
        values = frame[inside]
        strength = contrast[inside]
        rgb = np.median(values[strength >= np.median(strength)], axis=0)
        grown = np.zeros_like(inside)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                grown |= np.roll(inside, (i, j), (0, 1))
        axis = rgb - behind
        cover = np.where(grown, np.clip((frame - behind) @ axis / (axis @ axis), 0, 1), 0)
        rows, columns = np.mgrid[:height, :width] + 0.5
        area = cover.sum()
        blobs.append(_Blob(cover, rgb, (cover * columns).sum() / area, (cover * rows).sum() / area, area))
    return blobs


# ------------------------------------------------------------------------------------------------------------- shapes


def _outline(corners: list[tuple[float, float]], angles: np.ndarray) -> np.ndarray:
    """The radius of a star-convex polygon around the origin in each direction."""
    radius = np.zeros_like(angles)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        ex, ey = bx - ax, by - ay
        cross = directions[:, 0] * ey - directions[:, 1] * ex
        safe = np.where(np.abs(cross) < 1e-9, np.nan, cross)
        along = (ax * ey - ay * ex) / safe
        where = (ax * directions[:, 1] - ay * directions[:, 0]) / safe
        hit = (along > 0) & (where >= -1e-9) & (where <= 1 + 1e-9)
        radius = np.where(hit, np.maximum(radius, np.nan_to_num(along)), radius)
    return radius


def _ngon(n: int, inner: float | None = None) -> list[tuple[float, float]]:
    count = n if inner is None else 2 * n
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    return [(r * math.sin(2 * math.pi * i / count), -r * math.cos(2 * math.pi * i / count)) for i, r in enumerate(radii)]


BINS = 720


@lru_cache
def _templates() -> dict[str, tuple[np.ndarray, float]]:
    """Shape -> (outline's radius at BINS angles, inner radius as a share of it), scaled to unit area."""
    angles = np.arange(BINS) * 2 * math.pi / BINS
    third = 1 / 3
    plus = [(-third, -1), (third, -1), (third, -third), (1, -third), (1, third), (third, third)]
    plus += [(-x, -y) for x, y in plus]
    outlines = {
        "circle": (np.ones(BINS), 0.0),
        "ring": (np.ones(BINS), 0.45),
        "square": (_outline([(-1, -1), (1, -1), (1, 1), (-1, 1)], angles), 0.0),
        "triangle": (_outline(_ngon(3), angles), 0.0),
        "star": (_outline(_ngon(5, 0.42), angles), 0.0),
        "cross": (_outline(plus, angles), 0.0),
    }
    unit = {}
    for name, (radius, hole) in outlines.items():
        area = (radius**2).mean() * math.pi * (1 - hole**2)
        unit[name] = (radius / math.sqrt(area), hole)
    return unit


def _fit(blob: _Blob, shape: str) -> float:
    """Overlap (intersection over union of coverage) with the best-turned template of equal area and centroid."""
    height, width = blob.cover.shape
    reach = 1.6 * math.sqrt(blob.area) + 1
    top, bottom = max(0, int(blob.y - reach)), min(height, int(blob.y + reach) + 1)
    left, right = max(0, int(blob.x - reach)), min(width, int(blob.x + reach) + 1)
    ys = top + (np.arange((bottom - top) * FINE) + 0.5) / FINE - blob.y
    xs = left + (np.arange((right - left) * FINE) + 0.5) / FINE - blob.x
    dx, dy = np.meshgrid(xs, ys)
    distance = np.hypot(dx, dy) / math.sqrt(blob.area)
    angle = np.round(np.arctan2(dy, dx) * BINS / (2 * math.pi)).astype(int)
    outline, hole = _templates()[shape]
    cover = blob.cover[top:bottom, left:right]
    outside = blob.cover.sum() - cover.sum()
    turns = range(0, BINS // FOLD[shape], BINS // FOLD[shape] // 10) if shape in FOLD else (0,)
    best = 0.0
    for turn in turns:
        edge = outline[(angle - turn) % BINS]
        inside = (distance < edge) & (distance > hole * edge)
        template = inside.reshape(bottom - top, FINE, right - left, FINE).mean((1, 3))
        best = max(best, np.minimum(template, cover).sum() / (np.maximum(template, cover).sum() + outside))
    return best


def _shape(blobs: list[_Blob]) -> str:
    """The shape whose template fits best over the largest few views of a thing."""
    views = sorted(blobs, key=lambda b: -b.area)[:4]
    fits = {shape: float(np.mean([_fit(b, shape) for b in views])) for shape in _templates()}
    best = max(fits, key=fits.get)
    return best if fits[best] >= FIT else UNKNOWN


# ------------------------------------------------------------------------------------------------------------- motion


def _turned(blobs: list[_Blob | None], shape: str) -> float:
    """Total turn in radians, from the phase of the k-fold moment of the coverage, k the shape's symmetry."""
    if shape not in FOLD:
        return 0.0
    fold, phases = FOLD[shape], []
    for blob in filter(None, blobs):
        rows, columns = np.mgrid[: blob.cover.shape[0], : blob.cover.shape[1]] + 0.5
        offset = (columns - blob.x) + 1j * (rows - blob.y)
        radius = np.abs(offset)
        phases.append(np.angle((blob.cover * radius * (offset / np.maximum(radius, 1e-9)) ** fold).sum()))
    unwrapped = np.unwrap(phases) / fold
    return float(abs(unwrapped[-1] - unwrapped[0])) if len(unwrapped) > 1 else 0.0


def _motion(path: np.ndarray, area: np.ndarray, turned: float) -> str:
    """Names a motion from centroids (T x 2), areas (T) and total turn, by fixed rules in this order."""
    known = ~np.isnan(area)
    if known.sum() < 3:
        return UNKNOWN
    path, area = path[known], area[known]
    span = np.ptp(path, axis=0)
    net = path[-1] - path[0]
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    # An orbit goes around a point: the angle about the centre of its box sweeps far, one way.
    around = np.unwrap(np.arctan2(*(path - (path.max(0) + path.min(0)) / 2).T[::-1]))
    if min(span) > 0.2 and abs(around[-1] - around[0]) > math.radians(200):
        return "orbit"
    if np.linalg.norm(net) > 0.2 and np.linalg.norm(net) > 0.8 * length:
        octant = round(math.atan2(net[1], net[0]) / (math.pi / 4)) % 8
        steps = {(round(math.cos(k * math.pi / 4)), round(math.sin(k * math.pi / 4))): k for k in range(8)}
        return next(name for name, step in DIRECTIONS.items() if steps[step] == octant)
    if span[1] > 0.15 and span[0] < 0.12 and length > 1.7 * span[1]:
        return "bounce"
    early, late = np.mean(area[: max(1, len(area) // 4)]), np.mean(area[-max(1, len(area) // 4) :])
    if late > 1.8 * early:
        return "grow"
    if turned > math.radians(60) and max(span) < 0.12:
        return "rotate"
    return "still" if max(span) < 0.08 else UNKNOWN


# -------------------------------------------------------------------------------------------------------------- judge


def observe(clip: np.ndarray) -> Observation:
    """What a clip shows.

    Args:
        clip: T H W 3 in [0, 1], at least 3 frames for a motion.
    """
    clip = np.asarray(clip, dtype=np.float64)
    border = np.concatenate([clip[:, [0, -1]].reshape(-1, 3), clip[:, :, [0, -1]].reshape(-1, 3)])
    behind = np.median(border, axis=0)
    frames = [_blobs(frame, behind) for frame in clip]
    count = int(np.median([len(blobs) for blobs in frames]))
    tracks = _follow(frames, count, clip.shape[1])
    things = [_describe(track, clip.shape[1], clip.shape[2]) for track in tracks]
    return Observation(_nearest(behind, BACKGROUNDS), sorted(things, key=lambda t: -np.nanmean(t.area)))


def _follow(frames: list[list[_Blob]], count: int, height: int) -> list[list[_Blob | None]]:
    """``count`` tracks through the frames, each blob joined to the nearest in place and colour."""
    first = next((i for i, blobs in enumerate(frames) if len(blobs) >= count), None)
    if not count or first is None:
        return []
    tracks: list[list[_Blob | None]] = [[None] * first + [blob] for blob in frames[first][:count]]
    last = [track[-1] for track in tracks]
    for blobs in frames[first + 1 :]:
        pairs = sorted(
            (math.hypot(a.x - b.x, a.y - b.y) / height + float(np.linalg.norm(a.rgb - b.rgb)), i, j)
            for i, a in enumerate(last)
            for j, b in enumerate(blobs)
        )
        taken_i, taken_j = set(), set()
        for _, i, j in pairs:
            if i not in taken_i and j not in taken_j:
                taken_i.add(i)
                taken_j.add(j)
                last[i] = blobs[j]
        for i, track in enumerate(tracks):
            track.append(last[i] if i in taken_i else None)
    return tracks


def _describe(track: list[_Blob | None], height: int, width: int) -> Seen:
    found = [blob for blob in track if blob is not None]
    nan = (math.nan, math.nan)
    path = np.array([nan if b is None else (b.x / width, b.y / width) for b in track])
    area = np.array([math.nan if b is None else b.area / (height * width) for b in track])
    shape = _shape(found)
    rgb = np.array([(math.nan,) * 3 if b is None else b.rgb for b in track])
    colour = _nearest(np.nanmedian(rgb, axis=0), COLOURS)
    return Seen(shape, colour, _motion(path, area, _turned(track, shape)), path, area, rgb)


def agreement(clip: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Whether a clip shows what a scene asks for: keys ``shape``, ``colour``, ``motion``, ``background`` and ``count``.

    Things are paired so that as much as possible agrees; each key holds only if it holds for every thing.
    """
    seen = observe(clip)
    result = {"background": seen.background == scene.background, "count": len(seen.things) == len(scene.things)}
    left = list(seen.things)
    pairs = []
    for thing in scene.things:
        match = max(
            left,
            key=lambda s: 2 * (s.colour == thing.colour) + (s.shape == thing.shape) + (s.motion == thing.motion),
            default=None,
        )
        if match is not None:
            left.remove(match)
        pairs.append((thing, match))
    for key in ("shape", "colour", "motion"):
        result[key] = all(match is not None and getattr(match, key) == getattr(thing, key) for thing, match in pairs)
    return result
