"""Activations of coordinate networks, each with the initialisation of its paper."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Activation(nn.Module, ABC):
    """A pointwise nonlinearity that defines the initialisation of the preceding weights and biases."""

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """Return the activations, in the shape of ``hidden``."""

    def init_weight_(self, weight: Tensor, layer: int) -> Tensor:
        """Fill ``weight (I, O)`` of a layer in place: Kaiming-uniform with ``a = sqrt 5``, as in the released code.

        Reference: PyTorch takes the second axis as fan-in, so on an ``(I, O)`` tensor the entries are ``U(+-1 / sqrt O)``.
        """
        bound = 1 / math.sqrt(weight.shape[1])
        return nn.init.uniform_(weight, -bound, bound)

    def init_last_weight_(self, weight: Tensor, layer: int) -> Tensor:
        """Fill ``weight (I, O)`` of the last layer in place; as those of other layers by default."""
        return self.init_weight_(weight, layer)

    def init_bias_(self, bias: Tensor, fan_in: int, layer: int) -> Tensor:
        """Fill ``bias (O,)`` of a layer with ``fan_in`` inputs in place with zeros."""
        return nn.init.zeros_(bias)


class ReLU(Activation):
    """``max(h, 0)``, the activation of IPC and TransINR."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``max(h, 0)``."""
        return hidden.relu()


class GeometricReLU(ReLU):
    """``max(h, 0)`` with an initialisation for signed distances (Atzmon and Lipman, SAL, CVPR 2020, theorem 1; MetaSDF).

    Weights are drawn from ``N(0, 2 / O)``, those of the last layer are ``sqrt(pi / I)``, and biases are zero, so that the field
    is about the distance from the origin. Use it with ``normalize_weights: false`` and ``output_offset: 0.0``.

    Reference: as in MetaSDF, the last bias is zero; that of SAL is the negative radius of a sphere.
    """

    def init_weight_(self, weight: Tensor, layer: int) -> Tensor:
        """Fill ``weight (I, O)`` in place with normal numbers of variance ``2 / O``."""
        return nn.init.normal_(weight, 0, math.sqrt(2 / weight.shape[1]))

    def init_last_weight_(self, weight: Tensor, layer: int) -> Tensor:
        """Fill ``weight (I, O)`` of the last layer in place with ``sqrt(pi / I)``: several outputs are equal."""
        return nn.init.constant_(weight, math.sqrt(math.pi / weight.shape[0]))


class Sine(Activation):
    """``sin(omega h)`` with the initialisation of SIREN (Sitzmann et al. 2020, section 3.2).

    The weights of the first layer are drawn from ``U(+-1 / I)``, all others from ``U(+-sqrt(6 / I) / omega)``. Use it without
    an encoding and with ``normalize_weights: false``.

    Args:
        omega: Frequency factor; 30 in SIREN, 200 in Learned Init on 178-pixel images.

    Raises:
        ValueError: If ``omega`` is not positive.
    """

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__()
        if omega <= 0:
            raise ValueError(f"omega is {omega}; it must be positive.")
        self.omega = omega

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``sin(omega h)``."""
        return torch.sin(self.omega * hidden)

    def init_weight_(self, weight: Tensor, layer: int) -> Tensor:
        """Fill ``weight (I, O)`` in place as in SIREN."""
        fan_in = weight.shape[0]
        bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / self.omega
        return nn.init.uniform_(weight, -bound, bound)

    def init_bias_(self, bias: Tensor, fan_in: int, layer: int) -> Tensor:
        """Fill ``bias (O,)`` in place with ``U(+-1 / sqrt I)``."""
        bound = 1 / math.sqrt(fan_in)
        return nn.init.uniform_(bias, -bound, bound)


class FINER(Sine):
    """``sin(omega (|h| + 1) h)``: the local frequency grows with the amplitude (Liu et al. 2024, FINER, equations 4 and 5).

    Args:
        omega: Frequency factor.
        first_bias_scale: Biases of the first layer are drawn from ``U(+-first_bias_scale)``; larger values widen the range of
            frequencies.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, omega: float = 30.0, first_bias_scale: float = 1.0) -> None:
        super().__init__(omega)
        if first_bias_scale <= 0:
            raise ValueError(f"first_bias_scale is {first_bias_scale}; it must be positive.")
        self.first_bias_scale = first_bias_scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``sin(omega (|h| + 1) h)``; the factor ``|h| + 1`` carries no gradient, as in the authors' code."""
        return torch.sin(self.omega * (hidden.detach().abs() + 1) * hidden)

    def init_bias_(self, bias: Tensor, fan_in: int, layer: int) -> Tensor:
        """Fill ``bias (O,)`` in place: with ``first_bias_scale`` in the first layer, as in SIREN elsewhere."""
        if layer == 0:
            return nn.init.uniform_(bias, -self.first_bias_scale, self.first_bias_scale)
        return super().init_bias_(bias, fan_in, layer)


class Gaussian(Activation):
    """``exp(-h^2 / (2 sigma^2))`` (Ramasinghe and Lucey 2022, "Beyond periodicity").

    Args:
        sigma: Standard deviation of the Gaussian, positive.

    Raises:
        ValueError: If ``sigma`` is not positive.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"sigma is {sigma}; it must be positive.")
        self.sigma = sigma

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``exp(-h^2 / (2 sigma^2))``."""
        return torch.exp(-0.5 * (hidden / self.sigma).square())


class WIRE(Activation):
    """``cos(omega h) exp(-(scale h)^2)``: a real Gabor wavelet (Saragadam et al. 2023, WIRE, equation 5).

    Reference: the paper's wavelet and weights are complex; this is the real part of the wavelet, so that the weights are real.

    Args:
        omega: Frequency of the wavelet.
        scale: Inverse width of the envelope.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, omega: float = 10.0, scale: float = 10.0) -> None:
        super().__init__()
        if omega <= 0 or scale <= 0:
            raise ValueError(f"omega is {omega} and scale {scale}; both must be positive.")
        self.omega = omega
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``cos(omega h) exp(-(scale h)^2)``."""
        return torch.cos(self.omega * hidden) * torch.exp(-(self.scale * hidden).square())
