"""The tuning objective of Tune-A-Video (arXiv 2212.11565, section 3.1): that of the image model, on frames of one clip."""

from collections.abc import Callable

from torch import Tensor

from ...denoise import Prediction, x0_weight
from ...sample import Level


def tune_loss(denoise: Callable[[Tensor], Tensor], prediction: Prediction, x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Mean squared error on what the image model predicts: E ||eps - eps-hat(z_t, t, c)||^2 for eps, and for v alike.

    One noise level serves all frames, each with noise of its own.

    Args:
        denoise: z_t -> x-hat, differentiable.
        prediction: what the model outputs. The error is measured on x-hat and weighted to be that of its output.
        x: the clean clip in the model's space, frames as the batch or 5-D.
        eps: standard noise, shaped as ``x``.
        level: alpha and sigma.

    Returns:
        A scalar, float32.
    """
    x0 = denoise(level.alpha * x + level.sigma * eps)
    return x0_weight(prediction, level.alpha, level.sigma) * (x0.float() - x.float()).square().mean()
