"""CLIP (Radford et al. 2021, arXiv 2103.00020) by the transformers library, from a folder with its safetensors file."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...weights import WeightsError

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXTS = 64  # at a time
FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


class Clip(nn.Module):
    """Image and text encoder, each with its projection into the common space.

    Args:
        model: a ``transformers.CLIPModel``.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @staticmethod
    def from_folder(folder: Path) -> "Clip":
        """From the files of a model page, such as those of ``openai/clip-vit-base-patch32``.

        Raises:
            WeightsError: if the library or a file is missing.
        """
        try:
            from transformers import CLIPModel, CLIPTokenizerFast
        except ImportError:
            raise WeightsError("CLIP needs the transformers library: pip install transformers") from None
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise WeightsError(f"{folder} is no folder of a CLIP model: it has no {', '.join(missing)}.")
        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{folder} is no folder of a CLIP model ({error}).") from None
        return Clip(model, tokenizer)

    @property
    def width(self) -> int:
        """Of a feature."""
        return self.model.config.projection_dim

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Features of pictures as `prepare` makes them, N D."""
        return self.model.visual_projection(self.model.vision_model(pixel_values=x).pooler_output), None

    @torch.inference_mode()
    def texts(self, captions: list[str]) -> Tensor:
        """Features of captions, N D, on the CPU; what is longer than the encoder reads is cut off."""
        made, longest = [], self.model.config.text_config.max_position_embeddings
        for first in range(0, len(captions), TEXTS):
            part = captions[first : first + TEXTS]
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            made.append(
                self.model.text_projection(self.model.text_model(**tokens.to(self.model.device)).pooler_output).float().cpu()
            )
        return torch.cat(made)

    def prepare(self, clips: Tensor) -> Tensor:
        """uint8 N 1 H W 3: the shorter side scaled to the encoder's size (bicubic, antialiased), and the middle of that."""
        size = self.model.config.vision_config.image_size
        x = clips[:, 0].movedim(-1, 1).float() / 255
        height, width = x.shape[-2:]
        factor = size / min(height, width)
        shape = max(size, round(height * factor)), max(size, round(width * factor))
        x = F.interpolate(x, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, DEVIATION))
        return (x[:, :, top : top + size, left : left + size] - mean) / deviation
