"""The whole state of a run as one safetensors file, so that a resumed run continues to the same bits."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import weights


class EMA:
    """Exponential moving average of a module's parameters, with the usual ramp so that early steps are forgotten."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimiser step ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:  # counters and the like
                self.average[name].copy_(value)


def save_state(path: Path, module: nn.Module, ema: EMA | None, optimiser: torch.optim.Optimizer, info: dict) -> None:
    """Parameters, their average if there is one, and the optimiser's moments; ``info`` needs ``step``, the steps done."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.average.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    weights.save(path, {k: v.clone() for k, v in tensors.items()}, info)


def load_state(path: str | os.PathLike, module: nn.Module, ema: EMA | None, optimiser: torch.optim.Optimizer) -> dict:
    """Restore what `save_state` wrote; returns its ``info``. Raises `weights.WeightsError` if the file does not fit."""
    tensors, info = weights.load(path)
    weights.load_into(module, weights.part(tensors, "module."), "training")
    if ema is not None:
        weights.check(module, weights.part(tensors, "ema."), "averaged")
        for name, value in weights.part(tensors, "ema.").items():
            ema.average[name].copy_(value)
    # Files are contiguous; moments must have their parameter's memory layout, since the fused optimiser pairs them by
    # address.
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in weights.part(tensors, "optimiser.").items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return info
