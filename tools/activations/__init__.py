"""Analysis of coordinate networks: activation maps, importance of units, and principal components of codes.

``python -m tools.activations --checkpoint ipc.ckpt --compare transinr.ckpt --images photos/`` draws the claim of the paper:
instance patterns differ between images, the layers before and after them are shared.
"""

from tools.activations.analysis import AnalysisSettings, ModelAnalysis
from tools.activations.components import principal_components
from tools.activations.layers import activation_maps, spreads
from tools.activations.units import ablate_units

__all__ = [
    "AnalysisSettings",
    "ModelAnalysis",
    "ablate_units",
    "activation_maps",
    "principal_components",
    "spreads",
]
