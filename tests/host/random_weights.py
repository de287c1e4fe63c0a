"""Files of random weights in public layouts, for as long as a test needs them."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

KEPT = {"sd15"}  # several tests use it, and making it takes half a minute


@contextlib.contextmanager
def weights(server, kind, folder, loader):
    """A file of random weights in a layout of `layouts`, among the host's models while inside; gives its name."""
    folder, made = server.base / "models" / folder, server.base / "made"
    folder.mkdir(parents=True, exist_ok=True)
    made.mkdir(exist_ok=True)
    name = f"{kind}.safetensors"
    script = Path(__file__).with_name("layouts.py")
    try:
        if not (made / name).exists():
            part = made / f"{name}.part"
            command = [sys.executable, script, os.environ["VIDCORE_HOST_TREE"], kind, part]
            subprocess.run(command, check=True, capture_output=True)
            part.rename(made / name)
        os.link(made / name, folder / name)
        server.get(f"/object_info/{loader}")  # the host lists folders anew
        yield name
    finally:
        (folder / name).unlink(missing_ok=True)
        if kind not in KEPT:
            (made / name).unlink(missing_ok=True)
