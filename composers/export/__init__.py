"""Export: encoder and decoder as programs that run without this software; ``python -m composers.export`` writes them."""

from composers.export.files import export
from composers.export.programs import export_decoder, export_encoder

__all__ = ["export", "export_decoder", "export_encoder"]
