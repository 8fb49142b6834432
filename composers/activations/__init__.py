"""A look inside coordinate networks: activation maps, what single units are worth, and where codes lie.

``python -m composers.activations --checkpoint ipc.ckpt --compare transinr.ckpt --pictures photos/`` writes the sheets of the
paper's argument: instance patterns differ from picture to picture, the rules before and after them are common to all.
"""

from __future__ import annotations

from composers.activations.codes import Components, principal_components
from composers.activations.layers import Spread, activation_maps, hidden_layers, spreads
from composers.activations.pictures import crops, fitted, read_all
from composers.activations.study import Settings, Study
from composers.activations.subject import Subject, look_at
from composers.activations.units import unit_costs

__all__ = [
    "Components",
    "Settings",
    "Spread",
    "Study",
    "Subject",
    "activation_maps",
    "crops",
    "fitted",
    "hidden_layers",
    "look_at",
    "principal_components",
    "read_all",
    "spreads",
    "unit_costs",
]
