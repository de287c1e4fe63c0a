"""The factorised space-time 3-D U-Net of Video Diffusion Models, section 3."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...layers.attention import SpatialAttention, TemporalAttention
from ...layers.embed import AttentionPooling, log_snr_features, place_features
from ...layers.norm import group_norm
from ...layers.resnet import Downsample, ResBlock, Upsample
from .config import VDMConfig


class Block(nn.Module):
    """Residual block, then (where the config asks) spatial and temporal attention, in the paper's order."""

    def __init__(self, channels: int, out: int, attend: bool, config: VDMConfig, **factory):
        super().__init__()
        self.res = ResBlock(channels, out, config.embedding, config.dropout, **factory)
        self.spatial = SpatialAttention(out, config.head_width, **factory) if attend else None
        self.temporal = TemporalAttention(out, config.head_width, config.longest, **factory) if attend else None

    def forward(self, x: Tensor, embedding: Tensor, frames: int, images: int) -> Tensor:
        x = self.res(x, embedding)
        return x if self.spatial is None else self.temporal(self.spatial(x), frames, images)


class UNet3D(nn.Module):
    """Noisy clip, log-SNR and text tokens in; eps, v or x-hat out, as the config's ``prediction`` says.

    Args:
        config: sizes.
        operations: layer namespace, `torch.nn` or the host's.
        device, dtype: of the parameters.
    """

    def __init__(self, config: VDMConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = dict(operations=operations, device=device, dtype=dtype)
        layer = dict(device=device, dtype=dtype)
        self.config = config
        widths = [config.channels * m for m in config.multipliers]
        attends = [config.size // config.patch // 2**level in config.attention_sizes for level in range(len(widths))]

        self.pool = AttentionPooling(config.context, config.embedding, **factory) if config.context else None
        self.place = operations.Linear(config.places, config.embedding, bias=False, **layer) if config.places else None
        self.embed = nn.ModuleList(
            operations.Linear(config.embedding, config.embedding, **layer) for _ in range(config.embedding_layers)
        )

        self.stem = operations.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1, **layer)
        self.down, skips, width = nn.ModuleList(), [widths[0]], widths[0]
        for level, out in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Block(width, out, attends[level], config, **factory))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(Downsample())
                skips.append(width)

        self.middle = nn.ModuleList(
            [Block(width, width, True, config, **factory), Block(width, width, False, config, **factory)]
        )

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(width + skips.pop(), out, attends[level], config, **factory))
                width = out
            if level > 0:
                self.up.append(Upsample())

        self.norm = group_norm(width, **factory)
        self.head = operations.Conv2d(width, config.in_channels * config.patch**2, 3, padding=1, **layer)

    def init_weights(self) -> "UNet3D":
        """Initialise for training: the framework's defaults, and zeros where a layer should start as the identity."""
        for module in self.modules():
            if isinstance(module, ResBlock):  # every block starts as its skip
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
            elif isinstance(module, SpatialAttention):  # so does attention over space
                nn.init.zeros_(module.out.weight)
                nn.init.zeros_(module.out.bias)
            elif isinstance(module, TemporalAttention):
                module.init_places()
            elif isinstance(module, AttentionPooling):  # at first it averages all tokens: let one word of twenty be heard
                nn.init.normal_(module.value.weight)
        if self.place is not None:  # as loud as the other parts of the conditioning vector
            nn.init.normal_(self.place.weight)
        nn.init.zeros_(self.head.weight)  # the first output is zero, near the mean of every target
        nn.init.zeros_(self.head.bias)
        return self

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        context: Tensor | None = None,
        images: int = 0,
        image_context: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            z: noisy clips, B C T H W; height and width multiples of ``config.stride``.
            log_snr: lambda_t, shape B.
            context: text tokens of the clips, B L D; None or zeros for unconditional.
            images: how many of the T frames, counted from the end, are independent images (joint training).
            image_context: text tokens of those images, B images L D; by default unconditional.

        Returns:
            B C T H W.

        Raises:
            ValueError: if a shape does not fit.
        """
        batch, channels, frames, height, width = z.shape
        if channels != self.config.in_channels or height % self.config.stride or width % self.config.stride:
            raise ValueError(
                f"this model takes clips of {self.config.in_channels} channels whose height and width are multiples of "
                f"{self.config.stride}; got {channels} channels of {height}x{width}"
            )
        if not 0 <= images <= frames:
            raise ValueError(f"images must lie between 0 and the {frames} frames given, got {images}")

        embedding = self._embedding(log_snr, context, frames, images, image_context, z.dtype)  # (B T) E
        h = self.stem(F.pixel_unshuffle(rearrange(z, "b c t h w -> (b t) c h w"), self.config.patch))
        skips = [h]
        for module in self.down:
            h = module(h) if isinstance(module, Downsample) else module(h, embedding, frames, images)
            skips.append(h)
        for module in self.middle:
            h = module(h, embedding, frames, images)
        for module in self.up:
            if isinstance(module, Upsample):
                h = module(h)
            else:
                h = module(torch.cat([h, skips.pop()], dim=1), embedding, frames, images)
        h = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.config.patch)
        return rearrange(h, "(b t) c h w -> b c t h w", b=batch)

    def _embedding(self, log_snr, context, frames, images, image_context, dtype) -> Tensor:
        """Log-SNR and text to the one vector that every residual block adds: (B T) E."""
        h = self.embed[0](log_snr_features(log_snr, self.config.embedding).to(dtype))
        h = h[:, None].expand(-1, frames, -1)  # B T E
        clip = frames - images
        if self.place is not None and clip > 1:  # a picture stands nowhere
            place = self.place(place_features(clip, self.config.places, h.device).to(dtype))
            h = h + F.pad(place, (0, 0, 0, images))
        if self.pool is not None and context is not None:
            text = self.pool(context)[:, None].expand(-1, clip, -1)
            if image_context is None:
                pictures = text.new_zeros(text.shape[0], images, text.shape[2])
            else:
                pictures = self.pool(image_context.flatten(0, 1)).unflatten(0, image_context.shape[:2])
            h = h + torch.cat([text, pictures], dim=1)
        for layer in self.embed[1:]:
            h = layer(F.silu(h))
        return h.flatten(0, 1)
