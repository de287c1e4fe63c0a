"""One run of Tune-A-Video on a host MODEL, and the clip that it runs on."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.model_sampling
import comfy.utils
import latent_preview
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from PIL import Image
from server import PromptServer

from ..vidcore import weights
from ..vidcore.sample import ddim_step
from ..vidcore.sample import sample as walk
from ..vidcore.systems.harivo.wire import Watched
from ..vidcore.systems.tune_a_video import Tuning, read_loss, sent
from .checkpoint import checkpointed
from .gradient import Safeguards, gradients
from .guide import out_of_memory
from .samplers import PAPER_SCHEDULE, make_sigmas, walker
from .tune_files import STATE

PREVIEW_STEPS = 12


def check_clip(frames: torch.Tensor, vae, node: str = "Tune-A-Video") -> None:
    """Raises ValueError for what cannot be tuned on: a single frame, sizes that the VAE would cut, numbers that are none."""
    check_size(len(frames), *frames.shape[1:3], vae, node)
    check_finite(frames)


def check_finite(frames: torch.Tensor) -> None:
    """Raises ValueError for frames with numbers that are none."""
    if not torch.isfinite(frames).all():
        raise ValueError("the frames hold NaN or infinite numbers; please check the node that made them")


def check_size(count: int, height: int, width: int, vae, node: str) -> None:
    """`check_clip` of so many frames that are not there yet."""
    if count < 2:
        raise ValueError(f"{node} needs a clip of 2 frames or more, and got one. For one picture, train a LoRA.")
    stride = vae.spacial_compression_encode()
    if height % stride or width % stride:
        raise ValueError(
            f"the frames are {width}x{height}, and this VAE takes multiples of {stride}. Please resize or crop them, to "
            f"{width // stride * stride}x{height // stride * stride} for example."
        )


def posterior(vae, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the frames' latents, in the model's space; zero where a VAE has no deviation."""
    moments = []
    hook = None
    regulariser = getattr(vae.first_stage_model, "regularization", None)
    if isinstance(regulariser, DiagonalGaussianRegularizer):
        hook = regulariser.register_forward_pre_hook(lambda _, inputs: moments.append(inputs[0].float().cpu()))
    try:
        mean = vae.encode(frames[..., :3])
    finally:
        if hook is not None:
            hook.remove()
    found = torch.cat(moments) if moments else None
    if found is None or found.shape != (mean.shape[0], 2 * mean.shape[1], *mean.shape[2:]):  # none, or encoded in tiles
        return mean, torch.zeros_like(mean)
    return mean, (found.chunk(2, dim=1)[1].clamp(-30, 20) / 2).exp().to(mean)


