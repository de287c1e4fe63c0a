"""Too little memory for weights on the device of the pack beside this one: they come when they are needed, and go.

ComfyUI brings them there by two streams, each with one buffer that it writes over for the next layer: on AMD's GPUs, on
older ones of NVIDIA, and wherever it is started with ``--disable-cuda-malloc``. All of its own code for that runs, but for
the streams, which the device does not have. Its attention takes a few keys at a time, for want of memory.
"""

import contextlib
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.with_name("vidcore_test_other_device")))

import comfy.model_management as management  # noqa: E402
import device  # noqa: E402


class Stream:
    as_context = staticmethod(contextlib.nullcontext)

    def wait_stream(self, other):
        pass


streams = itertools.cycle((Stream(), Stream()))
device.MEMORY = 1 << 20
management.NUM_STREAMS = 2
management.get_offload_stream = lambda where: next(streams) if where == device.DEVICE else None
