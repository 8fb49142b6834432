"""Projections of patches to codes: those of a mixture, plus a learned correction."""

from functools import partial

import pytest
import torch

from composers.encoders import Features, MixedPatches, PatchProjection, ViewPatches
from composers.latents.mixture import fit_mixture
from composers.networks import TensorSpec
from composers.networks.patch_grid import cut


def _connected(num_clusters, code_dim=3):
    """Return an encoder of patches of 2 x 2 samples and its readout."""
    encoder = MixedPatches((1, -1, -1), 2, num_blocks=1, kernel_size=3, mlp_ratio=1)
    readout = PatchProjection(num_clusters)
    readout.connect(encoder, {"codes": TensorSpec((-1, -1, code_dim), partial(torch.zeros, 1, 1, code_dim))})
    return encoder, readout


@torch.no_grad()
@pytest.mark.parametrize("num_clusters", [1, 4])
def test_codes_start_as_those_of_the_mixture(num_clusters):
    encoder, readout = _connected(num_clusters)
    signal = torch.rand(5, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    patches = cut(signal, (2, 2))
    mixture = fit_mixture(patches.flatten(0, -2), 3, num_clusters)
    readout.initialize(mixture)
    torch.testing.assert_close(readout(encoder(signal))["codes"], mixture.encode(patches))
    torch.nn.init.normal_(readout.correction.weight)
    corrected, expected = readout(encoder(signal))["codes"], mixture.encode(patches)
    first = int(num_clusters > 1)
    assert torch.equal(corrected[..., :first], expected[..., :first])  # the index is not corrected
    correction = readout.correction(encoder(signal).tokens).unflatten(1, (6, 8))
    torch.testing.assert_close(corrected[..., first:], expected[..., first:] + correction)


def test_only_the_correction_is_trained():
    encoder, readout = _connected(4)
    readout(encoder(torch.rand(2, 1, 6, 4)))["codes"].sum().backward()
    assert {name for name, _ in readout.named_parameters()} == {"correction.weight", "correction.bias"}
    assert all(parameter.grad.any() for parameter in readout.parameters())


def test_features_and_latents_that_do_not_fit_are_rejected():
    encoder, readout = _connected(1)
    with pytest.raises(ValueError, match="the features of this encoder have no grid"):
        readout(Features(torch.rand(1, 6, encoder.embed_dim)))
    spec = TensorSpec((4, 3), partial(torch.zeros, 4, 3))
    with pytest.raises(ValueError, match=r"predicts one code per patch; .* use parametrization PatchCodes"):
        PatchProjection().connect(encoder, {"patterns.1": spec})
    with pytest.raises(ValueError, match="the tokens of ViewPatches do not hold: use encoder MixedPatches or Patches"):
        PatchProjection().connect(ViewPatches((1, 3, 8, 8), 8), {"codes": spec})
