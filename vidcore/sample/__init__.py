"""Samplers. Each is one step from noise level t to s; `loop.sample` runs any of them over a grid of times."""

from .ancestral import ancestral_step
from .ddim import ddim_step
from .invert import invert, round_trip_error
from .langevin import langevin_step
from .loop import Level, sample, sample_clip, uniform_times

__all__ = [
    "Level", "ancestral_step", "ddim_step", "invert", "langevin_step", "round_trip_error", "sample", "sample_clip",
    "uniform_times",
]  # fmt: skip
