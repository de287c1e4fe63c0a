"""What is in a clip: one or two things, each with shape, colour, size and motion, over a background.

Lengths are fractions of the frame's width, y points down, time u runs from 0 at the first frame to 1 at the last, so
one scene renders at any resolution and frame count.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Shapes with no corners look the same when they turn.
_ROUND = ("circle", "ring")

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (1.00, 0.92, 0.15),
    "green": (0.10, 0.75, 0.20),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.15, 0.30, 0.95),
    "purple": (0.60, 0.15, 0.80),
    "pink": (1.00, 0.55, 0.75),
    "white": (0.97, 0.97, 0.97),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.02, 0.02, 0.02),
    "gray": (0.45, 0.45, 0.45),
    "dark blue": (0.03, 0.05, 0.30),
    "dark green": (0.03, 0.24, 0.08),
    "dark red": (0.32, 0.03, 0.05),
    "light blue": (0.68, 0.82, 0.97),
    "light green": (0.74, 0.93, 0.72),
}
# A thing must stand out from what is behind it by this RGB distance.
CONTRAST = 0.55

# Unit steps of the eight directions.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
MOTIONS = (*DIRECTIONS, "bounce", "orbit", "rotate", "grow")
REPEATING = ("bounce", "orbit", "rotate")  # can go on in place for ever

SIZES = {"small": 0.16, "": 0.205, "large": 0.255}  # radius of the bounding circle; the middle size has no word


@dataclass(frozen=True)
class Thing:
    """One shape and how it moves.

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        motion: one of `MOTIONS`.
        x, y: where it is at the middle of its path, as fractions of the frame.
        phase: start angle of an orbit, in radians.
        turn: +1 or -1, the sense of an orbit or rotation.
    """

    shape: str
    colour: str
    size: str
    motion: str
    x: float = 0.5
    y: float = 0.5
    phase: float = 0.0
    turn: int = 1

    def pose(self, u: float) -> tuple[float, float, float, float]:
        """(x, y, radius, angle in radians) at time ``u`` in [0, 1]; a `REPEATING` motion goes on after 1."""
        x, y, radius, angle = self.x, self.y, SIZES[self.size], 0.0
        if self.motion in DIRECTIONS:
            dx, dy = DIRECTIONS[self.motion]
            x, y = x + dx * TRAVEL * (u - 0.5), y + dy * TRAVEL * (u - 0.5)
        elif self.motion == "bounce":  # two hops
            y += BOUNCE * (0.5 - abs(math.sin(2 * math.pi * u)))
        elif self.motion == "orbit":  # once around, the last frame just short of the first
            around = self.phase + self.turn * 1.8 * math.pi * u
            x, y = x + ORBIT * math.cos(around), y + ORBIT * math.sin(around)
        elif self.motion == "rotate":
            angle = self.turn * ROTATION * u
        elif self.motion == "grow":
            radius *= 0.55 + 0.75 * u
        return x, y, radius, angle


TRAVEL = 0.42  # length of a straight path
BOUNCE = 0.34  # height of a hop
ORBIT = 0.2  # radius of an orbit
ROTATION = math.radians(140)  # over the clip


@dataclass(frozen=True)
class Scene:
    """One or two things over a background; drawn in order, so the second is in front."""

    things: tuple[Thing, ...]
    background: str


def is_held_out(shape: str, colour: str, motion: str, background: str) -> bool:
    """Whether this combination is kept from training, one in twenty by a fixed hash, so that tests ask for unseen ones."""
    return zlib.crc32(f"{shape}/{colour}/{motion}/{background}".encode()) % 20 == 0


TRIES = 2000  # draws of a scene; one in twenty is of a held-out combination, so all miss with probability 1e-44


def random_scene(
    rng: np.random.Generator,
    two: float = 0.0,
    held_out: bool = False,
    sizes: tuple[str, ...] = tuple(SIZES),
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS),
    motions: tuple[str, ...] = MOTIONS,
    shapes: tuple[str, ...] = SHAPES,
) -> Scene:
    """A random scene.

    Args:
        rng: the only source of randomness.
        two: probability of two things instead of one.
        held_out: draw only combinations kept from training, instead of only the others.
        sizes: which of `SIZES` a thing alone may have; of two things both are small.
        backgrounds: which of `BACKGROUNDS` there may be.
        motions: which of `MOTIONS` a thing may have; of two things only those that keep to a half of the frame.
        shapes: which of `SHAPES` things may have; two things never have the same.

    Raises:
        ValueError: if none is found, because hardly any or no combination that is asked for is left.
    """
    for _ in range(TRIES):
        background = str(rng.choice(list(backgrounds)))
        count = 2 if rng.random() < two else 1
        things = tuple(
            _random_thing(rng, background, sizes, motions, shapes, slot if count == 2 else None) for slot in range(count)
        )
        unseen = [is_held_out(t.shape, t.colour, t.motion, background) for t in things]
        if count == 2 and (things[0].colour == things[1].colour or things[0].shape == things[1].shape):
            continue
        if all(unseen) if held_out else not any(unseen):
            return Scene(things, background)
    raise ValueError(
        f"no scene that {'is kept from' if held_out else 'is for'} training was found in {TRIES} draws from backgrounds "
        f"{list(backgrounds)}, motions {list(motions)} and shapes {list(shapes)}; please allow more of them"
    )


# In a scene of two, each keeps to its half: these motions go up and down or stay in place.
UPRIGHT = ("up", "down", "bounce", "rotate", "grow")


def visible_motions(shape: str, motions: tuple[str, ...]) -> list[str]:
    """The motions that can be seen on a shape."""
    return [m for m in motions if not (m == "rotate" and shape in _ROUND)]


def _random_thing(
    rng: np.random.Generator,
    background: str,
    sizes: tuple[str, ...],
    motions: tuple[str, ...],
    shapes: tuple[str, ...],
    slot: int | None,
) -> Thing:
    """A thing that fits its half (``slot`` 0 left, 1 right) or the whole frame (None), and contrasts with the background."""
    motions = tuple(m for m in motions if slot is None or m in UPRIGHT)
    shape = str(rng.choice([s for s in shapes if visible_motions(s, motions)]))
    behind = np.array(BACKGROUNDS[background])
    colour = str(rng.choice([c for c, rgb in COLOURS.items() if np.linalg.norm(np.array(rgb) - behind) > CONTRAST]))
    motion = str(rng.choice(visible_motions(shape, motions)))
    size = str(rng.choice(list(sizes))) if slot is None else "small"
    path = {"bounce": (0, BOUNCE / 2), "orbit": (ORBIT, ORBIT)}.get(motion) or tuple(
        abs(d) * TRAVEL / 2 for d in DIRECTIONS.get(motion, (0, 0))
    )
    reach = SIZES[size] * (1.3 if motion == "grow" else 1.0)
    # Free room on each side of the path's centre, with a margin so that nothing is cut off.
    x, y = (0.5 + rng.uniform(-1, 1) * max(0.0, 0.48 - reach - p) for p in path)
    if slot is not None:
        x = 0.27 + 0.46 * slot
    return Thing(shape, colour, size, motion, x, y, float(rng.uniform(0, 2 * math.pi)), int(rng.choice([-1, 1])))
