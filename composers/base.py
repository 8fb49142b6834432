"""The composer: from an observation to latents, from latents to modulations of a shared network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from composers.evaluation import CodeStatistics, Evaluation, measure_training_codes, other_starts
from composers.inference.inner_loop import Latents
from composers.inference.inner_settings import InnerLoop
from composers.inference.refinement import NETWORK, Refinement, outside_inference
from composers.losses import Loss, MeanSquaredError
from composers.metrics import PSNR, InstanceMetric, defined, instance_mse, psnr_of_mse
from composers.networks import CoordinateMLP, Field, Modulations, UnfoldedMLP
from composers.rendering import PointRenderer, Renderer
from composers.training import resume
from composers.training.schedules import RunSchedule
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.randomness import global_seed, seed_at
from datamodules.spec import DataSpec, Headline, Modality, agrees, declared


class Composer(LightningModule, ABC):
    """Base of all generalizable INRs: the steps, the optimizer and the refinement are here, the method in two functions.

    A subclass says how latents are found (`encode`) and how they become modulations of the network (`compose`).

    Attributes:
        inner_loop: The inner loop that finds latents; None where there is none.

    Args:
        inr: The coordinate network.
        renderer: Evaluates the field where the data was measured; at points if None.
        loss: Compares per instance; the mean squared error if None.
        metrics: What validation and test report, by name; the PSNR if None.
        optimizer: Makes the optimizer of all parameters; Adam with a learning rate of 1e-4 if None.
        scheduler: Makes the schedule of the learning rate, advanced every step; constant if None.
        refinement: Gradient steps on the latents in evaluation; none if None.

    Raises:
        ValueError: If the network takes weights where biases are composed, or the other way round.
    """

    modulates: ClassVar[Literal["weights", "biases"]] = "weights"
    of_field: ClassVar[tuple[str, ...]] = (
        "inr",
    )  # arguments whose parts see the field behind the renderer, not the data

    def __init__(
        self,
        inr: CoordinateMLP,
        renderer: Renderer | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, InstanceMetric] | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__()
        if inr.modulates != self.modulates:
            raise ValueError(
                f"{type(self).__name__} composes the {self.modulates} of modulated layers; this network has modulates "
                f"{inr.modulates}: give its inr modulates {self.modulates}."
            )
        self.inr = inr
        self.renderer = renderer or PointRenderer()
        self.loss = loss or MeanSquaredError()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.refinement = refinement or Refinement(steps=0)
        self.inner_loop: InnerLoop | None = None
        self.measures = dict(metrics or {"psnr": PSNR()})
        self.means = nn.ModuleDict(
            {
                f"{stage}_{name}": MeanMetric(nan_strategy="disable")
                for stage in ("val", "test")
                for name in ("loss", *self.measures, *(f"refined_{name}" for name in self.measures))
            }
        )
        self.config: dict[str, Any] | None = None
        self.training_codes: CodeStatistics | None = None
        self._settings: dict[str, Any] | None = None  # of the optimizer and its schedule
        self._resumed: dict[str, Any] | None = None  # the checkpoint that is about to be restored
        self.instance_losses: Tensor | None = None  # of the last training step

    @abstractmethod
    def encode(self, observation: Observation) -> Latents:
        """Return the instance codes, tensors ``(B, ...)`` by name, of what was observed."""

    @abstractmethod
    def compose(self, latents: Latents) -> Modulations:
        """Return the modulations that these instance codes make."""

    def modulate(self, observation: Observation) -> Modulations:
        """Return the modulations of what was observed: `encode`, then `compose`."""
        return self.compose(self.encode(observation))

    def render(self, modulations: Modulations, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        values: Tensor = self.renderer(self.inr.bind(modulations), coords)
        return values

    def forward(self, observation: Observation, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords`` of what was observed."""
        return self.render(self.modulate(observation), coords)

    def refine(self, latents: Latents, samples: Samples, refinement: Refinement | None = None) -> dict[int, Latents]:
        """Fit latents to samples of their instances by gradient steps.

        Args:
            latents: Where to start, left as they are.
            samples: Coordinates and values of the same instances.
            refinement: Optimizer, rate and steps; the composer's own if None.

        Returns:
            The latents after every reported step, 0 being where they started.
        """
        return self._fit(
            lambda moved: self.inr.bind(self.compose(moved)), latents, samples, refinement or self.refinement
        )

    def _fit(
        self, field_of: Callable[[Latents], Field], latents: Latents, samples: Samples, refinement: Refinement
    ) -> dict[int, Latents]:
        """Fit whatever numbers make a field to samples, and return them after every reported step."""
        fitted = outside_inference(samples)

        def losses(moved: Latents, step: int) -> Tensor:
            seen = refinement.seen(fitted, step)
            found: Tensor = self.loss(self.renderer(field_of(moved), seen.coords), seen)
            return found

        return refinement(losses, latents)

    def trajectory(self, observation: Observation, steps: Sequence[int]) -> Iterator[tuple[int, Latents]]:
        """Yield the latents after some numbers of steps of an inner loop; nothing where there is none."""
        yield from ()

    def facts(self) -> dict[str, str]:
        """Return what a summary of a run says of this method, by name."""
        return {}

    def training_step(self, batch: CoordinateBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        evaluation = self._evaluate(batch, "train")
        losses = self.training_losses(evaluation)
        self.instance_losses = losses.detach()
        loss = losses.mean()
        self.log("train/loss", loss, batch_size=len(batch.names))
        headline = self._headline.metric
        values = evaluation["values"][0].detach()
        if headline == "psnr":  # of all samples there are, be they whole signals or not
            numbers = psnr_of_mse(instance_mse(values, batch.query))
        elif headline in self.measures:
            numbers = self._measure(batch, values)[headline]
        else:
            return loss
        self.log(f"train/{headline}", numbers.mean(), batch_size=len(batch.names), prog_bar=True)
        return loss

    def training_losses(self, evaluation: Evaluation) -> Tensor:
        """Return ``(B,)``, whose mean training minimises: the losses, unless a subclass knows better."""
        assert evaluation["losses"] is not None, "training needs a query with values"
        return evaluation["losses"]

    def validation_step(self, batch: CoordinateBatch, batch_idx: int) -> Evaluation:
        """Evaluate a batch, with refinement where ``val`` is one of its stages."""
        return self._report(batch, "val")

    def test_step(self, batch: CoordinateBatch, batch_idx: int) -> Evaluation:
        """Evaluate a batch, with refinement where ``test`` is one of its stages."""
        return self._report(batch, "test")

    def predict_step(self, batch: CoordinateBatch, batch_idx: int) -> Evaluation:
        """Evaluate a batch, with refinement where ``predict`` is one of its stages."""
        return self._evaluate(batch, "predict")

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with its schedule advanced every step."""
        optimizer = (
            self.optimizer(self.parameters()) if self.optimizer else torch.optim.Adam(self.parameters(), lr=1e-4)
        )
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        self._settings = resume.settings(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, RunSchedule):
            self.trainer.fit_loop.setup_data()  # or nobody has counted the batches yet
            per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            scheduler.tell(self.trainer.estimated_stepping_batches, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Refuse data whose sizes do not fit this model."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            self.check_sizes(data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint of a resumed run until the optimizer is made that goes on from it."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint

    def on_fit_start(self) -> None:
        """Let the configuration of a resumed run take effect before its states are restored."""
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is not None and self._settings is not None:
            resume.apply_configuration(self.trainer, checkpoint, self._settings)

    def on_train_batch_start(self, batch: CoordinateBatch, batch_idx: int) -> None:
        """Give dropout an address: a resumed run draws what an uninterrupted one would."""
        torch.manual_seed(seed_at(global_seed(), "dropout", self.current_epoch, batch_idx, self.global_rank))

    def on_test_start(self) -> None:
        """Measure the training codes where a curve of this test starts from them."""
        asked = self.refinement.steps and "test" in self.refinement.stages and len(self.refinement.starts) > 1
        self.training_codes = measure_training_codes(self) if asked else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how this composer is built, for `composers.load`, how it is trained, and what the data stated."""
        checkpoint["composer"] = self.config
        checkpoint[resume.KEY] = {"settings": self._settings, "batches": resume.batches(self.trainer)}
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            checkpoint["data"] = data.spec.facts()

    def _evaluate(self, batch: CoordinateBatch, stage: str) -> Evaluation:
        """Encode, refine where this stage does, render and measure."""
        predicted = self.encode(batch.observation)
        samples = batch.observation.samples
        refined = stage in self.refinement.stages and samples is not None and samples.values is not None
        latents = self.refine(predicted, samples) if refined and samples is not None else {0: predicted}
        values = {step: self.render(self.compose(found), batch.query.coords) for step, found in latents.items()}
        losses: Tensor | None = None if batch.query.values is None else self.loss(values[0], batch.query)
        measured = stage != "train" and losses is not None
        metrics = {step: self._measure(batch, found) for step, found in values.items() if measured}
        starts = self._curves(batch, predicted, refined) if stage == "test" and measured else {}
        return Evaluation(losses=losses, latents=latents, values=values, metrics=metrics, starts=starts)

    def _curves(
        self, batch: CoordinateBatch, predicted: Latents, refined: bool
    ) -> dict[str, dict[int, dict[str, Tensor]]]:
        """Refine in every other way, one after the other to bound memory, and return its metrics by step."""
        curves: dict[str, dict[int, dict[str, Tensor]]] = {}
        if not refined:
            return curves
        assert batch.observation.samples is not None
        codes = self.training_codes
        starts = other_starts(self.refinement.starts, codes, predicted, batch.names) if codes else {}
        for start, latents in starts.items():
            curves[start] = {
                step: self._measure(batch, self.render(self.compose(found), batch.query.coords))
                for step, found in self.refine(latents, batch.observation.samples).items()
            }
        if self.refinement.network is not None:
            network = UnfoldedMLP(self.inr, self.compose(predicted))
            found = self._fit(network.field, network.latents, batch.observation.samples, self.refinement.network)
            curves[NETWORK] = {
                step: self._measure(batch, self.renderer(network.field(numbers), batch.query.coords))
                for step, numbers in found.items()
            }
        return curves

    def _measure(self, batch: CoordinateBatch, values: Tensor) -> dict[str, Tensor]:
        """Return every metric of every instance ``(B,)``, without autocast: filters of bfloat16 make another SSIM."""
        with torch.autocast(self.device.type, enabled=False):
            return {name: metric.measure(values, batch.query, batch.shape) for name, metric in self.measures.items()}

    def _report(self, batch: CoordinateBatch, stage: str) -> Evaluation:
        """Evaluate a batch and log loss and metrics of the prediction, and metrics of the last refinement step.

        Of a metric, only instances that have a number count; `defined` says which.
        """
        evaluation = self._evaluate(batch, stage)
        assert evaluation["losses"] is not None, "validation and test need a query with values"
        reported = {"loss": evaluation["losses"]}
        last = max(evaluation["metrics"])
        for step, prefix in ({0: ""} | ({last: "refined_"} if last else {})).items():
            for name, numbers in evaluation["metrics"][step].items():
                reported[prefix + name] = numbers[defined(numbers, evaluation["values"][step])]
        for name, numbers in reported.items():
            mean = self.means[f"{stage}_{name}"]
            assert isinstance(mean, MeanMetric)
            mean.update(numbers)
            self.log(f"{stage}/{name}", mean, batch_size=len(batch.names), prog_bar=name == self._headline.metric)
        return evaluation

    @property
    def _headline(self) -> Headline:
        """The headline metric of the data; the PSNR where there is no data module of ours."""
        data = getattr(self._trainer, "datamodule", None)
        return data.spec.modality.headline if isinstance(data, CoordinateDataModule) else Modality.headline

    def check_sizes(self, data: CoordinateDataModule) -> None:
        """Compare what a data module states with what this model was built for; see `check_spec`."""
        self.check_spec(data.spec)

    def check_spec(self, spec: DataSpec) -> None:
        """Compare what data states with what the parts of this model were built for, as they declare it (`FromData`).

        Raises:
            ValueError: If they disagree, with the part, its argument and both values.
        """
        field = self.renderer.field_spec(spec)
        for slot, child in self.named_children():
            stated = field if slot in self.of_field else spec
            for part in child.modules():
                for argument, value in ((name, of(stated)) for name, of in declared(part).items()):
                    given = getattr(part, argument, None)
                    if not agrees(given, value):
                        asked = f"{type(self.renderer).__name__} asks for" if slot in self.of_field else "the data has"
                        raise ValueError(
                            f"{type(part).__name__} was built for {argument} {given}; {asked} {value}: leave {argument} out of "
                            "the config, or give both the same."
                        )
