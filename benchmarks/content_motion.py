"""What a clip costs by CMD and by a text-to-video U-Net: ``PYTHON benchmarks/content_motion.py COMFYUI``.

Run it with the Python of the ComfyUI in the folder COMFYUI, with diffusers beside it (``--peers``, as in tuning_step.py).
The paper's sizes with random weights: the autoencoder on latents, the host's own U-Net in Stable Diffusion 2.1's layout for
the content frame, DiT-XL/2 for the motion; beside them diffusers' UNet3DConditionModel as it is by default, which has
ModelScope's sizes. Each part is timed alone; a clip is its steps with classifier-free guidance, and for CMD decoding the
motion (no image VAE for either, as in the paper's table). Arithmetic is counted by PyTorch's own counter, which needs no
weights: ``--count`` prints that alone, at the paper's sizes, on any machine within a minute. The counter takes a
multiplication and an addition as two; the paper's figures take them as one.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from common import record, take_turns, timed  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

FRAMES = 16
# arXiv 2403.14148, table 4 and appendix: 10^12 multiply-adds of one forward pass at 16 x 512 x 512.
PAPER = {"autoencoder": 0.77, "content": 0.34, "motion": 0.14, "ModelScope": 9.41}


def autoencoder(arguments):
    from vidcore.codec.content_motion import CONFIGS, ContentMotionCodec

    net = ContentMotionCodec(replace(CONFIGS["webvid_sd15"], depth=arguments.depth, head_width=arguments.head_width))
    clip = torch.empty(1, 4, FRAMES, arguments.height // 8, arguments.width // 8)

    def both(net, clip):
        encoded = net.encode(clip)
        return net.decode(encoded.content, encoded.motion)

    return net, both, (clip,)


def decoder(arguments):
    from vidcore.codec.content_motion import CONFIGS, ContentMotionCodec

    config = CONFIGS["webvid_sd15"]
    rows, columns = arguments.height // 8 // config.patch, arguments.width // 8 // config.patch
    content = torch.empty(1, 1, 4, arguments.height // 8, arguments.width // 8)
    motion = torch.empty(1, config.latent, FRAMES, rows + columns)
    return ContentMotionCodec(config), lambda net, *given: net.decode(*given), (content, motion)


def content(arguments):
    sys.path.insert(0, arguments.comfyui)
    kept, sys.argv[1:] = sys.argv[1:], [] if arguments.device == "cuda" else ["--cpu"]
    if torch.get_default_device().type == "meta":  # the host's other ways of attention ask how much memory is free
        sys.argv.append("--use-pytorch-cross-attention")
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    sys.argv[1:] = kept
    net = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4], num_head_channels=64, use_spatial_transformer=True, context_dim=1024, legacy=False,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], use_linear_in_transformer=True,
        dtype=torch.float32, device=torch.get_default_device(),
    )  # fmt: skip
    batch = arguments.conditions
    given = (
        torch.empty(batch, 4, arguments.height // 8, arguments.width // 8),
        torch.empty(batch),
        torch.empty(batch, 77, 1024),
    )
    return net, lambda net, z, t, text: net(z, t, text, transformer_options={}), given


def motion(arguments):
    from vidcore.systems.cmd import CONFIGS, MotionDiT

    # The content frame's patches at half the height and width of the wide clips' are those of the square ones.
    config = CONFIGS["webvid_sd15" if arguments.width == arguments.height else "webvid_sd21"]
    entries = (arguments.height + arguments.width) // 16
    net, batch = MotionDiT(replace(config, entries=entries)), arguments.conditions
    z = torch.empty(batch, config.latent, FRAMES, entries)
    given = z, torch.empty(batch), torch.empty(batch, 77, 1024)
    picture = torch.empty(batch, 4, arguments.height // 8, arguments.width // 8)
    return net, lambda net, z, t, text, picture: net(z, t, text, content=picture), (*given, picture)


def model_scope(arguments):
    sys.path.append(arguments.peers)
    from diffusers import UNet3DConditionModel

    net, batch = UNet3DConditionModel(), arguments.conditions
    z = torch.empty(batch, 4, FRAMES, arguments.height // 8, arguments.width // 8)
    return net, lambda net, z, t, text: net(z, t, text).sample, (z, torch.empty(batch), torch.empty(batch, 77, 1024))


PARTS = {"autoencoder": autoencoder, "content": content, "motion": motion, "decoder": decoder, "ModelScope": model_scope}


@torch.no_grad()
def count(name: str, arguments) -> dict:
    """10^12 operations of one evaluation, and those of them that are not products inside attention."""
    with torch.device("meta"):
        net, work, given = PARTS[name](arguments)
        with FlopCounterMode(display=False) as counter:
            work(net, *given)
    inside = sum(n for kind, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(kind))
    total = counter.get_total_flops()
    return {"teraflop": round(total / 1e12, 3), "teraflop_outside_attention": round((total - inside) / 1e12, 3)}


@torch.no_grad()
def measure(_: str, part: str, arguments) -> dict:
    """Seconds and peak bytes of one evaluation, in this process."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, arguments.dtype))  # so that building takes no more memory than running
    with torch.device(arguments.device):
        net, work, given = PARTS[part](arguments)
        given = [torch.randn_like(x) for x in given]
    net = net.to(getattr(torch, arguments.dtype)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    given = [x.to(getattr(torch, arguments.dtype)) for x in given]
    found = timed(lambda: work(net, *given), arguments.repeats, arguments.device)
    return {**found, "million_parameters": round(sum(p.numel() for p in net.parameters()) / 1e6, 1)}


def clip_cost(results: dict, steps: int) -> dict:
    """Seconds and operations of a whole clip, from those of its parts."""
    total = lambda key: steps * (results["content"][key] + results["motion"][key]) + results["decoder"][key]  # noqa: E731
    found = {}
    for key in ("seconds", "teraflop"):
        if key in results["content"]:
            ours, theirs = total(key), steps * results["ModelScope"][key]
            found[key] = {"CMD": round(ours, 2), "ModelScope": round(theirs, 2), "ratio": round(theirs / ours, 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", help="folder of a ComfyUI")
    parser.add_argument("--peers", default="", help="folder with diffusers")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--conditions", type=int, default=2, help="2 with classifier-free guidance, 1 without")
    parser.add_argument("--depth", type=int, default=12, help="of the autoencoder; 8 in the official code")
    parser.add_argument("--head-width", type=int, default=64, help="of the autoencoder; 48 in the official code")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", action="store_true", help="count arithmetic alone")
    parser.add_argument("--worker", choices=("the part",), help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.task, arguments)))
        return
    counted = {name: count(name, arguments) for name in PARTS}
    results = counted
    if not arguments.count:
        timings = take_turns(arguments, list(PARTS), ["the part"], measure)
        keys = ("seconds", "mebibytes", "million_parameters")
        results = {name: {**{k: timings[name]["the part"][k] for k in keys}, **counted[name]} for name in PARTS}
    clips = {f"{steps} steps": clip_cost(results, steps) for steps in (50, 100)}
    arguments.comfyui, arguments.peers = Path(arguments.comfyui).name, ""
    print(record(arguments, ["torch"], {"parts": results, "clip": clips, "paper_multiply_adds_at_512x512": PAPER}))


if __name__ == "__main__":
    main()
