"""Files of random weights in public layouts, for as long as a test needs them."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path


@contextlib.contextmanager
def weights(server, kind, folder, loader):
    """A file of random weights in a layout of `layouts`, among the host's models while inside; gives its name."""
    folder = server.base / "models" / folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{kind}.safetensors"
    script = Path(__file__).with_name("layouts.py")
    command = [sys.executable, script, os.environ["VIDCORE_HOST_TREE"], kind, folder / name]
    try:
        subprocess.run(command, check=True, capture_output=True)
        server.get(f"/object_info/{loader}")  # the host lists folders anew
        yield name
    finally:
        (folder / name).unlink(missing_ok=True)
