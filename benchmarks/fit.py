"""Snap Video's FIT beside a U-Net with temporal attention: ``python benchmarks/fit.py``.

The paper (arXiv 2402.14797) compares a FIT of 500 M parameters with a U-Net of 284 M on clips of 16 frames of 64x40, and
finds the FIT 3.31 times faster in training and 4.49 times in inference, on GPUs. Here the same FIT stands beside this
core's factorised U-Net in the paper's shape (multipliers 1, 2, 3, 4, two blocks a level, attention at 32, 16 and 8), as
wide as it takes to have 284 M parameters, and as many as the FIT; the second comparison is ours. Both networks read 77
text tokens of width 768. All are measured in turn within a round. ``--count`` prints the arithmetic of one evaluation for
clips of several sizes instead, by PyTorch's own counter and without weights, and ``--plot FILE.svg`` draws it (with
matplotlib).
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from common import record, take_turns, timed  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vidcore.systems.snap import CONFIGS, FIT  # noqa: E402
from vidcore.systems.vdm import UNet3D, VDMConfig  # noqa: E402

CONTEXT = 768
NETS = ("FIT", "U-Net, 284 M", "U-Net, as many")
TASKS = ("forward", "training step")
# Frames, height and width of clips to count for; the first is the paper's first stage.
SIZES = (
    (16, 40, 64), (32, 40, 64), (64, 40, 64), (128, 40, 64), (16, 80, 128), (16, 160, 256), (16, 320, 512), (64, 80, 128),
)  # fmt: skip


def fit(frames: int, height: int, width: int) -> FIT:
    """The paper's network of 500 M parameters; larger clips have larger groups, and the same latents."""
    paper = CONFIGS["500m"]
    group = tuple(own * side // whole for own, side, whole in zip(paper.group, (height, width), (40, 64)))
    return FIT(replace(paper, frames=frames, height=height, width=width, padding=0, group=group, context=CONTEXT))


def unet(channels: int, frames: int = 16) -> UNet3D:
    """The paper's baseline in this core's form."""
    return UNet3D(
        VDMConfig(
            frames=frames, size=64, channels=channels, multipliers=(1, 2, 3, 4), head_width=channels // 4, embedding=768,
            context=CONTEXT, dropout=0.1,
        )
    )  # fmt: skip


@lru_cache
def channels_for(parameters: float) -> int:
    """The base width, a multiple of 8, whose U-Net comes nearest to so many parameters."""

    def distance(channels: int) -> float:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in unet(channels).parameters()) - parameters)

    return min(range(160, 400, 8), key=distance)


def build(name: str, frames: int, height: int, width: int) -> nn.Module:
    if name == "FIT":
        return fit(frames, height, width)
    with torch.device("meta"):
        parameters = 284e6 if name.endswith("284 M") else sum(p.numel() for p in fit(16, 40, 64).parameters())
    return unet(channels_for(parameters), frames)


def evaluate(net: nn.Module, z: Tensor, context: Tensor) -> Tensor:
    zeros = z.new_zeros(len(z))
    if isinstance(net, FIT):
        return net(z, zeros, context, interval=zeros, size=zeros + 64)[0]
    return net(z, zeros, context)


def measure(name: str, task: str, arguments) -> dict:
    """Seconds and peak bytes of one task, in this process."""
    torch.manual_seed(0)
    with torch.device(arguments.device):
        net = build(name, 16, 40, 64)
        z, context = torch.randn(arguments.batch, 3, 16, 40, 64), torch.randn(arguments.batch, 77, CONTEXT)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    net.train(task == "training step")
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4) if task == "training step" else None

    def step():
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
            made = evaluate(net, z, context)
        if optimiser:
            optimiser.zero_grad(set_to_none=True)
            (made.float() - z).square().mean().backward()
            optimiser.step()

    with torch.set_grad_enabled(optimiser is not None):
        found = timed(step, arguments.repeats, arguments.device)
    return {**found, "million_parameters": round(sum(p.numel() for p in net.parameters()) / 1e6, 1)}


@torch.no_grad()
def count() -> dict:
    """10^12 operations of one evaluation, for each network and size of clip; a multiplication and an addition are two."""
    found: dict[str, dict] = {name: {} for name in NETS}
    for name in NETS:
        for frames, height, width in SIZES:
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                net = build(name, frames, height, width).eval()
                evaluate(net, torch.empty(1, 3, frames, height, width), torch.empty(1, 77, CONTEXT))
            found[name][f"{frames}x{width}x{height}"] = round(counter.get_total_flops() / 1e12, 3)
    return found


def plot(found: dict[str, dict[str, float]], file: str) -> None:
    """Arithmetic against the frame's size and against the number of frames."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "fit", "svg.fonttype": "none", "font.size": 10})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    panels = (
        (left, lambda t, h, w: t == 16, lambda t, h, w: w, "width of 16 frames, in pixels"),
        (right, lambda t, h, w: (h, w) == (40, 64), lambda t, h, w: t, "frames of 64x40"),
    )
    for axes, belongs, place, label in panels:
        sizes = sorted((size for size in SIZES if belongs(*size)), key=lambda size: place(*size))
        for name, mark in zip(NETS, "os^"):
            cost = [found[name][f"{t}x{w}x{h}"] for t, h, w in sizes]
            axes.loglog([place(*size) for size in sizes], cost, f"{mark}-", fillstyle="none", label=name)
        ticks = [place(*size) for size in sizes]
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("10^12 operations of one evaluation")
    left.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="by autocast, with float32 weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", action="store_true", help="count arithmetic alone")
    parser.add_argument("--plot", metavar="FILE.svg", help="with --count: draw it, too")
    parser.add_argument("--worker", choices=NETS, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.task, arguments)))
        return
    results = count() if arguments.count else take_turns(arguments, TASKS, NETS, measure)
    if arguments.plot and arguments.count:
        plot(results, arguments.plot)
    print(record(arguments, ["torch"], results))


if __name__ == "__main__":
    main()
