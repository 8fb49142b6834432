"""Export encoder and decoder as programs that run without this software; ``python -m tools.export`` is the command."""

from tools.export.files import export
from tools.export.programs import export_decoder, export_encoder

__all__ = ["export", "export_decoder", "export_encoder"]
