"""The auto-decoder as parts: shifts of two layers are what concatenating the code to their inputs adds."""

import torch

from composers.latents import Layout, Shifts
from composers.networks import CoordinateMLP, IdentityEncoding


def test_shifts_equal_the_concatenation_of_the_code():
    torch.manual_seed(0)
    network = CoordinateMLP(
        3, 1, 7, 6, [0, 4], IdentityEncoding(), normalize_weights=False, output_offset=0.0, modulates="shifts"
    )
    shifts = Shifts(5)
    shifts.connect(network)
    codes, coords = torch.randn(2, 5), torch.randn(4, 3)
    actual = network.bind(shifts.compose({"latent": codes}, Layout()))(coords)
    parts = shifts.shifts.split(7, dim=1)
    for code, values in zip(codes, actual, strict=True):
        hidden = coords
        for layer in range(6):
            weight, bias = network.weights[str(layer)], network.biases[str(layer)]
            if layer in (0, 4):
                hidden = torch.cat((hidden, code.expand(4, -1)), dim=1)
                weight = torch.cat((weight, parts[0 if layer == 0 else 1]))
            hidden = hidden @ weight + bias
            hidden = hidden if layer == 5 else hidden.relu()
        torch.testing.assert_close(values, hidden, rtol=1e-5, atol=1e-6)
