"""Snap Video's network: a FIT on patches of a clip (arXiv 2402.14797)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from ...layers.fit import FITBlock
from .config import SnapConfig
from .start import start_at_places

FEATURES = 256  # of a number that is told to the network


def number_features(value: Tensor, width: int = FEATURES) -> Tensor:
    """Sinusoids of numbers of any shape, with wave lengths from 2 pi / 100 to 200 pi; adds an axis of size ``width``."""
    rates = torch.exp(torch.linspace(math.log(100), math.log(0.01), width // 2, device=value.device))
    angles = value.float()[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _NumberToken(nn.Module):
    """A number as one conditioning token: shape B in, B 1 E of a given dtype out."""

    def __init__(self, width: int, operations=nn, **factory):
        super().__init__()
        self.into = operations.Linear(FEATURES, width, **factory)
        self.out = operations.Linear(width, width, **factory)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        features = number_features(value).to(dtype)  # not that of the weights, which the host may keep in 8 bits
        return self.out(nn.functional.silu(self.into(features)))[:, None]


class FIT(nn.Module):
    """Scaled noisy clip, c_noise and conditions in; the F of `vidcore.edm.EDM.denoise` out.

    Every group of patches spans all frames, so that latents mix space and time at once. Images are clips of like frames
    whose frames follow one another after no time at all: an infinite frame rate.

    Args:
        config: sizes.
        operations: layer namespace, `torch.nn` or the host's.
        device, dtype: of the parameters.
    """

    def __init__(self, config: SnapConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        layer = dict(device=device, dtype=dtype)
        made = dict(operations=operations, **layer)
        self.config = config
        pixels = config.channels * config.patch**2
        self.patch_in = operations.Linear(pixels * (2 if config.low_resolution else 1), config.token, **layer)
        self.place = nn.Parameter(torch.empty(config.frames, *config.patches, config.token, **layer))
        self.latents = nn.Parameter(torch.empty(config.latents, config.latent_width, **layer))
        self.previous = operations.Linear(config.latent_width, config.latent_width, **layer)
        self.previous_norm = operations.LayerNorm(config.latent_width, **layer)
        self.noise_token = _NumberToken(config.condition, **made)
        self.interval_token = _NumberToken(config.condition, **made)
        self.size_token = _NumberToken(config.condition, **made)
        self.corruption_token = _NumberToken(config.condition, **made) if config.low_resolution else None
        self.text_token = operations.Linear(config.context, config.condition, **layer) if config.context else None
        self.blocks = nn.ModuleList(
            FITBlock(
                config.token, config.latent_width, config.condition, config.layers, config.head_width,
                config.latent_head_width, config.dropout, **made,
            )
            for _ in range(config.blocks)
        )  # fmt: skip
        self.norm = operations.LayerNorm(config.token, **layer)
        self.patch_out = operations.Linear(config.token, pixels, **layer)

    def init_weights(self) -> "FIT":
        """Initialise for training, as `start` says; the output and what comes of earlier latents start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        start_at_places(self)
        for parameter in (self.patch_out.weight, self.previous_norm.weight):
            nn.init.zeros_(parameter)
        return self

    def forward(
        self,
        z: Tensor,
        c_noise: Tensor,
        context: Tensor | None = None,
        *,
        interval: Tensor,
        size: Tensor,
        low_resolution: Tensor | None = None,
        corruption: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One evaluation of the network.

        Args:
            z: the scaled noisy clip, B C T H W of the config's sizes.
            c_noise: what `EDM.c_noise` says of the noise, shape B.
            context: text tokens B L C; zeros, or None, for no text.
            interval: seconds from one frame to the next, shape B; 0 for images.
            size: the number of rows of pixels that the clip had originally, shape B.
            low_resolution: for the second stage: the clip of the first, corrupted, enlarged to the shape of ``z``.
            corruption: for the second stage: ln of the noise level of ``low_resolution``, shape B.
            previous: the latents of an earlier evaluation on the same clip, B M D (self-conditioning).

        Returns:
            F, of the shape of ``z``, and the latents B M D. No gradient flows into ``previous``.

        Raises:
            ValueError: if a shape does not fit.
        """
        self._check(z, low_resolution)
        config, (rows, columns) = self.config, self.config.groups
        if low_resolution is not None:
            z = torch.cat([z, low_resolution], dim=1)
        z = nn.functional.pad(z, (0, 0, 0, config.padding))
        tokens = rearrange(z, "b c t (h p) (w q) -> b t h w (c p q)", p=config.patch, q=config.patch)
        tokens = self.patch_in(tokens) + self.place.to(tokens)
        patches = rearrange(tokens, "b t (r h) (s w) c -> b (r s) (t h w) c", r=rows, s=columns)

        latents = self.latents.to(patches).expand(len(z), -1, -1)
        if previous is None:
            previous = torch.zeros_like(latents)
        previous = previous.detach().to(latents)
        latents = latents + self.previous_norm(previous + self.previous(previous))
        latents = latents.unflatten(1, (rows * columns, -1))

        conditions = self.conditions(c_noise, interval, size, corruption, context, z.dtype)
        for block in self.blocks:
            patches, latents = block(patches, latents, conditions)
        made = self.patch_out(self.norm(patches))
        made = rearrange(
            made, "b (r s) (t h w) (c p q) -> b c t (r h p) (s w q)", r=rows, s=columns, h=config.group[0],
            w=config.group[1], p=config.patch, q=config.patch,
        )  # fmt: skip
        return made[..., : config.height, :], latents.flatten(1, 2)

    def conditions(
        self,
        c_noise: Tensor,
        interval: Tensor,
        size: Tensor,
        corruption: Tensor | None,
        context: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """The conditioning tokens B L E in ``dtype``: noise level, frame interval, original size, corruption, text."""
        numbers = [  # 4 c_noise is ln sigma
            (self.noise_token, 4 * c_noise), (self.interval_token, interval), (self.size_token, size.float().log()),
        ]  # fmt: skip
        if self.corruption_token is not None:
            numbers.append((self.corruption_token, corruption))
        tokens = [token(number, dtype) for token, number in numbers]
        if self.text_token is not None and context is not None:
            tokens.append(self.text_token(context))
        return torch.cat(tokens, dim=1)

    def _check(self, z: Tensor, low_resolution: Tensor | None) -> None:
        config = self.config
        expected = (config.channels, config.frames, config.height, config.width)
        if tuple(z.shape[1:]) != expected:
            raise ValueError(
                f"this model makes {config.frames} frames of {config.width}x{config.height} in {config.channels} channels; "
                f"expected shape {expected}, got {tuple(z.shape[1:])}"
            )
        if (low_resolution is not None) != config.low_resolution:
            raise ValueError(
                "this model enlarges a clip, and needs the clip of the first stage"
                if config.low_resolution
                else "this model makes clips from noise alone; it takes no clip to enlarge"
            )
        if low_resolution is not None and low_resolution.shape != z.shape:
            raise ValueError(
                f"the clip to enlarge must be resized to {tuple(z.shape)} first; got {tuple(low_resolution.shape)}"
            )
