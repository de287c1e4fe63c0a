"""A small text encoder of our own: words of a fixed vocabulary in, token embeddings out; trained with the video model."""

from .encoder import TextConfig, TextEncoder
from .vocabulary import UnknownWordsError, Vocabulary

__all__ = ["TextConfig", "TextEncoder", "UnknownWordsError", "Vocabulary"]
