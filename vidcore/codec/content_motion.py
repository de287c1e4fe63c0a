"""CMD's autoencoder: a clip as one content frame and a low-dimensional motion latent (arXiv 2403.14148, section 3.1)."""

import dataclasses
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import weights
from ..layers.embed import grid_positions
from ..layers.timesformer import TimeSformerBlock

SYSTEM = "content_motion"


@dataclass(frozen=True)
class ContentMotionConfig:
    """Sizes of the autoencoder; the paper's table 5 by default.

    Args:
        frames: length L of the clips it is trained on, and of the windows that longer ones are cut into.
        channels: of a frame: 3 for pixels, 4 where clips are latents of an image model.
        size: height and width of the clips it is trained on. Others run if the patch divides them.
        width: C', channels of the tokens.
        latent: D, channels of the motion latent.
        depth: blocks of the encoder, and of the decoder.
        heads, head_width: of every attention.
        patch: pixels a side of a token.
        bounded: the motion latent lies within -1 and 1, by tanh, as in the official code; the paper does not say.
    """

    frames: int = 16
    channels: int = 3
    size: tuple[int, int] = (64, 64)
    width: int = 384
    latent: int = 8
    depth: int = 12
    heads: int = 8
    head_width: int = 64
    patch: int = 2
    bounded: bool = True

    @property
    def stride(self) -> int:
        """Height and width of a clip must be multiples of this many pixels."""
        return self.patch

    @property
    def longest(self) -> int:
        """The longest clip that is one window."""
        return self.frames

    @classmethod
    def tiny(cls) -> "ContentMotionConfig":
        """Small enough for a unit test, with every kind of part present."""
        return cls(frames=4, size=(8, 12), width=24, latent=3, depth=2, heads=2, head_width=8)


CONFIGS: dict[str, ContentMotionConfig] = {
    "tiny": ContentMotionConfig.tiny(),
    "ucf101": ContentMotionConfig(),
    "webvid_sd15": ContentMotionConfig(channels=4),
    "webvid_sd21": ContentMotionConfig(channels=4, size=(64, 128)),
}


@dataclass(frozen=True)
class Encoded:
    """What a clip became.

    Args:
        content: x-bar, one frame a window: B N C H W.
        motion: z = (z_x, z_y), B D T (H' + W'): for every frame its rows' latents, then its columns'.
        importance: the weights of the content frames, which sum to 1 over each window: B C T H W.
    """

    content: Tensor
    motion: Tensor
    importance: Tensor


class _Transformer(nn.Module):
    """Positions, then the blocks; tokens B T H' W' C'."""

    def __init__(self, config: ContentMotionConfig, operations=nn, **factory):
        super().__init__()
        self.blocks = nn.ModuleList(
            TimeSformerBlock(config.width, config.heads, config.head_width, operations, **factory)
            for _ in range(config.depth)
        )
        self.norm = operations.LayerNorm(config.width, **factory)

    def forward(self, tokens: Tensor, chunk: int) -> Tensor:
        t, y, x = (p.to(tokens) for p in grid_positions(tokens.shape[1:4], tokens.shape[-1], tokens.device))
        tokens = tokens + t[:, None, None] + y[:, None] + x
        for block in self.blocks:
            tokens = block(tokens, chunk)
        return self.norm(tokens)


