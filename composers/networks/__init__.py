"""Coordinate networks, which know nothing of Lightning or of data sets."""

from composers.networks.activations import FINER, WIRE, Activation, Gaussian, ReLU, Sine
from composers.networks.coordinate_mlp import CoordinateMLP, Field, Modulations, num_instances
from composers.networks.encodings import Encoding, FourierFeatures, GaussianFourierFeatures, IdentityEncoding
from composers.networks.unfolded import UnfoldedMLP

__all__ = [
    "FINER",
    "WIRE",
    "Activation",
    "CoordinateMLP",
    "Encoding",
    "Field",
    "FourierFeatures",
    "Gaussian",
    "GaussianFourierFeatures",
    "IdentityEncoding",
    "Modulations",
    "ReLU",
    "Sine",
    "UnfoldedMLP",
    "num_instances",
]
