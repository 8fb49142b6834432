"""Parametrizations: the latents that are adapted per instance, and their conversion to modulations of the network."""

from composers.latents.column_scales import ColumnScales
from composers.latents.direct import Direct
from composers.latents.layout import Latents, Layout, lerp, module_key
from composers.latents.low_rank import LowRank
from composers.latents.mixture import PatchMixture
from composers.latents.parametrization import Parametrization
from composers.latents.patch_codes import PatchCodes
from composers.latents.patch_patterns import PatchPatterns
from composers.latents.shifts import Shifts

__all__ = [
    "ColumnScales",
    "Direct",
    "Latents",
    "Layout",
    "LowRank",
    "Parametrization",
    "PatchCodes",
    "PatchMixture",
    "PatchPatterns",
    "Shifts",
    "lerp",
    "module_key",
]
