"""A running ComfyUI with this pack in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .setup import Host, SetupError, has_gpu

HERE = Path(__file__).resolve().parents[1]
PACK = "ComfyUI-VidCore"
START_SECONDS = 180


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
