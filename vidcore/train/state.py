"""The whole state of a run, so that a resumed run continues to the same bits.

One safetensors file; of a sharded run a folder of them, where torch.distributed.checkpoint puts each process's part.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from .. import weights
from .processes import rank_and_count, wait

RUN = "run.json"  # in the folder of a sharded run


class EMA:
    """Exponential moving average of a module's parameters, with the usual ramp so that early steps are forgotten."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimiser step ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = [], []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[name])
                values.append(value)
            else:  # counters and the like
                self.average[name].copy_(value)
        if any(isinstance(value, DTensor) for value in values):
            for average, value in zip(averages, values):
                average.lerp_(value, 1 - decay)
        else:  # a GPU takes them all in a few launches
            torch._foreach_lerp_(averages, values, 1 - decay)


def save_state(path: Path, module: nn.Module, ema: EMA | None, optimiser: torch.optim.Optimizer, info: dict) -> None:
    """Parameters, their average if there is one, and the optimiser's moments; ``info`` needs ``step``, the steps done."""
    weights.save(path, {k: v.clone() for k, v in _tensors(module, ema, optimiser).items()}, info)


def _tensors(module: nn.Module, ema: EMA | None, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.average.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    return tensors


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers as tensors of one axis, which is what the format has; the same memory."""
    return {key: value.reshape(1) if value.ndim == 0 else value for key, value in tensors.items()}


def save_sharded(path: Path, module: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer, info: dict) -> None:
    """The same into a folder, by all processes together; an old one stays until the new one is whole."""
    partial, old = path.with_name(path.name + ".partial"), path.with_name(path.name + ".old")
    if rank_and_count()[0] == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    tensors = _flat(_tensors(module, ema, optimiser))
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    if rank_and_count()[0] == 0:
        (partial / RUN).write_text(json.dumps(info), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    wait()


def saved_state(path: Path) -> Path | None:
    """Where the last whole state of a run lies: at ``path``, or beside it if a process died while it changed them."""
    old = path.with_name(path.name + ".old")
    return next((place for place in (path, old) if place.exists()), None)


def load_sharded(path: Path, module: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer) -> dict:
    """Restore what `save_sharded` wrote, on any number of processes; returns its ``info``.

    Raises:
        weights.WeightsError: if it is not a folder of a sharded run.
    """
    try:
        info = json.loads((path / RUN).read_text(encoding="utf-8"))
        reader = HuggingFaceStorageReader(str(path))
        names = list(reader.read_metadata().state_dict_metadata)
    except (OSError, ValueError) as error:
        raise weights.WeightsError(
            f"{path.name} is not the state of a sharded run ({error}); was 'shard' changed?"
        ) from None
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name in names:
        if name.startswith("optimiser."):
            _, index, moment = name.split(".", 2)
            like = parameters[int(index)].detach()
            state.setdefault(int(index), {})[moment] = torch.zeros(()) if moment == "step" else torch.zeros_like(like)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    dcp.load(_flat(_tensors(module, ema, optimiser)), storage_reader=reader)
    return info


def whole_tensors(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of which processes hold parts, as whole ones on the CPU of the first process; all of them must ask."""
    made, first = {}, rank_and_count()[0] == 0
    for name, value in tensors:
        value = whole(value)
        if first:
            made[name] = value.cpu()
    return made


def whole(value: Tensor) -> Tensor:
    """A tensor of which this process may hold a part alone, as one; all processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


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
