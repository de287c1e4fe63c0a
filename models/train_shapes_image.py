"""Trains models/shapes-image.safetensors: a text-to-image model on frames of the shapes, in the host's own U-Net class.

Run it with the host's Python, once ComfyUI is set up (``python3 start.py edit`` does)::

    PYTHONPATH=. python models/train_shapes_image.py COMFYUI models/shapes-image.toml

where COMFYUI is the folder of a ComfyUI. Run it again to resume. The text encoder is that of the model named by
``text_from`` and stays as it is.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidcore import weights
from vidcore.data.shapes import caption, random_scene
from vidcore.data.shapes.scene import SIZES
from vidcore.denoise import MAX_X0_WEIGHT
from vidcore.guide.cfg import with_cfg
from vidcore.metrics.tracker import agreement
from vidcore.sample import ddim_step, sample_clip
from vidcore.schedule import CosineSchedule, alpha_sigma, expand_as
from vidcore.systems.image import ImageConfig, from_info, to_info, unet_arguments
from vidcore.systems.vdm.checkpoint import load_vdm, to_tensors
from vidcore.text import TextEncoder, Vocabulary
from vidcore.train.config import Phase, tomllib
from vidcore.train.data import shapes_batch
from vidcore.train.loop import step_generator
from vidcore.train.state import EMA, load_state, save_state


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


def image_loss(net, config: ImageConfig, x, context, generator, drop_context: float, time_power: float):
    """The x0 form of `vdm_loss`, for pictures N 3 H W."""
    t = ((torch.rand(1, generator=generator) + torch.arange(len(x)) / len(x)) % 1) ** time_power
    log_snr = CosineSchedule(config.log_snr_min, config.log_snr_max).log_snr(t.double()).float().to(x.device)
    alpha, sigma = (expand_as(s, x) for s in alpha_sigma(log_snr))
    z = alpha * x + sigma * torch.randn(x.shape, generator=generator).to(x)
    keep = (torch.rand(len(x), generator=generator) >= drop_context).to(x)
    z = F.pixel_unshuffle(z, config.patch)
    output = F.pixel_shuffle(net(z, 1000 * t.to(x), context * keep[:, None, None]).float(), config.patch)
    return ((output - x).square() * (1 / sigma**2).clamp(max=MAX_X0_WEIGHT)).mean()


def train(comfyui: Path, recipe: dict, root: Path, stop_after: int | None = None) -> None:
    """Run a recipe, resuming where an earlier run of it stopped; ``stop_after`` so many steps in total."""
    config, phases = ImageConfig(**recipe["model"]), [Phase(**phase) for phase in recipe["phase"]]
    output, seed = root / recipe["output"], recipe["seed"]
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = build(comfyui, config).train().to(device)
    _, text = load_vdm(root / recipe["text_from"])
    text.eval().requires_grad_(False)
    vocabulary = Vocabulary(text.config.words, text.config.length)
    ema = EMA(net, recipe["ema"])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state, total = output.with_suffix(".state"), sum(phase.steps for phase in phases)
    last = min(stop_after or total, total)
    done = load_state(state, net, ema, optimiser)["step"] if state.exists() else 0
    if not done:
        print(f"{sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
    started, first, running = time.monotonic(), done, None
    for step in range(done, last):
        before, phase = 0, phases[0]
        for phase in phases:
            if step < before + phase.steps:
                break
            before += phase.steps
        lr = phase.lr + ((phase.lr_end or phase.lr) - phase.lr) * (step - before) / phase.steps
        lr *= min(1.0, (step + 1) / recipe["warmup"])
        batch = shapes_batch(phase, vocabulary, seed, step)
        with torch.autocast(device, torch.bfloat16, enabled=recipe["bf16"]):
            loss = image_loss(
                net, config, batch.clips[:, :, 0].to(device), text(batch.tokens).to(device),
                step_generator(seed, step), phase.drop_context, phase.time_power,
            )  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        ema.update(net, step)
        value = float(loss.detach())
        running = value if running is None else 0.98 * running + 0.02 * value
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            print(f"step {step + 1}/{total}  loss {running:.4f}  lr {lr:.2g}  {pace:.2f} s/step", flush=True)
            with open(output.with_suffix(".curve.jsonl"), "a", encoding="utf-8") as curve:
                curve.write(json.dumps({"step": step + 1, "loss": round(running, 5), "lr": lr}) + "\n")
        if (step + 1) % 200 == 0 or step + 1 == last:
            save_state(state, net, ema, optimiser, {"system": "training", "step": step + 1})
            average = nn.Module()
            average.state_dict = lambda: ema.average
            weights.save(output, to_tensors(average, text), to_info(config, text.config, seed=seed, steps=step + 1))


@torch.no_grad()
def score(comfyui: Path, recipe: dict, root: Path, prompts: int, sizes: tuple[str, ...], seed=2024, batch=20) -> dict:
    """The share of pictures that show what their prompts say; the combinations were kept from training. 20 DDIM steps."""
    tensors, info = weights.load(root / recipe["output"])
    config, words = from_info(info)
    net, text = build(comfyui, config), TextEncoder(words)
    weights.load_into(net, weights.part(tensors, "net."), "network")
    weights.load_into(text, weights.part(tensors, "text."), "text encoder")
    net.eval(), text.eval()
    rng, vocabulary, marks = np.random.default_rng(seed), Vocabulary(words.words, words.length), []

    def denoise(z, t, context):
        return F.pixel_shuffle(net(F.pixel_unshuffle(z, config.patch), 1000 * t.float(), context), config.patch)

    schedule = CosineSchedule(config.log_snr_min, config.log_snr_max)
    for number in range(0, prompts, batch):
        asked = [random_scene(rng, held_out=True, sizes=sizes) for _ in range(min(batch, prompts - number))]
        context = text(torch.tensor([vocabulary.encode(caption(scene)) for scene in asked]))
        shape = (len(asked), 3, 32, 32)
        made = sample_clip(with_cfg(denoise, 3.0), schedule, shape, 20, ddim_step, number // batch, context=context)
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
    with open(arguments.recipe, "rb") as file:
        recipe = tomllib.load(file)
    if arguments.score:
        sizes = ("large",) if arguments.large else tuple(SIZES)
        print(json.dumps(score(arguments.comfyui, recipe, Path("."), arguments.score, sizes)))
    else:
        train(arguments.comfyui, recipe, Path("."), arguments.stop_after)
