"""How well models estimate clips: mean square errors of x-hat on held-out clips, where noise is so many times the signal.

What they look at, too: how much x-hat in a quarter of the columns changes (root mean square) with other noise: there, in
the quarter beside it, or in that quarter of all frames but the first, whose x-hat is then compared. A model that draws
each part of a clip by itself may have small errors, but has zeros there.

No speed, but the arithmetic of one evaluation of one clip. Of Snap Video's first stages and VDM's networks alike: what
counts is the ratio of noise to signal, which is sigma sigma_in there and sigma / alpha here.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidcore.data.shapes import BACKGROUNDS, caption, random_scene, render  # noqa: E402
from vidcore.denoise import Denoiser  # noqa: E402
from vidcore.metrics.make import load, tokens_of  # noqa: E402
from vidcore.systems.snap import FIT  # noqa: E402
from vidcore.systems.snap.loss import images_as_clips  # noqa: E402

RATIOS, PART = (6.0, 3.0, 1.5, 0.7, 0.3), 8


def estimate(net, x: Tensor, eps: Tensor, ratio: float, context: Tensor, pictures: bool = False) -> Tensor:
    """x-hat of clips ``x``, or of ``pictures`` (as clips, for Snap Video), with noise ``ratio`` times as strong."""
    like = x.new_ones(len(x))
    if isinstance(net, FIT):
        interval = 0 if pictures else net.config.interval
        edm, given = net.config.edm, dict(interval=interval * like, size=net.config.height * like)
        sigma = like * (ratio / edm.sigma_in)
        return edm.denoise(lambda z, c: net(z, c, context, **given)[0], edm.add_noise(x, eps, sigma), sigma)
    schedule, alpha = net.config.schedule, (1 + ratio**2) ** -0.5
    t = schedule.time(torch.tensor(-2 * np.log(ratio))).float() * like
    return Denoiser(net, net.config.prediction, schedule)(alpha * (x + ratio * eps), t, context=context)


def reach(net, x: Tensor, ratio: float, context: Tensor, pictures: bool) -> dict[str, float]:
    """How x-hat changes in the second quarter of the columns with other noise there, in the third, and in other frames."""
    eps, other = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(1))
    second, third = (slice(x.shape[-1] * n // 4, x.shape[-1] * (n + 1) // 4) for n in (1, 2))

    def made(noise: Tensor) -> Tensor:
        parts = zip(x.split(PART), noise.split(PART), context.split(PART))
        return torch.cat([estimate(net, a, e, ratio, c, pictures) for a, e, c in parts])[..., second]

    first, found = made(eps), {}
    for name, start, columns in (("own", 0, second), ("beside", 0, third), ("other_frames", 1, second)):
        noise = eps.clone()
        noise[:, :, start:, :, columns] = other[:, :, start:, :, columns]
        change = made(noise) - first
        change = change[:, :, 0] if name == "other_frames" else change
        found[name] = round(float(change.square().mean().sqrt()), 4)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=16, help="of the clips, in pixels")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--sizes", default="large", help="of the things, with commas between; the middle one is empty")
    parser.add_argument("--backgrounds", nargs="+", default=BACKGROUNDS, metavar="NAME", help="all, if left out")
    parser.add_argument(
        "--pictures", action="store_true", help="of pictures as first stages of Snap Video see them, not clips"
    )
    parser.add_argument("--seed", type=int, default=77)
    given = parser.parse_args()
    for path in given.models:
        (net, text), rng = load(path), np.random.default_rng(given.seed)
        if given.pictures and not isinstance(net, FIT):
            raise SystemExit(f"error: {path.name} is no first stage of Snap Video, which --pictures is for")
        kinds = dict(held_out=True, sizes=tuple(given.sizes.split(",")), backgrounds=tuple(given.backgrounds))
        scenes = [random_scene(rng, **kinds) for _ in range(given.clips)]
        x = torch.stack([torch.from_numpy(render(s, net.config.frames, given.size)).movedim(-1, 0) * 2 - 1 for s in scenes])
        if given.pictures:
            x = images_as_clips(x[:, :, -1], net.config.frames)
        context, errors = text(tokens_of(text, [caption(scene) for scene in scenes])), {}
        for ratio in RATIOS:
            eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(100 * ratio)))
            parts = zip(x.split(PART), eps.split(PART), context.split(PART))
            squares = [
                (estimate(net, a, e, ratio, c, given.pictures) - a).square().mean(dim=(1, 2, 3, 4)) for a, e, c in parts
            ]
            errors[ratio] = round(float(torch.cat(squares).mean()), 4)
        seen = {ratio: reach(net, x, ratio, context, given.pictures) for ratio in RATIOS[1:4]}
        with FlopCounterMode(display=False) as counter:
            estimate(net, x[:1], x[:1], 1.0, context[:1])
        operations = round(counter.get_total_flops() / 1e9, 3)
        counted = {"pictures" if given.pictures else "clips": given.clips}
        record = {"model": path.name, **counted, "errors": errors, "reach": seen, "1e9_operations": operations}
        print(json.dumps(record))


if __name__ == "__main__":
    main()
