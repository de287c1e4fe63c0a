"""What the benchmarks share: rounds in which all variants take turns, and their record.

On a CPU each measurement is a process of its own, whose peak the system tells; on a GPU PyTorch tells it, and one process
makes them all.
"""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

# Kernels of PyTorch's attention, by the names that the scripts take.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def processor() -> str:
    """The processor's or GPU's own name, and the threads used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.get_num_threads()} threads"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def peak_bytes(device: str) -> int:
    """The most memory that this process has held; on a GPU, that PyTorch has."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(work: Callable[[], None], repeats: int, device: str) -> dict:
    """Median seconds of ``work`` over the repeats, after one that warms up, and the peak it added to this process."""
    if device == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    before, seconds = peak_bytes(device), []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak_bytes(device) - before}


def take_turns(arguments, tasks, names, measure: Callable[[str, str, object], dict]) -> dict:
    """Every name in turn within a task, every task in turn within a round.

    Args:
        arguments: the script's, with ``rounds``, how often all of them, and ``device``.
        tasks, names: what is measured.
        measure: called with a name, a task and the arguments: on a GPU here, on a CPU by this script's ``--worker`` and
            ``--task``.

    Returns:
        per task and name: the median seconds and memory, and the median over rounds of each round's ratio to the first name.
    """
    raw = {task: {name: [] for name in names} for task in tasks}
    for number in range(arguments.rounds):
        for task in tasks:
            for name in names:
                found = measure(name, task, arguments) if arguments.device == "cuda" else _elsewhere(name, task)
                raw[task][name].append(found)
                print(f"round {number + 1}, {task}, {name}: {found}", file=sys.stderr, flush=True)
    return {task: {name: _summary(found, by[names[0]]) for name, found in by.items()} for task, by in raw.items()}


def _elsewhere(name: str, task: str) -> dict:
    command = [sys.executable, *sys.argv, "--worker", name, "--task", task]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if answer.returncode:
        raise SystemExit(f"{name}, {task}:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def _summary(found: list[dict], first: list[dict]) -> dict:
    ratio = lambda key: round(statistics.median(f[key] / max(o[key], 1e-9) for f, o in zip(found, first)), 2)  # noqa: E731
    return {
        "seconds": round(statistics.median(f["seconds"] for f in found), 4),
        "mebibytes": round(statistics.median(f["bytes"] for f in found) / 2**20),
        **{key: value for key, value in found[0].items() if key not in ("seconds", "bytes")},
        "time_over_ours": ratio("seconds"),
        "memory_over_ours": ratio("bytes"),
    }


def record(arguments, packages, results: dict) -> str:
    """The JSON that is kept: when, on what, with which settings, and what was found."""
    setting = {k: v for k, v in vars(arguments).items() if k not in ("worker", "task")}
    about = {"date": str(date.today()), "hardware": processor(), "packages": {name: version(name) for name in packages}}
    return json.dumps({**about, **setting, "results": results}, indent=1)
