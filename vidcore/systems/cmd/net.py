"""CMD's motion model: a DiT that makes a motion latent for a content frame (arXiv 2403.14148, section 3.2)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ...layers.dit import DiTBlock, modulate
from ...layers.embed import AttentionPooling, grid_positions, log_snr_features
from .config import MotionConfig

NOISE_FEATURES = 256


class MotionDiT(nn.Module):
    """Noisy motion latent, log-SNR, content frame and text in; eps, v or x-hat out, as the config's ``prediction`` says.

    The latent is a picture T x (H' + W') cut into patches. Patches of the content frame are further tokens of the same
    sequence, with an embedding of their own; the output is read at the latent's. Log-SNR and text act through adaptive
    norms.

    Args:
        config: sizes.
        operations: layer namespace, `torch.nn` or the host's.
        device, dtype: of the parameters.
    """

    def __init__(self, config: MotionConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        layer = dict(device=device, dtype=dtype)
        self.config = config
        entries = config.latent * config.patch**2
        self.motion_in = operations.Linear(entries, config.width, **layer)
        self.content_in = operations.Linear(config.content_channels * config.content_patch**2, config.width, **layer)
        self.noise = nn.Sequential(
            operations.Linear(NOISE_FEATURES, config.width, **layer),
            nn.SiLU(),
            operations.Linear(config.width, config.width, **layer),
        )
        self.pool = (
            AttentionPooling(config.context, config.width, operations=operations, **layer) if config.context else None
        )
        self.blocks = nn.ModuleList(DiTBlock(config.width, config.heads, operations, **layer) for _ in range(config.depth))
        self.norm = operations.LayerNorm(config.width, eps=1e-6, elementwise_affine=False, **layer)
        self.condition = operations.Linear(config.width, 2 * config.width, **layer)
        self.out = operations.Linear(config.width, entries, **layer)

    def init_weights(self) -> "MotionDiT":
        """Initialise for training as DiT does: every block starts as the identity, and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (*(block.condition for block in self.blocks), self.condition, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.pool is not None:  # at first it averages all tokens: let one word of twenty be heard
            nn.init.normal_(self.pool.value.weight)
        return self

    def forward(self, z: Tensor, log_snr: Tensor, context: Tensor | None = None, *, content: Tensor) -> Tensor:
        """One evaluation of the network.

        Args:
            z: noisy motion latents B D T (H' + W'); both sizes multiples of ``config.patch``.
            log_snr: lambda_t, shape B.
            context: text tokens B L C; None or zeros for unconditional.
            content: content frames B C H W; both sizes multiples of ``config.content_patch``. They stay in both halves of
                classifier-free guidance (section 3.3).

        Returns:
            B D T (H' + W').

        Raises:
            ValueError: if a shape does not fit.
        """
        config, patch = self.config, self.config.patch
        self._check(z, content)
        rows, columns = z.shape[2] // patch, z.shape[3] // patch
        tokens = self.motion_in(rearrange(z, "b d (t p) (s q) -> b t s (d p q)", p=patch, q=patch))
        picture = rearrange(content, "b c (h p) (w q) -> b h w (c p q)", p=config.content_patch, q=config.content_patch)
        tokens = torch.cat([_placed(tokens), _placed(self.content_in(picture))], dim=1)

        c = self.noise(log_snr_features(log_snr, NOISE_FEATURES).to(tokens))
        if self.pool is not None and context is not None:
            c = c + self.pool(context)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.condition(nn.functional.silu(c))[:, None].chunk(2, dim=-1)
        tokens = self.out(modulate(self.norm(tokens[:, : rows * columns]), shift, scale))
        return rearrange(tokens, "b (t s) (d p q) -> b d (t p) (s q)", t=rows, p=patch, q=patch)

    def _check(self, z: Tensor, content: Tensor) -> None:
        config = self.config
        if z.ndim != 4 or z.shape[1] != config.latent or z.shape[2] % config.patch or z.shape[3] % config.patch:
            raise ValueError(
                f"this model takes motion latents of {config.latent} channels whose frames and entries are multiples of "
                f"{config.patch}; got shape {tuple(z.shape)}"
            )
        side = config.content_patch
        fits = content.ndim == 4 and content.shape[1] == config.content_channels
        if not fits or len(content) != len(z) or content.shape[2] % side or content.shape[3] % side:
            raise ValueError(
                f"this model takes {len(z)} content frames of {config.content_channels} channels whose height and width are "
                f"multiples of {side}; got shape {tuple(content.shape)}"
            )


def _placed(tokens: Tensor) -> Tensor:
    """Tokens of a picture B H W C with the sinusoids of their row and column added, as a sequence B (H W) C."""
    y, x = (p.to(tokens) for p in grid_positions(tokens.shape[1:3], tokens.shape[-1], tokens.device))
    return (tokens + y[:, None] + x).flatten(1, 2)
