"""Hypernetworks: an observation to the columns of weights."""

from composers.hypernet.hypernetwork import Columns, Hypernetwork
from composers.hypernet.tokenizers import Patches, Tokenizer
from composers.hypernet.transformer import Transformer

__all__ = ["Columns", "Hypernetwork", "Patches", "Tokenizer", "Transformer"]
