"""Checkpoints: safetensors only, with everything needed to rebuild the network in the file's metadata.

A model file of ours has the metadata key ``vidcore`` holding JSON with at least ``system`` (which folder of
`vidcore.systems` it belongs to), and tensors under one prefix per part, such as ``net.`` and ``text.``.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

METADATA_KEY = "vidcore"


class WeightsError(ValueError):
    """A file is not a checkpoint that can be used here; the message says why and what would be."""


def save(path: str | os.PathLike, tensors: dict[str, Tensor], info: dict) -> None:
    """Write ``tensors`` and the JSON-able ``info`` in one step: readers see the old file or the whole new one.

    Raises:
        WeightsError: if the file cannot be written; nothing is left of the attempt, and an old file stays as it was.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {METADATA_KEY: json.dumps(info)})
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path.name} could not be written ({error}). Is the disk full, or the folder read-only? "
            "Nothing was overwritten."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def read_info(path: str | os.PathLike) -> dict:
    """The ``info`` of a checkpoint written by `save`, without reading any tensor.

    Raises:
        WeightsError: if the file is missing, not safetensors, cut short, or not one of ours.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise WeightsError(f"{path.name}: no such file.") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path.name} is not a readable safetensors file ({error}). It may be cut short or of another format; "
            "please download or export it again."
        ) from None
    try:
        info = json.loads(metadata[METADATA_KEY])
        info["system"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise WeightsError(
            f"{path.name} is a safetensors file, but not a vidcore model (it has no '{METADATA_KEY}' metadata). "
            "Models of other programs load with the host's own loaders, such as Load Checkpoint."
        ) from None
    return info


def from_info(info: dict, system: str, model: type, text: type) -> tuple:
    """The dataclasses ``model`` and ``text`` from the entries of those names in a file's ``info``.

    Raises:
        WeightsError: if the file is of another ``system``, or its entries name what the dataclasses do not know.
    """
    if info.get("system") != system:
        raise WeightsError(f"expected a model of the system '{system}', this file holds '{info.get('system')}'.")
    return entry(info, "model", model), entry(info, "text", text)


def entry(info: dict, name: str, kind: type):
    """The dataclass ``kind`` from one entry of a file's ``info``. Raises `WeightsError` as `from_info` does."""
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in info[name].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the model's description does not fit this version of VidCore: {error}.") from None


def load(path: str | os.PathLike, prefix: str = "") -> tuple[dict[str, Tensor], dict]:
    """(tensors, info) of a checkpoint written by `save`. Raises `WeightsError` as `read_info` does.

    Args:
        prefix: read only the tensors of one part ("net."), and name them without it.
    """
    info = read_info(path)
    with safe_open(path, framework="pt") as file:
        return part({key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}, prefix), info


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix`` ("net."), without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def check(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Make sure that ``tensors`` are exactly the names and shapes of ``module``'s state, which may be on the meta device.

    Args:
        name: what to call the part in the message.

    Raises:
        WeightsError: naming the first few tensors that are missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    wrong = [f"missing {k}" for k in wanted if k not in tensors]
    wrong += [f"unexpected {k}" for k in tensors if k not in wanted]
    wrong += [
        f"{k} is {tuple(tensors[k].shape)}, expected {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"the {name} weights do not fit its configuration: {'; '.join(wrong[:3])}{more}.")


def load_into(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load ``tensors`` into ``module`` after `check`."""
    check(module, tensors, name)
    module.load_state_dict(tensors)
