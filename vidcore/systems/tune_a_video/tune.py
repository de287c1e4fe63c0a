"""Tuning on one clip (arXiv 2212.11565, section 4): a few hundred steps of AdamW on `TunedLayers`."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...denoise import Prediction
from ...sample import Level
from ...train.state import load_state, save_state
from .loss import tune_loss
from .net import TunedLayers


def read_loss(loss: Tensor, step: int) -> float:
    """The loss of a step as a number, which waits for a GPU.

    Raises:
        FloatingPointError: if it is none; what was trained is lost then.
    """
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {step}; please lower the learning rate")
    return value


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on a device. A GPU that is at work is not waited for, which takes memory that is pinned."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class Tuning:
    """One tuning run: what trains, its optimiser, and how far it is.

    AdamW, weight decay 0.01, gradient norm at most 1, as in the official code. One difference: the decay pulls W_Q back
    to the image model's instead of to zero, since what is trained is its change.

    Args:
        layers: what trains, float32, on the device that the model runs on.
        learning_rate: constant; 3e-5 in the paper.
        seed: of the noise, its levels and the draws of the latents.
        half: the model runs in float16, so that the loss is scaled up to keep small gradients.
    """

    def __init__(self, layers: TunedLayers, learning_rate: float, seed: int, half: bool = False):
        self.layers, self.seed, self.step = layers.requires_grad_(True), seed, 0
        device = next(layers.parameters()).device
        self.optimiser = torch.optim.AdamW(
            layers.parameters(),
            lr=learning_rate,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            fused=device.type == "cuda",  # it need not know on the CPU whether float16 overflowed
        )
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12, growth_interval=200, enabled=half)
        self.drawn: tuple[tuple, tuple[int, Tensor, Tensor]] = (), ()  # for which step, and what

    def advance(
        self,
        denoise: Callable[[Tensor, int], Tensor],
        prediction: Prediction,
        mean: Tensor,
        deviation: Tensor | float,
        levels: list[Level],
        more: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """One step; all its randomness is a function of (seed, step), drawn on the CPU.

        A GPU is not waited for: whoever reads the loss with `read_loss` does, best when it has the next step to do.

        Args:
            denoise: (z, i) -> x-hat at ``levels[i]``, differentiable, with the layers at work.
            prediction: what the model outputs.
            mean, deviation: of the clip's latents; computed once, and drawn from anew in each step.
            levels: the model's training noise levels, all alike in probability.
            more: called once ``denoise`` has run; what it returns is added to the loss.

        Returns:
            The loss, a scalar on the device of the clip.

        Raises:
            ValueError: if nothing that trains is in the loss.
        """
        i, *noises = self._draw(self.step, mean.shape, len(levels))
        posterior, noise = (sent(x, mean.device).to(mean.dtype) for x in noises)
        loss = tune_loss(lambda z: denoise(z, i), prediction, mean + deviation * posterior, noise, levels[i])
        if more is not None:
            loss = loss + more()
        if not loss.requires_grad:
            raise ValueError(
                "the loss has no gradient, so nothing can be learned: a part of the model, or a patch on it, computes "
                "without (torch.no_grad, torch.inference_mode). Please take that patch out."
            )
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.layers.parameters(), 1.0)
        self.scaler.step(self.optimiser)  # left out where float16 overflowed; the scale is then lowered
        self.scaler.update()
        self.step += 1
        self._draw(self.step, mean.shape, len(levels))  # while a GPU is at work
        return loss.detach()

    def _draw(self, step: int, shape: torch.Size, levels: int) -> tuple[int, Tensor, Tensor]:
        """The level of a step, and noise for its latents and its input, on the CPU."""
        what = (step, shape, levels)
        if self.drawn[0] != what:
            generator = torch.Generator().manual_seed(zlib.crc32(f"tune/{self.seed}/{step}".encode()))
            i = int(torch.randint(levels, (1,), generator=generator))
            self.drawn = what, (i, *(torch.randn(shape, generator=generator) for _ in range(2)))
        return self.drawn[1]

    def save(self, path: Path, info: dict) -> None:
        """Everything that `resume` needs to continue to the same bits."""
        scaler = self.scaler.state_dict()
        save_state(
            path, self.layers, None, self.optimiser, {**info, "system": "tuning", "step": self.step, "scaler": scaler}
        )

    def resume(self, path: Path) -> dict:
        """Continue what `save` wrote; returns its ``info``. Raises `weights.WeightsError` if the file does not fit."""
        info = load_state(path, self.layers, None, self.optimiser)
        self.step = info["step"]
        if info["scaler"]:
            self.scaler.load_state_dict(info["scaler"])
        return info
