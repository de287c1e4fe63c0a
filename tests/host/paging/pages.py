"""Memory that pages weights in and out on `device.DEVICE`, for machines without a GPU.

ComfyUI does so on NVIDIA's GPUs unless it is told otherwise (``ModelPatcherDynamic``, "DynamicVRAM"). All of its own code
for that runs; what is in place of comfy_aimdo, whose library needs a driver, is the memory: few weights have room at a
time, the one that was asked for least recently gives way, and whoever still looks at its memory finds NaN.
"""

import comfy.memory_management
import comfy.model_patcher
import comfy.utils
import comfy_aimdo.host_buffer
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import safetensors
import torch
from comfy.cli_args import args
from device import DEVICE, OtherTensor

ROOM = 1 << 20  # bytes of all weights together


class Page:
    """The memory of one layer's weights, while there is any."""

    def __init__(self, size):
        self.size, self.memory, self.times, self.pins = size, None, 0, 0


class ModelVBAR:
    """A model's pages; the host knows one by its number."""

    def __init__(self, size, device):
        self.pages = []

    def alloc(self, size):
        self.pages.append(Page(size))
        return self, len(self.pages) - 1, size

    def fault(self, number):
        """Pins a page, with what it held if that is still there, and says how often it has been given memory."""
        page = self.pages[number]
        if page.memory is None:
            evict(sum(one.size for one in USED) + page.size - ROOM)
            page.memory, page.times = torch.empty(page.size, dtype=torch.uint8, device=DEVICE), page.times + 1
        else:
            USED.remove(page)
        USED.append(page)
        page.pins += 1
        return page.times

    def loaded_size(self):
        return sum(page.size for page in self.pages if page.memory is not None)

    def free_memory(self, size):
        return evict(size, self.pages)

    def prioritize(self):
        pass


USED: list[Page] = []  # with memory, the one that was asked for least recently first


def evict(size, pages=None) -> int:
    """Takes the memory of pages (of these alone, where some are named) until so many bytes are free; says how many."""
    freed = 0
    for page in list(USED):
        if freed < size and not page.pins and (pages is None or page in pages):
            with torch.inference_mode():
                page.memory.fill_(255)  # NaN in every type
            page.memory, freed = None, freed + page.size
            USED.remove(page)
    return freed


def unpin(alloc):
    if alloc is not None:
        page = alloc[0].pages[alloc[1]]
        page.pins = max(0, page.pins - 1)


class HostBuffer:
    """Pinned memory of the computer, of which there is none."""

    size = 0

    def __init__(self, *_, **__):
        pass

    def truncate(self, *_, **__):
        pass


def load_safetensors(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


DATA = torch.Tensor.data


def set_data(parameter, data):
    """``parameter.data = data``, which PyTorch refuses where the device's tensors are of a class of their own."""
    if type(data) is type(DATA.__get__(parameter)) is torch.Tensor:
        DATA.__set__(parameter, data)
    else:
        torch.utils.swap_tensors(parameter, torch.nn.Parameter(data, requires_grad=parameter.requires_grad))


def install():
    torch.nn.Parameter.data = OtherTensor.data = property(DATA.__get__, set_data)
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR, vbar.vbar_unpin = ModelVBAR, unpin
    vbar.vbar_fault = lambda alloc: alloc[0].fault(alloc[1])
    vbar.vbar_signature_compare = lambda times, before: times == before
    vbar.vbars_analyze = lambda device=None: 0
    vbar.vbars_reset_watermark_limits = lambda: None
    comfy_aimdo.torch.aimdo_to_tensor = lambda alloc, device: alloc[0].pages[alloc[1]].memory
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy.utils.load_safetensors = load_safetensors
    args.disable_pinned_memory = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
