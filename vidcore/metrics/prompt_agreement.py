"""``python -m vidcore.metrics.prompt_agreement MODEL``: does a shapes model show what its prompt says?

Samples one clip for each of N held-out prompts with fixed seeds and lets the tracker judge them. Prints a JSON record
of the scores with the protocol that made them. MODEL is one of VDM's or a first stage of Snap Video, whose second one may
enlarge the clips before they are judged.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import weights
from ..codec.pixel import PixelCodec
from ..data.shapes import Scene, caption, random_scene
from ..denoise import Denoiser
from ..guide.cfg import with_cfg
from ..sample import ancestral_step, ddim_step, sample_clip
from ..systems.snap import FIT
from ..systems.snap.checkpoint import SYSTEM as SNAP
from ..systems.snap.checkpoint import load_snap
from ..systems.snap.sample import make_clips
from ..systems.vdm.checkpoint import load_vdm
from ..text import Vocabulary
from .record import add_protocol, print_record
from .tracker import agreement


@dataclass(frozen=True)
class Protocol:
    """Everything that the scores depend on beside the weights; the middle one of ``sizes`` is the empty word.

    ``frames``, ``size`` and ``sampler`` are for VDM's models: Snap Video's have sizes of their own, and Heun's sampler.
    """

    prompts: int = 200
    prompt_seed: int = 2024
    two: float = 0.0
    held_out: bool = True
    sizes: str = "small,,large"
    frames: int = 8
    size: int = 32
    sampler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 3.0
    batch: int = 10
    second_steps: int = 20
    second_guidance_scale: float = 1.0
    corruption: float = 0.1


def scenes(protocol: Protocol) -> list[Scene]:
    """The prompts' scenes, from the protocol's seed alone."""
    rng = np.random.default_rng(protocol.prompt_seed)
    return [
        random_scene(rng, protocol.two, protocol.held_out, tuple(protocol.sizes.split(","))) for _ in range(protocol.prompts)
    ]


@torch.no_grad()
def clips(net, encoder, asked: list[Scene], protocol: Protocol, second=None, report=lambda done: None) -> np.ndarray:
    """One clip per scene, N T H W 3 in [0, 1]; batch b's noise has seed b. ``second``: net and encoder of a second stage."""
    make, made = snap_clips if isinstance(net, FIT) else vdm_clips, []
    for number, first in enumerate(range(0, len(asked), protocol.batch)):
        captions = [caption(scene) for scene in asked[first : first + protocol.batch]]
        x = make(net, tokens(encoder, captions), number, protocol)
        if second is not None:
            larger, how = tokens(second[1], captions), (protocol.second_steps, number, protocol.second_guidance_scale)
            x = make_clips(second[0], larger, *how, low=x.clamp(-1, 1), corruption=protocol.corruption)
        made.append((PixelCodec().decode(x) / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy())
        report(first + len(captions))
    return np.concatenate(made)


def tokens(encoder, captions: list[str]) -> torch.Tensor:
    """What a network reads of captions, B L C."""
    vocabulary = Vocabulary(encoder.config.words, encoder.config.length)
    return encoder(torch.tensor([vocabulary.encode(text) for text in captions]))


def vdm_clips(net, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    """Clips B C T H W of the 3-D U-Net."""
    denoiser = with_cfg(Denoiser(net, net.config.prediction, net.config.schedule), protocol.guidance_scale)
    step = {"ddim": ddim_step, "ancestral": partial(ancestral_step, gamma=0.3)}[protocol.sampler]
    shape = (len(context), 3, protocol.frames, protocol.size, protocol.size)
    return sample_clip(denoiser, net.config.schedule, shape, protocol.steps, step, seed, context=context)


def snap_clips(net: FIT, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    """Clips B C T H W of a first stage of Snap Video."""
    return make_clips(net, context, protocol.steps, seed, protocol.guidance_scale)


def score(made: np.ndarray, asked: list[Scene]) -> dict[str, float]:
    """The share of clips that agree with their prompt, for each key of `tracker.agreement` and for all of them at once."""
    found = [agreement(clip, scene) for clip, scene in zip(made, asked)]
    shares = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
    return {**shares, "all": float(np.mean([all(f.values()) for f in found]))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.metrics.prompt_agreement", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--second-stage", type=Path, help="file of a second stage of Snap Video")
    add_protocol(parser, Protocol())
    arguments = vars(parser.parse_args())
    path, second_path = arguments.pop("model"), arguments.pop("second_stage")
    protocol = Protocol(**arguments)
    load = load_snap if weights.read_info(path).get("system") == SNAP else load_vdm
    net, encoder = load(path)
    second = load_snap(second_path) if second_path else None
    asked = scenes(protocol)
    made = clips(net, encoder, asked, protocol, second, lambda done: print(f"{done}/{protocol.prompts}", flush=True))
    print_record(path, protocol, second_stage=second_path.name if second_path else None, agreement=score(made, asked))


if __name__ == "__main__":
    main()
