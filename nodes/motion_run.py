"""Training a motion module on a host MODEL: many clips with a text each, and the losses of HARIVO (arXiv 2410.07763)."""

import zlib
from dataclasses import dataclass

import comfy.samplers
import torch

from ..vidcore.systems.harivo import ClipLosses, MotionModule
from ..vidcore.systems.tune_a_video import sent
from .tune_run import Run, on_device, watch

QUEUE = 64  # features of other clips that a clip is held against


class Trained(torch.nn.Module):
    """All that a run trains or has to remember: the module, and the losses with their head and queue."""

    def __init__(self, module: MotionModule, features: int, contrast: float, attention: float, seed: int):
        super().__init__()
        self.module = module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.losses = ClipLosses(features, contrast, attention, QUEUE)


@dataclass(frozen=True)
class Clip:
    """Latents of a whole video in the VAE's space, mean and deviation T C H W, and its text as CONDITIONING."""

    name: str
    mean: torch.Tensor
    deviation: torch.Tensor
    positive: list


class ClipsGuider(comfy.samplers.CFGGuider):
    """Lets the model see one of several texts, the one that ``current`` names."""

    current = 0

    def set_texts(self, texts: list[list]) -> None:
        self.inner_set_conds({f"clip{i}": text for i, text in enumerate(texts)})

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        # One at a time: those of all clips might fill the device.
        text = on_device(self.conds[f"clip{self.current}"], x.device)
        return comfy.samplers.calc_cond_batch(self.inner_model, [text], x, timestep, model_options)[0]


class MotionRun(Run):
    """`Run` over many clips: every step takes as many successive frames of one of them, both drawn from (seed, step).

    Args:
        clips: what to train on.
        length: frames of a step.
        trained: what trains. The rest is `Run`'s.
    """

    def __init__(self, model, trained: Trained, clips, length, *rest):
        super().__init__(model, trained, torch.zeros(()), *rest)
        self.losses, self.clips, self.length = trained.losses, clips, length

    def advance(self, model, denoise, prediction, mean, deviation, levels) -> torch.Tensor:
        base, draw = model.inner_model.inner_model, torch.Generator()
        draw.manual_seed(zlib.crc32(f"clip/{self.seed}/{self.tuning.step}".encode()))
        number = int(torch.randint(len(self.clips), (1,), generator=draw))
        clip = self.clips[number]
        first = int(torch.randint(len(clip.mean) - self.length + 1, (1,), generator=draw))
        model.inner_model.current = number
        latents, deviations = (x[first : first + self.length] for x in (clip.mean, clip.deviation))
        zero = base.process_latent_in(torch.zeros_like(deviations))
        given = base.process_latent_in(latents).clone(), (base.process_latent_in(deviations) - zero).clone()
        latents, deviations = (sent(x.to(mean.dtype), mean.device) for x in given)

        def more() -> torch.Tensor:
            return self.losses(watched, self.length, draw, clips=torch.full((1,), number, device=mean.device))

        with watch(base.diffusion_model, bool(self.losses.attention)) as watched:
            return self.tuning.advance(denoise, prediction, latents, deviations, levels, more)
