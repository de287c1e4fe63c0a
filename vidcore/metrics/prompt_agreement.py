"""``python -m vidcore.metrics.prompt_agreement MODEL``: does a shapes model show what its prompt says?

Samples one clip for each of N held-out prompts with fixed seeds and lets the tracker judge them. Prints a JSON record
of the scores with the protocol that made them. MODEL is one of VDM's; a first stage of Snap Video, whose second one may
enlarge the clips before they are judged; an image model, whose pictures are judged without their motion; or a motion module
or CMD's motion model, whose image model ``--image`` names.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.shapes import BACKGROUNDS, Scene, caption, random_scene
from ..systems.snap.checkpoint import load_snap
from .make import Sampling, batches, load
from .record import add_protocol, print_record
from .tracker import agreement, observe


@dataclass(frozen=True)
class Protocol(Sampling):
    """Everything that the scores depend on beside the weights; the middle one of ``sizes`` is the empty word."""

    prompts: int = 200
    prompt_seed: int = 2024
    two: float = 0.0
    held_out: bool = True
    sizes: str = "small,,large"
    backgrounds: str = ",".join(BACKGROUNDS)


def scenes(protocol: Protocol) -> list[Scene]:
    """The prompts' scenes, from the protocol's seed alone."""
    rng = np.random.default_rng(protocol.prompt_seed)
    kinds = (protocol.two, protocol.held_out, tuple(protocol.sizes.split(",")), tuple(protocol.backgrounds.split(",")))
    return [random_scene(rng, *kinds) for _ in range(protocol.prompts)]


def clips(net, encoder, asked: list[Scene], protocol: Protocol, second=None, report=lambda done: None) -> np.ndarray:
    """One clip per scene, N T H W 3 in [0, 1]. ``second``: net and encoder of a second stage."""
    made = []
    for x in batches(net, encoder, [caption(scene) for scene in asked], protocol, second):
        made.extend((x / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy())
        report(len(made))
    return np.stack(made)


def score(made: np.ndarray, asked: list[Scene]) -> dict:
    """The share of clips that agree with their prompt, for each key of `tracker.agreement` and for all of them at once.

    Of pictures, clips of one frame, motion is not asked. "by_shape" has the share of right shapes for each shape that is
    the first thing of a prompt.
    """
    found = [agreement(clip, scene) for clip, scene in zip(made, asked)]
    keys = [key for key in found[0] if key != "motion" or made.shape[1] > 1]
    shares = {key: float(np.mean([f[key] for f in found])) for key in keys}
    by_shape: dict[str, list[bool]] = {}
    for judged, scene in zip(found, asked):
        by_shape.setdefault(scene.things[0].shape, []).append(judged["shape"])
    return {
        **shares,
        "all": float(np.mean([all(f[key] for key in keys) for f in found])),
        "by_shape": {shape: float(np.mean(right)) for shape, right in sorted(by_shape.items())},
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidcore.metrics.prompt_agreement", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--second-stage", type=Path, help="file of a second stage of Snap Video")
    parser.add_argument("--image", type=Path, help="image model that a motion module is for, or that makes content frames")
    add_protocol(parser, Protocol())
    arguments = vars(parser.parse_args())
    path, second_path, image = (arguments.pop(name) for name in ("model", "second_stage", "image"))
    protocol = Protocol(**arguments)
    asked = scenes(protocol)
    try:
        net, encoder = load(path, image)
        second = load_snap(second_path) if second_path else None
        made = clips(net, encoder, asked, protocol, second, lambda done: print(f"{done}/{protocol.prompts}", flush=True))
    except ValueError as error:  # a file or a caption that does not serve, sizes that do not fit
        raise SystemExit(f"error: {error}") from None
    found = {"agreement": score(made, asked)}
    if made.shape[1] > 1 and not protocol.two:
        found["steadiness"] = steadiness(made, asked)
    others = {"second_stage": second_path, "image": image}
    print_record(path, protocol, **{name: other.name if other else None for name, other in others.items()}, **found)


if __name__ == "__main__":
    main()
