"""CMD's objective for the motion model (arXiv 2403.14148, section 3.2)."""

import torch
from torch import Tensor

from ...objective import add_noise, drop, squared_error
from .net import MotionDiT


def motion_loss(
    net: MotionDiT,
    motion: Tensor,
    content: Tensor,
    generator: torch.Generator,
    context: Tensor | None = None,
    drop_context: float = 0.1,
    time_power: float = 1.0,
) -> Tensor:
    """Mean squared error on what the config's ``prediction`` says.

    Args:
        net: the network being trained.
        motion: clean motion latents B D T (H' + W'), of clips of one window.
        content: their content frames B C H W, never dropped.
        generator: source of times, noise and dropped captions.
        context: text tokens B L C.
        drop_context: probability of training a sample without its text, for classifier-free guidance.
        time_power: as in `add_noise`.

    Returns:
        A scalar.
    """
    noised = add_noise(motion, net.config.schedule, generator, time_power)
    if context is not None:
        context = drop(context, drop_context, generator)
    return squared_error(net.config.prediction, net(noised.z, noised.log_snr, context, content=content), motion, noised)
