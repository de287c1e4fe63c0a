"""One process, or as many as ``torchrun`` starts on one machine or many."""

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from .data import Batch

# How long processes wait for one another: a folder is decoded before the first step, and shares are not equal.
PATIENCE = timedelta(hours=2)


@contextlib.contextmanager
def joined(device: str):
    """Inside, this process is one of those that torchrun started; without torchrun there is no process group at all.

    Args:
        device: "cpu" or "cuda".

    Yields:
        The device of this process: with GPUs, one each.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield torch.device(device)
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield torch.device(device)
    finally:
        dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(clips: int, rank: int, count: int) -> slice:
    """Which of a batch's clips are those of process ``rank`` of ``count``.

    Raises:
        ValueError: if there are more processes than clips.
    """
    size = -(-clips // count)
    if size * (count - 1) >= clips:
        raise ValueError(
            f"a batch of {clips} clips does not go around {count} processes; please raise 'batch' in the recipe"
        )
    return slice(rank * size, min(clips, (rank + 1) * size))


def own_parts(batch: "Batch", micro_batch: int) -> list[tuple[int, "Batch"]]:
    """This process's share of a batch in parts that go through the network at once, each with its number.

    Two processes with a part each have the same parts, by the same numbers, as one that takes them one after the other.

    Args:
        batch: the share.
        micro_batch: clips that go through at once; 0 for all.
    """
    rank, count = rank_and_count()
    size = -(-batch.whole // count)
    return list(enumerate(batch.split(micro_batch), start=rank * -(-size // (micro_batch or size))))


def summed(value: float, device: torch.device) -> float:
    """The sum over all processes of a number that each has."""
    if rank_and_count()[1] == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def wait() -> None:
    """Until all processes are here."""
    if rank_and_count()[1] > 1:
        dist.barrier()
