"""Trains models/shapes-harivo.safetensors: a motion module for models/shapes-image.safetensors, on clips of the shapes.

Run it with the host's Python, as `train_shapes_image.py`::

    PYTHONPATH=. python models/train_shapes_harivo.py COMFYUI models/shapes-harivo.toml

Run it again to resume. What the training loop writes beside its state is the whole average, head and queue included; at the
end the module alone goes into the recipe's ``output``. ``--score`` judges a trained file on prompts.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from train_shapes_image import build

from vidcore import weights
from vidcore.data.shapes import caption, random_scene
from vidcore.guide.cfg import with_cfg
from vidcore.metrics.tracker import agreement
from vidcore.objective import add_noise, drop, squared_error
from vidcore.sample import ddim_step, sample_clip
from vidcore.schedule import alpha_sigma
from vidcore.systems.harivo import ClipLosses, HarivoConfig, MotionModule, checkpoint
from vidcore.systems.harivo.wire import Watched, WithTemporal, moved_input
from vidcore.systems.image import from_info
from vidcore.systems.tune_a_video import Block
from vidcore.text import TextEncoder, Vocabulary
from vidcore.train.config import read_config
from vidcore.train.loop import train


@dataclass(frozen=True)
class Sizes:
    """The recipe's ``model``.

    Args:
        frames: of a clip.
        frame_tokens, mapping: as in `HarivoConfig`.
        contrast, attention_loss: weights of the two losses.
        queue: features of other clips that a clip is held against.
    """

    frames: int = 8
    frame_tokens: int = 4
    mapping: int = 32
    contrast: float = 0.01
    attention_loss: float = 0.01
    queue: int = 64
    stride: int = 8

    @property
    def longest(self) -> int:
        return self.frames


class Base:
    """The frozen image model with its text encoder, in the host's own network class, and a motion module wired into it."""

    def __init__(self, comfyui: Path, path: Path):
        tensors, info = weights.load(path)
        self.config, words = from_info(info)
        self.net, self.text = build(comfyui, self.config), TextEncoder(words)
        weights.load_into(self.net, weights.part(tensors, "net."), "network")
        weights.load_into(self.text, weights.part(tensors, "text."), "text encoder")
        for part in (self.net, self.text):
            part.eval().requires_grad_(False)
        self.module: MotionModule | None = None

    def transformers(self) -> list[tuple[str, nn.Module]]:
        return [(name, part) for name, part in self.net.named_modules() if type(part).__name__ == "BasicTransformerBlock"]

    def wire(self, sizes: Sizes, seed: int) -> MotionModule:
        """A fresh module, whose layers the network runs from now on."""
        blocks = tuple(Block(name, p.attn1.to_q.in_features, p.n_heads) for name, p in self.transformers())
        channels = 3 * self.config.patch**2
        config = HarivoConfig(blocks, channels, self.config.context, sizes.frame_tokens, sizes.mapping, sizes.frames)
        self.module = MotionModule(config).init_weights(seed)
        for (_, part), layer in zip(self.transformers(), self.module.temporal, strict=True):
            part.forward = WithTemporal(type(part).forward.__get__(part), layer)
        return self.module

    def fingerprint(self) -> torch.Tensor:
        """As the nodes take it: 16 weights of every block's keys."""
        places = [p.attn1.to_k.weight.flatten() for _, p in self.transformers()]
        return torch.cat([w[torch.linspace(0, w.numel() - 1, 16, dtype=torch.float64).long()] for w in places]).detach()

    def denoise(self, z: torch.Tensor, t: torch.Tensor, context: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """Clips B 3 T H W with noise of times t (shape B): the x-hat that the image model and the module make of them."""
        for _, part in self.transformers():
            part.forward = replace(part.forward, strength=strength)
        batch, frames = len(z), z.shape[2]
        level = alpha_sigma(self.config.schedule.log_snr(t.double()).float())[1]
        x = F.pixel_unshuffle(rearrange(z, "b c t h w -> (b t) c h w"), self.config.patch)
        context = context.repeat_interleave(frames, dim=0)
        x, context = moved_input(self.module, x, context, level, frames, strength)
        options = {"cond_or_uncond": [0] * batch}
        times = 1000 * t.float().repeat_interleave(frames)
        out = F.pixel_shuffle(self.net(x, times, context, transformer_options=options), self.config.patch)
        return rearrange(out, "(b t) c h w -> b c t h w", b=batch)

    def watched(self, maps: bool) -> Watched:
        """What the losses look at: the bottleneck, and with ``maps`` self-attention on the way up."""
        up = [p for name, p in self.transformers() if name.startswith("output") and maps]
        return Watched(self.net.middle_block[-1], [(p.attn1.to_q, p.attn1.to_k, p.n_heads) for p in up])


class ShapesHarivo:
    """What the training loop needs to know."""

    model, takes_images = Sizes, False

    def __init__(self, comfyui: Path):
        self.comfyui = comfyui

    def build(self, config, root: Path) -> nn.ModuleDict:
        self.base = Base(self.comfyui, root / config.text_from)
        module, sizes = self.base.wire(config.model, config.seed), config.model
        width = self.base.net.middle_block[-1].out_channels
        losses = ClipLosses(width, sizes.contrast, sizes.attention_loss, sizes.queue)
        return nn.ModuleDict({"motion": module, "losses": losses}).train()

    def loss(self, module: nn.ModuleDict, batch, config, phase, generator) -> torch.Tensor:
        x = batch.clips
        noised = add_noise(x, self.base.config.schedule, generator, phase.time_power)
        context = drop(self.base.text(batch.tokens), phase.drop_context, generator)
        with self.base.watched(bool(config.model.attention_loss)) as watched:
            error = squared_error("x0", self.base.denoise(noised.z, noised.t, context), x, noised)
        return error + module["losses"](watched, x.shape[2], generator)

    def info(self, config, module: nn.ModuleDict, steps: int) -> dict:
        sizes = dataclasses.asdict(config.model)
        return checkpoint.to_info(self.base.module.config, base="ImageModel", seed=config.seed, steps=steps, recipe=sizes)


def export(whole: Path, output: Path, base: Base) -> None:
    """The module alone, with what tells its base."""
    tensors, info = weights.load(whole)
    motion = {f"module.{key}": value for key, value in weights.part(tensors, "motion.").items()}
    weights.save(output, motion | {"base": base.fingerprint()}, info)


@torch.no_grad()
def score(
    comfyui: Path, path: Path, image: Path, prompts: int, sizes: tuple[str, ...], alone: bool, seed=2024, batch=10
) -> dict:
    """The share of clips that show what their prompts say, and how steady they are. 20 DDIM steps, guidance scale 3.

    "identity" is the share of clips whose first and last frames both have the shape and colour asked for; "flicker" the mean
    over clips and successive frames of how much a corner's colour changes, in units of the range of pixels. ``alone`` leaves
    the module out.
    """
    module, _, info = checkpoint.load_motion(path)
    base = Base(comfyui, image)
    plain = Sizes(module.config.frames, module.config.frame_tokens, module.config.mapping)
    weights.load_into(base.wire(plain, 0), module.state_dict(), "motion")
    words = base.text.config
    rng, vocabulary, marks, steady = np.random.default_rng(seed), Vocabulary(words.words, words.length), [], []
    for number in range(0, prompts, batch):
        asked = [random_scene(rng, held_out=True, sizes=sizes) for _ in range(min(batch, prompts - number))]
        context = base.text(torch.tensor([vocabulary.encode(caption(scene)) for scene in asked]))
        shape = (len(asked), 3, module.config.frames, 32, 32)
        guided = with_cfg(partial(base.denoise, strength=0.0 if alone else 1.0), 3.0)
        made = sample_clip(guided, base.config.schedule, shape, 20, ddim_step, number // batch, context=context)
        for clip, scene in zip((made.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy(), asked):
            found = agreement(clip, scene)
            marks.append([found[key] for key in ("background", "count", "colour", "shape", "motion")])
            ends = [agreement(part, scene) for part in (clip[:1], clip[-1:])]
            corner = clip[:, :3, :3].mean(axis=(1, 2))
            steady.append([all(e["shape"] and e["colour"] for e in ends), np.abs(np.diff(corner, axis=0)).mean()])
        print(f"{number + len(asked)}/{prompts}", flush=True)
    names = ("background", "one thing", "colour", "shape", "motion", "everything", "identity", "flicker")
    shares = [*np.mean(marks, axis=0), float(np.mean(np.all(marks, axis=1))), *np.mean(steady, axis=0)]
    return {"steps": info["steps"], **{name: round(float(share), 4) for name, share in zip(names, shares)}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--stop-after", type=int, help="stop and save once this many steps are done in total")
    parser.add_argument("--score", type=int, metavar="PROMPTS", help="judge the trained module on so many prompts instead")
    parser.add_argument("--alone", action="store_true", help="for --score: the image model without the module")
    parser.add_argument("--sizes", default="large", help="for --score: sizes of things, such as small,,large")
    arguments = parser.parse_args()
    sys.argv[1:] = []  # the host reads them too
    system = ShapesHarivo(arguments.comfyui)
    recipe = read_config(arguments.recipe, {checkpoint.SYSTEM: system})
    output = Path(recipe.output)
    whole = output.with_suffix(".whole.safetensors")
    if arguments.score:
        kinds = tuple(arguments.sizes.split(","))
        print(json.dumps(score(arguments.comfyui, output, Path(recipe.text_from), arguments.score, kinds, arguments.alone)))
    else:
        train(dataclasses.replace(recipe, output=str(whole)), Path("."), arguments.stop_after, system=system)
        export(whole, output, system.base)
