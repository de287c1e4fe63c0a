"""Does tuning on one clip let a prompt change the clip while its motion stays? ``python benchmarks/edits.py``.

Run it where the core's packages are installed; ComfyUI is set up as for ``start.py``. On the shipped image model, each of
``--clips`` procedural clips of one thing is learned by Tune-A-Video; then its colour, its shape and its background are
edited, one at a time, ``--edits-of-a-kind`` each, with DDIM inversion and from fresh noise. The rule-based tracker judges
every edit:

- applied: the edited attribute is the asked one, and there is one thing;
- motion kept: the clip moves as the source does, by the tracker's word for it ("left", "orbit"...);
- rest kept: the two attributes that were not edited are the source's;
- path: mean distance from the source's path, in widths of the frame; a thing not found counts 0.5;
- near: whether that is at most 2 pixels of 32.

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
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.prompt import run_prompt  # noqa: E402
from launch.server import Server  # noqa: E402
from launch.setup import cache_folder, has_gpu, set_up_host  # noqa: E402
from vidcore.data.shapes import Scene, caption, random_scene, render  # noqa: E402
from vidcore.data.shapes.scene import BACKGROUNDS, COLOURS, CONTRAST, SHAPES  # noqa: E402
from vidcore.metrics.completion import trajectory_error  # noqa: E402
from vidcore.metrics.tracker import observe  # noqa: E402

KINDS = ("colour", "shape", "background")
ROUND = ("circle", "ring")
NEAR = 2 / 32


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def seen(colour: str, background: str) -> bool:
    """Whether a thing of this colour stands out from what is behind it."""
    return np.linalg.norm(np.array(COLOURS[colour]) - np.array(BACKGROUNDS[background])) > CONTRAST


def edited(scene: Scene, kind: str, rng: np.random.Generator, count: int) -> list[Scene]:
    """The scene with other colours, shapes or backgrounds, as many as asked for if there are, all of which can be seen."""
    (thing,) = scene.things
    if kind == "background":
        others = [b for b in BACKGROUNDS if b != scene.background and seen(thing.colour, b)]
        return [Scene(scene.things, str(b)) for b in rng.permutation(others)[:count]]
    if kind == "colour":
        others = [c for c in COLOURS if c != thing.colour and seen(c, scene.background)]
    else:
        others = [s for s in SHAPES if s != thing.shape and not (thing.motion == "rotate" and s in ROUND)]
    changed = (dataclasses.replace(thing, **{kind: str(other)}) for other in rng.permutation(others)[:count])
    return [Scene((other,), scene.background) for other in changed]


def tasks(protocol) -> list[tuple[Scene, list[tuple[str, Scene]]]]:
    """Source scenes, each with the edits to make of it."""
    rng = np.random.default_rng(protocol.seed)
    sources = [random_scene(rng, sizes=("large",)) for _ in range(protocol.clips)]
    each = protocol.edits_of_a_kind
    return [(scene, [(kind, e) for kind in KINDS for e in edited(scene, kind, rng, each)]) for scene in sources]


def prompt(protocol, name: str, source: Scene, edits: list[tuple[str, Scene]]) -> dict:
    """Tune on the clip ``name``, then every edit from inverted and from fresh noise; SaveLatent nodes keep them."""
    grid = dict(steps=protocol.steps, schedule="uniform_time")
    nodes = {
        "model": node("LoadVideoModel", model_name=protocol.model),
        "source": node("CLIPTextEncode", clip=["model", 1], text=caption(source)),
        "empty": node("CLIPTextEncode", clip=["model", 1], text=""),
        "clip": node("LoadLatent", latent=f"{name}.latent"),
        "frames": node("VAEDecode", samples=["clip", 0], vae=["model", 2]),
        "tuned": node(
            "TuneAVideo", model=["model", 0], vae=["model", 2], frames=["frames", 0], positive=["source", 0],
            steps=protocol.tuning_steps, learning_rate=protocol.learning_rate, seed=0, name=name, norm=protocol.norm,
            preview_every=0, frame_order=protocol.frame_order,
        ),
    }  # fmt: skip
    starts, scales = dict(zip(KINDS, protocol.starts)), dict(zip(KINDS, protocol.guidance_scales))
    for start_at in set(starts.values()):
        nodes[f"inverted{start_at}"] = node(
            "DDIMInvert", model=["tuned", 0], positive=[protocol.invert_with, 0], latent_image=["clip", 0],
            method="fixed_point", start_at_step=start_at, end_at_step=protocol.steps - protocol.skip, round_trip=False,
            **grid,
        )  # fmt: skip
    for number, (kind, scene) in enumerate(edits):
        nodes[f"text{number}"] = node("CLIPTextEncode", clip=["model", 1], text=caption(scene))
        for way, latent, fresh in (("inversion", f"inverted{starts[kind]}", False), ("noise", "clip", True)):
            nodes[f"{way}{number}"] = node(
                "SampleVideo", model=["tuned", 0], positive=[f"text{number}", 0], negative=["empty", 0],
                latent_image=[latent, 0], seed=number, guidance_scale=scales[kind], sampler="ddim",
                add_noise=fresh, start_at_step=0 if fresh else starts[kind], **grid,
            )  # fmt: skip
            nodes[f"keep_{way}{number}"] = node("SaveLatent", samples=[f"{way}{number}", 0], filename_prefix="latents/edit")
    return nodes


def judge(clip: np.ndarray, truth: np.ndarray, scene: Scene, kind: str) -> dict:
    """Scores of one edited clip T H W 3 in [0, 1], beside the source's."""
    seen, source, (asked,) = observe(clip), observe(truth), scene.things
    one = len(seen.things) == 1
    found = {
        "colour": one and seen.things[0].colour == asked.colour,
        "shape": one and seen.things[0].shape == asked.shape,
        "background": seen.background == scene.background,
    }
    path = trajectory_error(clip, truth, list(range(len(truth))))
    return {
        "applied": one and found[kind],
        "motion_kept": one and seen.things[0].motion == source.things[0].motion,
        "rest_kept": all(found[other] for other in KINDS if other != kind),
        "path": path,
        "near": path <= NEAR,
    }


