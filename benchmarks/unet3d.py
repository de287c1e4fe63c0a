"""The 3-D U-Net beside its peers, at like parameters, equal frames and resolution: ``python benchmarks/unet3d.py``.

Each measurement is a process of its own, all networks in turn within a round, so that a busy machine disturbs them
alike; what counts is the median over rounds of each round's ratio. Peak memory is the process's own peak above what it
held once the network was built (on a GPU: PyTorch's peak allocation). Widths are multiples of 8 (ours of 4), so parameters
differ a little; the record states them. All networks have four levels of two residual blocks each, and attend on all but the
finest where their package lets them choose (video-diffusion-pytorch attends everywhere). All are unconditional or get
one empty token, run in float32 as their packages build them, and are sampled by the same ancestral sampler. Needs the
packages in benchmarks/requirements.txt.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from common import record, take_turns, timed  # noqa: E402

SCHEDULE_STEPS = 4  # of the sampled clip
TASKS = ("forward", "training step", "sampled clip")


def ours(width: int, frames: int, size: int):
    from vidcore.systems.vdm import UNet3D, VDMConfig

    config = VDMConfig(
        frames=frames, size=size, channels=width, blocks=2, attention_sizes=(size // 8, size // 4, size // 2),
        head_width=width, embedding=4 * width, embedding_layers=2,
    )  # fmt: skip
    net = UNet3D(config)
    return net, lambda z, log_snr: net(z, log_snr)


def video_diffusion_pytorch(width: int, frames: int, size: int):
    from video_diffusion_pytorch import Unet3D

    net = Unet3D(dim=width, dim_mults=(1, 2, 4, 8), channels=3)
    return net, lambda z, log_snr: net(z, log_snr)


def imagen_pytorch(width: int, frames: int, size: int):
    # The package asks the Hugging Face hub for a text encoder's width when it is imported; here is none to ask.
    import transformers

    transformers.T5Config.from_pretrained = classmethod(lambda cls, *_, **__: cls(d_model=768))
    from imagen_pytorch import Unet3D

    net = Unet3D(dim=width, dim_mults=(1, 2, 4, 8), channels=3, cond_on_text=False, num_resnet_blocks=2,
                 layer_attns=(False, True, True, True))  # fmt: skip
    return net, lambda z, log_snr: net(z, log_snr)


def diffusers(width: int, frames: int, size: int):
    from diffusers import UNet3DConditionModel

    net = UNet3DConditionModel(
        sample_size=size, in_channels=3, out_channels=3, block_out_channels=tuple(width * m for m in (1, 2, 4, 8)),
        down_block_types=("DownBlock3D",) + ("CrossAttnDownBlock3D",) * 3,
        up_block_types=("CrossAttnUpBlock3D",) * 3 + ("UpBlock3D",),
        norm_num_groups=8, cross_attention_dim=32, attention_head_dim=32,
    )  # fmt: skip
    empty = torch.zeros(1, 1, 32)
    return net, lambda z, log_snr: net(z, log_snr, empty.to(z).expand(z.shape[0], -1, -1)).sample


NETS: dict[str, Callable] = {
    "vidcore": ours,
    "video-diffusion-pytorch": video_diffusion_pytorch,
    "imagen-pytorch": imagen_pytorch,
    "diffusers": diffusers,
}


def fitting_width(build: Callable, parameters: float, frames: int, size: int) -> int:
    """The base width, a multiple of 8, whose network comes nearest to so many parameters."""

    def distance(width: int) -> float:
        with torch.device("meta"):
            net, _ = build(width, frames, size)
        return abs(sum(p.numel() for p in net.parameters()) - parameters)

    return min(range(16, 160, 4 if build is ours else 8), key=distance)


def measure(name: str, task: str, arguments) -> dict:
    """Seconds and peak bytes of one task, in this process."""
    from vidcore.denoise import Denoiser
    from vidcore.sample import ancestral_step, sample_clip
    from vidcore.schedule import CosineSchedule

    device, size, frames = arguments.device, arguments.size, arguments.frames
    torch.manual_seed(0)
    width = fitting_width(NETS[name], arguments.parameters, frames, size)
    net, call = NETS[name](width, frames, size)
    net.to(device).train(task == "training step")
    shape = (arguments.batch, 3, frames, size, size)
    z, log_snr = torch.randn(shape, device=device), torch.zeros(arguments.batch, device=device)
    denoiser = Denoiser(lambda z, log_snr: call(z.to(device), log_snr.to(device)).cpu(), "v", CosineSchedule())
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4) if task == "training step" else None

    def forward():
        with torch.no_grad():
            call(z, log_snr)

    def training_step():
        optimiser.zero_grad(set_to_none=True)
        (call(z, log_snr) - z).square().mean().backward()
        optimiser.step()

    def sampled_clip():
        with torch.no_grad():
            sample_clip(denoiser, CosineSchedule(), shape, SCHEDULE_STEPS, partial(ancestral_step, gamma=0.3), 0)

    work = dict(zip(TASKS, (forward, training_step, sampled_clip)))[task]
    count = sum(p.numel() for p in net.parameters())
    return {**timed(work, arguments.repeats, device), "parameters": count, "width": width}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=27e6)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="imagen-pytorch takes 17 GB at 64")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="vidcore is always among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", choices=NETS, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.nets = ["vidcore", *(name for name in arguments.nets if name != "vidcore")]
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.task, arguments)))
        return
    packages = ("torch", *(net for net in arguments.nets if net != "vidcore"))
    print(record(arguments, packages, take_turns(arguments, TASKS, arguments.nets, measure)))


if __name__ == "__main__":
    main()
