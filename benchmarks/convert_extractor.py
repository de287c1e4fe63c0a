"""``python benchmarks/convert_extractor.py KIND FILE [FILE] OUT.safetensors``: published weights of extractors, made safe.

i3d        ``i3d_pretrained_400.pt``, FVD's weights: github.com/songweige/TATS, folder tats/fvd
inception  ``pt_inception-2015-12-05-6726825d.pth``, FID's weights: github.com/mseitzer/pytorch-fid, release fid_weights
c3d        ``conv3d_deepnetA_ucf.npz`` and ``mean2.npz``: github.com/rezoo/tgan2, release v1.0
clip       needs no conversion: the folder of a model page such as huggingface.co/openai/clip-vit-base-patch32, with
           config.json, model.safetensors and the tokenizer's files, is what every command takes

The first two are pickles, which the core and the nodes never open. This script, run by hand, has PyTorch read them as
weights only: tensors in dictionaries, nothing that runs. Each of them is turned into safetensors once, with the SHA-256 of
where it came from.
"""

import argparse
import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidcore import weights  # noqa: E402
from vidcore.metrics.extract import KINDS  # noqa: E402


def _pickled(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _c3d(path: Path, mean: Path) -> dict[str, Tensor]:
    """TGAN v2's arrays: names like ``conv1a/W``, and the mean clip 1 3 16 128 171, of which it uses the middle."""
    with np.load(path, allow_pickle=False) as file:
        names = {name: name.replace("/W", ".weight").replace("/b", ".bias") for name in file.files}
        tensors = {names[name]: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    with np.load(mean, allow_pickle=False) as file:
        clip = torch.from_numpy(file["mean"].astype(np.float32))
    return {**tensors, "mean": clip.reshape(clip.shape[-4:])[:, :, 8 : 8 + 112, 8 : 8 + 112].clone()}


READERS: dict[str, Callable[..., dict[str, Tensor]]] = {"i3d": _pickled, "inception": _pickled, "c3d": _c3d}


def convert(kind: str, sources: list[Path], out: Path) -> None:
    """Write weights as published into a safetensors file that `load.load_extractor` takes.

    Raises:
        weights.WeightsError: if a file cannot be read, or is not of this network; nothing is written then.
    """
    files = 2 if kind == "c3d" else 1
    if len(sources) != files:
        raise weights.WeightsError(
            f"'{kind}' takes {files} file{'s' * (files > 1)} and the one to write, got {len(sources)}."
        )
    try:
        tensors = READERS[kind](*sources)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        names = ", ".join(path.name for path in sources)
        raise weights.WeightsError(
            f"{names} cannot be read as weights of '{kind}' ({str(error).splitlines()[0]})."
        ) from None
    net = KINDS[kind]()
    weights.load_into(net, tensors, kind)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    weights.save(out, net.state_dict(), {"system": kind, "from": digests})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/convert_extractor.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kind", choices=READERS)
    parser.add_argument("files", type=Path, nargs="+", help="as published; then the file to write")
    given = parser.parse_args()
    *sources, out = given.files
    try:
        convert(given.kind, sources, out)
    except weights.WeightsError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{out}")


if __name__ == "__main__":
    main()
