"""Procedural captioned clips: coloured shapes that move, deterministic from a seed."""

from .captions import VOCABULARY, caption
from .render import render
from .scene import BACKGROUNDS, COLOURS, MOTIONS, REPEATING, SHAPES, Scene, Thing, is_held_out, random_scene

__all__ = [
    "BACKGROUNDS", "COLOURS", "MOTIONS", "REPEATING", "SHAPES", "VOCABULARY", "Scene", "Thing", "caption", "is_held_out",
    "random_scene", "render",
]  # fmt: skip
