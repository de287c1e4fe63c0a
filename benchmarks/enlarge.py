"""How well a second stage of Snap Video enlarges clips of shapes, at several levels of corruption; no speed.

Held-out clips are shrunk to the first stage's size and enlarged again: PSNR against what they were, beside bilinear
enlargement, and how many the tracker reads as what they show.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidcore.data.shapes import caption, random_scene, render  # noqa: E402
from vidcore.metrics.make import tokens_of  # noqa: E402
from vidcore.metrics.pixels import psnr  # noqa: E402
from vidcore.metrics.prompt_agreement import score  # noqa: E402
from vidcore.systems.snap.checkpoint import load_snap  # noqa: E402
from vidcore.systems.snap.sample import make_clips  # noqa: E402
from vidcore.systems.snap.stages import enlarge, shrink  # noqa: E402

PART = 10


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--corruption", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--no-text", action="store_true", help="do not tell the model what the clips show")
    parser.add_argument("--seed", type=int, default=77)
    given = parser.parse_args()
    (net, text), rng = load_snap(given.model), np.random.default_rng(given.seed)
    size = (net.config.height, net.config.width)
    scenes = [random_scene(rng, held_out=True) for _ in range(given.clips)]
    x = torch.stack([torch.from_numpy(render(s, net.config.frames, size[0])).movedim(-1, 0) * 2 - 1 for s in scenes])
    context = text(tokens_of(text, [caption(scene) for scene in scenes])) * (not given.no_text)

    def judged(made: Tensor) -> dict:
        pixels = [(clip / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0) for clip in made]
        truth = [(clip / 2 + 0.5).permute(1, 2, 3, 0) for clip in x]
        found = score(torch.stack(pixels).numpy(), scenes)
        found = {key: round(value, 3) for key, value in found.items() if key != "by_shape"}
        return {"psnr": round(float(np.mean([psnr(a, b) for a, b in zip(pixels, truth)])), 2), **found}

    low = shrink(x, net.config)
    results = {"bilinear": judged(enlarge(low, size))}
    for level in given.corruption:
        made = [
            make_clips(net, c, given.steps, number, given.guidance_scale, low=part, corruption=level)
            for number, (c, part) in enumerate(zip(context.split(PART), low.split(PART)))
        ]
        results[f"corruption {level}"] = judged(torch.cat(made))
    settings = {name: value for name, value in vars(given).items() if name != "model"}
    print(json.dumps({"model": given.model.name, **settings, "results": results}))


if __name__ == "__main__":
    main()
