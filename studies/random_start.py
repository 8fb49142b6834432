"""What a learned start is worth: the network of an experiment, fitted to every test item from random numbers instead.

``python -m studies.random_start --config configs/experiments/photos_meta_ipc.yaml`` fits all weights and biases by Adam, at
every rate of a grid, and reports the best.
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
from composers import Composer, LearnedInit
from composers.inference.refinement import Refinement
from composers.metrics import instance_mse, psnr_of_mse
from composers.networks import CoordinateMLP
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch


@dataclass(frozen=True)
class RandomStartSettings:
    """Fit the network of an experiment to every test item, from random weights.

    Args:
        config: YAML of the experiment, whose network and data are taken.
        steps: Of Adam, on all samples of an item.
        rates: Of Adam, each tried from the same random start.
        seed: Of the random start.

    Raises:
        ValueError: If there is no rate, or a number is not positive.
    """

    config: Path = Path("configs/experiments/photos_meta_ipc.yaml")
    steps: int = 30
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.rates or min(self.rates) <= 0 or self.steps < 1:
            raise ValueError(f"rates is {list(self.rates)} and steps {self.steps}: give positive numbers.")


def main(args: list[str] | None = None) -> dict[float, float]:
    """Measure for these command line arguments, print a table and return the mean PSNR in dB by rate."""
    parser = ArgumentParser("python -m studies.random_start", description=__doc__)
    parser.add_class_arguments(RandomStartSettings)
    settings = RandomStartSettings(**vars(parser.parse_args(args)))
    torch.manual_seed(settings.seed)
    composer, data, _ = build(settings.config)
    found = measure(composer.eval(), data, settings)
    table = Table(title=f"{settings.config.stem}, {settings.steps} steps from a random start", title_justify="left")
    for heading in ("rate", "PSNR [dB]"):
        table.add_column(heading, justify="right")
    for rate, psnr in found.items():
        table.add_row(f"{rate:g}", f"{psnr:.2f}" + (" *" if psnr == max(found.values()) else ""))
    Console().print(table)
    return found


def measure(composer: Composer, data: CoordinateDataModule, settings: RandomStartSettings) -> dict[float, float]:
    """Return the mean PSNR of the test items in dB after the steps, by rate."""
    data.prepare_data()
    data.setup("test")
    batches = [data.to_coordinates(batch) for batch in data.test_dataloader()]
    network = free_network(composer)
    return {
        rate: torch.cat([fitted(network, batch, rate, settings.steps) for batch in batches]).mean().item()
        for rate in settings.rates
    }


def free_network(composer: Composer) -> LearnedInit:
    """Return the network of a composer with random numbers, all weights and biases of which belong to the instance."""
    inr = composer.network
    own = CoordinateMLP(
        inr.coord_dim,
        inr.value_dim,
        hidden_dim=[fan_out for _, fan_out in inr.layer_sizes[:-1]],
        num_layers=inr.num_layers,
        modulated_layers="all",
        encoding=inr.encoding,
        activation=inr.activation,
        normalize_weights=inr.normalize_weights,
        output_offset=inr.output_offset,
    )
    return LearnedInit(own, adapt_biases=True, renderer=composer.renderer, loss=composer.loss).eval()


def fitted(network: LearnedInit, batch: CoordinateBatch, rate: float, steps: int) -> Tensor:
    """Return the PSNR ``(B,)`` in dB of the query of a batch, after a fit to every instance from the same start."""
    assert batch.observation.samples is not None
    start = {name: latent.expand(len(batch.names), *latent.shape) for name, latent in network.start().items()}
    refinement = Refinement(steps, lambda parameters: torch.optim.Adam(parameters, lr=rate), report=())
    found = network.refine(start, batch.observation.samples, refinement)[steps]
    with torch.no_grad():
        values = network.render(network.compose(found), batch.query.coords)
    return psnr_of_mse(instance_mse(values, batch.query))


if __name__ == "__main__":
    main()
