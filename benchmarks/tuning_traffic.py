"""What a step of Tune-A-Video moves through memory: ``PYTHON benchmarks/tuning_traffic.py COMFYUI``.

Run it with the Python of the ComfyUI in the folder COMFYUI. The network is that of `tuning_step.py`, on PyTorch's meta
device: nothing is computed, so it takes neither a GPU nor its memory. Every operation counts the bytes that it reads and
writes; attention, whose kernels keep their weights to themselves, counts queries, keys, values, what comes out, and their
gradients. What an operation copies within itself, as convolutions do to change layout, is not seen. AdamW, one kernel on a
GPU, counts by its operations. "strided" are operations that read or write against the order in memory, but for matrix
products, which do not mind.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from common import record
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tuning_step import tune_a_video

# Nothing of these is read or written.
FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
    "_unsafe_view",
}  # fmt: skip


class _Attention(torch.autograd.Function):
    """Attention of a fused kernel's shapes and layout, N H L D with the heads of a token side by side."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient):
        made = (torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in ctx.saved_tensors)
        return tuple(x.transpose(1, 2) for x in made)


class Traffic(TorchDispatchMode):
    """Bytes by operation, "forward" and "backward" apart."""

    def __init__(self):
        super().__init__()
        self.bytes = defaultdict(int)

    def note(self, name: str, *values) -> None:
        tensors = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
        way = "backward" if torch._C._current_autograd_node() is not None else "forward"
        against = "mm" not in name and any(x.ndim > 1 and not x.is_contiguous() for x in tensors)
        self.bytes[f"{way} {name}" + " strided" * against] += sum(x.numel() * x.element_size() for x in tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, name = function(*args, **(kwargs or {})), function._schema.name.split("::")[1]
        if name == "copy_":
            self.note(name, args[1], out)
        elif name not in FREE:
            self.note(name, args, out)
        return out


class _Fused(TorchFunctionMode):
    """Attention as one operation."""

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        out = _Attention.apply(*args[:3])
        self.traffic.note("attention", args[:3], out)
        if out.requires_grad:  # which, what came out, and what went in are read, and gradients of that written
            out.register_hook(lambda gradient: self.traffic.note("attention", gradient, out, args[:3], args[:3]))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", help="folder of a ComfyUI")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=64, help="height and width in latent pixels; 64 for 512x512 pictures")
    parser.add_argument("--float32", action="store_true", help="frozen weights in float32 instead of float16")
    parser.add_argument("--rows", type=int, default=24)
    arguments = parser.parse_args()
    arguments.device, arguments.channels_last, arguments.half = "meta", False, not arguments.float32
    works, base, _ = tune_a_video(arguments)
    base.to("meta")  # the noise levels
    found = {}
    for task in works:
        with Traffic() as traffic, _Fused(traffic):
            works[task]()
        rows = sorted(traffic.bytes.items(), key=lambda row: -row[1])
        whole = sum(traffic.bytes.values())
        strided = sum(size for name, size in rows if name.endswith("strided"))
        found[task] = {"gigabytes": round(whole / 1e9, 1), "of them strided": round(strided / 1e9, 1)} | {
            name: round(size / 1e9, 2) for name, size in rows[: arguments.rows]
        }
    arguments.comfyui = Path(arguments.comfyui).name
    print(record(arguments, ["torch"], found))


if __name__ == "__main__":
    main()
