"""What every encoder does: features with an optional grid, and freezing."""

import torch
from torch import nn

from composers.encoders import Encoder, Features
from composers.latents import Layout


class _Rows(Encoder):
    """The rows of a signal as tokens, after a Linear, a BatchNorm and dropout."""

    def __init__(self, width):
        super().__init__()
        self.embed_dim = width
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.5)

    def tokens(self, signal):
        return self.dropout(self.norm(self.linear(signal.flatten(1, 2)).mT).mT)


class _RowsOnGrid(_Rows):
    """The same rows, on a grid."""

    def layout(self, signal):
        return Layout((signal.shape[1], signal.shape[2]))


def test_features_are_the_tokens_and_the_grid_of_the_layout():
    signal = torch.rand(2, 3, 4, 5)
    for encoder, grid in ((_Rows(5).eval(), None), (_RowsOnGrid(5).eval(), (3, 4))):
        features = encoder(signal)
        assert isinstance(features, Features)
        assert torch.equal(features.tokens, encoder.tokens(signal))
        assert features.tokens.shape == (2, 12, 5)
        assert features.grid == grid


def test_frozen_encoder_has_no_gradients_and_stays_in_evaluation_mode():
    encoder = _Rows(5)
    model = nn.Sequential(encoder, nn.Identity()).train()
    assert encoder.dropout.training
    assert encoder.freeze() is encoder
    model.train()
    assert model.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    signal, statistics = torch.rand(2, 3, 4, 5), encoder.norm.running_mean.clone()
    assert torch.equal(encoder.tokens(signal), encoder.tokens(signal))
    assert torch.equal(encoder.norm.running_mean, statistics)


def test_encoder_that_is_not_frozen_follows_the_mode():
    encoder = _Rows(5)
    assert not encoder.eval().dropout.training
    assert encoder.train().dropout.training
