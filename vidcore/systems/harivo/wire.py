"""Where the motion module's parts stand in an image model (arXiv 2410.07763, its figure of the whole)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ..wire import InOrder, frames_per_clip
from .net import MotionModule
from .regularise import attention_map, temporal_regularised

# A map of more tokens than this has no place in memory: 1024 is 32 x 32, half a gigabyte for 16 frames of 8 heads.
MOST_TOKENS = 1024


def moved_input(
    module: MotionModule, x: Tensor, context: Tensor, level: Tensor | float, frames: int, strength: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the image model is given instead of its noisy input and text.

    Args:
        module: the motion module.
        x: (B frames) C H W; channels after the module's own, such as an inpainting model's mask, stay.
        context: (B frames) L E; of each clip the first frame's is read.
        level: of the noise, from 0 to 1; for each clip (shape B) or for all.
        strength: of what is added; 0 leaves both as they are.

    Returns:
        x of the same shape, the context with ``frame_tokens`` more tokens, and these alone, for the temporal layers.
    """
    tokens = None
    if strength and module.mapping is not None:
        own, rest = x[:, : module.config.channels], x[:, module.config.channels :]
        clip = rearrange(own, "(b t) c h w -> b c t h w", t=frames)
        level = torch.as_tensor(level, dtype=torch.float32, device=x.device).expand(len(clip))
        clip = module.mapping(clip, level, strength)
        x = torch.cat([rearrange(clip, "b c t h w -> (b t) c h w"), rest], dim=1)
    if strength and module.frame_tokens is not None:
        tokens = module.frame_tokens(context.unflatten(0, (-1, frames))[:, 0], frames)
        context = torch.cat([context, tokens], dim=1)
    return x, context, tokens


@dataclass(frozen=True)
class WithMotion:
    """The forward of the host's transformer block, a `TemporalLayer` last.

    Args:
        block: the block's own forward.
        layer: the temporal layer.
        key: of the frames' tokens in the host's ``transformer_options``.
        strength: of what the layer adds.
    """

    block: Callable
    layer: Callable
    key: str
    strength: float = 1.0

    def __call__(self, x, context=None, transformer_options={}):
        x = self.block(x, context=context, transformer_options=transformer_options)
        if not self.strength:
            return x
        frames, size = frames_per_clip(len(x), transformer_options), tuple(transformer_options["activations_shape"][-2:])
        return InOrder.apply(self.layer(x, frames, size, transformer_options.get(self.key), self.strength))


class Watched:
    """Notes what the losses need while an image model runs: bottleneck features and self-attention maps.

    Args:
        middle: the bottleneck, the mean over whose output's pixels is the feature h.
        attentions: (W_Q, W_K, heads) of self-attention layers to compare from frame to frame; W_K is None where the first
            gives queries, keys and values at once. Those of more than 1024 tokens are left out.
    """

    def __init__(self, middle: nn.Module, attentions: list[tuple[nn.Module, nn.Module | None, int]]):
        self.middle, self.attentions = middle, attentions
        self.features: Tensor | None = None
        self.pairs: dict[int, list[Tensor]] = {}  # queries and keys of each layer
        self.handles: list = []

    def __enter__(self) -> "Watched":
        def note_middle(_, inputs, output):
            self.features = output.float().mean(dim=(-2, -1))

        def noting(number: int, place: int, together: bool) -> Callable:
            def note(_, inputs, output):
                if output.shape[1] > MOST_TOKENS:
                    return
                if together:
                    self.pairs[number] = list(output.chunk(3, dim=-1)[:2])
                else:
                    self.pairs.setdefault(number, [output, output])[place] = output

            return note

        self.handles = [self.middle.register_forward_hook(note_middle)]
        for number, (query, key, _) in enumerate(self.attentions):
            for place, layer in enumerate((query, key)):
                if layer is not None:
                    self.handles.append(layer.register_forward_hook(noting(number, place, key is None)))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def regularised(self, frames: int, images: int = 0) -> Tensor:
        """The mean of `temporal_regularised` over the layers of the last evaluation.

        Args:
            frames: of each clip.
            images: independent pictures behind them in the batch, which are left out.

        Raises:
            ValueError: if all of them have too many tokens, or none was run.
        """
        found = []
        for number, pair in self.pairs.items():
            q, k = (x.unflatten(0, (-1, frames + images))[:, :frames].flatten(0, 1) for x in pair)
            found.append(temporal_regularised(attention_map(q, k, self.attentions[number][2]), frames))
        if not found:
            raise ValueError(
                f"no self-attention layer has {MOST_TOKENS} tokens or fewer at this size; please use smaller frames, or no "
                "attention loss"
            )
        return torch.stack(found).mean()
