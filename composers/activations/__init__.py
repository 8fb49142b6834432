"""A look inside coordinate networks: activation maps, what single units are worth, and where codes lie.

``python -m composers.activations --checkpoint ipc.ckpt --compare transinr.ckpt --pictures photos/`` writes the sheets of the
paper's argument: instance patterns differ from picture to picture, the rules before and after them are common to all.
"""

from composers.activations.codes import principal_components
from composers.activations.layers import activation_maps, hidden_layers, spreads
from composers.activations.subject import Settings, Subject
from composers.activations.units import unit_costs

__all__ = [
    "Settings",
    "Subject",
    "activation_maps",
    "hidden_layers",
    "principal_components",
    "spreads",
    "unit_costs",
]
