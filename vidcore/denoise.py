"""From a network's output to the clean clip x-hat, and back.

Three parameterisations of one denoiser (VDM section 2 for eps; Salimans & Ho 2022, arXiv 2202.00512, for v)::

    eps:  x-hat = (z - sigma eps-hat) / alpha
    v:    v = alpha eps - sigma x,   x-hat = alpha z - sigma v-hat
    x0:   x-hat is the output itself
"""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from .schedule import CosineSchedule, alpha_sigma, expand_as

Prediction = Literal["eps", "v", "x0"]


def _check(prediction: str) -> None:
    if prediction not in get_args(Prediction):
        raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}; got {prediction!r}")


def target(prediction: Prediction, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should output for the clean clip ``x`` and the noise ``eps`` (all shapes broadcast)."""
    _check(prediction)
    return {"eps": lambda: eps, "v": lambda: alpha * eps - sigma * x, "x0": lambda: x}[prediction]()


def to_x0(prediction: Prediction, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x-hat from the network's ``output`` at ``z = alpha x + sigma eps``.

    Computed in float32 whatever the input: at t = 1 the paper's 1/alpha is 2.2e4, past half precision.
    """
    _check(prediction)
    output, z = output.float(), z.float()
    if prediction == "eps":
        return (z - sigma * output) / alpha
    return alpha * z - sigma * output if prediction == "v" else output


def to_eps(x0: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps-hat = (z - alpha x-hat) / sigma, the noise that ``x0`` implies at ``z``; ``sigma`` must be above 0."""
    return (z - alpha * x0) / sigma


# Where the noise is too faint to see, errors of an x0 model count no more than this (cf. Hang et al. 2023,
# arXiv 2303.09556).
MAX_X0_WEIGHT = 10.0


def x0_weight(prediction: Prediction, alpha: float, sigma: float) -> float:
    """What the squared error of x-hat is multiplied with to be that of the network's own output.

    For eps alpha^2 / sigma^2, for v 1 / sigma^2. An x0 model is trained on the error in v too (Salimans & Ho 2022,
    section 4), up to `MAX_X0_WEIGHT`. 1 / sigma^2 is also the weight for the velocity of a flow z = (1 - t) x + t eps,
    with sigma = t.
    """
    _check(prediction)
    if prediction == "eps":
        return (alpha / sigma) ** 2
    return sigma**-2 if prediction == "v" else min(sigma**-2, MAX_X0_WEIGHT)


class Denoiser(nn.Module):
    """A network, what it predicts, and its schedule: ``denoiser(z, t, ...)`` is x-hat(z_t).

    Args:
        net: called as ``net(z, log_snr, **conditions)`` with ``z`` of shape B C T H W and ``log_snr`` of shape B.
        prediction: what ``net`` outputs: "eps", "v" or "x0".
        schedule: maps time to log-SNR.
    """

    def __init__(self, net: Callable[..., Tensor], prediction: Prediction, schedule: CosineSchedule):
        super().__init__()
        _check(prediction)
        self.net, self.prediction, self.schedule = net, prediction, schedule

    def forward(self, z: Tensor, t: Tensor, **conditions) -> Tensor:
        """x-hat for ``z`` (B C T H W) at times ``t`` (shape B, in [0, 1]); float32 B C T H W."""
        log_snr = self.schedule.log_snr(t.double()).float()
        alpha, sigma = (expand_as(s, z) for s in alpha_sigma(log_snr))
        return to_x0(self.prediction, self.net(z, log_snr, **conditions), z, alpha, sigma)
