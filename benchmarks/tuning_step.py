"""Tune-A-Video's steps beside those of diffusers' UNetMotionModel: ``PYTHON benchmarks/tuning_step.py COMFYUI``.

Run it with the Python of the ComfyUI in the folder COMFYUI, with diffusers beside it (``--peers``: a folder made by
``pip install --target FOLDER --no-deps diffusers``, or the site-packages of an environment that has it). Both nets have the
sizes of Stable Diffusion 1.5 with random weights. Ours trains the queries and the temporal attention of the host's own
U-Net as the node does: plainly, compiled as by the host's TorchCompileModel, and with the memory saver; diffusers' trains
its motion modules, by AdamW as well. An edit is evaluations of the network alone, so one with and one without its caption
is timed beside it. The arithmetic of a step is counted, and its share of the fastest matrix product that the machine showed
is printed.
"""

import argparse
import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from common import record, take_turns, timed  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

LEVEL = (0.6, 0.8)  # alpha and sigma of the step


def import_pack(comfyui: str, device: str, channels_last: bool = False):
    """This repository as a host would import it that was started with ``--force-channels-last``, or without."""
    if "vidcore_pack" in sys.modules:
        return importlib.import_module("vidcore_pack.nodes.inflate")
    sys.path.insert(0, comfyui)
    sys.argv[1:] = [] if device == "cuda" else ["--cpu", "--use-pytorch-cross-attention"]
    sys.argv += ["--force-channels-last"] if channels_last else []
    import comfy.options

    comfy.options.enable_args_parsing()
    place = HERE.parent
    spec = importlib.util.spec_from_file_location(
        "vidcore_pack", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    sys.modules["vidcore_pack"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("vidcore_pack.nodes.inflate")


def tune_a_video(arguments, memory_saver: bool = False, compiled: bool = False):
    """The work of each task, the network, and what trains of it."""
    inflate = import_pack(arguments.comfyui, arguments.device, arguments.channels_last)
    import comfy.model_patcher
    import comfy.supported_models
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
    from vidcore_pack.nodes.checkpoint import checkpointed
    from vidcore_pack.nodes.gradient import gradients
    from vidcore_pack.vidcore.sample import Level
    from vidcore_pack.vidcore.systems.tune_a_video import Tuning

    sizes = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768, "legacy": False,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "adm_in_channels": None,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
        "dtype": frozen_dtype(arguments),
    }  # fmt: skip
    support = comfy.supported_models.SD15(sizes)
    support.set_inference_dtype(frozen_dtype(arguments), None)
    base = support.get_model({}, device=arguments.device)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model = comfy.model_patcher.ModelPatcher(base, torch.device(arguments.device), torch.device("cpu"))
    layers = inflate.new_layers(inflate.tune_config(model), 0).to(arguments.device)
    model = inflate.inflate(model, inflate.layers_patcher(layers))
    if compiled:  # as the host's TorchCompileModel does
        set_torch_compile_wrapper(model, arguments.backend, {"guard_filter_fn": skip_torch_compile_dict})
    model.patch_model(device_to=None)
    tuning = Tuning(layers, 3e-5, 0, arguments.half and arguments.device != "meta")  # where nothing overflows
    clip = torch.randn(arguments.frames, 4, arguments.side, arguments.side, device=arguments.device)
    text = torch.randn(1, 77, 768, device=arguments.device).expand(arguments.frames, -1, -1)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0], "wrappers": model.wrappers}
    sigma = torch.full((arguments.frames,), LEVEL[1] / LEVEL[0], device=arguments.device)

    def denoise(z, i):
        return base.apply_model(z / LEVEL[0], sigma, c_crossattn=text, transformer_options=dict(options))

    def work():
        with gradients([base]):
            if memory_saver:
                with checkpointed(base.diffusion_model):
                    tuning.advance(denoise, "eps", clip, 0.0, [Level(*LEVEL)])
            else:
                tuning.advance(denoise, "eps", clip, 0.0, [Level(*LEVEL)])

    @torch.no_grad()
    def edit():
        two = {**options, "cond_or_uncond": [1, 0]}
        base.apply_model(clip.repeat(2, 1, 1, 1), sigma.repeat(2), c_crossattn=text.repeat(2, 1, 1), transformer_options=two)

    return {"training step": work, "edit step": edit}, base, layers


