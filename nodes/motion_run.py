"""Training a motion module on a host MODEL: many clips with a text each, and the losses of HARIVO (arXiv 2410.07763)."""

import zlib
from dataclasses import dataclass

import comfy.samplers
import torch

from ..vidcore.systems.harivo import FeatureQueue, MotionModule, ProjectionHead, decoupled_contrastive
from .tune_run import Run, watch

QUEUE = 64  # features of other clips that a clip is held against


class Trained(torch.nn.Module):
    """All that a run trains or has to remember: the module, the head that is thrown away, and the queue."""

    def __init__(self, module: MotionModule, features: int, seed: int):
        super().__init__()
        self.module, self.queue = module, FeatureQueue(QUEUE, features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.head = ProjectionHead(features)


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
        text = self.conds[f"clip{self.current}"]
        return comfy.samplers.calc_cond_batch(self.inner_model, [text], x, timestep, model_options)[0]


class MotionRun(Run):
    """`Run` over many clips: every step takes as many successive frames of one of them, both drawn from (seed, step).

    Args:
        clips: what to train on.
        length: frames of a step.
        contrast, regularise: weights of the decoupled contrastive and of the attention loss; 0 leaves one out.
        trained: what trains. The rest is `Run`'s.
    """

    def __init__(self, model, trained: Trained, clips, length, contrast, regularise, *rest):
        super().__init__(model, trained, torch.zeros(()), *rest)
        self.trained, self.clips, self.length = trained, clips, length
        self.contrast, self.regularise = contrast, regularise
        self.inside: list | None = None

    def advance(self, model, denoise, prediction, mean, deviation, levels) -> float:
        base, draw = model.inner_model.inner_model, torch.Generator()
        draw.manual_seed(zlib.crc32(f"clip/{self.seed}/{self.tuning.step}".encode()))
        number = int(torch.randint(len(self.clips), (1,), generator=draw))
        clip = self.clips[number]
        first = int(torch.randint(len(clip.mean) - self.length + 1, (1,), generator=draw))
        pair = torch.randperm(self.length, generator=draw)[:2]
        model.inner_model.current = number
        latents, deviations = (x[first : first + self.length] for x in (clip.mean, clip.deviation))
        zero = base.process_latent_in(torch.zeros_like(deviations))
        latents = base.process_latent_in(latents).clone().to(mean)
        deviations = (base.process_latent_in(deviations) - zero).clone().to(mean)

        def more() -> torch.Tensor:
            own, total = torch.tensor([number]), mean.new_zeros(())
            if self.contrast:
                first, second = watched.features[pair]
                others = self.trained.head(self.trained.queue.negatives(own)[0])
                total = total + self.contrast * decoupled_contrastive(
                    self.trained.head(first[None]), self.trained.head(second[None]), others
                )
            if self.regularise:
                total = total + self.regularise * watched.regularised(self.length)
            return total

        with watch(base.diffusion_model, bool(self.regularise)) as watched:
            loss = self.tuning.advance(denoise, prediction, latents, deviations, levels, more)
            self.trained.queue.push(watched.features[pair[:1]], torch.tensor([number]))
        return loss
