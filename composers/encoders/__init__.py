"""Encoders, a signal to features; readouts, features to latents."""

from composers.encoders.convolutional import EDSR, RDN, ConvolutionalEncoder
from composers.encoders.encoder import Encoder, Features
from composers.encoders.mixed_patches import MixedPatches
from composers.encoders.patch_projection import PatchProjection
from composers.encoders.patches import Patches
from composers.encoders.points import PointTokens
from composers.encoders.readouts import PerToken, Readout, TokenMap, ViewMaps, WeightTokens
from composers.encoders.token_decoder import TokenDecoder
from composers.encoders.transformer import Transformer
from composers.encoders.view_features import ViewFeatures
from composers.encoders.view_voxels import ViewVoxels
from composers.encoders.views import ViewPatches

__all__ = [
    "EDSR",
    "RDN",
    "ConvolutionalEncoder",
    "Encoder",
    "Features",
    "MixedPatches",
    "PatchProjection",
    "Patches",
    "PerToken",
    "PointTokens",
    "Readout",
    "TokenDecoder",
    "TokenMap",
    "Transformer",
    "ViewFeatures",
    "ViewMaps",
    "ViewPatches",
    "ViewVoxels",
    "WeightTokens",
]
