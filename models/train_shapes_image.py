"""Trains models/shapes-image.safetensors: a text-to-image model on frames of the shapes, in the host's own U-Net class.

Run it with the host's Python, once ComfyUI is set up (``python3 start.py edit`` does)::

    PYTHONPATH=. python models/train_shapes_image.py COMFYUI models/shapes-image.toml

where COMFYUI is the folder of a ComfyUI. Run it again to resume. The text encoder is that of the model named by
``text_from`` and stays as it is. A recipe of the system "content" trains CMD's content model instead, on the content frames
that the autoencoder ``codec_from`` makes of clips (arXiv 2403.14148, section 3.2), from the image model ``start_from`` on.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidcore import weights
from vidcore.codec.content_motion import load_codec
from vidcore.data.shapes import caption, random_scene
from vidcore.data.shapes.scene import SIZES
from vidcore.guide.cfg import with_cfg
from vidcore.metrics.tracker import agreement
from vidcore.objective import add_noise, drop, squared_error
from vidcore.sample import ddim_step, sample_clip
from vidcore.systems import image
from vidcore.systems.image import ImageConfig, from_info, to_info, unet_arguments
from vidcore.text import TextEncoder, Vocabulary
from vidcore.text.load import load_text
from vidcore.train.config import read_config
from vidcore.train.loop import train


class Operations:
    """PyTorch's own layers under the names by which the host's network asks for them; the host's start uninitialised."""

    Linear, LayerNorm, GroupNorm, Conv2d = nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Conv2d

    @staticmethod
    def conv_nd(dims, *args, **kwargs):
        return nn.Conv2d(*args, **kwargs)


def attention(q, k, v, *args, **kwargs):
    """PyTorch's, in float32 on CPUs, where its way back is several times slower in bfloat16."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, *args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), *args, **kwargs).to(q.dtype)


def build(comfyui: Path, config: ImageConfig) -> nn.Module:
    """The host's U-Net with fresh weights; residual branches and the output start at zero, as its authors train it."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu, args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    comfy.ops.scaled_dot_product_attention = attention
    net = UNetModel(**unet_arguments(config), operations=Operations)
    last = [net.out[-1]]
    last += [m.out_layers[-1] for m in net.modules() if isinstance(m, ResBlock)]
    last += [m.proj_out for m in net.modules() if isinstance(m, SpatialTransformer)]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


class ShapesImage:
    """What the training loop needs to know; the text encoder is that of ``text_from`` and stays as it is."""

    model, takes_images = ImageConfig, False

    def __init__(self, comfyui: Path):
        self.comfyui = comfyui

    def build(self, config, root: Path) -> nn.ModuleDict:
        text = load_text(root / config.text_from)
        net = build(self.comfyui, config.model)
        if config.start_from:
            weights.load_into(net, weights.load(root / config.start_from, "net.")[0], "network")
        return nn.ModuleDict({"net": net.train(), "text": text.eval().requires_grad_(False)})

    def loss(self, module: nn.ModuleDict, batch, config, phase, generator) -> torch.Tensor:
        """`vdm_loss` for pictures."""
        x, context = self.pictures(batch.clips), module["text"](batch.tokens)
        noised = add_noise(x, config.model.schedule, generator, phase.time_power)
        context = drop(context, phase.drop_context, generator)
        output = denoise(module["net"], config.model, noised.z, noised.t, context)
        return squared_error("x0", output, x, noised)

    def pictures(self, clips: torch.Tensor) -> torch.Tensor:
        """What it learns to make, of clips B C T H W."""
        return clips[:, :, 0]

    def info(self, config, module: nn.ModuleDict, steps: int) -> dict:
        return to_info(config.model, module["text"].config, seed=config.seed, steps=steps)


@dataclass(frozen=True)
class ContentConfig(ImageConfig):
    """The image model's sizes, for training on clips."""

    @property
    def longest(self) -> int:
        return 1024


class ShapesContent(ShapesImage):
    """The same for CMD's content model: pictures are the content frames of clips."""

    model = ContentConfig

    def build(self, config, root: Path) -> nn.ModuleDict:
        self.codec = load_codec(root / config.codec_from).requires_grad_(False)  # not in the module, and so not in the file
        return super().build(config, root)

    def pictures(self, clips: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.codec.to(clips.device).encode(clips).content[:, 0].float()


def denoise(net: nn.Module, config: ImageConfig, z, t, context):
    """Pictures N 3 H W with noise of times t in [0, 1]: the network's x-hat."""
    return F.pixel_shuffle(net(F.pixel_unshuffle(z, config.patch), 1000 * t, context), config.patch)


@torch.no_grad()
def score(comfyui: Path, path: Path, prompts: int, sizes: tuple[str, ...], seed=2024, batch=20) -> dict:
    """The share of pictures that show what their prompts say; the combinations were kept from training. 20 DDIM steps."""
    tensors, info = weights.load(path)
    config, words = from_info(info)
    net, text = build(comfyui, config), TextEncoder(words)
    weights.load_into(net, weights.part(tensors, "net."), "network")
    weights.load_into(text, weights.part(tensors, "text."), "text encoder")
    net.eval(), text.eval()
    rng, vocabulary, marks = np.random.default_rng(seed), Vocabulary(words.words, words.length), []

    def guided(z, t, context):
        return denoise(net, config, z, t.float(), context)

    for number in range(0, prompts, batch):
        asked = [random_scene(rng, held_out=True, sizes=sizes) for _ in range(min(batch, prompts - number))]
        context = text(torch.tensor([vocabulary.encode(caption(scene)) for scene in asked]))
        shape = (len(asked), 3, 32, 32)
        made = sample_clip(with_cfg(guided, 3.0), config.schedule, shape, 20, ddim_step, number // batch, context=context)
        for picture, scene in zip((made.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy(), asked):
            found = agreement(picture[None], scene)
            marks.append([found[key] for key in ("background", "count", "colour", "shape")])
        print(f"{number + len(asked)}/{prompts}", flush=True)
    shares = np.mean(marks, axis=0).tolist() + [float(np.mean(np.all(marks, axis=1)))]
    return dict(zip(("background", "one thing", "colour", "shape", "everything"), shares))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--stop-after", type=int, help="stop and save once this many steps are done in total")
    parser.add_argument("--score", type=int, metavar="PROMPTS", help="judge the trained model on so many prompts instead")
    parser.add_argument("--large", action="store_true", help="for --score: large things alone")
    arguments = parser.parse_args()
    sys.argv[1:] = []  # the host reads them too
    system = ShapesImage(arguments.comfyui)
    content = ShapesContent(arguments.comfyui)
    recipe = read_config(arguments.recipe, {image.SYSTEM: system, "content": content})
    if arguments.score:
        sizes = ("large",) if arguments.large else tuple(SIZES)
        print(json.dumps(score(arguments.comfyui, Path(recipe.output), arguments.score, sizes)))
    else:
        train(recipe, Path("."), arguments.stop_after, system=content if recipe.system == "content" else system)
