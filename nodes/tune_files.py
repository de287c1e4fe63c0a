"""The files that training nodes write: where they go, and whether one fits."""

import json
import os
import shutil
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ..vidcore import weights
from ..vidcore.systems.tune_a_video.checkpoint import same_base

NEW = "a new run"  # in place of a state to go on from
STATE = ".state.safetensors"  # what a file with such a state ends in


def first_folder(kind: str) -> str:
    """Where new files of a kind of model go, such as `folders.TUNED`."""
    return folder_paths.get_folder_paths(kind)[0]


def free_path(name: str, kind: str) -> Path:
    """A file of this name and a number that is not taken. Raises ValueError if it would lie outside the folder."""
    folder = first_folder(kind)
    os.makedirs(folder, exist_ok=True)
    try:
        folder, name, number, _, _ = folder_paths.get_save_image_path(name.strip() or "tuned", folder)
    except Exception as error:
        raise ValueError(f"the name {name!r} does not lie inside models/{kind}; please give a plain name") from error
    return Path(folder) / f"{name}_{number:05}.safetensors"


def check_room(path: Path, needed: int, kind: str) -> None:
    """Raises OSError if the disk is too full for a run's files."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            f"training needs up to {needed / 2**20:.0f} MiB in models/{kind} and the disk has {free / 2**20:.0f} MiB left. "
            "Please free some space first."
        )


def begun(name: str, kind: str, steps: int) -> tuple[str, dict]:
    """Where the state of a run that is to go on lies, and what it says of itself.

    Raises:
        ValueError: if it has all of ``steps`` already.
        weights.WeightsError: if it cannot be read.
    """
    path = folder_paths.get_full_path_or_raise(kind, name)
    before = weights.read_info(path)
    if before["step"] >= steps:
        raise ValueError(f"{name} has {before['step']} steps already; please ask for more than that in all")
    return path, before


ONE_CLIP = (("blocks", "model"), ("base", "model"), ("frames", "number of frames"), ("size", "frame size"))


def check_same_run(before: dict, now: dict, base: Tensor, name: str, same: tuple[tuple[str, str], ...] = ONE_CLIP) -> None:
    """Raises ValueError if a saved state belongs to another clip or model than the inputs: an entry of ``same`` differs.

    ``base`` is the fingerprint of the model that is given now.
    """
    for key, what in same:
        if before.get(key) != json.loads(json.dumps(now[key])):  # as the file has it
            both = "" if key in ("blocks", "model", "clips") else f": {before.get(key)}, not {now[key]}"
            raise ValueError(
                f"{name} was begun with another {what}{both}. Please give the same clip and model, or begin a new run."
            )
    if not same_base(torch.tensor(before["fingerprint"]), base):
        raise ValueError(
            f"{name} was begun on another {now['base']}: their weights differ. Please give the same model, or "
            "begin a new run."
        )


def describe(config) -> str:
    widths = ", ".join(str(w) for w in sorted({block.width for block in config.blocks}))
    return f"{len(config.blocks)} transformer blocks of widths {widths}"


def prompt_text(graph: dict | None, node: str | None) -> str:
    """The text behind the node's positive input, for the file's record: the first one upstream, or nothing."""
    waiting, seen = [(graph or {}).get(node, {}).get("inputs", {}).get("positive")], set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, list) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = graph.get(link[0], {}).get("inputs", {})
        if isinstance(inputs.get("text"), str):
            return inputs["text"]
        waiting.extend(inputs.values())
    return ""
