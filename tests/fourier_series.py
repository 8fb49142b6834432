"""A composer that is exact for low-frequency signals of any size: the codes are coefficients of a Fourier series, for tests."""

import math

import torch

from composers import Composer, Refinement
from composers.inference import Start
from composers.latents import Direct
from composers.networks import CoordinateNetwork, TensorSpec


def basis(coords, num_frequencies):
    """Return 1, and cosine and sine of every frequency along every axis ``(..., 1 + 2 K D)``, of period 2 / k."""
    phases = torch.cat([math.pi * k * coords for k in range(1, num_frequencies + 1)], dim=-1)
    return torch.cat((torch.ones_like(coords[..., :1]), phases.cos(), phases.sin()), dim=-1)


class Series(CoordinateNetwork):
    """The values are linear in the coefficients ``(B, F, C)``."""

    floats_per_coord = 64

    def __init__(self, coord_dim=2, value_dim=3, num_frequencies=2):
        super().__init__()
        self.coord_dim, self.value_dim, self.num_frequencies = coord_dim, value_dim, num_frequencies
        shape = (1 + 2 * num_frequencies * coord_dim, value_dim)
        self.slots = {"coefficients": TensorSpec(shape, lambda: torch.zeros(shape))}

    def forward(self, coords, modulations):
        return basis(coords, self.num_frequencies) @ modulations["coefficients"]


class LeastSquares(Start):
    """Fit the coefficients to the samples, which are the same for all instances."""

    def __init__(self, num_frequencies=2):
        super().__init__()
        self.num_frequencies = num_frequencies

    def connect(self, latents):
        pass

    def forward(self, observation, layout):
        coords, values = observation.samples[:2]
        matrix = basis(coords, self.num_frequencies).expand(len(values), -1, -1)
        return {"coefficients": torch.linalg.lstsq(matrix, values).solution}


def series_composer(coord_dim=2, value_dim=3, num_frequencies=2, steps=1):
    """Return a composer of Fourier series, in evaluation mode."""
    network = Series(coord_dim, value_dim, num_frequencies)
    return Composer(network, Direct(), LeastSquares(num_frequencies), refinement=Refinement(steps, report=())).eval()


def series_signal(domain, shape, coefficients):
    """Return the signal ``(1, C, *shape)`` of coefficients ``(F, C)``."""
    num_frequencies = (len(coefficients) - 1) // (2 * domain.coord_dim)
    return (basis(domain.coords(shape), num_frequencies) @ coefficients).mT.unflatten(-1, tuple(shape))[None]
