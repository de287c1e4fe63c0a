"""FIT's block: many patch tokens, of which few latent tokens read, on which the work is done, and which write back.

FIT (Chen & Li 2023, arXiv 2305.12689) as Snap Video has it (arXiv 2402.14797): patches stand in
groups, each with latents of its own; all latents together attend to one another; the local self-attention of the original is
replaced by a feed-forward layer after each cross-attention.
"""

from einops import rearrange
from torch import Tensor, nn

from .attention import attention


class FeedForward(nn.Module):
    """Pre-norm layer four times as wide, plus its input."""

    def __init__(self, width: int, dropout: float = 0.0, operations=nn, **factory):
        super().__init__()
        self.norm = operations.LayerNorm(width, **factory)
        self.into = operations.Linear(width, 4 * width, **factory)
        self.act = nn.GELU()
        self.drop = nn.Dropout(dropout)
        self.back = operations.Linear(4 * width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.drop(self.act(self.into(self.norm(x)))))


class CrossAttention(nn.Module):
    """Tokens x read from others: pre-norm attention and a feed-forward layer, each plus its input.

    Args:
        width: channels of x, and of the attention.
        other: channels of what is read.
        head_width: of the attention; it divides ``width``.
    """

    def __init__(self, width: int, other: int, head_width: int, operations=nn, **factory):
        super().__init__()
        self.heads = width // head_width
        self.norm = operations.LayerNorm(width, **factory)
        self.norm_other = operations.LayerNorm(other, **factory)
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_kv = operations.Linear(other, 2 * width, bias=False, **factory)
        self.out = operations.Linear(width, width, **factory)
        self.feed_forward = FeedForward(width, operations=operations, **factory)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """x: N L C, other: N M C'; the shape of x out."""
        key, value = self.to_kv(self.norm_other(other)).chunk(2, dim=-1)
        return self.feed_forward(x + self.out(attention(self.to_q(self.norm(x)), key, value, self.heads)))


class SelfAttention(nn.Module):
    """Pre-norm self-attention and a feed-forward layer with dropout, each plus its input; tokens N L C."""

    def __init__(self, width: int, head_width: int, dropout: float, operations=nn, **factory):
        super().__init__()
        self.heads = width // head_width
        self.norm = operations.LayerNorm(width, **factory)
        self.qkv = operations.Linear(width, 3 * width, bias=False, **factory)
        self.out = operations.Linear(width, width, **factory)
        self.feed_forward = FeedForward(width, dropout, operations, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(x + self.out(attention(*self.qkv(self.norm(x)).chunk(3, dim=-1), self.heads)))


class FITBlock(nn.Module):
    """Read the conditions, read the patches, compute, write (Snap Video's order).

    Args:
        width: channels of a patch token.
        latent_width: of a latent token.
        condition_width: of a conditioning token.
        layers: self-attention layers over all latents.
        head_width, latent_head_width: where patches ask, and where latents do.
        dropout: in the feed-forward layers after self-attention.
    """

    def __init__(
        self, width: int, latent_width: int, condition_width: int, layers: int, head_width: int, latent_head_width: int,
        dropout: float = 0.0, operations=nn, **factory,
    ):  # fmt: skip
        super().__init__()
        made = dict(operations=operations, **factory)
        self.read_conditions = CrossAttention(latent_width, condition_width, latent_head_width, **made)
        self.read = CrossAttention(latent_width, width, latent_head_width, **made)
        self.compute = nn.ModuleList(SelfAttention(latent_width, latent_head_width, dropout, **made) for _ in range(layers))
        self.write = CrossAttention(width, latent_width, head_width, **made)

    def forward(self, patches: Tensor, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            patches: B G N C, G groups of N patches.
            latents: B G M D, M of them for each group.
            conditions: B L E.

        Returns:
            patches and latents, of the same shapes.
        """
        batch, groups = patches.shape[:2]
        latents = self.read_conditions(rearrange(latents, "b g m d -> b (g m) d"), conditions)
        latents = rearrange(latents, "b (g m) d -> (b g) m d", g=groups)
        patches = rearrange(patches, "b g n c -> (b g) n c")
        latents = rearrange(self.read(latents, patches), "(b g) m d -> b (g m) d", b=batch)
        for layer in self.compute:
            latents = layer(latents)
        latents = rearrange(latents, "b (g m) d -> (b g) m d", g=groups)
        patches = self.write(patches, latents)
        return patches.unflatten(0, (batch, groups)), latents.unflatten(0, (batch, groups))
