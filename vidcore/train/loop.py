"""The training loop, flat from recipe to exported model."""

import json
import math
import time
import zlib
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .. import weights
from ..systems.image.stable_diffusion import is_checkpoint
from ..text import Vocabulary
from ..video import read_frames
from .apply import matrices_in, prepare, share_gradients
from .config import ConfigError, TrainConfig
from .data import batches, open_folder
from .features import CaptionList, caches, with_latents
from .lamb import LAMB
from .muon import Muon
from .processes import own_parts, rank_and_count, summed, wait
from .samples import save_samples
from .state import EMA, load_sharded, load_state, save_sharded, save_state, saved_state, whole_tensors
from .systems import SYSTEMS, with_words

BAR = 20  # characters of the progress bar


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """All randomness of one step on the model's side, a function of (seed, part, step) so that resuming needs no thought."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{part}/{step}".encode()))


def open_board(folder: Path):
    """Where TensorBoard reads a run's curve and samples, if it is installed; else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _nothing(line: str) -> None:
    """What processes but the first say."""


def train(
    config: TrainConfig,
    root: Path,
    stop_after: int | None = None,
    report=print,
    device: str | torch.device = "cpu",
    workers: int = 0,
    system=None,
) -> float:
    """Run a recipe, resuming where an earlier run of it stopped; with all processes that torchrun started.

    Args:
        config: the recipe.
        root: folder that ``config.output`` and ``config.start_from`` are relative to.
        stop_after: stop (and save) once this many steps are done in total; the whole recipe by default.
        report: called with one line of text now and then.
        device: where the network trains. All randomness is drawn on the CPU, so that a seed means the same everywhere.
        workers: processes that draw batches ahead; they change no number.
        system: what is trained, if not one of `SYSTEMS`, like the classes there.

    Returns:
        The last step's loss.

    Raises:
        ConfigError: if training beside a checkpoint of Stable Diffusion has no folder of videos.
        FloatingPointError: if the loss is not finite; nothing after the last good save is kept.
        folder.DataError: if the recipe's folder cannot be trained on.
        ValueError: if there are more processes than clips in a batch.
        weights.WeightsError: if a file to resume or start from does not fit the recipe, nor can grow to.
    """
    output = root / config.output
    output.parent.mkdir(parents=True, exist_ok=True)
    state_path = output.with_suffix(".state")
    curve_path = output.with_suffix(".curve.jsonl")
    system, frozen_text = system or SYSTEMS[config.system], config.text_from or config.image_from
    if rank_and_count()[0]:
        report = _nothing
    beside = root / config.image_from if config.image_from and is_checkpoint(root / config.image_from) else None
    if beside is None:
        config = with_words(config, root)
    folder, device = open_folder(config, root, report, beside is not None) if config.data else None, torch.device(device)
    if beside is not None:
        if folder is None:
            raise ConfigError("beside a Stable Diffusion checkpoint training takes a folder of videos: recipe.data names it")
        folder = with_latents(folder, beside, caches(config, root)[0], device, report)
        config = replace(config, words=folder.captions)
    elif folder is not None and not frozen_text:
        config = replace(config, words=folder.words)
    vocabulary = Vocabulary(config.words, config.text_length) if beside is None else CaptionList(config.words)

    torch.manual_seed(config.seed)
    module = system.build(config, root)
    module.to(device)
    if config.channels_last and not config.shard:  # which takes contiguous weights alone
        module.to(memory_format=torch.channels_last)
    objective, (rank, count) = prepare(module, system, config, device), rank_and_count()
    ema = EMA(module, config.ema)
    muon = partial(Muon, matrices=matrices_in(module))
    kind = {"adamw": partial(torch.optim.AdamW, fused=True), "lamb": LAMB, "muon": muon}[config.optimiser]
    optimiser = kind(module.parameters(), lr=1.0, betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12, growth_interval=200, enabled=config.fp16)
    done, before = 0, saved_state(state_path)
    if before is not None:
        info = (load_sharded if config.shard else load_state)(before, module, ema, optimiser)
        done = info["step"]
        if info.get("scaler"):
            scaler.load_state_dict(info["scaler"])
    if done:
        report(f"resuming after step {done}")

    def save(step: int) -> None:
        info = {"system": "training", "step": step, "scaler": scaler.state_dict()}
        if config.shard:
            save_sharded(state_path, module, ema, optimiser, info)
        elif rank == 0:
            save_state(state_path, module, ema, optimiser, info)
        # What served training alone, such as a projection head, stays out of the file.
        kept = whole_tensors((k, v) for k, v in ema.average.items() if not k.startswith(getattr(system, "forgets", ())))
        if rank == 0:
            tensors = system.export(kept, module) if hasattr(system, "export") else kept
            weights.save(output, tensors, system.info(config, module, step))

    board = open_board(output.with_suffix(".events")) if rank == 0 else None
    last, started, first, running = min(stop_after or config.steps, config.steps), time.monotonic(), done, None
    loss_value, half = math.nan, torch.float16 if config.fp16 else torch.bfloat16
    for step, batch in enumerate(batches(config, vocabulary, done, last, workers, folder), start=done):
        (phase, lr), batch = config.at(step), batch.to(device)
        optimiser.zero_grad(set_to_none=True)
        loss_value, parts = 0.0, own_parts(batch, config.micro_batch)
        for number, part in parts:
            torch.manual_seed(zlib.crc32(f"dropout/{config.seed}/{step}{f'/{number}' if number else ''}".encode()))
            share_gradients(objective, part is parts[-1][1])  # once a step
            with torch.autocast(device.type, half, enabled=config.bf16 or config.fp16):
                loss = objective(part, phase, step_generator(config.seed, step, number))
            loss = loss * (len(part.clips) / batch.whole)
            scaler.scale(loss * count).backward()  # what is shared is the mean
            loss_value += float(loss.detach())
        loss_value = summed(loss_value, device)
        if not math.isfinite(loss_value):
            raise FloatingPointError(f"the loss is {loss_value} at step {step}; try a lower learning rate (now {lr:.2g})")
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        for group in optimiser.param_groups:
            group["lr"] = lr
        scaler.step(optimiser)  # left out where float16 overflowed; the scale is then lowered
        scaler.update()
        ema.update(module, step)

        running = loss_value if running is None else 0.98 * running + 0.02 * loss_value
        if rank == 0 and ((step + 1) % 50 == 0 or step + 1 == last):
            pace = (time.monotonic() - started) / (step + 1 - first)
            left = timedelta(seconds=round(pace * (config.steps - step - 1)))
            bar = "#" * (BAR * (step + 1) // config.steps)
            line = f"step {step + 1}/{config.steps}  loss {running:.4f}  lr {lr:.2g}  {pace:.2f} s/step  {left} left"
            report(f"{line}  [{bar:.<{BAR}}]")
            with open(curve_path, "a", encoding="utf-8") as curve:
                curve.write(json.dumps({"step": step + 1, "loss": round(running, 5), "lr": lr}) + "\n")
            if board is not None:
                board.add_scalar("loss", running, step + 1)
                board.add_scalar("learning rate", lr, step + 1)
        if rank == 0 and config.samples_every and (step + 1) % config.samples_every == 0:
            path = output.with_suffix(".samples") / f"{step + 1}.png"
            save_samples(path, module, ema, batch, config.seed)
            if board is not None:
                board.add_image("samples", read_frames(path)[0], step + 1, dataformats="HWC")
        if (step + 1) % config.save_every == 0 or step + 1 == last:
            save(step + 1)
            wait()
    return loss_value
