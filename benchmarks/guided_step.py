"""What a step under Reconstruction Guide costs beside a plain one, in a real ComfyUI: ``python3 benchmarks/guided_step.py``.

A server is started, a model with random weights in a public layout is sampled by the stock KSampler with 2 and with 6
steps, plainly and guided in several ways; the difference of the two runs is four steps. All ways take turns within a
round, and the median over rounds of each round's ratio to the plain run is reported. Peak memory (Linux without a GPU;
elsewhere it is left out) is what a way adds to a fresh server that has loaded the model and made a plain step.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from launch.prompt import run_prompt  # noqa: E402
from launch.server import Server  # noqa: E402
from launch.setup import cache_folder, has_gpu, set_up_host  # noqa: E402

CHANNELS = {"sd15": 4, "wan": 16}
WIDTHS = {"sd15": 768, "wan": 4096}
WAYS: dict[str, dict | None] = {
    "plain": None,
    "guided": {},
    "guided, every 2nd step": {"every": 2},
    "guided, memory saver": {"memory_saver": True},
}
FEW, MANY = 2, 6


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def prompt(layout: str, way: dict | None, steps: int, seed: int) -> dict:
    """KSampler on the layout, the first frame known where guided."""
    nodes = {
        "1": node("UNETLoader", unet_name=f"{layout}.safetensors", weight_dtype="default"),
        "2": node("RandomConditioning", tokens=77, width=WIDTHS[layout], seed=1),
        "3": node("RandomConditioning", tokens=77, width=WIDTHS[layout], seed=2),
        "4": node("LoadLatent", latent="empty.latent"),
        "5": node("LoadLatent", latent="known.latent"),
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="latents/benchmark"),
    }
    if way is not None:
        nodes["6"] = node(
            "ReconstructionGuide", model=["1", 0], kind="frames", latent=["5", 0], frames="0", weight=0.001, **way
        )
    nodes["7"] = node(
        "KSampler", model=["1" if way is None else "6", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
        seed=seed, steps=steps, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return nodes


def write_latents(python: Path, folder: Path, layout: str, frames: int, size: int) -> None:
    """The two LATENT files, ``size`` in latent pixels, by the host's Python, which has torch."""
    shape = [frames, CHANNELS[layout], size, size] if layout == "sd15" else [1, CHANNELS[layout], frames, size, size]
    first = [1, *shape[1:]] if layout == "sd15" else [*shape[:2], 1, *shape[3:]]
    code = (
        "import sys, torch; from safetensors.torch import save_file\n"
        f"for name, shape in (('empty', {shape}), ('known', {first})):\n"
        "    latent = torch.zeros(shape) if name == 'empty' else torch.randn(shape)\n"
        "    save_file({'latent_tensor': latent, 'latent_format_version_0': torch.zeros(1)}, f'{sys.argv[1]}/{name}.latent')"
    )
    subprocess.run([python, "-c", code, folder], check=True)


def reset_peak(pid: int) -> bool:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(pid: int, what: str) -> int:
    """Bytes of the process: "VmHWM" is the peak since `reset_peak`, "VmRSS" what it holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def run_seconds(server: Server, arguments, way: dict | None, steps: int, seed: int) -> float:
    started = time.monotonic()
    run_prompt(server, prompt(arguments.layout, way, steps, seed))
    return time.monotonic() - started


def step_seconds(arguments, server: Server) -> dict[str, list[float]]:
    """Seconds per step of every way, round by round."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(arguments.rounds + 1):  # round 0 loads the model and warms up
        for name, way in WAYS.items():
            taken = [run_seconds(server, arguments, way, steps, seed) for steps in (FEW, MANY)]
            if seed:
                seconds[name].append((taken[1] - taken[0]) / (MANY - FEW))
            print(f"round {seed}, {name}: {taken}", file=sys.stderr, flush=True)
    return seconds


def peak_mebibytes(arguments, server: Server, way: dict | None) -> int | None:
    """What one run adds at its peak; freed memory that a process keeps would hide it, so the server must be fresh."""
    pid = server.process.pid
    run_seconds(server, arguments, None, 1, 0)
    if arguments.gpu or not reset_peak(pid):
        return None
    before = memory(pid, "VmRSS")
    run_seconds(server, arguments, way, FEW, 1)
    return round((memory(pid, "VmHWM") - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=CHANNELS, default="sd15")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="height and width in latent pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    host = set_up_host(cache_folder())
    arguments.gpu = has_gpu(host.python)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        models = base / "models" / "diffusion_models"
        models.mkdir(parents=True)
        (base / "input").mkdir()
        tests = HERE.parent / "tests" / "host"
        shutil.copytree(tests / "helpers", base / "custom_nodes" / "vidcore_test_helpers")
        file = models / f"{arguments.layout}.safetensors"
        subprocess.run([host.python, tests / "layouts.py", host.tree, arguments.layout, file], check=True)
        write_latents(host.python, base / "input", arguments.layout, arguments.frames, arguments.size)
        with Server(host, base) as server:
            seconds = step_seconds(arguments, server)
        found = {}
        for name, way in WAYS.items():
            with Server(host, base) as server:
                peak = peak_mebibytes(arguments, server, way)
            found[name] = {
                "seconds_per_step": round(statistics.median(seconds[name]), 3),
                "over_plain": round(statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"])), 2),
                "peak_mebibytes": peak,
            }
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    setting = {k: v for k, v in vars(arguments).items() if k != "gpu"}
    hardware = f"{'GPU' if arguments.gpu else 'CPU'}, {os.cpu_count()} cores, {platform.machine()}"
    print(json.dumps({"date": str(date.today()), "hardware": hardware, **setting, "results": found}, indent=1))


if __name__ == "__main__":
    main()
