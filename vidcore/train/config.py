"""The training recipe: a small TOML file, checked whole before anything starts."""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.shapes import VOCABULARY
from ..data.shapes.scene import BACKGROUNDS, MOTIONS, SHAPES, SIZES, UPRIGHT, visible_motions
from ..systems.snap.loss import SELF_CONDITIONING
from .systems import SYSTEMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


OPTIMISERS = ("adamw", "lamb", "muon")
# Files without which a system cannot be trained.
NEEDED = {
    "text_from": ("image", "content"), "codec_from": ("cmd", "content"), "image_from": ("harivo", "tune_a_video"),
}  # fmt: skip


class ConfigError(ValueError):
    """A recipe is wrong; the message names the entry."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training steps on one kind of batch.

    Args:
        steps: optimiser steps.
        batch: clips per step.
        frames: frames per clip; 1 trains on pictures alone.
        size: height and width in pixels.
        crop: height and width of the part that is kept of every clip, drawn so that the things stay inside if they fit; 0
            keeps all. A smaller picture costs less, and shows the things as large as the whole one.
        images: independent images appended to each clip (VDM section 3).
        two: probability of two things in a scene.
        lr: learning rate at the start of the phase.
        lr_end: at its end; 0 means the same as ``lr``.
        cosine: whether the learning rate falls by half a cosine instead of linearly.
        time_power: as in `vdm_loss`; 1 is the paper's uniform time.
        drop_context: probability of training a clip, or one of its images, without its caption.
        sizes: sizes of things; the middle one is "".
        backgrounds: what may be behind them.
        motions: how they may move.
        shapes: which there are; two in one scene are never the same.
        recolour: for "content_motion" only, as in `reconstruction_loss`.
        noisier, self_conditioning: for "snap" only, as in `snap_loss`.
        rates: how much of its motion a clip may show, as parts of the whole; one is drawn for each. Less is a higher frame
            rate. Clips that show a part begin anywhere in the motion.
        anywhere: probability that a clip whose motion repeats starts at any moment of it, as a clip that goes on does.
        turns: kinds of batch that successive steps take in turn; in a recipe, tables of the entries in which they differ.
    """

    steps: int
    batch: int
    frames: int
    size: int
    images: int = 0
    two: float = 0.0
    lr: float = 1e-3
    lr_end: float = 0.0
    cosine: bool = False
    time_power: float = 1.0
    drop_context: float = 0.1
    sizes: tuple[str, ...] = tuple(SIZES)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    motions: tuple[str, ...] = MOTIONS
    shapes: tuple[str, ...] = SHAPES
    recolour: float = 0.0
    noisier: float = 0.0
    self_conditioning: float = SELF_CONDITIONING
    rates: tuple[float, ...] = (1.0,)
    anywhere: float = 0.0
    crop: int = 0
    turns: tuple["Phase", ...] = ()


