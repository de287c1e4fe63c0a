"""Sparse-causal attention beside the plain form of its paper: ``python benchmarks/sparse_causal.py``.

The plain form joins the tokens of frames 1 and i - 1 for every frame, and projects and attends to all of them. Ours
projects each frame once, joins the results, and does not give frames 1 and 2 the same keys twice. Both with the same
weights and the same fused attention, from tokens to output, at the sizes of Stable Diffusion 1.5's finest level.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from common import KERNELS, record, take_turns, timed  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.attention import sdpa_kernel  # noqa: E402

from vidcore.layers.attention import attention  # noqa: E402
from vidcore.layers.sparse_causal import sparse_causal  # noqa: E402


class Projections(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)


def ours(net: Projections, z: Tensor, heads: int) -> Tensor:
    return net.out(sparse_causal(net.q(z), net.k(z), net.v(z), len(z), lambda q, k, v: attention(q, k, v, heads)))


def plain(net: Projections, z: Tensor, heads: int) -> Tensor:
    before = torch.arange(-1, len(z) - 1).clamp(min=0)
    seen = torch.cat([z[:1].expand(len(z), -1, -1), z[before]], dim=1)
    return net.out(attention(net.q(z), net.k(seen), net.v(seen), heads))


WAYS = {"vidcore": ours, "plain": plain}
TASKS = ("forward", "forward and backward")


def measure(name: str, task: str, arguments) -> dict:
    torch.manual_seed(0)
    device, width = arguments.device, arguments.width
    dtype = torch.float16 if arguments.half else torch.float32
    net = Projections(width).to(device, dtype)
    z = torch.randn(arguments.frames, arguments.side**2, width, device=device, dtype=dtype)

    def kernel():
        return sdpa_kernel(KERNELS[arguments.kernel]) if arguments.kernel else contextlib.nullcontext()

    def work():
        with torch.set_grad_enabled(task != TASKS[0]), kernel():
            out = WAYS[name](net, z, arguments.heads)
        if task != TASKS[0]:
            out.square().mean().backward()

    with torch.no_grad():
        apart = float((ours(net, z[:3], arguments.heads) - plain(net, z[:3], arguments.heads)).abs().max())
    return {**timed(work, arguments.repeats, device), "largest_difference": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=32, help="height and width in latent pixels; 64 for 512x512 pictures")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--half", action="store_true", help="float16")
    parser.add_argument("--kernel", choices=KERNELS, help="of PyTorch's attention; its own choice by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.task, arguments)))
        return
    print(record(arguments, ["torch"], take_turns(arguments, TASKS, list(WAYS), measure)))


if __name__ == "__main__":
    main()
