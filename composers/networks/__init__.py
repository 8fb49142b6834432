"""Coordinate networks, which know neither Lightning nor data sets."""

from composers.networks.activations import FINER, WIRE, Activation, Gaussian, ReLU, Sine
from composers.networks.coordinate_mlp import CoordinateMLP, Modulations, num_instances
from composers.networks.encodings import Encoding, FourierFeatures, GaussianFourierFeatures, IdentityEncoding
from composers.networks.network import CoordinateNetwork, Field, FreeNetwork, TensorSpec

__all__ = [
    "FINER",
    "WIRE",
    "Activation",
    "CoordinateMLP",
    "CoordinateNetwork",
    "Encoding",
    "Field",
    "FourierFeatures",
    "FreeNetwork",
    "Gaussian",
    "GaussianFourierFeatures",
    "IdentityEncoding",
    "Modulations",
    "ReLU",
    "Sine",
    "TensorSpec",
    "num_instances",
]