def keep_clip(path: Path, clip: np.ndarray) -> None:
    """A clip T H W 3 in [0, 1] as a file of LATENT frames that are pixels."""
    latent = torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous() * 2 - 1
    save_file({"latent_tensor": latent, "latent_format_version_0": torch.zeros(1)}, path)


def kept_clip(path: Path) -> np.ndarray:
    """The inverse of `keep_clip`, for what Save Latent wrote."""
    return (load_file(path)["latent_tensor"].clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def run(protocol) -> tuple[dict, dict]:
    """Scores per way and kind of edit, and all clips by name, for looking at."""
    host = set_up_host(cache_folder())
    found: dict[str, dict[str, list]] = {way: {kind: [] for kind in KINDS} for way in ("inversion", "noise")}
    clips = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "input").mkdir()
        with Server(host, base, cpu=not has_gpu(host.python)) as server:
            for number, (source, edits) in enumerate(tasks(protocol)):
                name, truth = f"clip{number}", render(source, protocol.frames, protocol.size)
                keep_clip(base / "input" / f"{name}.latent", truth)
                history = run_prompt(server, prompt(protocol, name, source, edits), 3600)
                clips[name] = truth
                for i, (kind, scene) in enumerate(edits):
                    for way in found:
                        item = history["outputs"][f"keep_{way}{i}"]["latents"][0]
                        clip = kept_clip(base / "output" / item["subfolder"] / item["filename"])
                        clips[f"{name} {i} {kind} {way}"] = clip
                        found[way][kind].append(judge(clip, truth, scene, kind))
                so_far = mean([s for scores in found["inversion"].values() for s in scores])
                print(f"{number + 1}/{protocol.clips}: {caption(source)}; {so_far}", file=sys.stderr, flush=True)
    return {way: {**by, "all": [s for scores in by.values() for s in scores]} for way, by in found.items()}, clips


def mean(scores: list[dict]) -> dict:
    return {key: round(float(np.mean([s[key] for s in scores])), 4) for key in scores[0]} | {"edits": len(scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-image.safetensors")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--edits-of-a-kind", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--tuning-steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--norm", choices=("frame", "clip"), default="frame")
    parser.add_argument("--frame-order", action="store_true", help="temporal attention sees the frames' numbers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--skip", type=int, default=2, help="steps at the clean end that inversion begins above")
    parser.add_argument("--invert-with", choices=("empty", "source"), default="empty", help="the text for inversion")
    three = dict(nargs=3, metavar=("COLOUR", "SHAPE", "BACKGROUND"))
    parser.add_argument(
        "--starts", type=int, default=[0, 0, 0], **three, help="steps at the noisy end that inversion leaves out, by kind"
    )
    parser.add_argument("--guidance-scales", type=float, default=[3.0, 3.0, 3.0], **three, help="by the kind of edit")
    parser.add_argument("--keep", type=Path, help="file (.npz) for all clips, to look at")
    protocol = parser.parse_args()
    found, clips = run(protocol)
    if protocol.keep:
        np.savez(protocol.keep, **clips)
    scores = {way: {kind: mean(s) for kind, s in by.items()} for way, by in found.items()}
    sha256 = hashlib.sha256((ROOT / "models" / protocol.model).read_bytes()).hexdigest()
    setting = {k: v for k, v in vars(protocol).items() if k != "keep"}
    print(json.dumps({"date": str(date.today()), **setting, "sha256": sha256, "scores": scores}, indent=1))


if __name__ == "__main__":
    main()
