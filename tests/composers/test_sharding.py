"""Sharding splits transformer blocks, each by itself; models without them are refused."""

import pytest
import torch.distributed.fsdp

from composers.encoders.transformer import Block
from composers.training import sharding


def test_units_are_the_transformer_blocks_and_the_rest(make_ipc, monkeypatch):
    units = []
    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", lambda module, mesh: units.append(module))
    composer = make_ipc()
    sharding.shard(composer, None)
    blocks = [module for module in composer.modules() if isinstance(module, Block)]
    assert len(blocks) == 2
    assert units == [*blocks, composer]


def test_model_without_transformer_blocks_is_refused(make_network):
    with pytest.raises(ValueError, match=r"this CoordinateMLP has none: use --trainer\.strategy ddp"):
        sharding.shard(make_network(), None)


def test_checkpoint_is_not_loaded_into_sharded_weights():
    with pytest.raises(
        ValueError, match=r"last\.ckpt cannot be loaded into sharded weights: use --trainer\.strategy ddp"
    ):
        sharding.Sharding().load_checkpoint("last.ckpt")
