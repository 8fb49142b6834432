"""Coordinate networks, which know neither Lightning nor data sets."""

from composers.networks.activations import FINER, WIRE, Activation, Gaussian, GeometricReLU, ReLU, Sine
from composers.networks.attentive_mlp import AttentiveMLP
from composers.networks.banded_mlp import BandedMLP
from composers.networks.coordinate_mlp import CoordinateMLP, Modulations, num_instances
from composers.networks.encodings import (
    CosineFeatures,
    Encoding,
    FourierFeatures,
    GaussianFourierFeatures,
    IdentityEncoding,
    PositionalEncoding,
)
from composers.networks.grid_mixer import GridMixer
from composers.networks.local_mlp import LocalMLP
from composers.networks.network import CoordinateNetwork, Field, FreeNetwork, PatchSpec, TensorSpec
from composers.networks.patchwise_mlp import PatchModulations, PatchwiseMLP
from composers.networks.pixel_aligned_mlp import PixelAlignedMLP
from composers.networks.scaled_linear import ScaledLinear
from composers.networks.token_attention import TokenAttention
from composers.networks.token_network import TokenNetwork
from composers.networks.voxel_mlp import VoxelMLP

__all__ = [
    "FINER",
    "WIRE",
    "Activation",
    "AttentiveMLP",
    "BandedMLP",
    "CoordinateMLP",
    "CoordinateNetwork",
    "CosineFeatures",
    "Encoding",
    "Field",
    "FourierFeatures",
    "FreeNetwork",
    "Gaussian",
    "GaussianFourierFeatures",
    "GeometricReLU",
    "GridMixer",
    "IdentityEncoding",
    "LocalMLP",
    "Modulations",
    "PatchModulations",
    "PatchSpec",
    "PatchwiseMLP",
    "PixelAlignedMLP",
    "PositionalEncoding",
    "ReLU",
    "ScaledLinear",
    "Sine",
    "TensorSpec",
    "TokenAttention",
    "TokenNetwork",
    "VoxelMLP",
    "num_instances",
]
