"""TrainMotionModule and LoadMotionModule: an image MODEL stays as it is and learns to move (HARIVO, arXiv 2410.07763)."""

import os
from functools import lru_cache, partial

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from ..vidcore import weights
from ..vidcore.systems.harivo import MotionModule
from ..vidcore.systems.harivo.checkpoint import SYSTEM, from_info, load_motion, to_info
from ..vidcore.systems.tune_a_video.checkpoint import distance
from .folders import MOTION
from .guide import network_alone
from .inflate import fingerprint, layers_patcher
from .motion import add_motion, motion_config, new_module
from .motion_clips import Texts, collect
from .motion_run import ClipsGuider, MotionRun, Trained
from .sample import check_latent
from .tune_files import NEW, STATE, begun, check_room, check_same_run, describe, first_folder, free_path
from .tune_run import keeping

FRESH = "fresh layers"
# What a run that goes on must share with the one before, and how a message names it.
SAME_RUN = (("model", "model or sizes"), ("base", "model"), ("clips", "list of clips"))
# Personalised checkpoints of one base differ by less than this from one another, and two bases by more (1.4 if unrelated).
SAME_FAMILY = 0.7


class TrainMotionModule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        states = [name for name in folder_paths.get_filename_list(MOTION) if name.endswith(STATE)]
        return io.Schema(
            node_id="TrainMotionModule",
            display_name="Train Motion Module",
            category="video/training",
            description="Trains layers that make an image model move, while the image model itself stays as it is (HARIVO). "
            "They work with other checkpoints and LoRAs of the same base, too.",
            search_aliases=["harivo", "animatediff", "motion module", "train motion", "temporal layers", "animate"],
            inputs=[
                io.Model.Input("model", tooltip="An image model with a U-Net: Stable Diffusion 1.5, 2.1, XL and the like."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input(
                    "folder", default="",
                    tooltip="A folder of videos inside ComfyUI's input folder. A .txt file of the same name says what a "
                    "video shows.",
                ),
                io.String.Input(
                    "caption", default="", multiline=True,
                    tooltip="What videos without a .txt file show, and the connected frames.",
                ),
                io.Int.Input("length", default=16, min=2, max=256, tooltip="Successive frames of a video that a step sees."),
                io.Int.Input("every", default=1, min=1, max=100, tooltip="Takes every so many-th frame of a video."),
                io.Int.Input("steps", default=2000, min=1, max=1000000, tooltip="Training steps, of one clip each."),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=1e-1, step=1e-7, round=1e-8,
                    tooltip="Small models need more.",
                ),
                io.Int.Input(  # a new seed after each run would train anew each time
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                    tooltip="The only source of randomness.",
                ),
                io.String.Input(
                    "name", default="motion",
                    tooltip=f"The file to write in models/{MOTION}; a number is added, so nothing is overwritten.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The model's text encoder, for captions."),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="In place of `caption`: what clips without a .txt file show."
                ),
                io.Image.Input("frames", optional=True, tooltip="A clip, beside the folder or instead of one."),
                io.Int.Input("width", default=0, min=0, max=4096, optional=True, tooltip="Cuts all clips to it; 0: theirs."),
                io.Int.Input("height", default=0, min=0, max=4096, optional=True, tooltip="As width."),
                io.Float.Input(
                    "contrast", default=0.001, min=0.0, max=100.0, step=0.001, round=0.00001, optional=True,
                    tooltip="Weight of the loss that pulls frames of a clip together in the bottleneck, away from other "
                    "clips. 0 leaves it out; with one clip alone it does nothing.",
                ),
                io.Float.Input(
                    "attention_loss", default=0.001, min=0.0, max=100.0, step=0.001, round=0.00001, optional=True,
                    tooltip="Weight of the loss that makes successive frames attend alike. 0 leaves it out; too much "
                    "freezes the motion.",
                ),
                io.Int.Input(
                    "frame_tokens", default=4, min=0, max=64, optional=True, advanced=True,
                    tooltip="Tokens of its own that each frame puts behind the text's; 0 for none.",
                ),
                io.Int.Input(
                    "mapping", default=64, min=0, max=1024, optional=True, advanced=True,
                    tooltip="Channels of the network that turns independent noise into noise of one clip; 0 for none.",
                ),
                io.Int.Input(
                    "preview_every", default=200, min=0, max=100000, optional=True,
                    tooltip="Steps between previews, each a short sampling of a clip; 0 for none.",
                ),
                io.Boolean.Input(
                    "memory_saver", default=False, optional=True, advanced=True,
                    tooltip="Keeps less for the way back through the model and computes it again: slower, less memory.",
                ),
                io.Combo.Input(
                    "continue_from", options=[NEW, *states], default=NEW, optional=True, advanced=True,
                    tooltip="A run that was cancelled, or kept its state: goes on up to `steps` exactly as if it had never "
                    "stopped, with that run's seed and sizes.",
                ),
                io.Boolean.Input(
                    "keep_state", default=False, optional=True, advanced=True,
                    tooltip="Also keeps what is needed to continue a finished run, three times as large as the file. A "
                    "cancelled run always keeps it.",
                ),
                io.Int.Input(
                    "max_frames", default=512, min=2, max=100000, optional=True, advanced=True,
                    tooltip="Frames of each video to use, from its start, which bounds the memory for its latents.",
                ),
                io.Boolean.Input(
                    "convolution", default=True, optional=True, advanced=True,
                    tooltip="Layers also look at neighbouring pixels of neighbouring frames, so that they follow "
                    "what moves: motion is learned sooner, and the file is nearly twice as large.",
                ),
                io.Combo.Input(
                    "start_from", options=[FRESH, *motion_files()], default=FRESH, optional=True,
                    tooltip="A motion module of this base to train on, with its frame_tokens, mapping and convolution. It "
                    "stays as it is; the result is another file.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model that moves; a batch of pictures is one clip for it."),
                io.String.Output("motion_name", tooltip=f"The file's name in models/{MOTION}."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, folder, caption, length, every, steps, learning_rate, seed, name, clip=None, positive=None,
        frames=None, width=0, height=0, contrast=0.001, attention_loss=0.001, frame_tokens=4, mapping=64, preview_every=200,
        memory_saver=False, continue_from=NEW, keep_state=False, max_frames=512, convolution=True,
        start_from=FRESH,
    ) -> io.NodeOutput:  # fmt: skip
        parts, started = dict(frame_tokens=frame_tokens, mapping=mapping, convolution=convolution), None
        if start_from != FRESH:
            started = fitting_module(model, "Train Motion Module", start_from)
            parts = {part: getattr(started.config, part) for part in parts}
        config = motion_config(model, "Train Motion Module", length, **parts)
        state = None
        if continue_from != NEW:
            state, before = begun(continue_from, MOTION, steps)
            seed = before["seed"]
        module = new_module(config, seed)
        if started is not None:
            weights.load_into(module, started.state_dict(), "motion")
        path = free_path(name, MOTION)
        check_room(path, 4 * sum(p.numel() * p.element_size() for p in module.parameters()), MOTION)
        texts = Texts(clip, caption, positive)
        clips = collect(texts, vae, folder, frames, length, every, width, height, max_frames)
        check_latent(model, clips[0].mean)
        base = fingerprint(model, config.blocks)
        info = to_info(
            config, base=type(model.model).__name__, clips=[c.name for c in clips], every=every, learning_rate=learning_rate,
            seed=seed, contrast=contrast, attention_loss=attention_loss, start_from=start_from,
        )  # fmt: skip
        if state is not None:
            check_same_run(before, info, base, continue_from, SAME_RUN)
        with torch.inference_mode(False):
            width = model.get_model_object("diffusion_model").middle_block[-1].out_channels
            trained = Trained(module, width, contrast, attention_loss, seed)
        patcher = layers_patcher(trained, training=True)
        run = MotionRun(
            model, trained, clips, length, learning_rate, seed, steps, preview_every, memory_saver, cls.hidden.unique_id
        )
        run.state = state

        save = partial(run.save, path, "module", module, base, info)
        guider = ClipsGuider(add_motion(network_alone(model), module, patcher))
        guider.set_texts([c.positive for c in clips])
        first = clips[0].mean[:length]
        with keeping(run, save, path, cls.hidden.unique_id, "give a smaller length"):
            guider.sample(
                torch.zeros_like(first), first, comfy.samplers.KSAMPLER(run), torch.zeros(2), disable_pbar=True, seed=seed
            )
        save(keep_state)
        module.requires_grad_(False)
        return io.NodeOutput(add_motion(model, module, layers_patcher(module)), os.path.relpath(path, first_folder(MOTION)))


def motion_files() -> list[str]:
    """The motion modules among the files of their folders, which hold other models of this pack, too."""
    names = folder_paths.get_filename_list(MOTION)
    paths = {name: folder_paths.get_full_path(MOTION, name) for name in names if not name.endswith(STATE)}
    return [name for name, path in paths.items() if path and _is_motion(path, os.path.getmtime(path))]


@lru_cache(maxsize=1000)
def _is_motion(path: str, changed: float) -> bool:
    """Whether the header of a file says so; read again when the file has changed."""
    try:
        return weights.read_info(path).get("system") == SYSTEM
    except weights.WeightsError:
        return False


def fitting_module(model, node: str, name: str, other_base: bool | None = None) -> MotionModule:
    """A motion module of the host's folders, for this MODEL.

    Args:
        model: an image MODEL.
        node: that asks, for messages.
        name: of the file.
        other_base: whether it may be for no relative of this one; None if the node has no such choice.

    Raises:
        ValueError: if it is for an image model of another layout, or without ``other_base`` for no relative of this one.
        weights.WeightsError: if the file holds no motion module.
    """
    module, base, info = load_motion(folder_paths.get_full_path_or_raise(MOTION, name))
    config = module.config
    own = motion_config(model, node, config.frames)
    if (own.blocks, own.channels, own.context) != (config.blocks, config.channels, config.context):
        raise ValueError(
            f"{name} was trained on a {info.get('base', 'model')} with {describe(config)}; this is a "
            f"{type(model.model).__name__} with {describe(own)}. Please load a model of the base that it was trained on."
        )
    if not other_base and distance(base, fingerprint(model, config.blocks)) > SAME_FAMILY:
        raise ValueError(
            f"{name} was trained on another {info.get('base', 'model')} than this one, and they are no "
            "relatives. Please load a model of the base that it was trained on"
            + ("." if other_base is None else ", or allow other_base.")
        )
    return module


class LoadMotionModule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadMotionModule",
            display_name="Load Motion Module",
            category="video/loaders",
            description="Makes an image model move by a trained motion module. Other checkpoints and LoRAs of the same base "
            "move as well.",
            search_aliases=["harivo", "animatediff", "motion module", "load motion"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The image model that the module was trained on, or another of the same base."
                ),
                io.Combo.Input(
                    "motion_name", options=motion_files(),
                    tooltip=f"A file in models/{MOTION}, from Train Motion Module, or one that ships with VidCore.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01, optional=True,
                    tooltip="How much of what was learned; 0 is the image model alone.",
                ),
                io.Boolean.Input(
                    "other_base", default=False, optional=True, advanced=True,
                    tooltip="Allows an image model of the same layout that is no relative of the one that was trained on.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model that moves; a batch of pictures is one clip for it.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, motion_name) -> bool | str:
        path = folder_paths.get_full_path(MOTION, motion_name)
        if path is None:
            return f"no motion module {motion_name!r} in models/{MOTION}"
        try:
            from_info(weights.read_info(path))
        except weights.WeightsError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, motion_name, strength=1.0, other_base=False) -> io.NodeOutput:
        module = fitting_module(model, "Load Motion Module", motion_name, other_base)
        placed = new_module(module.config, 0)
        weights.load_into(placed, module.state_dict(), "motion")
        placed.requires_grad_(False)
        return io.NodeOutput(add_motion(model, placed, layers_patcher(placed), strength))
