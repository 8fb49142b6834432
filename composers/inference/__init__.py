"""How latents are found: predicted by a hypernetwork, or by gradient steps."""

from composers.inference.hypernetwork import Columns, Hypernetwork

__all__ = ["Columns", "Hypernetwork"]
