"""Snap Video's objective, for clips and images alike (arXiv 2402.14797)."""

import math

import torch
from torch import Tensor

from ...objective import drop
from ...schedule import expand_as
from .net import FIT
from .stages import corrupt

# Self-conditioning in the paper's table of architectures.
SELF_CONDITIONING = 0.9
# ln of the noise that the clip to enlarge gets in training lies evenly between these; ours, the paper gives none.
CORRUPTION = (-4.6, 0.0)


def images_as_clips(images: Tensor, frames: int) -> Tensor:
    """Images B C H W as clips B C T H W of an infinite frame rate: every frame is the image."""
    return images[:, :, None].expand(-1, -1, frames, -1, -1)


def snap_loss(
    net: FIT,
    x: Tensor,
    generator: torch.Generator,
    interval: Tensor,
    size: Tensor,
    context: Tensor | None = None,
    drop_context: float = 0.1,
    low_resolution: Tensor | None = None,
    self_conditioning: float = SELF_CONDITIONING,
    noisier: float = 0.0,
) -> Tensor:
    """The denoiser's squared error with weight lambda(sigma), in the network's own output.

    Args:
        net: the network being trained.
        x: clips B C T H W; images by `images_as_clips`.
        generator: source of noise levels, noise, dropped captions and self-conditioning.
        interval: seconds from one frame to the next, shape B; 0 for images.
        size: rows of pixels that the clips had originally, shape B.
        context: text tokens B L C.
        drop_context: probability of training a clip without its text.
        low_resolution: for the second stage: the same clips at the first stage's size, enlarged to that of ``x``.
        self_conditioning: the probability that a clip's evaluation is given the latents of one before it, on the same input.
        noisier: added to the mean of ln sigma, 0 in the paper. What a text asks for is decided in strong noise, where the
            paper's long training has few draws and a short one hardly any.

    Returns:
        A scalar.
    """
    edm, batch = net.config.edm, len(x)

    def draw() -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    sigma, eps = (edm.training_sigma(batch, generator) * math.exp(noisier)).to(x), draw()
    conditions = {"interval": interval, "size": size}
    if low_resolution is not None:
        low, high = CORRUPTION
        corruption = low + (high - low) * torch.rand(batch, generator=generator).to(x)
        conditions["corruption"] = corruption
        conditions["low_resolution"] = corrupt(low_resolution, corruption, draw())
    if context is not None:
        context = drop(context, drop_context, generator)
    z = expand_as(edm.c_in(sigma), x) * edm.add_noise(x, eps, sigma)
    first = (torch.rand(batch, generator=generator) < self_conditioning).to(x.device)
    previous = None
    if first.any():
        given = {name: value[first] for name, value in conditions.items()}
        with torch.no_grad():
            latents = net(z[first], edm.c_noise(sigma[first]), None if context is None else context[first], **given)[1]
        previous = latents.new_zeros(batch, *latents.shape[1:])
        previous[first] = latents
    output, _ = net(z, edm.c_noise(sigma), context, previous=previous, **conditions)
    error = (output.float() - edm.target(x, eps, sigma)).square().flatten(1).mean(dim=1)
    return (edm.network_weight(sigma) * error).mean()
