"""A real ComfyUI with this pack, for the tests in host/ and browser/."""

import os
import shutil
import sys
import time
import urllib.parse
import uuid
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from launch.prompt import run_prompt
from launch.server import Server
from launch.setup import Host

ROOT = Path(__file__).resolve().parents[1]
LORA_LAYERS = ("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_k", "spatial.qkv", "temporal.qkv")


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Makes a server with a base folder of its own, the options given, and packs of tests/host, to be started."""

    def serve(*options, packs=()) -> Server:
        tree = os.environ.get("VIDCORE_HOST_TREE")
        if not tree:
            pytest.skip("needs ComfyUI: run `python3 start.py test`")
        base = tmp_path_factory.mktemp("base")
        (base / "elsewhere").mkdir()
        paths = base / "extra_model_paths.yaml"
        paths.write_text(f"mine:\n  base_path: {base}\n  video_diffusion: elsewhere\n", encoding="utf-8")
        for pack in ("helpers", *packs):
            shutil.copytree(ROOT / "tests" / "host" / pack, base / "custom_nodes" / f"vidcore_test_{pack}")
        host = Host(Path(tree), Path(sys.executable), own=True)
        return Server(host, base, cpu=True, extra=("--extra-model-paths-config", paths, *options))

    return serve


@pytest.fixture(scope="session")
def server(serve):
    """One running server for the whole session."""
    with serve() as running:
        yield running


@pytest.fixture
def run(server):
    """Runs an API prompt and gives its history; a failure raises `RunError` with the server's message."""

    def run(prompt, timeout=300):
        return run_prompt(server, prompt, timeout)

    return run


@pytest.fixture
def interrupted(server):
    """Starts an API prompt, cancels it some seconds after it began to run, and gives the kinds of the host's messages."""

    def interrupted(prompt, seconds=3):
        status, answer = server.post("/prompt", {"prompt": prompt})
        assert status == 200, answer
        deadline = time.monotonic() + 60 + seconds
        while not server.get("/queue")["queue_running"] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(seconds)
        server.post("/interrupt", {})
        number = urllib.parse.quote(answer["prompt_id"])
        while not server.get(f"/history/{number}") and time.monotonic() < deadline:
            time.sleep(0.1)
        return [kind for kind, _ in server.get(f"/history/{number}")[answer["prompt_id"]]["status"]["messages"]]

    return interrupted


@pytest.fixture(scope="session")
def tools():
    path = os.environ.get("VIDCORE_TOOLS")
    if not path:
        pytest.skip("needs the workflow converter: run `python3 start.py test`")
    return Path(path)


@pytest.fixture
def output(server):
    """Path of an output file, from its entry in a history."""

    def output(item):
        return server.base / "output" / item.get("subfolder", "") / item["filename"]

    return output


@pytest.fixture
def latents(server):
    """Runs a prompt, on another server if given, and gives the latent that each SaveLatent node kept, by its number."""

    def latents(prompt, timeout=300, on=server):
        kept = {n: o["latents"][0] for n, o in run_prompt(on, prompt, timeout)["outputs"].items() if "latents" in o}
        paths = {n: on.base / "output" / item["subfolder"] / item["filename"] for n, item in kept.items()}
        return {n: load_file(path)["latent_tensor"] for n, path in paths.items()}

    return latents


@pytest.fixture
def model_file(server):
    """Puts a file into the host's models/video_diffusion under a fresh name, and takes it away again."""
    folder, made = server.base / "models" / "video_diffusion", []

    def put(content: bytes, name: str) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{uuid.uuid4().hex[:6]}-{name}"
        path.write_bytes(content)
        made.append(path)
        server.get("/object_info/LoadVideoModel")  # the host lists folders anew
        return path.name

    yield put
    for path in made:
        path.unlink()


@pytest.fixture
def lora():
    """Puts a random LoRA for the attention of a shipped model into a server's folder, and gives its name."""
    made = []

    def lora(server, model: str) -> str:
        generator, tensors = torch.Generator().manual_seed(0), {}
        with safe_open(ROOT / "models" / model, "pt") as file:
            for name in (key.removesuffix(".weight") for key in file.keys()):
                if name.endswith(LORA_LAYERS):
                    out, into = file.get_slice(f"{name}.weight").get_shape()
                    name = f"diffusion_model.{name.removeprefix('net.')}"
                    tensors[f"{name}.lora_down.weight"] = torch.randn(4, into, generator=generator) * into**-0.5
                    tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.1
        made.append(server.base / "models" / "loras" / f"hooked-{model}")
        made[-1].parent.mkdir(exist_ok=True)
        save_file(tensors, made[-1])
        server.get("/object_info/CreateHookLora")  # the host lists folders anew
        return made[-1].name

    yield lora
    for path in made:
        path.unlink()


@pytest.fixture
def emptied(server):
    """Gives a folder of the host's models by its name; the models that a test writes there are deleted after it."""
    folders = []

    def emptied(name: str) -> Path:
        folders.append(server.base / "models" / name)
        return folders[-1]

    yield emptied
    for folder in folders:
        for file in folder.rglob("*.safetensors"):
            file.unlink()


@pytest.fixture(scope="session")
def shipped():
    """The bytes of the shipped model."""
    return (ROOT / "models" / "shapes-vdm.safetensors").read_bytes()


@pytest.fixture(scope="session")
def screenshots():
    folder = ROOT / "tests" / "browser" / "screenshots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
