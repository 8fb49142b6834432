"""Encoders: a signal to tokens and features."""

from composers.encoders.patches import Patches, Tokenizer
from composers.encoders.transformer import Transformer
from composers.encoders.views import ViewPatches

__all__ = ["Patches", "Tokenizer", "Transformer", "ViewPatches"]
