"""Real video files for tests."""

from pathlib import Path

import av
import numpy as np

from vidcore.data.shapes import Scene, Thing, render


def encode(path: Path, codec: str, rate: int, height: int, width: int, frames: int, thing: Thing) -> None:
    """A clip of the shapes in a container and codec."""
    pixels = (255 * render(Scene((thing,), "black"), frames, max(height, width))[:, :height, :width]).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
