"""TuneAVideo and LoadTunedVideo: one clip teaches an image MODEL its motion (Tune-A-Video, arXiv 2212.11565)."""

import os
from functools import partial

import comfy.sample
import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from ..vidcore import weights
from ..vidcore.systems.tune_a_video import TunedLayers, from_info, load_tuned, to_info
from ..vidcore.systems.tune_a_video.checkpoint import same_base
from .folders import TUNED
from .guide import network_alone
from .inflate import fingerprint, inflate, layers_patcher, new_layers, tune_config
from .sample import check_latent
from .tune_files import NEW, STATE, begun, check_room, check_same_run, describe, first_folder, free_path, prompt_text
from .tune_run import Run, check_clip, keeping, posterior

NORMS = ["frame", "clip"]


class TuneAVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        states = [name for name in folder_paths.get_filename_list(TUNED) if name.endswith(STATE)]
        return io.Schema(
            node_id="TuneAVideo",
            display_name="Tune-A-Video",
            category="video/training",
            description="Teaches an image model the motion of one clip, so that another prompt gives another clip with that "
            "motion. Saves what it learned as a file for Load Tuned Video.",
            search_aliases=["one-shot tuning", "fine-tune video", "train motion", "video editing", "tune a video"],
            inputs=[
                io.Model.Input("model", tooltip="An image model with a U-Net: Stable Diffusion 1.5, 2.1, XL and the like."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("frames", tooltip="The clip, 2 frames or more."),
                io.Conditioning.Input("positive", tooltip="What the clip shows, from CLIP Text Encode."),
                io.Int.Input(
                    "steps", default=500, min=1, max=100000,
                    tooltip="Training steps, 300 to 500 in the paper; fewer for edits that change the style much.",
                ),
                io.Float.Input(
                    "learning_rate", default=3e-5, min=1e-7, max=1e-1, step=1e-7, round=1e-8,
                    tooltip="3e-5 in the paper; small models need more.",
                ),
                io.Int.Input(  # a new seed after each run would tune anew each time
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                    tooltip="The only source of randomness.",
                ),
                io.String.Input(
                    "name", default="tuned",
                    tooltip=f"The file to write in models/{TUNED}; a number is added, so nothing is overwritten.",
                ),
                io.Combo.Input(
                    "norm", options=NORMS, default=NORMS[0], optional=True, advanced=True,
                    tooltip="frame: group norms see one frame, as in the image model. clip: they see all of them, as in "
                    "Tune-A-Video's code.",
                ),
                io.Int.Input(
                    "preview_every", default=100, min=0, max=100000, optional=True,
                    tooltip="Steps between previews, each a short sampling of the clip; 0 for none.",
                ),
                io.Boolean.Input(
                    "memory_saver", default=False, optional=True, advanced=True,
                    tooltip="Keeps less for the way back through the model and computes it again: slower, less memory.",
                ),
                io.Combo.Input(
                    "continue_from", options=[NEW, *states], default=NEW, optional=True, advanced=True,
                    tooltip="A run that was cancelled, or kept its state: goes on up to `steps` exactly as if it had never "
                    "stopped, with that run's seed, norm and frame order.",
                ),
                io.Boolean.Input(
                    "keep_state", default=False, optional=True, advanced=True,
                    tooltip="Also keeps what is needed to continue a finished run, three times as large as the file. A "
                    "cancelled run always keeps it.",
                ),
                io.Boolean.Input(
                    "frame_order", default=False, optional=True, advanced=True,
                    tooltip="Lets temporal attention see the frames' numbers, so that the motion is learned too, and not "
                    "only kept in the inverted noise. The paper does without.",
                ),
                io.Float.Input(
                    "attention_loss", default=0.0, min=0.0, max=100.0, step=0.001, round=0.00001, optional=True,
                    advanced=True,
                    tooltip="Weight of HARIVO's loss that makes successive frames attend alike, against flicker. 0 leaves "
                    "it out.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The tuned model; a batch of pictures is one clip for it."),
                io.String.Output("tuned_name", tooltip=f"The file's name in models/{TUNED}."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, frames, positive, steps, learning_rate, seed, name, norm=NORMS[0], preview_every=100,
        memory_saver=False, continue_from=NEW, keep_state=False, frame_order=False, attention_loss=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        config = tune_config(model, norm, frame_order)
        check_clip(frames, vae)
        state = None
        if continue_from != NEW:
            state, before = begun(continue_from, TUNED, steps)
            seed = before.get("seed", seed)
            config = tune_config(model, before.get("norm", norm), before.get("order", False))
        layers = new_layers(config, seed)
        path = free_path(name, TUNED)
        check_room(path, 4 * sum(p.numel() * p.element_size() for p in layers.parameters()), TUNED)
        mean, deviation = posterior(vae, frames)
        check_latent(model, mean)
        base = fingerprint(model, config.blocks)
        info = to_info(
            config, base=type(model.model).__name__, prompt=prompt_text(cls.hidden.prompt, cls.hidden.unique_id),
            frames=len(frames), size=[frames.shape[2], frames.shape[1]], learning_rate=learning_rate, seed=seed,
        )  # fmt: skip
        if state is not None:
            check_same_run(before, info, base, continue_from)

        patcher = layers_patcher(layers, training=True)
        run = Run(model, layers, deviation, learning_rate, seed, steps, preview_every, memory_saver, cls.hidden.unique_id)
        run.state, run.attention_loss = state, attention_loss

        save = partial(run.save, path, "layers", layers, base, info)
        with keeping(run, save, path, cls.hidden.unique_id, "give fewer frames"):
            comfy.sample.sample_custom(
                inflate(network_alone(model), patcher), torch.zeros_like(mean), 1.0, comfy.samplers.KSAMPLER(run),
                torch.zeros(2), positive, [], mean, disable_pbar=True, seed=seed,
            )  # fmt: skip
        save(keep_state)
        return io.NodeOutput(with_layers(model, layers), os.path.relpath(path, first_folder(TUNED)))


def with_layers(model, layers: TunedLayers, strength: float = 1.0):
    """A clone of a MODEL, inflated, with a copy of tuned layers: two patchers of one module would be a leak to the host."""
    placed = new_layers(layers.config, 0)
    weights.load_into(placed, layers.state_dict(), "tuned")
    return inflate(model, layers_patcher(placed.requires_grad_(False)), strength)


class LoadTunedVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadTunedVideo",
            display_name="Load Tuned Video",
            category="video/loaders",
            description="Gives an image model the motion that Tune-A-Video learned from a clip.",
            search_aliases=["tune-a-video", "tuned model", "load motion"],
            inputs=[
                io.Model.Input("model", tooltip="The image model that was tuned, with LoRAs or without."),
                io.Combo.Input(
                    "tuned_name",
                    options=[name for name in folder_paths.get_filename_list(TUNED) if not name.endswith(STATE)],
                    tooltip=f"A file in models/{TUNED}, from Tune-A-Video.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01, optional=True,
                    tooltip="How much of what was learned; 0 leaves sparse-causal attention alone.",
                ),
                io.Boolean.Input(
                    "other_base", default=False, optional=True, advanced=True,
                    tooltip="Allows another image model of the same layout than the one that was tuned.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The tuned model; a batch of pictures is one clip for it.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, tuned_name) -> bool | str:
        path = folder_paths.get_full_path(TUNED, tuned_name)
        if path is None:
            return f"no tuned clip {tuned_name!r} in models/{TUNED}"
        try:
            from_info(weights.read_info(path))
        except weights.WeightsError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, tuned_name, strength=1.0, other_base=False) -> io.NodeOutput:
        layers, base, info = load_tuned(folder_paths.get_full_path_or_raise(TUNED, tuned_name))
        config = tune_config(model, layers.config.norm, layers.config.order)
        if config.blocks != layers.config.blocks:
            raise ValueError(
                f"{tuned_name} was tuned on a {info.get('base', 'model')} with {describe(layers.config)}; this is a "
                f"{type(model.model).__name__} with {describe(config)}. Please load the image model that it was tuned on."
            )
        if not other_base and not same_base(base, fingerprint(model, config.blocks)):
            raise ValueError(
                f"{tuned_name} was tuned on another {info.get('base', 'model')} than this one: their weights differ. "
                "Please load the image model that it was tuned on, or allow other_base."
            )
        return io.NodeOutput(with_layers(model, layers, strength))
