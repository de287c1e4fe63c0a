"""Lets the host take `device.DEVICE` for its GPU, as it takes any that it has no name for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import comfy.model_management as management  # noqa: E402
import device  # noqa: E402
import torch  # noqa: E402
from device import DEVICE  # noqa: E402


def told(function):
    """The host's own answer for the CPU, and `device.MEMORY` for the other device, twice where two figures are asked for."""

    def memory(dev=None, *more, **named):
        if dev is not None and dev.type == "cpu":
            return function(dev, *more, **named)
        return (device.MEMORY, device.MEMORY) if any((*more, *named.values())) else device.MEMORY

    return memory


management.get_torch_device = management.text_encoder_device = management.vae_device = lambda: DEVICE
management.text_encoder_initial_device = lambda *_, **__: torch.device("cpu")
management.vram_state = management.VRAMState.NORMAL_VRAM
management.get_free_memory = told(management.get_free_memory)
management.get_total_memory = told(management.get_total_memory)
