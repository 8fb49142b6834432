"""Tiny models of super-resolution for tests."""

import torch

import composers

FACTS = {
    "domain": {"class_path": "datamodules.domain.CellGrid", "init_args": {"ranges": [[-1.0, 1.0], [-1.0, 1.0]]}},
    "value_dim": 3,
    "signal_shape": [3, 8, 8],
    "modality": "images",
    "num_instances": 4,
    "sample_rate": None,
    "scales": [1.0, 4.0],
}


def tiny_liif(channels=3, trained=True, **network):
    """Return a LIIF of 2 residual blocks of width 8, as loaded from a checkpoint; without ``trained`` it interpolates."""
    arguments = {
        "coord_dim": 4,
        "value_dim": channels,
        "feature_dim": 8,
        "hidden_dim": 16,
        "num_hidden": 2,
        "skip": "bilinear",
    }
    config = {
        "class_path": "composers.LIIF",
        "init_args": {
            "network": {"class_path": "composers.networks.LocalMLP", "init_args": arguments | network},
            "encoder": {
                "class_path": "composers.encoders.EDSR",
                "init_args": {"signal_shape": [channels, -1, -1], "width": 8, "num_blocks": 2},
            },
        },
    }
    torch.manual_seed(0)
    composer = composers.build(config).eval()
    if trained:
        torch.nn.init.normal_(composer.network.last.weight, std=0.3)
    composer._trained_on = FACTS | {"value_dim": channels, "signal_shape": [channels, 8, 8]}
    return composer
