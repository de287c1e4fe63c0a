"""From a scene to pixels: signed distances, antialiased by one pixel."""

import math

import numpy as np

from .scene import BACKGROUNDS, COLOURS, Scene


def _regular(corners: int, start: float) -> np.ndarray:
    angles = start + np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10, -math.pi / 2)
    points[1::2] *= 0.42
    return points


# Corners inside the unit circle, y down, in order around the outline.
_CROSS = np.array(
    [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
)
POLYGONS = {
    "square": _regular(4, -math.pi / 4),
    "triangle": _regular(3, -math.pi / 2),
    "star": _star(),
    "cross": _CROSS / math.sqrt(10),
}


def polygon_distance(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance of ``points`` (..., 2) to the outline of a simple polygon (K, 2); negative inside."""
    nearest = np.full(points.shape[:-1], np.inf)
    sign = np.ones(points.shape[:-1])
    for a, b in zip(corners, np.roll(corners, 1, axis=0)):
        edge, to = b - a, points - a
        along = np.clip(to @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, ((to - along[..., None] * edge) ** 2).sum(-1))
        # Even-odd rule: each edge that a ray to the right crosses flips inside and outside.
        above = points[..., 1] >= a[1]
        below = points[..., 1] < b[1]
        left = edge[0] * to[..., 1] > edge[1] * to[..., 0]
        sign = np.where((above & below & left) | (~above & ~below & ~left), -sign, sign)
    return sign * np.sqrt(nearest)


def _distance(shape: str, points: np.ndarray) -> np.ndarray:
    """Signed distance to a shape whose bounding circle is the unit circle."""
    radius = np.hypot(points[..., 0], points[..., 1])
    if shape == "circle":
        return radius - 0.92
    if shape == "ring":
        return np.abs(radius - 0.68) - 0.26
    return polygon_distance(points, POLYGONS[shape])


def render(
    scene: Scene, frames: int, size: int, times: np.ndarray | None = None, part: tuple[slice, slice] | None = None
) -> np.ndarray:
    """Pixels of a scene.

    Args:
        scene: what to draw.
        frames: number of frames.
        size: height and width in pixels.
        times: the time of each frame in [0, 1], or later for a motion that repeats; evenly spaced by default.
        part: the rows and columns to draw, all by default.

    Returns:
        float32 T H W C in [0, 1].
    """
    if times is None:
        times = np.linspace(0, 1, frames) if frames > 1 else np.array([0.5])
    centre = (np.arange(size) + 0.5) / size
    rows, columns = part or (slice(None), slice(None))
    grid = np.stack(np.meshgrid(centre[columns], centre[rows]), axis=-1)  # H W (x, y)
    clip = np.broadcast_to(np.array(BACKGROUNDS[scene.background]), (frames, *grid.shape[:2], 3)).copy()
    for thing in scene.things:
        points, radii = np.empty((frames, *grid.shape)), np.empty((frames, 1, 1))
        for f, u in enumerate(times):
            x, y, radii[f], angle = thing.pose(float(u))
            c, s = math.cos(angle), math.sin(angle)
            points[f] = (grid - (x, y)) @ np.array([[c, -s], [s, c]]) / radii[f]
        distance = _distance(thing.shape, points) * radii * size  # in pixels
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        clip += cover * (np.array(COLOURS[thing.colour]) - clip)
    return clip.astype(np.float32)
