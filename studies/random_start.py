"""Baseline for learned initialisations: the network of an experiment, fitted to every test item from random weights.

``python -m studies.random_start --config configs/experiments/photos_meta_ipc.yaml`` fits all weights and biases with Adam for
every learning rate of a list, and marks the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cost import build
from composers import Composer, Refinement
from composers.inference import LearnedStart, TorchOptimizer
from composers.latents import Direct
from composers.metrics import instance_mse, psnr_of_mse
from composers.networks import CoordinateMLP
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch


@dataclass(frozen=True)
class RandomStartSettings:
    """Fit the network of an experiment to every test item from random weights.

    Args:
        config: Config of the experiment whose network and data are used.
        steps: Number of Adam steps, each on all samples of an item.
        rates: Learning rates of Adam, all used with the same random initialisation.
        seed: Seed of the random initialisation.

    Raises:
        ValueError: If ``rates`` is empty, or a rate or ``steps`` is not positive.
    """

    config: Path = Path("configs/experiments/photos_meta_ipc.yaml")
    steps: int = 30
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        if not self.rates or min(self.rates) <= 0 or self.steps < 1:
            raise ValueError(
                f"rates is {list(self.rates)} and steps is {self.steps}; they must be positive, with at least one rate."
            )


def main(args: list[str] | None = None) -> dict[float, float]:
    """Parse command-line arguments, print a table, and return the mean PSNR in dB by learning rate."""
    parser = ArgumentParser("python -m studies.random_start", description=__doc__)
    parser.add_class_arguments(RandomStartSettings)
    settings = RandomStartSettings(**vars(parser.parse_args(args)))
    torch.manual_seed(settings.seed)
    composer, data, _ = build(settings.config)
    results = measure(composer.eval(), data, settings)
    table = Table(title=f"{settings.config.stem}, {settings.steps} steps from random weights", title_justify="left")
    for heading in ("learning rate", "PSNR [dB]"):
        table.add_column(heading, justify="right")
    for lr, psnr in results.items():
        table.add_row(f"{lr:g}", f"{psnr:.2f}" + (" *" if psnr == max(results.values()) else ""))
    Console().print(table)
    return results


def measure(composer: Composer, data: CoordinateDataModule, settings: RandomStartSettings) -> dict[float, float]:
    """Return the mean PSNR of the test items in dB after the last step, by learning rate."""
    data.prepare_data()
    data.setup("test")
    batches = [data.to_coordinates(batch) for batch in data.test_dataloader()]
    free = free_composer(composer)
    return {
        lr: torch.cat([fitted(free, batch, lr, settings.steps) for batch in batches]).mean().item()
        for lr in settings.rates
    }


def free_composer(composer: Composer) -> Composer:
    """Return a composer with a random network of the same sizes, whose weights and biases are all adapted per instance."""
    network = composer.network
    assert isinstance(network, CoordinateMLP)
    free_network = CoordinateMLP(
        network.coord_dim,
        network.value_dim,
        hidden_dim=[fan_out for _, fan_out in network.layer_sizes[:-1]],
        num_layers=network.num_layers,
        modulated_layers="all",
        encoding=network.encoding,
        activation=network.activation,
        normalize_weights=network.normalize_weights,
        output_offset=network.output_offset,
        modulates="both",
    )
    return Composer(free_network, Direct(), LearnedStart(), renderer=composer.renderer, loss=composer.loss).eval()


def fitted(composer: Composer, batch: CoordinateBatch, lr: float, steps: int) -> Tensor:
    """Return the PSNR ``(B,)`` in dB of the query of a batch, after fitting every instance from the same initialisation."""
    assert batch.observation.samples is not None
    rule = TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=lr))
    refinement = Refinement(steps, rule, report=())
    latents = composer.refine(composer.encode(batch.observation), batch.observation.samples, refinement)[steps]
    with torch.no_grad():
        values = composer.render(composer.compose(latents), batch.query.coords)
    return psnr_of_mse(instance_mse(values, batch.query))


if __name__ == "__main__":
    main()
