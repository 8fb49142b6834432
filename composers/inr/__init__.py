"""Coordinate networks, which know nothing of Lightning or of data sets."""

from composers.inr.activations import FINER, WIRE, Activation, Gaussian, ReLU, Sine
from composers.inr.coordinate_mlp import CoordinateMLP, Field, Modulations, num_instances
from composers.inr.encodings import Encoding, FourierFeatures, GaussianFourierFeatures, IdentityEncoding
from composers.inr.unfolded import UnfoldedMLP

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
