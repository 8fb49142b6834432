"""Hypernetworks: an observation to the columns of weights."""

from composers.hypernet.hypernetwork import Columns, Hypernetwork
from composers.hypernet.tokenizers import Patches, Tokenizer
from composers.hypernet.transformer import Transformer
from composers.hypernet.view_patches import ViewPatches

__all__ = ["Columns", "Hypernetwork", "Patches", "Tokenizer", "Transformer", "ViewPatches"]
