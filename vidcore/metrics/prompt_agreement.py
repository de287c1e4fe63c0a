"""``python -m vidcore.metrics.prompt_agreement MODEL``: does a shapes model show what its prompt says?

Samples one clip for each of N held-out prompts with fixed seeds and lets the tracker judge them. Prints a JSON record
of the scores with the protocol that made them.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..codec.pixel import PixelCodec
from ..data.shapes import Scene, caption, random_scene
from ..denoise import Denoiser
from ..guide.cfg import with_cfg
from ..sample import ancestral_step, ddim_step, sample_clip
from ..systems.vdm.checkpoint import load_vdm
from ..text import Vocabulary
from .record import add_protocol, print_record
from .tracker import agreement


@dataclass(frozen=True)
class Protocol:
    """Everything that the scores depend on beside the weights; the middle one of ``sizes`` is the empty word."""

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


def scenes(protocol: Protocol) -> list[Scene]:
    """The prompts' scenes, from the protocol's seed alone."""
    rng = np.random.default_rng(protocol.prompt_seed)
    return [
        random_scene(rng, protocol.two, protocol.held_out, tuple(protocol.sizes.split(","))) for _ in range(protocol.prompts)
    ]


@torch.no_grad()
def clips(net, encoder, asked: list[Scene], protocol: Protocol, report=lambda done: None) -> np.ndarray:
    """One clip per scene, N T H W 3 in [0, 1]; batch b's noise has seed b."""
    vocabulary = Vocabulary(encoder.config.words, encoder.config.length)
    denoiser = with_cfg(Denoiser(net, net.config.prediction, net.config.schedule), protocol.guidance_scale)
    step = {"ddim": ddim_step, "ancestral": partial(ancestral_step, gamma=0.3)}[protocol.sampler]
    made = []
    for number, first in enumerate(range(0, len(asked), protocol.batch)):
        part = asked[first : first + protocol.batch]
        context = encoder(torch.tensor([vocabulary.encode(caption(scene)) for scene in part]))
        shape = (len(part), 3, protocol.frames, protocol.size, protocol.size)
        x = sample_clip(denoiser, net.config.schedule, shape, protocol.steps, step, number, context=context)
        made.append((PixelCodec().decode(x) / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy())
        report(first + len(part))
    return np.concatenate(made)


def score(made: np.ndarray, asked: list[Scene]) -> dict[str, float]:
    """The share of clips that agree with their prompt, for each key of `tracker.agreement` and for all of them at once."""
    found = [agreement(clip, scene) for clip, scene in zip(made, asked)]
    shares = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
    return {**shares, "all": float(np.mean([all(f.values()) for f in found]))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.metrics.prompt_agreement", description=__doc__)
    parser.add_argument("model", type=Path)
    add_protocol(parser, Protocol())
    arguments = vars(parser.parse_args())
    path = arguments.pop("model")
    protocol = Protocol(**arguments)
    net, encoder = load_vdm(path)
    asked = scenes(protocol)
    made = clips(net, encoder, asked, protocol, lambda done: print(f"{done}/{protocol.prompts}", flush=True))
    print_record(path, protocol, agreement=score(made, asked))


if __name__ == "__main__":
    main()
