"""Networks that turn clips or pictures into features, as files that the person gives."""

from .load import KINDS, Extractor, load_extractor

__all__ = ["KINDS", "Extractor", "load_extractor"]
