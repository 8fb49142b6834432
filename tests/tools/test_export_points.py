"""Exported programs of models that encode point sets."""

import io

import pytest
import torch

from composers import TransformerIPC
from composers.construction import state_data
from composers.encoders import PointTokens, Transformer
from composers.networks import CoordinateMLP, FourierFeatures
from composers.rendering import SignedDistance
from datamodules.batch import Observation
from datamodules.domain import Volume
from datamodules.spec import DataSpec, Modality
from tools.export import export_decoder, export_encoder


def _composer(queries="farthest"):
    torch.manual_seed(0)
    network = CoordinateMLP(3, 1, 16, 3, encoding=FourierFeatures(4, 8), output_offset=0.0)
    encoder = PointTokens((-1, 6), num_tokens=6, embed_dim=16, num_heads=2, queries=queries)
    composer = TransformerIPC(
        network, encoder, Transformer(16, 2, 2, residual_dropout=0.0), renderer=SignedDistance(heads="distance")
    )
    state_data(composer, DataSpec(Volume(1.0), 1, (50, 6), Modality()))
    return composer.eval()


def _reloaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.slow
@pytest.mark.parametrize("queries", ["farthest", "random", "learned"])
def test_programs_equal_the_composer(queries):
    composer, coords = _composer(queries), torch.rand(7, 3) * 2 - 1
    encoder, decoder = _reloaded(export_encoder(composer, [50, 6])), _reloaded(export_decoder(composer, [50, 6]))
    for instances in (1, 2, 5):
        points = torch.rand(instances, 50, 6) * 2 - 1
        with torch.no_grad():
            expected = composer(Observation(points), coords)
            torch.testing.assert_close(decoder(encoder(points), coords), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [None, [50], [50, 3], [0, 6], [-1, 6]])
def test_the_number_of_points_must_be_stated(shape):
    with pytest.raises(ValueError, match=r"this model takes the sizes \[-1, 6\], where -1 is open: state all sizes"):
        export_encoder(_composer(), shape)
