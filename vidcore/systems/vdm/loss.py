"""Training objective of Video Diffusion Models."""

import torch
from torch import Tensor

from ...denoise import MAX_X0_WEIGHT, target
from ...schedule import alpha_sigma, expand_as
from .net import UNet3D


def vdm_loss(
    net: UNet3D,
    x: Tensor,
    generator: torch.Generator,
    context: Tensor | None = None,
    images: int = 0,
    image_context: Tensor | None = None,
    drop_context: float = 0.1,
    time_power: float = 1.0,
) -> Tensor:
    """Mean squared error on what the config's ``prediction`` says (VDM eq. 3), a plain mean over all frames.

    For eps and v as in the paper. For x0 each clip's error is weighted by SNR + 1, which makes it the error in v
    (Salimans & Ho 2022, arXiv 2202.00512, section 4), up to `MAX_X0_WEIGHT`.

    Args:
        net: the network being trained.
        x: clean clips B C T H W in [-1, 1]; the last ``images`` frames may be independent images.
        generator: source of times, noise and dropped captions.
        context, image_context: as in `UNet3D.forward`.
        drop_context: probability of training a sample without its text, for classifier-free guidance. The paper does
            not state its value.
        time_power: t is a uniform draw to this power; 1 is the paper's. Below 1, fewer draws fall on low noise, where
            the loss is large and says little about what a clip shows.

    Returns:
        A scalar.
    """
    config, batch = net.config, x.shape[0]
    # One uniform offset shared by an even grid: each draw is uniform in [0, 1], their sum varies little.
    t = ((torch.rand(1, generator=generator) + torch.arange(batch) / batch) % 1) ** time_power
    log_snr = config.schedule.log_snr(t.double()).float().to(x.device)
    alpha, sigma = (expand_as(s, x) for s in alpha_sigma(log_snr))
    eps = torch.randn(x.shape, generator=generator).to(x)
    if context is not None:
        context = context * _keep(context.shape[:1], drop_context, generator, context)
    if image_context is not None:
        image_context = image_context * _keep(image_context.shape[:2], drop_context, generator, image_context)
    output = net(alpha * x + sigma * eps, log_snr, context, images, image_context)
    error = (output.float() - target(config.prediction, x, eps, alpha, sigma)).square()
    if config.prediction == "x0":
        error = error * (1 / sigma**2).clamp(max=MAX_X0_WEIGHT)
    return error.mean()


def _keep(shape, probability: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Ones where the caption stays and zeros where it is dropped, shaped to multiply ``like``."""
    return expand_as((torch.rand(shape, generator=generator) >= probability).to(like), like)