@dataclass(frozen=True)
class Data:
    """A folder of videos to train on, in place of the procedural shapes (`vidcore.data.folder`).

    Args:
        folder: relative to the run's root; videos and pictures, with captions.
        rate: frames per second to train at; 0 takes each video's own frames.
        from_start: whether clips begin where their videos do, instead of anywhere.
        sizes: heights and widths, as [[64, 64], [48, 80]], in place of squares of the phases' ``size``: each video takes the
            one that is nearest to its shape, and each batch has videos of one.
    """

    folder: str
    rate: float = 0.0
    from_start: bool = False
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Args:
        output: the model file to write; the resumable state goes beside it, under a ``.state`` ending.
        system: what is trained, one of `vidcore.train.systems.SYSTEMS`.
        start_from: a model file whose weights to start from; empty for fresh ones. Its network may have fewer ``blocks`` and
            ``attention_sizes`` than this one (`vidcore.systems.vdm.grow`).
        text_from: a model file whose text encoder to use as it is, for "cmd", "image", "content" and "snap"; for a second
            stage the first one, so that one prompt serves both.
        codec_from: the autoencoder's file, for "cmd" and "content".
        image_from: the image model's file that "harivo" and "tune_a_video" train layers beside, with its text encoder; one
            of ours, or a checkpoint of Stable Diffusion 1.x, whose latents and text features are then kept beside the model.
        tokenizer: for such a checkpoint: a folder with CLIP's ``vocab.json`` and ``merges.txt``.
        seed: the only source of randomness.
        ema: decay of the averaged weights that are exported.
        warmup: steps over which the learning rate rises from zero.
        optimiser: "adamw", "lamb" (`vidcore.train.lamb`), or "muon" (`vidcore.train.muon`), which is not for shards.
        weight_decay, beta2, clip: of the optimiser, and the gradient norm it is clipped to.
        bf16: run the network in bfloat16 where that is safe; weights, moments and loss stay in float32.
        fp16: the same in float16, with the loss scaled up so that small gradients survive.
        recompute: keep less of each block for the way back, and compute it again: less memory, about a third slower.
        compile: the `torch.compile` backend, such as "inductor", for each block; empty for none.
        shard: with several processes each holds a part of every weight, moment and average (FSDP2), instead of all of them.
        samples_every: steps between pictures of what it makes, ``NAME.samples/STEP.png``; 0 for none.
        contrast, attention_loss: for "vdm" only: weights of HARIVO's losses (`vidcore.systems.harivo.ClipLosses`).
        queue: for those: features of earlier clips that a clip is held against.
        micro_batch: clips that go through the network at once, for batches that do not fit into memory: their gradients add
            up to the whole batch's. 0 takes all at once.
        save_every: steps between saves.
        text_width, text_layers, text_length: of the text encoder trained along.
        model: the network's sizes, the config of that system.
        data: what to train on, if not the shapes. Of a `Phase`, ``rates`` then divides the time between frames, and what
            tells shapes means nothing.
        words: that the text encoder knows: those of ``text_from`` or ``image_from``, else of the captions where there is
            ``data``.
        phases: what to train on, in order.
    """

    output: str
    phases: tuple[Phase, ...]
    model: Any
    system: str = "vdm"
    start_from: str = ""
    text_from: str = ""
    codec_from: str = ""
    image_from: str = ""
    tokenizer: str = ""
    seed: int = 0
    ema: float = 0.999
    warmup: int = 200
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip: float = 1.0
    contrast: float = 0.0
    attention_loss: float = 0.0
    queue: int = 256
    data: Data | None = None
    words: tuple[str, ...] = VOCABULARY
    micro_batch: int = 0
    save_every: int = 200
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 24
    channels_last: bool = field(default=True)
    bf16: bool = False
    fp16: bool = False
    recompute: bool = False
    compile: str = ""
    shard: bool = False
    samples_every: int = 0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def clips_before(self, step: int) -> int:
        """How many clips the steps before ``step`` take."""
        total, first = 0, 0
        for phase in self.phases:
            steps = min(phase.steps, max(0, step - first))
            kinds = phase.turns or (phase,)
            rounds, rest = divmod(steps, len(kinds))
            total += rounds * sum(kind.batch for kind in kinds) + sum(kind.batch for kind in kinds[:rest])
            first += phase.steps
        return total

    def at(self, step: int) -> tuple[Phase, float]:
        """The kind of batch of ``step`` (counted from 0) and its learning rate, warm-up included."""
        first = 0
        for phase in self.phases:
            if step < first + phase.steps:
                progress = (step - first) / phase.steps
                if phase.cosine:
                    progress = (1 - math.cos(math.pi * progress)) / 2
                lr = phase.lr + ((phase.lr_end or phase.lr) - phase.lr) * progress
                kind = phase.turns[(step - first) % len(phase.turns)] if phase.turns else phase
                return kind, lr * min(1.0, (step + 1) / max(1, self.warmup))
            first += phase.steps
        raise IndexError(f"step {step} lies past the end of the recipe ({self.steps} steps)")


def _build(cls: type, table: Any, where: str):
    """A dataclass from a TOML table; names and types are checked."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in table:
        if name not in fields:
            raise ConfigError(f"{where} has no entry {name!r}; it knows {', '.join(fields)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for name, value in values.items():
        kind = fields[name].type if isinstance(fields[name].type, type) else type(fields[name].default)
        if kind is float and type(value) is int:
            values[name] = float(value)
        elif kind in (int, float, str, bool) and type(value) is not kind:
            raise ConfigError(f"{where}.{name} must be of type {kind.__name__}, got {value!r}")
        if kind in (int, float) and name != "log_snr_min" and value < 0:
            raise ConfigError(f"{where}.{name} must not be negative, got {value}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _phase(table: Any, where: str, model: Any) -> Phase:
    """A checked `Phase` from its TOML table, and from each of its ``turns``."""
    turns = table.pop("turns", []) if isinstance(table, dict) else []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConfigError(f"{where}.turns must be a list of tables")
    phase = _build(Phase, table, where)
    if phase.size % model.stride or phase.size == 0:
        raise ConfigError(f"{where}.size must be a multiple of {model.stride}, got {phase.size}")
    if phase.crop % model.stride or phase.crop > phase.size:
        raise ConfigError(
            f"{where}.crop must be a multiple of {model.stride} and at most the size, {phase.size}; got {phase.crop}"
        )
    kept = phase.crop or phase.size
    fixed = getattr(model, "fixed", (phase.frames, kept, kept))
    if (phase.frames, kept, kept) != fixed:
        raise ConfigError(
            f"{where}: this model takes {fixed[0]} frames of {fixed[2]}x{fixed[1]} alone, and recipes square ones; got "
            f"{phase.frames} of {kept}x{kept}"
        )
    if min(phase.steps, phase.batch, phase.frames) < 1:
        raise ConfigError(f"{where}: steps, batch and frames must be at least 1")
    for name, known in (("sizes", SIZES), ("backgrounds", BACKGROUNDS), ("motions", MOTIONS), ("shapes", SHAPES)):
        given = list(getattr(phase, name))
        if not given or not set(given) <= set(known):
            raise ConfigError(f"{where}.{name} must be some of {list(known)}, got {given}")
    if not any(visible_motions(shape, phase.motions) for shape in phase.shapes):
        raise ConfigError(f"{where}: none of the shapes {list(phase.shapes)} shows any of the motions {list(phase.motions)}")
    if not phase.rates or not all(isinstance(rate, (int, float)) and 0 < rate <= 1 for rate in phase.rates):
        raise ConfigError(f"{where}.rates must be parts of the whole, above 0 and at most 1; got {list(phase.rates)}")
    upright = [motion for motion in phase.motions if motion in UPRIGHT]
    beside = {shape for shape in phase.shapes if visible_motions(shape, upright)}
    if phase.two and len(beside) < 2:
        raise ConfigError(
            f"{where}: two things in a scene need two shapes that show one of the motions {list(UPRIGHT)}, which leave room "
            f"for another; got the shapes {list(phase.shapes)} and the motions {list(phase.motions)}"
        )
    if phase.frames > model.longest:
        raise ConfigError(f"{where}.frames must be at most {model.longest} for this model, got {phase.frames}")
    kinds = (_phase({**table, **turn}, f"{where}, turn {i + 1}", model) for i, turn in enumerate(turns))
    return dataclasses.replace(phase, turns=tuple(kinds))


def read_config(path: str | Path) -> TrainConfig:
    """Read and check a recipe.

    Args:
        path: a TOML file.

    Raises:
        ConfigError: if the file is missing, not TOML, or an entry is unknown, of the wrong type or out of range.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from None
    phases = table.pop("phase", [])
    if not phases:
        raise ConfigError("the recipe has no [[phase]]: nothing to train on")
    system = table.get("system", TrainConfig.system)
    if system not in SYSTEMS:
        raise ConfigError(f"recipe.system must be one of {', '.join(SYSTEMS)}; got {system!r}")
    model = _build(SYSTEMS[system].model, table.pop("model", {}), "model")
    phases = tuple(_phase(p, f"phase {i + 1}", model) for i, p in enumerate(phases))
    if not SYSTEMS[system].takes_images and any(kind.images for phase in phases for kind in (phase, *phase.turns)):
        raise ConfigError(f"the system {system!r} does not train on images beside clips; please leave out 'images'")
    if system != "vdm" and (table.get("contrast") or table.get("attention_loss")):
        raise ConfigError(f"contrast and attention_loss are for the system 'vdm'; this recipe's is {system!r}")
    if table.get("optimiser", "adamw") not in OPTIMISERS:
        raise ConfigError(f"recipe.optimiser must be one of {', '.join(OPTIMISERS)}; got {table['optimiser']!r}")
    for entry, needing in NEEDED.items():
        if system in needing and not table.get(entry):
            raise ConfigError(f"the system {system!r} needs recipe.{entry}, a model file")
    if system == "tune_a_video" and not table.get("data", {}).get("from_start"):
        raise ConfigError(
            "the system 'tune_a_video' learns one clip: please give data.folder with one video, and from_start"
        )
    if table.get("fp16") and (table.get("bf16") or table.get("shard")):
        raise ConfigError("recipe.fp16 goes neither with bf16 nor with shard; please take bf16, which needs no scaling")
    if table.get("optimiser") == "muon" and table.get("shard"):
        raise ConfigError("recipe.optimiser: muon needs whole matrices, which shard cuts up; please take another")
    if table.get("samples_every") and table.get("shard"):
        raise ConfigError("recipe.samples_every does not go with shard; sample from the exported file instead")
    if "words" in table:
        raise ConfigError("recipe.words is not for recipes: they are those of the captions")
    if "data" in table:
        data = _build(Data, table["data"], "data")
        sizes = {kind.size for phase in phases for kind in (phase, *phase.turns)}
        if len(sizes) > 1:
            raise ConfigError(f"with a folder of videos all phases have one size; got {sorted(sizes)}")
        if not data.rate and any(kind.rates != (1.0,) for phase in phases for kind in (phase, *phase.turns)):
            raise ConfigError("rates need data.rate, the frame rate that they divide")
        for size in data.sizes:
            whole = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
            if not whole or hasattr(model, "fixed") or any(n % model.stride for n in size):
                raise ConfigError(
                    f"data.sizes takes pairs of height and width that are multiples of {model.stride}, for models of no "
                    f"fixed size; got {size}"
                )
        if any(kind.crop for phase in phases for kind in (phase, *phase.turns)):
            raise ConfigError("crop is for the shapes; videos of a folder are scaled and cropped to data.sizes")
        table = {**table, "data": dataclasses.replace(data, sizes=tuple(map(tuple, data.sizes)))}
    return _build(TrainConfig, {**table, "model": model, "phases": phases}, "recipe")
