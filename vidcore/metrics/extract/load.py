"""The extractors by name, each from a file of weights that `benchmarks/convert_extractor.py` makes."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import weights
from .c3d import C3D
from .clip import Clip
from .i3d import I3D
from .inception import InceptionV3

KINDS: dict[str, type[nn.Module]] = {"i3d": I3D, "c3d": C3D, "inception": InceptionV3, "clip": Clip}
OF_PICTURES = ("inception", "clip")


class Extractor:
    """A network that makes features, and what a record says of it.

    Args:
        kind: one of `KINDS`.
        net: in evaluation mode; called on what its ``prepare`` makes of uint8 clips.
        digest: of its weights' file.
    """

    def __init__(self, kind: str, net: nn.Module, digest: str):
        self.kind, self.net, self.digest = kind, net, digest
        self.of_pictures = kind in OF_PICTURES

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features N D and class scores N classes, or None, on the CPU.

        Args:
            clips: uint8 B T H W 3; networks of pictures take every frame as one, so N is then B T.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8:
            raise ValueError(f"expected uint8 clips B T H W 3, got {clips.dtype} {tuple(clips.shape)}")
        if self.of_pictures:
            clips = clips.flatten(0, 1)[:, None]
        features, scores = self.net(self.net.prepare(clips.to(self.device)))
        return features.float().cpu(), None if scores is None else scores.float().cpu()


def load_extractor(kind: str, path: Path, device: torch.device | str = "cpu") -> Extractor:
    """An extractor from a file that `benchmarks/convert_extractor.py` made; CLIP from a folder as Hugging Face has it.

    Raises:
        ValueError: if there is no such kind.
        weights.WeightsError: if the file is missing, is no safetensors file, or not of this network.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no extractor {kind!r}; there are {', '.join(KINDS)}")
    file = path / "model.safetensors" if kind == "clip" else path
    if not file.is_file():
        raise weights.WeightsError(
            f"there is no file {file} with the weights of '{kind}'; `python benchmarks/convert_extractor.py --help` says "
            "where to get them."
        )
    net = Clip.from_folder(path) if kind == "clip" else _with_weights(kind, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Extractor(kind, net.eval().requires_grad_(False).to(device), digest)


def _with_weights(kind: str, file: Path) -> nn.Module:
    net = KINDS[kind]()
    tensors, info = weights.load(file)
    if info.get("system") != kind:
        raise weights.WeightsError(f"{file.name} holds '{info.get('system')}'; expected weights of '{kind}'.")
    weights.load_into(net, tensors, kind)
    return net