def motion_modules(arguments):
    """The same of diffusers."""
    sys.path.append(arguments.peers)
    from diffusers import UNetMotionModel

    net = UNetMotionModel(cross_attention_dim=768, num_attention_heads=8, motion_num_attention_heads=8).to(arguments.device)
    net.requires_grad_(False).to(frozen_dtype(arguments))
    motion = torch.nn.ModuleList(m for name, m in net.named_modules() if name.rsplit(".", 1)[-1] == "motion_modules")
    motion.float().requires_grad_(True)
    optimiser = torch.optim.AdamW(motion.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(arguments.device, init_scale=2.0**12, enabled=arguments.half)
    cast = partial(torch.autocast, arguments.device, torch.float16, arguments.half)
    clip = torch.randn(1, 4, arguments.frames, arguments.side, arguments.side, device=arguments.device)
    text = torch.randn(1, 77, 768, device=arguments.device).repeat(arguments.frames, 1, 1)  # it wants one for each frame

    def work():
        noise = torch.randn_like(clip)
        with cast():
            out = net(LEVEL[0] * clip + LEVEL[1] * noise, 500, text).sample
        optimiser.zero_grad(set_to_none=True)
        scaler.scale((out.float() - noise).square().mean()).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(motion.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()

    @torch.no_grad()
    def edit():
        with cast():
            net(clip.repeat(2, 1, 1, 1, 1), 500, text.repeat(2, 1, 1))

    return {"training step": work, "edit step": edit}, net, motion


WAYS = {
    "vidcore": tune_a_video,
    "vidcore, compiled": partial(tune_a_video, compiled=True),
    "vidcore, memory saver": partial(tune_a_video, memory_saver=True),
    "diffusers UNetMotionModel": motion_modules,
}
TASKS = ("training step", "edit step")


def frozen_dtype(arguments) -> torch.dtype:
    """Of the frozen network; float16 is what the host loads such models in on most GPUs."""
    return torch.float16 if arguments.half else torch.float32


def fastest_product(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the fastest matrix product of a few."""
    best = 0.0
    for size in (1024, 2048, 4096, *((8192,) if device == "cuda" else ())):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            started = time.perf_counter()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(name: str, task: str, arguments) -> dict:
    torch.manual_seed(0)
    peak = fastest_product(arguments.device, frozen_dtype(arguments))
    works, net, trained = WAYS[name](arguments)
    counters.clear()
    work = works[task]

    def together() -> None:  # a GPU is given the next step while it is at one
        for _ in range(arguments.together):
            work()

    found = timed(together, arguments.repeats, arguments.device)
    found["seconds"] /= arguments.together
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # it counts nothing in kernels
        work()
    count = lambda module: round(sum(p.numel() for p in module.parameters()) / 1e6, 1)  # noqa: E731
    done = counter.get_total_flops()
    return {
        **found,
        "graphs": counters["stats"]["unique_graphs"],  # that PyTorch compiled
        "million_parameters": round(count(net) + (0 if name.startswith("diffusers") else count(trained)), 1),
        "million_trained": count(trained),
        "gigaflop": round(done / 1e9),
        "teraflop_per_second_at_peak": round(peak / 1e12, 2),
        "share_of_matrix_peak": round(done / found["seconds"] / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", help="folder of a ComfyUI")
    parser.add_argument("--peers", default="", help="folder with diffusers")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=16, help="height and width in latent pixels; 64 for 512x512 pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--together", type=int, default=1, help="steps that are timed as one; on a GPU 10 tell how runs go")
    parser.add_argument("--half", action="store_true", help="frozen weights in float16, what trains in float32")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="beside the first of them")
    parser.add_argument("--backend", default="inductor", help="of the compiled way")
    parser.add_argument("--channels-last", action="store_true", help="our weights as by the host's --force-channels-last")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.task, arguments)))
        return
    results = take_turns(arguments, TASKS, arguments.ways, measure)
    arguments.comfyui, arguments.peers = Path(arguments.comfyui).name, ""
    print(record(arguments, ["torch"], results))


if __name__ == "__main__":
    main()
