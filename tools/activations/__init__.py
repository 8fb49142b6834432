"""A look inside coordinate networks: activation maps, what single units are worth, and where codes lie.

``python -m tools.activations --checkpoint ipc.ckpt --compare transinr.ckpt --images photos/`` writes the figures of the
paper's argument: instance patterns differ from image to image, the rules before and after them are common to all.
"""

from tools.activations.codes import principal_components
from tools.activations.layers import activation_maps, hidden_layers, spreads
from tools.activations.subject import StudySettings, Subject
from tools.activations.units import unit_costs

__all__ = [
    "StudySettings",
    "Subject",
    "activation_maps",
    "hidden_layers",
    "principal_components",
    "spreads",
    "unit_costs",
]
