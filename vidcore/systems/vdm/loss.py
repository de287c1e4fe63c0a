"""Training objective of Video Diffusion Models."""

import torch
from torch import Tensor

from ...objective import add_noise, drop, squared_error
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

    For eps and v as in the paper; for x0 see `squared_error`.

    Args:
        net: the network being trained.
        x: clean clips B C T H W in [-1, 1]; the last ``images`` frames may be independent images.
        generator: source of times, noise and dropped captions.
        context, image_context: as in `UNet3D.forward`.
        drop_context: probability of training a sample without its text, for classifier-free guidance. The paper does
            not state its value.
        time_power: as in `add_noise`; 1 is the paper's.

    Returns:
        A scalar.
    """
    config = net.config
    noised = add_noise(x, config.schedule, generator, time_power)
    if context is not None:
        context = drop(context, drop_context, generator)
    if image_context is not None:
        image_context = drop(image_context, drop_context, generator, axes=2)
    output = net(noised.z, noised.log_snr, context, images, image_context)
    return squared_error(config.prediction, output, x, noised)