class Run:
    """The tuning loop under the host's calling convention for samplers, so that the host prepares text and ControlNets."""

    attention_loss = 0.0  # weight of HARIVO's attention loss

    def __init__(self, model, layers, deviation, learning_rate, seed, steps, preview_every, memory_saver, node):
        self.layers, self.deviation = layers, deviation
        self.learning_rate, self.seed, self.steps = learning_rate, seed, steps
        self.preview_every, self.memory_saver, self.node = preview_every, memory_saver, node
        self.tuning: Tuning | None = None
        self.state: str | None = None
        self.loss = float("nan")
        self.unread: torch.Tensor | None = None  # the loss of the last step, until the device has been waited for
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        guider, base = model.inner_model, model.inner_model.inner_model
        others = [part.model for part in guider.loaded_models]  # the layers, which a GPU has as inference tensors, and more
        sampling, bar = base.model_sampling, comfy.utils.ProgressBar(self.steps)
        with gradients([base, *others]):
            half = base.get_dtype_inference() == torch.float16
            self.tuning = Tuning(self.layers, self.learning_rate, self.seed, half)
            if self.state is not None:
                self.tuning.resume(self.state)
            # x is the clip itself, in the model's space: sigma is 0. All of training's noise levels are alike.
            zero = torch.zeros_like(self.deviation)
            deviation = (base.process_latent_in(self.deviation) - base.process_latent_in(zero)).clone().to(x)
            mean = x.clone()
            denoise, levels, _ = walker(model, mean, sampling.sigmas.clone().to(x), extra_args)
            safeguards = Safeguards(self.layers)
            step = partial(self.advance, model, denoise, prediction(sampling), mean, deviation, levels)
            while self.tuning.step < self.steps:
                comfy.model_management.throw_exception_if_processing_interrupted()
                with checkpointed(base.diffusion_model) if self.memory_saver else torch.enable_grad():
                    before, self.unread = self.unread, safeguards(step)
                done = self.tuning.step
                if before is not None:  # a step late, so that a GPU has work while Python prepares more
                    self.report(bar, done - 1, before)
                if self.preview_every and self.previewer and (done % self.preview_every == 0 or done == self.steps):
                    preview = safeguards(partial(self.preview, model, mean, extra_args))
                    before, self.unread = self.unread, None
                    self.report(bar, done, before, preview)
            if self.unread is not None:
                self.report(bar, self.steps, self.unread)
                self.unread = None
        return x

    def report(self, bar, step: int, loss: torch.Tensor, preview=None) -> None:
        """Shows how far it is, with the loss of that step, for which the device is waited for."""
        self.loss = read_loss(loss, step)
        bar.update_absolute(step, self.steps, preview)
        say(self.node, f"step {step} of {self.steps}, loss {self.loss:.4f}")

    def advance(self, model, denoise, prediction, mean, deviation, levels) -> torch.Tensor:
        """One step, as `Tuning.advance`; ``model`` is what the host hands to samplers."""
        guider = model.inner_model
        guider.conds = {name: on_device(conds, mean.device) for name, conds in guider.conds.items()}
        if not self.attention_loss:
            return self.tuning.advance(denoise, prediction, mean, deviation, levels)
        with watch(guider.inner_model.diffusion_model, True) as watched:
            return self.tuning.advance(
                denoise, prediction, mean, deviation, levels, lambda: self.attention_loss * watched.regularised(len(mean))
            )

    def save(self, path: Path, name: str, layers: torch.nn.Module, base: torch.Tensor, info: dict, with_state: bool) -> None:
        """Writes what has been learned, and what is needed to go on beside it.

        Args:
            path: of the file.
            name: before the names of the tensors.
            layers: what the file is for.
            base: the model's fingerprint.
            info: what the file says of itself.
            with_state: whether to write what is needed to go on.
        """
        if self.unread is not None:  # it was cancelled
            self.loss = read_loss(self.unread, self.tuning.step)
        with torch.inference_mode(False):
            tensors = {f"{name}.{key}": value for key, value in layers.state_dict().items()} | {"base": base}
            weights.save(path, tensors, {**info, "steps": self.tuning.step, "loss": self.loss})
            if with_state:
                self.tuning.save(path.with_suffix(STATE), {**info, "fingerprint": base.tolist()})

    @torch.no_grad()
    def preview(self, model, mean, extra_args):
        """The clip as the model makes it now from noise of the seed: all frames in one picture."""
        sigmas = make_sigmas(model.inner_model.inner_model.model_sampling, PAPER_SCHEDULE, "ddim", PREVIEW_STEPS).to(mean)
        denoise, levels, _ = walker(model, mean, sigmas, extra_args)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(self.seed % 2**63)).to(mean)

        def go_on(i, x0, z):
            comfy.model_management.throw_exception_if_processing_interrupted()

        made = walk(denoise, levels[0].sigma * noise, levels, ddim_step, callback=go_on)
        return (
            "JPEG",
            contact_sheet([self.previewer.decode_latent_to_preview(made[i : i + 1]) for i in range(len(made))]),
            None,
        )


def on_device(conds: list[dict], device: torch.device) -> list[dict]:
    """Conditions that the host has prepared, on the device; the host would send them there in each step, and wait."""

    def moved(part):
        if isinstance(getattr(part, "cond", None), torch.Tensor):
            part = copy.copy(part)
            part.cond = sent(part.cond, device)
        return part

    return [{**cond, "model_conds": {k: moved(part) for k, part in cond["model_conds"].items()}} for cond in conds]


@contextlib.contextmanager
def keeping(run: Run, save: Callable[[bool], None], path: Path, node: str, advice: str):
    """Around a run: cancel keeps what was reached, with its state; running out of memory says what to do.

    Args:
        run: the run.
        save: writes what it trains; with True what is needed to go on, too.
        path: the file that is written.
        node: the host's name of the node.
        advice: what makes a run smaller.
    """
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        if run.tuning is not None and run.tuning.step:
            save(True)
            say(node, f"stopped after {run.tuning.step} steps, kept as {path.name}")
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"{error}\nTraining keeps the model's activations for its gradient. Please turn memory_saver on, {advice}, or "
            "use a smaller size."
        ) from error


def watch(net, maps: bool) -> Watched:
    """What HARIVO's losses look at in a U-Net of the host: the bottleneck and, with ``maps``, self-attention going up."""
    up = [part for part in net.output_blocks.modules() if maps and getattr(part, "attn1", None) is not None]
    return Watched(net.middle_block[-1], [(part.attn1.to_q, part.attn1.to_k, part.n_heads) for part in up])


def prediction(sampling) -> str:
    """What a host model's network predicts, in the core's terms; a flow's velocity is weighted as v is."""
    kinds = comfy.model_sampling
    if isinstance(sampling, kinds.X0):
        return "x0"
    return "v" if isinstance(sampling, (kinds.CONST, kinds.V_PREDICTION)) else "eps"


def contact_sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size beside and below one another, in reading order."""
    columns = int(len(pictures) ** 0.5 + 0.999)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def say(node: str, text: str) -> None:
    """Show a line of text on the node, where there is a page that shows it."""
    if node and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text(text, node)
