"""Clips from a trained stage of Snap Video (arXiv 2402.14797), without a host."""

import math

import torch
from torch import Tensor

from ...guide.cfg import with_cfg
from ...sample.heun import snap_sample
from .net import FIT
from .stages import corrupt, enlarge, shrink


@torch.no_grad()
def make_clips(
    net: FIT,
    context: Tensor,
    steps: int,
    seed: int,
    guidance_scale: float = 1.0,
    interval: float | None = None,
    low: Tensor | None = None,
    corruption: float = 0.1,
) -> Tensor:
    """Clips B C T H W of the sizes in the network's config, by Heun's steps; each evaluation sees the latents of the last.

    Args:
        net: a trained stage.
        context: text tokens B L C.
        steps: 256 in the paper's first stage and 40 in its second.
        seed: of all noise.
        guidance_scale: towards the text; 1 is off, see `vidcore.guide.cfg.guided`.
        interval: between frames, in the unit that the network was trained with; by default what the config says.
        low: for a second stage: the first one's clips B C T h w; clips of another size are brought to that one.
        corruption: for a second stage: the deviation of the noise that ``low`` gets.

    Raises:
        ValueError: if ``low`` is missing, or given to a first stage.
    """
    config, size = net.config, (net.config.height, net.config.width)
    shape = (len(context), config.channels, config.frames, *size)
    interval, known, latents = config.interval if interval is None else interval, {}, None
    if low is not None:
        generator = torch.Generator().manual_seed(seed)
        _, noise = torch.randn(2, *shape, generator=generator)  # the sampler's noise is what the seed gives first
        level = torch.full((len(context),), math.log(corruption))
        low = shrink(low, config) if config.low_resolution else low  # a first stage refuses it with a better message
        known = {"low_resolution": corrupt(enlarge(low, size), level, noise), "corruption": level}

    def evaluate(z: Tensor, c_noise: Tensor, context: Tensor) -> Tensor:
        nonlocal latents
        given = {name: value.repeat(len(z) // len(value), *[1] * (value.ndim - 1)) for name, value in known.items()}
        given = {name: value.to(context.device) for name, value in given.items()}
        like = context.new_ones(len(z))
        output, latents = net(
            z.to(context.device), c_noise.to(context.device), context, interval=interval * like, size=config.height * like,
            previous=latents, **given,
        )  # fmt: skip
        return output.to(z.device)

    return snap_sample(config.edm, with_cfg(evaluate, guidance_scale), shape, steps, seed, context=context)
