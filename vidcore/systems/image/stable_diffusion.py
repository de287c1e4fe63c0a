"""Stable Diffusion 1.x from the checkpoints that people have, for training beside it without the host."""

import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ... import weights
from ...codec.kl import KLAutoencoder
from ...schedule import alpha_sigma, expand_as
from .config import STABLE_DIFFUSION, UNetConfig
from .net import ImageUNet

NET, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
STEPS, FIRST, LAST = 1000, 0.00085, 0.012  # of the noise schedule
TOKENS = 77


class ScaledLinearSchedule:
    """beta_i = (a line from sqrt(0.00085) to sqrt(0.012))^2 for 1000 steps, and between them straight lines of log-SNR."""

    def __init__(self):
        betas = torch.linspace(math.sqrt(FIRST), math.sqrt(LAST), STEPS, dtype=torch.float64, device="cpu") ** 2
        kept = torch.cumprod(1 - betas, dim=0)
        self.table = torch.log(kept / (1 - kept))

    def log_snr(self, t: Tensor) -> Tensor:
        """For ``t`` of any shape in [0, 1], of which 0 is the first step and 1 the last; same shape out."""
        table, place = self.table.to(t.device), t.double().clamp(0, 1) * (STEPS - 1)
        below = place.floor().long().clamp(max=STEPS - 2)
        return torch.lerp(table[below], table[below + 1], place - below)


class LatentUNet(ImageUNet):
    """`ImageUNet` on latents, which predicts the noise, with the interface of `PixelUNet`.

    Args:
        config: sizes; by default those of Stable Diffusion 1.x.
    """

    prediction = "eps"

    def __init__(self, config: UNetConfig = STABLE_DIFFUSION):
        super().__init__(config)
        self.schedule, self._autoencoder = ScaledLinearSchedule(), []

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """z: N C h w with noise; t: N, from 0 to 1; context: N L E. Returns x-hat, N C h w."""
        return self.estimate(z, self.inner(z, t, context), t)

    def fold(self, z: Tensor) -> Tensor:
        """Latents are what the network takes."""
        return z

    def inner(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The network itself."""
        return super().forward(x, (STEPS - 1) * t, context)

    def estimate(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """x-hat = (z - sigma eps-hat) / alpha."""
        alpha, sigma = (expand_as(s.to(z), z) for s in alpha_sigma(self.schedule.log_snr(t)))
        return (z - sigma * output) / alpha

    def keep_autoencoder(self, autoencoder: KLAutoencoder) -> None:
        """For `pictures`; it is no part of the network."""
        self._autoencoder = [autoencoder]

    def pictures(self, latents: Tensor) -> Tensor:
        """N 3 H W from latents N C h w, one at a time."""
        autoencoder = self._autoencoder[0].to(latents.device)
        return torch.cat([autoencoder.decode(one) for one in latents.split(1)])


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is a whole checkpoint in the layout of Stable Diffusion."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith(NET) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def _part(path: str | os.PathLike, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {n[len(prefix) :]: file.get_tensor(n).float() for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118


def load_net(path: str | os.PathLike) -> LatentUNet:
    """The U-Net of a checkpoint of Stable Diffusion 1.x, float32, frozen.

    Raises:
        weights.WeightsError: if it is another model's; XL, 2.x and inpainting models have other sizes.
    """
    with torch.device("meta"):
        net = LatentUNet()
    tensors = _part(path, NET)
    try:
        weights.check(net, tensors, "network")
    except weights.WeightsError as error:
        raise weights.WeightsError(f"{Path(path).name} is no Stable Diffusion 1.x checkpoint: {error}") from None
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


def load_autoencoder(path: str | os.PathLike) -> KLAutoencoder:
    """The autoencoder of a checkpoint, float32, frozen. Raises `weights.WeightsError` if it has none of this kind."""
    with torch.device("meta"):
        autoencoder = KLAutoencoder()
    tensors = _part(path, AUTOENCODER)
    wanted = autoencoder.state_dict()
    tensors = {
        k: v.reshape(wanted[k].shape) if k in wanted and v.numel() == wanted[k].numel() else v for k, v in tensors.items()
    }
    tensors = {k: v for k, v in tensors.items() if not k.startswith("loss.")}  # of its own training, in old files
    weights.check(autoencoder, tensors, "autoencoder")
    autoencoder.load_state_dict(tensors, assign=True)
    return autoencoder.eval().requires_grad_(False)


class ClipText(nn.Module):
    """CLIP's text encoder as Stable Diffusion 1.x reads it: the last layer after its norm (transformers library).

    Args:
        model: a ``transformers.CLIPTextModel``.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def forward(self, captions: list[str]) -> Tensor:
        """N 77 768; what is longer than 77 tokens is cut off."""
        made = self.tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return self.model(input_ids=made.input_ids).last_hidden_state


def load_clip_text(path: str | os.PathLike, tokenizer: Path) -> ClipText:
    """The text encoder of a checkpoint of Stable Diffusion 1.x.

    Args:
        path: the checkpoint.
        tokenizer: folder with ``vocab.json`` and ``merges.txt``, such as ComfyUI's ``comfy/sd1_tokenizer``.

    Raises:
        weights.WeightsError: if the library, a file or the encoder is missing.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast
    except ImportError:
        raise weights.WeightsError("the text encoder needs the transformers library: pip install transformers") from None
    missing = [name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
    if missing:
        raise weights.WeightsError(f"the folder {tokenizer} has no {' and no '.join(missing)}; recipe.tokenizer names it.")
    tensors = _part(path, TEXT)
    sizes = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    model = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=TOKENS))
    wanted = model.state_dict()
    # Some versions of the library have the encoder's parts without "text_model." in front; old files hold the positions too.
    bare = not any(name.startswith("text_model.") for name in wanted)
    tensors = {k.removeprefix("text_model.") if bare else k: v for k, v in tensors.items()}
    tensors = {k: v for k, v in tensors.items() if not k.endswith(("position_ids", "text_projection.weight"))}
    weights.load_into(model, {**{k: v for k, v in wanted.items() if k.endswith("position_ids")}, **tensors}, "text encoder")
    words = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    made = CLIPTokenizerFast.from_pretrained(tokenizer, pad_token="<|endoftext|>")
    if len(words) != model.config.vocab_size:
        raise weights.WeightsError(f"{tokenizer} has {len(words)} tokens; CLIP's tokenizer has {model.config.vocab_size}.")
    return ClipText(model.eval().requires_grad_(False), made)
