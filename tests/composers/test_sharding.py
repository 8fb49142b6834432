"""Sharding splits transformer blocks, each by itself, and the state of the optimizer; models without blocks are refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

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


@pytest.fixture
def alone():
    """Yield the device mesh of a process group with one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "stateless": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complete_state_of_an_optimizer_is_sharded_like_its_weights(make_ipc, alone, name):
    """Also where some weights are frozen, and gathered when the state is loaded."""
    composer = make_ipc()
    composer.network.requires_grad_(False)
    trained = [parameter for parameter in composer.parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len(list(composer.parameters()))
    complete = OPTIMIZERS[name](trained)
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    complete.step()
    complete.zero_grad()

    sharding.shard(composer, alone)
    strategy = sharding.Sharding()
    trained = [parameter for parameter in composer.parameters() if parameter.requires_grad]
    strategy.optimizers = [OPTIMIZERS[name](trained)]
    sharding.gather(composer)
    strategy.load_optimizer_state_dict({"optimizer_states": [complete.state_dict()]})

    loaded = strategy.optimizers[0].state
    assert len(loaded) == len(complete.state)
    for parameter, expected in zip(trained, complete.state.values(), strict=name != "stateless"):
        for key, value in expected.items():
            actual = loaded[parameter][key]
            assert isinstance(actual, DTensor) is (value.shape == parameter.shape)
            assert torch.equal(actual.full_tensor() if isinstance(actual, DTensor) else actual, value)


def test_processes_evaluate_complete_weights(make_ipc, alone, monkeypatch):
    """A model that was trained before is gathered, and one that was not is not sharded."""
    monkeypatch.setattr(Strategy, "setup", lambda self, trainer: None)
    strategy, trainer = sharding.Sharding(), SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    strategy._device_mesh = {"data_parallel": alone}
    for trained in (False, True):
        strategy.model = make_ipc()
        if trained:
            trainer.state.fn = TrainerFn.FITTING
            strategy.setup(trainer)
            assert all(isinstance(parameter, DTensor) for parameter in strategy.model.parameters())
        trainer.state.fn = TrainerFn.TESTING
        strategy.setup(trainer)
        assert not any(isinstance(parameter, DTensor) for parameter in strategy.model.parameters())
