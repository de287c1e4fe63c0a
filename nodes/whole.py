"""The host's layers with weights from the start.

Where the host pages weights in and out (what it calls dynamic VRAM, which NVIDIA's GPUs have unless it is turned off), its
linear layers and embeddings have none until a checkpoint is loaded into them: none to draw, to compare, or to train.
"""

import comfy.ops
import torch


class WholeLayers(comfy.ops.manual_cast):
    """As ``operations`` of a network. The host lets layers alone that load their weights in a way of their own."""

    class Linear(comfy.ops.manual_cast.Linear):
        _load_from_state_dict = torch.nn.Linear._load_from_state_dict

    class Embedding(comfy.ops.manual_cast.Embedding):
        _load_from_state_dict = torch.nn.Embedding._load_from_state_dict
