"""``python -m vidcore.metrics.prompt_agreement MODEL``: does a shapes model show what its prompt says?

Samples one clip for each of N held-out prompts with fixed seeds and lets the tracker judge them. Prints a JSON record
of the scores with the protocol that made them. MODEL is one of VDM's; a first stage of Snap Video, whose second one may
enlarge the clips before they are judged; an image model, whose pictures are judged without their motion; or a motion module,
whose image model ``--image`` names.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ..systems.beside_image import MovingImage
from ..systems.harivo.checkpoint import SYSTEM as HARIVO
from ..systems.harivo.checkpoint import load_motion
from ..systems.image import SYSTEM as IMAGE
from ..systems.image import PixelUNet, load_image
from ..systems.snap import FIT
from ..systems.snap.checkpoint import SYSTEM as SNAP
from ..systems.snap.checkpoint import load_snap
from ..systems.snap.sample import make_clips
from ..systems.vdm import UNet3D
from ..systems.vdm.checkpoint import SYSTEM as VDM
from ..systems.vdm.checkpoint import load_vdm
from ..text import Vocabulary
from .record import add_protocol, print_record
from .tracker import agreement, observe


@dataclass(frozen=True)
class Protocol:
    """Everything that the scores depend on beside the weights; the middle one of ``sizes`` is the empty word.

    ``frames``, ``size`` and ``sampler`` are for VDM's models and motion modules: Snap Video's have sizes of their own, and
    Heun's sampler. ``strength`` is a motion module's.
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
    strength: float = 1.0


def scenes(protocol: Protocol) -> list[Scene]:
    """The prompts' scenes, from the protocol's seed alone."""
    rng = np.random.default_rng(protocol.prompt_seed)
    return [
        random_scene(rng, protocol.two, protocol.held_out, tuple(protocol.sizes.split(","))) for _ in range(protocol.prompts)
    ]


@torch.no_grad()
def clips(net, encoder, asked: list[Scene], protocol: Protocol, second=None, report=lambda done: None) -> np.ndarray:
    """One clip per scene, N T H W 3 in [0, 1]; batch b's noise has seed b. ``second``: net and encoder of a second stage."""
    make, made = MAKERS[type(net)], []
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
    return _walk(Denoiser(net, net.config.prediction, net.config.schedule), net.config.schedule, context, seed, protocol)


def image_clips(net: PixelUNet, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    """Pictures of an image model, as clips B C 1 H W."""

    def denoiser(z, t, context):
        return net(z[:, :, 0], t.float(), context)[:, :, None]

    return _walk(denoiser, net.sizes.schedule, context, seed, replace(protocol, frames=1))


def moving_clips(net: MovingImage, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    """Clips B C T H W of an image model with a motion module."""
    net.strength = protocol.strength
    return _walk(net, net.net.sizes.schedule, context, seed, protocol)


def _walk(denoiser: Callable, schedule, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    step = {"ddim": ddim_step, "ancestral": partial(ancestral_step, gamma=0.3)}[protocol.sampler]
    shape = (len(context), 3, protocol.frames, protocol.size, protocol.size)
    guided = with_cfg(denoiser, protocol.guidance_scale)
    return sample_clip(guided, schedule, shape, protocol.steps, step, seed, context=context)


def snap_clips(net: FIT, context: torch.Tensor, seed: int, protocol: Protocol) -> torch.Tensor:
    """Clips B C T H W of a first stage of Snap Video."""
    return make_clips(net, context, protocol.steps, seed, protocol.guidance_scale)


MAKERS = {UNet3D: vdm_clips, FIT: snap_clips, PixelUNet: image_clips, MovingImage: moving_clips}


def score(made: np.ndarray, asked: list[Scene]) -> dict[str, float]:
    """The share of clips that agree with their prompt, for each key of `tracker.agreement` and for all of them at once.

    Of pictures, clips of one frame, motion is not asked.
    """
    found = [agreement(clip, scene) for clip, scene in zip(made, asked)]
    keys = [key for key in found[0] if key != "motion" or made.shape[1] > 1]
    shares = {key: float(np.mean([f[key] for f in found])) for key in keys}
    return {**shares, "all": float(np.mean([all(f[key] for key in keys) for f in found]))}


def steadiness(made: np.ndarray, asked: list[Scene]) -> dict[str, float]:
    """How much of one piece the clips of one thing are.

    Returns:
        "identity", the share of clips whose every frame, looked at alone, shows the shape and the colour asked for;
        "colour_drift", the mean distance in RGB (each 0 to 1) between the thing's colours in a clip's first and last frame;
        "flicker", the mean change of a corner's pixels from frame to frame.
    """
    same, drift, flicker = [], [], []
    for clip, scene in zip(made, asked):
        alone = [agreement(frame[None], scene) for frame in clip]
        same.append(all(found["shape"] and found["colour"] for found in alone))
        drift += [float(np.linalg.norm(thing.rgb[0] - thing.rgb[-1])) for thing in observe(clip).things[:1]]
        flicker.append(float(np.abs(np.diff(clip[:, :3, :3].mean(axis=(1, 2)), axis=0)).mean()))
    return {"identity": float(np.mean(same)), "colour_drift": float(np.nanmean(drift)), "flicker": float(np.mean(flicker))}


def load(path: Path, image: Path | None = None) -> tuple:
    """(network, text encoder) of a file. Raises `weights.WeightsError` if it is of no system that is known here."""
    system = weights.read_info(path)["system"]
    if system == HARIVO:
        if image is None:
            raise weights.WeightsError("a motion module makes clips with its image model; please name it with --image.")
        net, encoder = load_image(image)
        return MovingImage(net, load_motion(path)[0]).eval(), encoder
    loaders = {VDM: load_vdm, SNAP: load_snap, IMAGE: load_image}
    if system not in loaders:
        raise weights.WeightsError(f"{path.name} is of the system '{system}', which is not one of {', '.join(loaders)}.")
    return loaders[system](path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.metrics.prompt_agreement", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--second-stage", type=Path, help="file of a second stage of Snap Video")
    parser.add_argument("--image", type=Path, help="file of the image model that a motion module is for")
    add_protocol(parser, Protocol())
    arguments = vars(parser.parse_args())
    path, second_path, image = (arguments.pop(name) for name in ("model", "second_stage", "image"))
    protocol = Protocol(**arguments)
    try:
        net, encoder = load(path, image)
    except weights.WeightsError as error:
        raise SystemExit(f"error: {error}") from None
    second = load_snap(second_path) if second_path else None
    asked = scenes(protocol)
    made = clips(net, encoder, asked, protocol, second, lambda done: print(f"{done}/{protocol.prompts}", flush=True))
    found = {"agreement": score(made, asked)}
    if made.shape[1] > 1 and not protocol.two:
        found["steadiness"] = steadiness(made, asked)
    print_record(path, protocol, second_stage=second_path.name if second_path else None, **found)


if __name__ == "__main__":
    main()
