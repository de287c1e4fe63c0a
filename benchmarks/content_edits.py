"""Does a clip keep its motion while its content frame is edited? ``python benchmarks/content_edits.py``.

Run it where the core's packages are installed; ComfyUI is set up as for ``start.py``, and everything below goes through its
API, on the shipped CMD model. Of each of ``--clips`` procedural clips of one thing, kept from training, Encode Content
Motion makes a content frame and its motion, and these are made of both:

- again: the clip from its own two parts;
- recoloured: the content frame goes through stock image nodes that give the thing another colour, the motion is the old one;
- painted: the same, but every pixel that the thing ever touches becomes wholly of the new colour;
- along: the motion of the clip, the content frame of another clip whose thing has another colour, shape and background and
  moves along the same path, to the other side where that is another way to move; both are brighter than what is behind
  them, or both darker;
- reversed: the same, but one is brighter and the other darker;
- across: the same, but the other clip's thing moves in any other way about the same place;
- told: the clip's content frame, its motion by the motion model, which is told the clip's caption;
- text: the same, but the content frame is by the content model, which is told only the caption, too.

The rule-based tracker judges:

- colour: the thing has the colour asked for over the clip, and (in every frame) in each of its frames by itself;
- near: the mean distance from the path of the clip that the motion is from is at most 2 pixels of 32;
- motion: it moves as that clip does, by the tracker's word for it;
- shape: it has the shape of the clip that the content is from.

Prints a JSON record with the protocol that made it.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
from edits import NEAR, edited, keep_clip, kept_clip, node, seen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.prompt import run_prompt  # noqa: E402
from launch.server import Server  # noqa: E402
from launch.setup import cache_folder, has_gpu, set_up_host  # noqa: E402
from vidcore.data.shapes import Scene, Thing, caption, random_scene, render  # noqa: E402
from vidcore.data.shapes.scene import BACKGROUNDS, COLOURS, DIRECTIONS, MOTIONS, visible_motions  # noqa: E402
from vidcore.metrics.completion import psnr, trajectory_error  # noqa: E402
from vidcore.metrics.tracker import agreement, observe  # noqa: E402

FRAMES, SIZE = 8, 32
WAYS = ("again", "recoloured", "painted", "along", "reversed", "across", "told", "text")
CORNERED = ("square", "triangle", "star", "cross")  # whose turning can be seen


def opposite(motion: str) -> str:
    """The motion to the other side, of straight ones; others are their own."""
    if motion not in DIRECTIONS:
        return motion
    x, y = DIRECTIONS[motion]
    return next(name for name, step in DIRECTIONS.items() if step == (-x, -y))


def brighter(scene: Scene) -> bool:
    """Whether the thing is brighter than what is behind it."""
    return sum(COLOURS[scene.things[0].colour]) > sum(BACKGROUNDS[scene.background])


def other_content(scene: Scene, motion: str, rng: np.random.Generator, reversed_contrast: bool = False) -> Scene:
    """A thing of another colour and shape over another background, in the same place, that moves in the way given."""
    shapes = [s for s in CORNERED if s != scene.things[0].shape]
    pairs = [(colour, behind) for behind in BACKGROUNDS for colour in COLOURS if seen(colour, behind)]
    for number in rng.permutation(len(pairs)):
        colour, behind = pairs[number]
        thing = dataclasses.replace(scene.things[0], colour=colour, shape=str(rng.choice(shapes)), motion=motion)
        other = Scene((within(thing),), behind)
        new = colour != scene.things[0].colour and behind != scene.background
        if new and (brighter(other) != brighter(scene)) == reversed_contrast:
            return other
    raise AssertionError("the palette has things both brighter and darker than what is behind them")


def within(thing: Thing) -> Thing:
    """The thing where it stays within the frame, moved as little as that takes."""
    poses = np.array([thing.pose(u) for u in np.linspace(0, 1, 33)])
    low = (poses[:, :2] - poses[:, 2:3]).min(axis=0)
    high = (poses[:, :2] + poses[:, 2:3]).max(axis=0)
    x, y = np.maximum(0.02 - low, 0) + np.minimum(0.98 - high, 0)
    return dataclasses.replace(thing, x=thing.x + x, y=thing.y + y)


def packed(colour: tuple[float, float, float]) -> int:
    """A colour as Empty Image takes it, 0xRRGGBB."""
    red, green, blue = (round(255 * c) for c in colour)
    return red << 16 | green << 8 | blue


def recolour(content: list, scene: Scene, asked: Scene) -> dict:
    """Stock image nodes that give the thing of ``scene`` the colour of ``asked``; "recoloured" is the one to decode.

    The content frame is what is behind, plus the thing's share of each pixel times the difference of the two colours. Image
    Blend takes away what is behind, the channel in which both differ most is scaled to that share as a mask, and through it
    the new colour is laid over what is behind. "painted" goes through the mask of all pixels with any share instead.
    """
    behind, old = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[scene.things[0].colour])
    channel = int(np.argmax(np.abs(old - behind)))
    contrast, more_of_it = float(abs(old - behind)[channel]), (old > behind)[channel]
    first, second = (content, ["still", 0]) if more_of_it else (["still", 0], content)
    nodes = {
        "still": node("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=packed(BACKGROUNDS[scene.background])),
        "paint": node("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=packed(COLOURS[asked.things[0].colour])),
        "difference": node("ImageBlend", image1=first, image2=second, blend_factor=1.0, blend_mode="difference"),
        "share0": node("ImageToMask", image=["difference", 0], channel=("red", "green", "blue")[channel]),
    }
    # The mask times 1 / contrast: doubled while that is more than 2, then a part of it is added.
    number, left = 0, 1 / contrast
    while left > 1.005:
        more, number = min(left - 1, 1.0), number + 1
        nodes |= {
            f"solid{number}": node("SolidMask", value=more, width=SIZE, height=SIZE),
            f"part{number}": node(
                "MaskComposite", destination=[f"solid{number}", 0], source=[f"share{number - 1}", 0], x=0, y=0,
                operation="multiply",
            ),
            f"share{number}": node(
                "MaskComposite", destination=[f"share{number - 1}", 0], source=[f"part{number}", 0], x=0, y=0,
                operation="add",
            ),
        }  # fmt: skip
        left /= 1 + more
    nodes["touched"] = node("ThresholdMask", mask=["share0", 0], value=0.06)
    for way, mask in (("recoloured", f"share{number}"), ("painted", "touched")):
        nodes[way] = node(
            "ImageCompositeMasked", destination=["still", 0], source=["paint", 0], x=0, y=0, resize_source=False,
            mask=[mask, 0],
        )  # fmt: skip
    return nodes


def prompt(protocol, number: int, scene: Scene, asked: Scene) -> dict:
    """All that is made of the clip ``number``; SaveLatent nodes keep the clips, in pixels."""
    nodes = {
        "cmd": node("LoadVideoModel", model_name=protocol.model),
        "image": node("LoadVideoModel", model_name=protocol.content_model),
    }
    for key in ("own", "along", "reversed", "across"):
        nodes |= {
            f"latent_{key}": node("LoadLatent", latent=f"{number}_{key}.latent"),
            f"clip_{key}": node("VAEDecode", samples=[f"latent_{key}", 0], vae=["image", 2]),
            key: node("EncodeContentMotion", codec=["cmd", 3], frames=[f"clip_{key}", 0]),
        }
    grid = dict(sampler="ddim", schedule="uniform_time", seed=number, steps=protocol.steps)
    nodes |= recolour(["own", 0], scene, asked) | {
        "empty": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "text": node("CLIPTextEncode", clip=["image", 1], text=caption(scene)),
        "nothing": node("CLIPTextEncode", clip=["image", 1], text=""),
        "frame_latent": node(
            "SampleVideo", model=["image", 0], positive=["text", 0], negative=["nothing", 0], latent_image=["empty", 0],
            guidance_scale=protocol.content_guidance, **grid,
        ),
        "frame": node("VAEDecode", samples=["frame_latent", 0], vae=["image", 2]),
        "motion_text": node("CLIPTextEncode", clip=["cmd", 1], text=caption(scene)),
        "motion_nothing": node("CLIPTextEncode", clip=["cmd", 1], text=""),
    }  # fmt: skip
    for content in ("own", "frame"):
        nodes |= {
            f"attached_{content}": node("AttachContentFrame", model=["cmd", 0], codec=["cmd", 3], content=[content, 0]),
            f"motion_{content}": node(
                "SampleVideo", model=[f"attached_{content}", 0], positive=["motion_text", 0], negative=["motion_nothing", 0],
                latent_image=[f"attached_{content}", 1], guidance_scale=protocol.motion_guidance, **grid,
            ),
        }  # fmt: skip
    sources = {way: (way, ["own", 1]) for way in ("recoloured", "painted", "along", "reversed", "across")}
    sources |= {"again": ("own", ["own", 1]), "told": ("own", ["motion_own", 0]), "text": ("frame", ["motion_frame", 0])}
    for way, (content, motion) in sources.items():
        nodes |= {
            f"made_{way}": node("DecodeContentMotion", codec=["cmd", 3], content=[content, 0], motion=motion),
            f"pixels_{way}": node("VAEEncode", pixels=[f"made_{way}", 0], vae=["image", 2]),
            f"keep_{way}": node("SaveLatent", samples=[f"pixels_{way}", 0], filename_prefix="latents/content"),
        }
    return nodes


def in_every_frame(clip: np.ndarray, colour: str) -> bool:
    """Whether each frame by itself shows one thing of that colour."""
    found = [observe(np.repeat(frame[None], 3, axis=0)).things for frame in clip]  # the tracker takes at least 3 frames
    return all(len(things) == 1 and things[0].colour == colour for things in found)


def judge(clip: np.ndarray, moves: np.ndarray, colour: str, shape: str) -> dict:
    """Scores of a clip T H W 3 in [0, 1] that should move as ``moves`` does."""
    found, wanted = observe(clip), observe(moves)
    one = len(found.things) == 1
    path = trajectory_error(clip, moves, list(range(len(moves))))
    return {
        "colour": one and found.things[0].colour == colour,
        "colour_in_every_frame": in_every_frame(clip, colour),
        "shape": one and found.things[0].shape == shape,
        "motion": one and found.things[0].motion == wanted.things[0].motion,
        "path": path,
        "near": path <= NEAR,
    }


def tasks(protocol) -> list[dict[str, Scene]]:
    """For each clip its own scene, and those whose content the clips made of it have."""
    rng, found = np.random.default_rng(protocol.seed), []
    for _ in range(protocol.clips):
        own = random_scene(rng, held_out=True)
        moves = own.things[0].motion
        across = str(rng.choice([m for m in visible_motions("square", MOTIONS) if m != moves]))
        contents = {
            "along": other_content(own, opposite(moves), rng),
            "reversed": other_content(own, opposite(moves), rng, reversed_contrast=True),
            "across": other_content(own, across, rng),
        }
        (recoloured,) = edited(own, "colour", rng, 1)
        found.append(
            {"own": own, "again": own, "recoloured": recoloured, "painted": recoloured, **contents, "told": own, "text": own}
        )
    return found


def run(protocol) -> tuple[dict, dict]:
    """Scores per way, and all clips by name, for looking at."""
    host = set_up_host(cache_folder())
    found: dict[str, list] = {way: [] for way in WAYS}
    clips = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "input").mkdir()
        asked = tasks(protocol)
        for number, scenes in enumerate(asked):
            for key in ("own", "along", "reversed", "across"):
                keep_clip(base / "input" / f"{number}_{key}.latent", render(scenes[key], FRAMES, SIZE))
        with Server(host, base, cpu=not has_gpu(host.python)) as server:
            for number, scenes in enumerate(asked):
                truth = render(scenes["own"], FRAMES, SIZE)
                history = run_prompt(server, prompt(protocol, number, scenes["own"], scenes["recoloured"]))
                for way in found:
                    item = history["outputs"][f"keep_{way}"]["latents"][0]
                    clip = kept_clip(base / "output" / item["subfolder"] / item["filename"])
                    clips[f"{number} {way}"] = clip
                    if way in ("told", "text"):
                        marks = agreement(clip, scenes[way])
                        found[way].append(marks | {"all": all(marks.values())})
                    else:
                        (thing,) = scenes[way].things
                        found[way].append(judge(clip, truth, thing.colour, thing.shape))
                found["again"][-1]["psnr"] = psnr(clips[f"{number} again"], truth, list(range(FRAMES)))
                clips[f"{number} truth"] = truth
                print(f"{number + 1}/{protocol.clips}: {caption(scenes['own'])}", file=sys.stderr, flush=True)
    return {way: mean(scores) for way, scores in found.items()}, clips


def mean(scores: list[dict]) -> dict:
    return {key: round(float(np.mean([s[key] for s in scores])), 4) for key in scores[0]} | {"clips": len(scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-cmd.safetensors")
    parser.add_argument("--content-model", default="shapes-content.safetensors")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps of the content frame, and of the motion")
    parser.add_argument("--content-guidance", type=float, default=1.5)
    parser.add_argument("--motion-guidance", type=float, default=2.0)
    parser.add_argument("--keep", type=Path, help="file (.npz) for all clips, to look at")
    protocol = parser.parse_args()
    scores, clips = run(protocol)
    if protocol.keep:
        np.savez(protocol.keep, **clips)
    files = (protocol.model, protocol.content_model)
    digests = {name: hashlib.sha256((ROOT / "models" / name).read_bytes()).hexdigest() for name in files}
    setting = {k: v for k, v in vars(protocol).items() if k != "keep"}
    print(json.dumps({"date": str(date.today()), **setting, "sha256": digests, "scores": scores}, indent=1))


if __name__ == "__main__":
    main()