class ContentMotionCodec(nn.Module):
    """Encoder and decoder.

    Args:
        config: sizes.
        operations: layer namespace, `torch.nn` or the host's.
        device, dtype: of the parameters.
    """

    def __init__(self, config: ContentMotionConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        layer = dict(device=device, dtype=dtype)
        self.config = config
        pixels = config.channels * config.patch**2
        self.clip_in = operations.Linear(pixels, config.width, **layer)
        self.encoder = _Transformer(config, operations, **layer)
        self.importance = operations.Linear(config.width, pixels, **layer)  # f_I
        self.motion_x = operations.Linear(config.width, config.latent, **layer)
        self.motion_y = operations.Linear(config.width, config.latent, **layer)
        self.content_in = operations.Linear(pixels, config.width, **layer)
        self.from_x = operations.Linear(config.latent, config.width, **layer)
        self.from_y = operations.Linear(config.latent, config.width, **layer)
        self.decoder = _Transformer(config, operations, **layer)
        self.clip_out = operations.Linear(config.width, pixels, **layer)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.clip_in.weight.dtype

    def init_weights(self) -> "ContentMotionCodec":
        """Initialise for training: at first the content frame is the mean of the frames."""
        nn.init.zeros_(self.importance.weight)
        nn.init.zeros_(self.importance.bias)
        return self

    # ----------------------------------------------------------------------------------------------------------- encode

    def encode(self, clip: Tensor, chunk: int = 0) -> Encoded:
        """A clip's content frames and motion.

        Args:
            clip: B C T H W, pixels in [-1, 1] or latents. Clips longer than ``config.frames`` are cut into windows of that
                length, the last of which may be shorter; each has a content frame of its own.
            chunk: bounds memory, see `TimeSformerBlock.forward`; the result is the same.

        Raises:
            ValueError: if the shape does not fit.
        """
        self._check(clip.shape, "clip")
        parts = [self._encode_window(window, chunk) for window in clip.split(self.config.frames, dim=2)]
        content, motion, importance = zip(*parts)
        return Encoded(torch.stack(content, dim=1), torch.cat(motion, dim=2), torch.cat(importance, dim=2))

    def _encode_window(self, clip: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.encoder(self.clip_in(self._patches(clip).to(self.dtype)), chunk)  # u
        # In the clip's own precision, so that a clip that stands still is its content frame.
        importance = self._pixels(self.importance(tokens)).to(clip.dtype).softmax(dim=2)
        content = (importance * clip).sum(dim=2)  # x-bar = sum_l x_l softmax_l(f_I(u))
        # u is averaged over the columns for z_x, which then has an entry for each row, and over the rows for z_y.
        motion = torch.cat([self.motion_x(tokens.mean(dim=3)), self.motion_y(tokens.mean(dim=2))], dim=2)
        motion = rearrange(motion, "b t s d -> b d t s")
        return content, motion.tanh() if self.config.bounded else motion, importance

    # ----------------------------------------------------------------------------------------------------------- decode

    def decode(self, content: Tensor, motion: Tensor, chunk: int = 0) -> Tensor:
        """The clip of content frames B N C H W and motion B D T (H' + W'): B C T H W.

        Raises:
            ValueError: if the two do not fit each other or this model.
        """
        batch, windows, _, height, width = content.shape
        self._check((batch, content.shape[2], motion.shape[2], height, width), "content frame")
        rows, columns = height // self.config.patch, width // self.config.patch
        expected = (batch, self.config.latent, motion.shape[2], rows + columns)
        if motion.ndim != 4 or tuple(motion.shape) != expected:
            raise ValueError(
                f"a content frame of {width}x{height} needs a motion latent of {self.config.latent} channels and {rows} + "
                f"{columns} entries a frame, shape {expected}; got {tuple(motion.shape)}"
            )
        needed = -(-motion.shape[2] // self.config.frames)
        if windows != needed:
            raise ValueError(
                f"a motion latent of {motion.shape[2]} frames needs {needed} content frames, one for each "
                f"{self.config.frames} frames; got {windows}"
            )
        parts = motion.split(self.config.frames, dim=2)
        return torch.cat([self._decode_window(content[:, i], part, rows, chunk) for i, part in enumerate(parts)], dim=2)

    def _decode_window(self, content: Tensor, motion: Tensor, rows: int, chunk: int) -> Tensor:
        still = self.content_in(self._patches(content[:, :, None]).to(self.dtype))  # v_t, B 1 H' W' C'
        motion = rearrange(motion, "b d t s -> b t s d").to(self.dtype)
        x, y = self.from_x(motion[:, :, :rows]), self.from_y(motion[:, :, rows:])
        tokens = still + x[:, :, :, None] + y[:, :, None]  # v = v_t + v_x + v_y
        return self._pixels(self.clip_out(self.decoder(tokens, chunk)))

    # ---------------------------------------------------------------------------------------------------------- patches

    def _patches(self, clip: Tensor) -> Tensor:
        p = self.config.patch
        return rearrange(clip, "b c t (h p) (w q) -> b t h w (c p q)", p=p, q=p)

    def _pixels(self, tokens: Tensor) -> Tensor:
        p = self.config.patch
        return rearrange(tokens, "b t h w (c p q) -> b c t (h p) (w q)", p=p, q=p)

    def _check(self, shape: tuple[int, ...], what: str) -> None:
        patch = self.config.patch
        if len(shape) != 5 or shape[1] != self.config.channels or shape[3] % patch or shape[4] % patch or 0 in shape:
            raise ValueError(
                f"this model takes a {what} of {self.config.channels} channels whose height and width are multiples of "
                f"{patch}; got shape {tuple(shape)}"
            )


def reconstruction_loss(
    codec: ContentMotionCodec, clip: Tensor, generator: torch.Generator | None = None, recolour: float = 0.0
) -> Tensor:
    """The autoencoder's objective, ||decode(encode(x)) - x||^2 as a mean (arXiv 2403.14148, section 3.1).

    Args:
        codec: the network being trained.
        clip: B C T H W.
        generator: source of randomness, for ``recolour``.
        recolour: ours, 0 in the paper: the probability that a clip's content frames get other colours before decoding,
            and the clip to be compared with the same. Content frames are means over time, so the change of a mean is the
            mean of the change, and the motion latent learns to leave colours to the content frame.
    """
    encoded = codec.encode(clip)
    content = encoded.content
    if recolour:
        order, scale, shift = _random_colours(len(clip), clip.shape[1], recolour, generator)
        content, clip = (_recolour(x, channels, order, scale, shift) for x, channels in ((content, 2), (clip, 1)))
    return F.mse_loss(codec.decode(content, encoded.motion).float(), clip.float())


def _random_colours(batch: int, channels: int, probability: float, generator: torch.Generator | None):
    """For each clip an order of the channels, a factor and an offset for each, which keep [-1, 1] within [-1, 1]."""
    change = torch.rand(batch, 1, generator=generator) < probability
    order = torch.rand(batch, channels, generator=generator).argsort(dim=1)
    scale = 0.4 + 0.6 * torch.rand(batch, channels, generator=generator)
    shift = (1 - scale) * (2 * torch.rand(batch, channels, generator=generator) - 1)
    scale = scale * (1 - 2 * torch.randint(2, (batch, channels), generator=generator))
    unchanged = torch.arange(channels).expand(batch, -1), torch.ones(batch, channels), torch.zeros(batch, channels)
    return (torch.where(change, new, old) for new, old in zip((order, scale, shift), unchanged))


def _recolour(x: Tensor, axis: int, order: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x`` B ... with its channels on ``axis`` reordered, scaled and shifted, each clip in its own way."""
    x = torch.stack([one.index_select(axis - 1, own.to(x.device)) for one, own in zip(x, order)])
    shape = [len(x), *(1 for _ in x.shape[1:])]
    shape[axis] = x.shape[axis]
    return x * scale.to(x).reshape(shape) + shift.to(x).reshape(shape)


# --------------------------------------------------------------------------------------------------------------- files


def to_info(config: ContentMotionConfig, **about) -> dict:
    """The JSON-able description that goes into the file; ``about`` adds where the weights come from."""
    return {"system": SYSTEM, "codec": dataclasses.asdict(config), **about}


def from_info(info: dict) -> ContentMotionConfig:
    """The inverse of `to_info`, also for files that hold more. Raises `weights.WeightsError`."""
    if "codec" not in info:
        raise weights.WeightsError(
            f"expected a model with a content-motion autoencoder, this file holds '{info['system']}'."
        )
    return weights.entry(info, "codec", ContentMotionConfig)


def load_codec(path: str | os.PathLike) -> ContentMotionCodec:
    """The autoencoder of a file, in evaluation mode on the CPU. Raises `weights.WeightsError`."""
    tensors, info = weights.load(path, "codec.")
    codec = ContentMotionCodec(from_info(info))
    weights.load_into(codec, tensors, "autoencoder")
    return codec.eval()
