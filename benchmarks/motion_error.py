"""How well a motion module lets an image model estimate clips: mean square errors of x-hat, on held-out clips.

No speed. With ``--strength 0`` it is the image model alone, frame by frame.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidcore.data.shapes import caption, random_scene, render  # noqa: E402
from vidcore.metrics.make import load, tokens_of  # noqa: E402
from vidcore.schedule import alpha_sigma  # noqa: E402

TIMES, PART = (0.95, 0.85, 0.7, 0.5), 8


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("--image", type=Path, default=Path("models/shapes-image.safetensors"))
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--strength", type=float, default=1.0)
    given = parser.parse_args()
    moving, text = load(given.module, given.image)
    moving.strength, rng = given.strength, np.random.default_rng(given.seed)
    scenes = [random_scene(rng, held_out=True, sizes=("large",)) for _ in range(given.clips)]
    x = torch.stack([torch.from_numpy(render(scene, 8, 32)).movedim(-1, 0) * 2 - 1 for scene in scenes])
    context, errors = text(tokens_of(text, [caption(scene) for scene in scenes])), {}
    for t in TIMES:
        alpha, sigma = alpha_sigma(moving.net.schedule.log_snr(torch.tensor(t).double()).float())
        z = alpha * x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(100 * t)))
        parts = zip(z.split(PART), x.split(PART), context.split(PART))
        squares = [(moving(a, torch.full((len(a),), t), c) - b).square().mean(dim=(1, 2, 3, 4)) for a, b, c in parts]
        errors[t] = round(float(torch.cat(squares).mean()), 4)
    print(json.dumps({"module": given.module.name, "strength": given.strength, "clips": given.clips, "errors": errors}))


if __name__ == "__main__":
    main()
