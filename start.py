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
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.prompt import RunError, apply_settings, output_files, run_prompt, to_api
from launch.server import HERE, PACK, Server
from launch.setup import (
    Host,
    SetupError,
    cache_folder,
    existing_host,
    find_browser,
    get_test_packages,
    get_tools,
    say,
    set_up_host,
)


def get_host(arguments) -> Host:
    path = arguments.comfyui or os.environ.get("COMFYUI_PATH")
    if path:
        return existing_host(Path(path), arguments.python)
    return set_up_host(cache_folder())


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
    packages = get_test_packages(cache, host.python)
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
