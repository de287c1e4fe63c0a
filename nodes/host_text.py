"""Our text encoder as a host CLIP, so that stock CLIP Text Encode feeds it, prompt weights included."""

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch

from ..vidcore import weights
from ..vidcore.text import TextConfig, TextEncoder, Vocabulary
from ..vidcore.text.vocabulary import PAD


class HostTokenizer:
    """Words to (token, weight) pairs, with the host's syntax for weights: ``a (red:1.3) star``."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs):
        self.vocabulary.encode(text_without_weights(text))  # unknown words and length, over the whole prompt
        pairs = []
        for segment, weight in _segments(text):
            pairs += [(token, weight) for token in self.vocabulary.encode(segment) if token != PAD]
        pairs += [(PAD, 1.0)] * (self.vocabulary.length - len(pairs))
        if return_word_ids:
            pairs = [(token, weight, i + 1 if token != PAD else 0) for i, (token, weight) in enumerate(pairs)]
        return [pairs]

    def untokenize(self, pairs):
        return [(pair, self.vocabulary.words[pair[0] - 1] if pair[0] else "") for pair in pairs]

    def state_dict(self):
        return {}


def _segments(text: str) -> list[tuple[str, float]]:
    """The host's own parse of ``(words:weight)``."""
    escaped = comfy.sd1_clip.escape_important(text)
    return [(comfy.sd1_clip.unescape_important(s), w) for s, w in comfy.sd1_clip.token_weights(escaped, 1.0)]


def text_without_weights(text: str) -> str:
    return " ".join(segment for segment, _ in _segments(text))


class HostTextEncoder(torch.nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """The encoder under the host's calling convention."""

    special_tokens: dict = {}

    def __init__(self, config: TextConfig, dtype, device, model_options={}):
        super().__init__()
        operations = model_options.get("custom_operations") or comfy.ops.manual_cast
        self.encoder = TextEncoder(config, operations, device, dtype)
        self.dtypes = {dtype}
        self.device = device

    def gen_empty_tokens(self, special_tokens, length):
        return [PAD] * length

    def set_clip_options(self, options):
        self.device = options.get("execution_device", self.device)

    def reset_clip_options(self):
        pass

    def encode(self, tokens):
        return self.encoder(torch.tensor(tokens, device=self.device)), None

    def load_sd(self, sd):
        return self.encoder.load_state_dict(sd, strict=False, assign=getattr(self, "can_assign_sd", False))


def load_clip(path: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The text encoder of a checkpoint as a host CLIP. Raises `weights.WeightsError` if the file does not fit."""
    text, info = weights.load(path, "text.")
    config = weights.entry(info, "text", TextConfig)
    weights.check(TextEncoder(config, device="meta"), text, "text encoder")
    vocabulary = Vocabulary(config.words, config.length)

    target = comfy.supported_models_base.ClipTarget(
        tokenizer=lambda embedding_directory=None, tokenizer_data={}: HostTokenizer(vocabulary),
        clip=lambda dtype, device, model_options: HostTextEncoder(config, dtype, device, model_options),
    )
    clip = comfy.sd.CLIP(
        target,
        parameters=sum(t.numel() for t in text.values()),
        state_dict=[{name: tensor.float() for name, tensor in text.items()}],
        model_options={"dtype": torch.float32},  # half a million parameters: half precision would save nothing
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (load_clip_patcher, (path,))
    return clip


def load_clip_patcher(path: str, disable_dynamic: bool = False):
    """What the host asks for when it wants the text encoder's weights anew."""
    return load_clip(path, disable_dynamic).patcher
