"""What is done to a network from outside so that it fits and goes fast, in this order: recompute, compile, share or shard.

Networks themselves are single-device code and know of none of it.
"""

from functools import partial

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..layers.dit import DiTBlock
from ..layers.fit import FITBlock
from ..layers.timesformer import TimeSformerBlock
from ..systems.harivo.net import TemporalLayer
from ..systems.image import TransformerBlock
from ..systems.image.net import Residual
from ..systems.tune_a_video import TunedBlock
from ..systems.vdm.net import Block
from .config import Phase, TrainConfig
from .data import Batch
from .processes import rank_and_count

# The blocks that networks repeat: each is recomputed, compiled and sharded as one.
BLOCKS = (Block, FITBlock, DiTBlock, TimeSformerBlock, TransformerBlock, Residual, TemporalLayer, TunedBlock)

# Of a compiled block, for the kinds of batch that there are: lengths, sizes, with and without pictures beside.
VERSIONS = 16


class Objective(nn.Module):
    """The loss of a system as a module, so that several processes can share its gradients."""

    def __init__(self, module: nn.Module, system, config: TrainConfig):
        super().__init__()
        self.module, self.system, self.config = module, system, config

    def forward(self, part: Batch, phase: Phase, generator: torch.Generator) -> Tensor:
        return self.system.loss(self.module, part, self.config, phase, generator)


def blocks_in(module: nn.Module) -> list[nn.Module]:
    """The outermost `BLOCKS` of a module, its frozen image model's among them."""
    found, inside = [], set()
    for part in (*module.modules(), *(m for p in module.modules() for b in getattr(p, "_beside", ()) for m in b.modules())):
        if isinstance(part, BLOCKS) and part not in inside:
            found.append(part)
            inside |= set(part.modules())
    return found


def matrices_in(module: nn.Module) -> list[nn.Parameter]:
    """The module's own weights of two axes inside its blocks, as far as they train."""
    inside = {id(weight) for block in blocks_in(module) for weight in block.parameters()}
    return [weight for weight in module.parameters() if id(weight) in inside and weight.ndim == 2 and weight.requires_grad]


def prepare(module: nn.Module, system, config: TrainConfig, device: torch.device) -> nn.Module:
    """The objective of ``module``, made ready as the recipe says.

    Args:
        module: all that trains, on ``device``; what is sharded, is so in place.
        system: one of `SYSTEMS`.
        config: the recipe, of which ``recompute``, ``compile`` and ``shard`` count.
        device: of this process.

    Returns:
        The objective; of several processes one whose gradients are the mean over all.

    Raises:
        ValueError: if one process alone is to shard.
    """
    if config.recompute:
        for block in blocks_in(module):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if config.compile:
        blocks = blocks_in(module)
        # The limit counts the versions of one function, which blocks of a class share; past it they run uncompiled.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VERSIONS * len(blocks))
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VERSIONS * len(blocks))
        for block in blocks:
            block.compile(backend=config.compile)
    objective, count = Objective(module, system, config), rank_and_count()[1]
    if config.shard:
        if count == 1:
            raise ValueError("'shard' is for several processes; please start with torchrun, or leave it out")
        mesh = init_device_mesh(device.type, (count,))
        own = set(module.modules())  # a frozen image model beside it stays whole on each
        for block in blocks_in(module):
            if block in own:
                fully_shard(block, mesh=mesh)
        return fully_shard(objective, mesh=mesh)
    if count == 1:
        return objective
    # A batch of pictures alone, or one without captions, leaves parts of a network out.
    return DistributedDataParallel(objective, find_unused_parameters=True, broadcast_buffers=False)


def share_gradients(objective: nn.Module, share: bool) -> None:
    """Whether the next backward pass shares its gradients with the other processes, or only adds them up here."""
    if isinstance(objective, DistributedDataParallel):
        objective.require_backward_grad_sync = share
    elif hasattr(objective, "set_requires_gradient_sync"):
        objective.set_requires_gradient_sync(share)
