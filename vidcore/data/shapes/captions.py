"""From a scene to a short natural caption."""

import re

import numpy as np

from .scene import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES, Scene, Thing

_STRAIGHT = ("moves {}", "is moving {}", "slides {}")
_VERBS = {
    **{name: tuple(v.format(name.replace(" ", " and ")) for v in _STRAIGHT) for name in DIRECTIONS},
    "bounce": ("bounces", "is bouncing", "bounces up and down"),
    "orbit": ("orbits the center", "is orbiting the center", "orbits around the center"),
    "rotate": ("rotates", "is rotating", "spins in place"),
    "grow": ("grows", "is growing", "grows larger"),
}
_PLACES = ("over", "on", "against")


def _phrase(thing: Thing, rng: np.random.Generator | None) -> str:
    verbs = _VERBS[thing.motion]
    verb = verbs[0] if rng is None else str(rng.choice(verbs))
    article = "an" if not thing.size and thing.colour[0] in "aeiou" else "a"
    return " ".join(filter(None, [article, thing.size, thing.colour, thing.shape, verb]))


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A caption such as "a large red star moves left over a dark blue background".

    Args:
        rng: varies the wording and sometimes leaves the background out; None gives the plainest full wording.
    """
    text = " and ".join(_phrase(thing, rng) for thing in scene.things)
    if rng is not None and rng.random() < 0.1:
        return text
    place = _PLACES[0] if rng is None else str(rng.choice(_PLACES))
    return f"{text} {place} a {scene.background} background"


def _vocabulary() -> tuple[str, ...]:
    verbs = [v for group in _VERBS.values() for v in group]
    sources = [*SHAPES, *COLOURS, *BACKGROUNDS, *SIZES, *verbs, *_PLACES, "a an and background"]
    return tuple(sorted({word for source in sources for word in re.findall(r"\w+", source)}))


VOCABULARY = _vocabulary()
