"""Clips per second of the training loop with one process and with two, and where the time of a step goes.

A folder of mp4 files is made, decoded once, and trained on by the loop itself, from nothing, in processes of one thread each
(on a machine with GPUs: one GPU each). What is timed are its own calls, so the parts add up to the step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from common import record

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from tests.clips import encode  # noqa: E402
from vidcore.data.shapes import Thing  # noqa: E402
from vidcore.train import loop  # noqa: E402
from vidcore.train.config import read_config  # noqa: E402
from vidcore.train.processes import joined, rank_and_count  # noqa: E402
from vidcore.train.systems import SYSTEMS  # noqa: E402

RECIPE = """
output = "out/model.safetensors"
save_every = 1000
bf16 = {bf16}

[data]
folder = "videos"
rate = 8

[model]
frames = {frames}
size = {size}
channels = 32
multipliers = [1, 2, 4]
blocks = 1
attention_sizes = [8]
head_width = 32
embedding = 128
context = 128

[[phase]]
steps = {steps}
batch = {batch}
frames = {frames}
size = {size}
images = 2
"""
WARM = 2  # steps that are not counted


class Clock:
    """Seconds by part, of calls that it is put around."""

    def __init__(self):
        self.seconds, self.inside = defaultdict(float), 0

    def around(self, name: str, call):
        def timed(*arguments, **named):
            started = time.perf_counter()
            self.inside += 1
            try:
                return call(*arguments, **named)
            finally:
                self.inside -= 1
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if not self.inside:  # what a timed call calls is its own part already
                    self.seconds[name] += time.perf_counter() - started

        return timed

    def drawing(self, name: str, iterable):
        source = iter(iterable)
        draw = self.around(name, lambda: next(source, None))
        while (item := draw()) is not None:
            yield item


def worker(root: Path) -> None:
    """One process of a run: prints its rate and its parts, if it is the first."""
    torch.set_num_threads(1)
    with joined("cuda" if torch.cuda.is_available() else "cpu") as device:
        rank, count = rank_and_count()
        config, clock, ends = read_config(root / "recipe.toml"), Clock(), []
        plain = SYSTEMS[config.system]

        class Timed(plain):
            loss = staticmethod(clock.around("forward", plain.loss))

        torch.Tensor.backward = clock.around("backward", torch.Tensor.backward)
        torch.optim.AdamW.step = clock.around("optimiser", torch.optim.AdamW.step)
        torch.nn.utils.clip_grad_norm_ = clock.around("gradient norm", torch.nn.utils.clip_grad_norm_)
        loop.EMA.update = clock.around("moving average", loop.EMA.update)
        drawn = loop.batches

        def batches(*arguments):
            for number, item in enumerate(clock.drawing("data", drawn(*arguments))):
                if number == WARM:
                    clock.seconds.clear()
                ends.append(time.perf_counter())
                yield item
            ends.append(time.perf_counter())

        loop.batches = batches
        loop.train(config, root, device=device, system=Timed, report=lambda line: None)
        steps = len(ends) - 1 - WARM
        whole = (ends[-1] - ends[WARM]) / steps
        parts = {name: seconds / steps for name, seconds in clock.seconds.items()}
        parts["rest"] = whole - sum(parts.values())
        if rank == 0:
            batch = config.phases[0].batch
            print(
                json.dumps(
                    {"clips_per_second": batch / whole, "seconds_per_step": whole, "parts": parts, "processes": count}
                )
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(Path(given.worker))
        return
    found = {1: [], 2: []}
    for number in range(given.rounds):
        for processes in found:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                (root / "videos").mkdir()
                for i, (codec, ending) in enumerate((("libx264", "mp4"), ("mpeg4", "mp4"), ("libvpx", "webm")) * 4):
                    path = root / "videos" / f"{i}.{ending}"
                    encode(path, codec, 8, 48, 64, 24, Thing("circle", "red", "large", "left"))
                    path.with_suffix(".txt").write_text("a red circle moves left")
                sizes = dict(frames=given.frames, size=given.size, steps=given.steps + WARM, batch=given.batch)
                (root / "recipe.toml").write_text(RECIPE.format(bf16=str(given.bf16).lower(), **sizes))
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
                command += [__file__, "--worker", folder]
                answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                if answer.returncode:
                    raise SystemExit(answer.stderr[-2000:])
                found[processes].append(json.loads(answer.stdout.splitlines()[-1]))
                print(f"round {number + 1}, {processes}: {found[processes][-1]}", file=sys.stderr, flush=True)
    results = {}
    for processes, rows in found.items():
        middle = sorted(rows, key=lambda row: row["seconds_per_step"])[len(rows) // 2]
        results[processes] = {
            "clips_per_second": round(middle["clips_per_second"], 3),
            "seconds_per_step": round(middle["seconds_per_step"], 4),
            "parts": {name: round(seconds, 4) for name, seconds in middle["parts"].items()},
        }
    ratios = sorted(b["clips_per_second"] / a["clips_per_second"] for a, b in zip(found[1], found[2]))
    results["rate_of_two_over_one"] = round(ratios[len(ratios) // 2], 2)
    print(record(given, ["torch", "av"], results))


if __name__ == "__main__":
    main()
