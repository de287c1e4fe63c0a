"""What a network makes while it trains, as one picture: a clip a row, its frames from left to right."""

import contextlib
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ..denoise import Denoiser
from ..guide.cfg import with_cfg
from ..sample import ddim_step, sample_clip
from ..systems import cmd, snap, vdm
from ..systems.beside_image import BesideImage
from ..systems.image import PixelUNet
from ..systems.snap.sample import make_clips
from ..systems.snap.stages import shrink
from ..video import write_picture
from .data import Batch
from .state import EMA

ROWS, STEPS, GUIDANCE = 4, 20, 3.0


def save_samples(path: Path, module: nn.Module, ema: EMA, batch: Batch, seed: int) -> None:
    """Sample from the averaged weights for the first captions of a batch, with 20 steps and guidance scale 3.

    Neither the weights that train nor any random state is touched. An autoencoder's row is a clip of the batch and below it
    what comes back.

    Args:
        path: of the PNG.
        module: all that trains, as the system built it.
        ema: its average.
        batch: of this step.
        seed: of the samples.
    """
    part = batch.split(ROWS)[0]
    with torch.random.fork_rng(devices=[]), averaged(module, ema), torch.no_grad():
        clips = sampled(module, part, seed).float().clamp(-1, 1)
    grid = rearrange((clips + 1) * 127.5, "b c t h w -> (b h) (t w) c").round().byte().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, grid)


@contextlib.contextmanager
def averaged(module: nn.Module, ema: EMA):
    """Inside, the module evaluates with its averaged weights."""
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    training = [part for part in module.modules() if part.training]
    module.load_state_dict(ema.average)
    module.eval()
    try:
        yield
    finally:
        module.load_state_dict(kept)
        for part in training:
            part.training = True


def sampled(module: nn.ModuleDict, batch: Batch, seed: int) -> Tensor:
    """Clips B C T H W of the system that ``module`` belongs to, for the captions of a batch."""
    if "codec" in module and "net" not in module:
        encoded = module["codec"].encode(batch.clips)
        back = module["codec"].decode(encoded.content, encoded.motion)
        return torch.stack([batch.clips, back], dim=1).flatten(0, 1)
    context = (module["text"] if "text" in module else module.text)(batch.tokens)
    net = next(module[name] for name in ("net", "moving", "inflated") if name in module)
    frames = batch.clips.shape[2] - _images(batch)
    shape = (len(context), batch.clips.shape[1], frames, *batch.clips.shape[3:])
    if isinstance(net, snap.FIT):
        low = shrink(batch.clips[:, :, :frames], net.config) if net.config.low_resolution else None
        return make_clips(net, context, STEPS, seed, GUIDANCE, low=low)
    if isinstance(net, vdm.UNet3D):
        return _walk(Denoiser(net, net.config.prediction, net.config.schedule), net.config.schedule, shape, seed, context)
    if isinstance(net, cmd.MotionDiT):
        encoded = module["codec"].encode(batch.clips)
        content = encoded.content[:, 0]

        def with_content(z: Tensor, log_snr: Tensor, context: Tensor) -> Tensor:
            return net(z, log_snr, context, content=content.repeat(len(z) // len(content), 1, 1, 1))

        denoiser = Denoiser(with_content, net.config.prediction, net.config.schedule)
        motion = _walk(denoiser, net.config.schedule, encoded.motion.shape, seed, context)
        return module["codec"].decode(encoded.content, motion)
    if isinstance(net, BesideImage):
        if isinstance(net.net, PixelUNet):
            return _walk(net, net.net.schedule, shape, seed, context)
        latents = _walk(net, net.net.schedule, shape, seed, context, module.text(torch.zeros_like(batch.tokens)))
        return torch.stack([net.net.pictures(clip.transpose(0, 1)).transpose(0, 1) for clip in latents])
    assert isinstance(net, PixelUNet)

    def picture(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return net(z[:, :, 0], t.float(), context)[:, :, None]

    return _walk(picture, net.schedule, (*shape[:2], 1, *shape[3:]), seed, context)


def _images(batch: Batch) -> int:
    return 0 if batch.image_tokens is None else batch.image_tokens.shape[1]


def _walk(denoiser, schedule, shape: tuple[int, ...], seed: int, context: Tensor, negative: Tensor | None = None) -> Tensor:
    """`sample_clip` on the device of the context; ``negative`` is the empty caption's, all zeros by default."""
    guided, device = with_cfg(denoiser, GUIDANCE), context.device

    def on_device(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return guided(z.to(device), t.to(device), context=context, negative=negative).cpu()

    return sample_clip(on_device, schedule, shape, STEPS, ddim_step, seed, context=context).to(device)
