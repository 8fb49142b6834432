"""Weights of large hypernetworks, sharded over devices (fully sharded data parallelism, FSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from composers.encoders.transformer import Block, DecoderBlock

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_METHODS = ("training_step", "encode")  # that gather the weights; validation gathers them once, see `gather`


class Sharding(ModelParallelStrategy):
    """Train on several devices, each of which stores a part of the weights, their gradients and the state of the optimizer.

    The weights of one transformer block after another are gathered when they are needed. Evaluation needs complete weights on
    every device. Checkpoints hold complete weights and states of the optimizer, like those of other strategies.
    """

    restore_checkpoint_after_setup = False  # loads complete weights before they are sharded
    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def _setup_distributed(self) -> None:
        """Set up the processes, all of which share the weights."""
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def setup(self, trainer: Trainer) -> None:
        """Shard the model for training, and create the optimizer of its shards; gather its weights for evaluation.

        Lightning's `ModelParallelStrategy` expects models that shard themselves in `configure_model`, and loads complete
        checkpoints only while no weights are gathered, as they are after the first batch is encoded for the summary of a run.

        Raises:
            ValueError: If the model has no transformer blocks.
        """
        assert self.model is not None
        if trainer.state.fn == TrainerFn.FITTING:
            shard(self.model, self.device_mesh["data_parallel"])
        else:
            gather(self.model)
        super(ModelParallelStrategy, self).setup(trainer)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint, on every process."""
        content: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model, before it is sharded."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of the optimizer, and shard it like the weights."""
        for optimizer, complete in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers, parameters = (
                [parameter for group in groups for parameter in group["params"]]
                for groups in (complete["param_groups"], optimizer.param_groups)
            )
            state = {
                number: {name: _sharded_like(parameter, value) for name, value in complete["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in complete["state"]
            }
            optimizer.load_state_dict({**complete, "state": state})

    def on_validation_start(self) -> None:
        """Gather the weights."""
        assert self.model is not None
        gather(self.model)

    def on_validation_end(self) -> None:
        """Shard the weights again for training."""
        assert self.model is not None
        scatter(self.model)


def is_sharded(strategy: Any) -> bool:
    """Return whether a strategy shards the weights."""
    return isinstance(strategy, ModelParallelStrategy)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the transformer blocks of a model, each as a unit, and its other weights as another unit.

    Args:
        model: Model on every process, with the same weights.
        mesh: Processes that share the weights, in one dimension.

    Raises:
        ValueError: If the model has no transformer blocks.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    blocks = [module for module in model.modules() if isinstance(module, (Block, DecoderBlock))]
    if not blocks:
        raise ValueError(
            f"Sharding splits the weights of transformer blocks, and this {type(model).__name__} has none: use "
            "--trainer.strategy ddp."
        )
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)
    for name in _METHODS:
        register_fsdp_forward_method(model, name)


def gather(model: nn.Module) -> None:
    """Gather sharded weights and keep them, so that processes may evaluate different numbers of batches."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def scatter(model: nn.Module) -> None:
    """Free the weights that `gather` gathered, except the part that this process stores."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process stores; other tensors unchanged."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _sharded_like(parameter: Tensor, value: Any) -> Any:
    """Return an entry of the state of an optimizer, sharded like its parameter if it has a value for each of its elements."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
