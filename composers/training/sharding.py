"""Weights of large hypernetworks, sharded over devices (fully sharded data parallelism, FSDP)."""

from __future__ import annotations

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
    every device. Checkpoints hold complete weights, like those of other strategies.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def _setup_distributed(self) -> None:
        """Set up the processes, all of which share the weights."""
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def setup(self, trainer: Trainer) -> None:
        """Shard the model for training, and create the optimizer of its shards; gather its weights for evaluation.

        Lightning's `ModelParallelStrategy` expects models that shard themselves in `configure_model`.

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
        """Raise a `ValueError`: Lightning cannot restore sharded parameters of a `ParameterDict`."""
        raise ValueError(
            f"{checkpoint_path} cannot be loaded into sharded weights: use --trainer.strategy ddp to resume it, "
            f"--trainer.strategy auto to evaluate it, or start a new run from its weights with `--weights {checkpoint_path}`."
        )

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
