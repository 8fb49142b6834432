"""The composer: from an observation to latents, from latents to modulations of a shared network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from composers.evaluation import TRAINING_DATA_ERRORS, CodeStatistics, Evaluation, measure_training_codes, other_starts
from composers.inference import GradientSteps, Refinement, Start, Trajectory
from composers.inference.adapt import DivergenceError, check_finite
from composers.inference.bounded import bounded
from composers.inference.refinement import INNER, NETWORK
from composers.inference.rules import Scales, unit_scales
from composers.latents import Latents, Layout, Parametrization
from composers.losses import Loss, MeanSquaredError
from composers.metrics import PSNR, DefinedMean, InstanceMetric, defined, instance_mse, psnr_of_mse
from composers.networks import CoordinateNetwork, Field
from composers.rendering import PointRenderer, Reconstruction, Rendered, Renderer
from composers.training import resume
from composers.training.schedules import RunSchedule
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.randomness import global_seed, seed_at
from datamodules.spec import DataSpec, Headline, Modality, agrees, checked

_INITIAL_ITEMS = 2048  # training items
_INITIAL_VALUES = 1 << 24  # values of all of them together

FieldOf = Callable[[Latents], Field]


class Composer(LightningModule):
    """A generalizable INR: a coordinate network shared by all instances, modulated by the latents of each instance.

    The ``parametrization`` defines the latents and how they modulate the network. Three arguments determine how the latents are
    found: ``start`` returns initial latents, ``inner`` improves them by gradient steps that training differentiates through,
    and ``refinement`` by gradient steps in evaluation only. The *prediction* is the result of ``start`` and ``inner``.
    Published methods are subclasses that name their parts; any other combination of parts can be configured with this class.

    Args:
        network: Coordinate network.
        parametrization: Defines the latents and converts them to modulations of the network.
        start: Returns the latents before any gradient step: predicted by a hypernetwork, learned, or zero.
        inner: Gradient steps on the latents in training and evaluation; no steps if None.
        refinement: Gradient steps on the latents in evaluation only; no steps if None.
        renderer: Converts the field to measured values; `PointRenderer`, which evaluates it at points, if None.
        loss: Loss per instance; `MeanSquaredError` if None.
        metrics: Metrics of validation and test by name; the PSNR if None.
        optimizer: Optimizer of all parameters; Adam with ``lr`` 1e-4 if None.
        scheduler: Learning rate scheduler, stepped after every optimizer step; constant learning rate if None.

    Raises:
        ValueError: If the parts are incompatible.
    """

    of_field: ClassVar[tuple[str, ...]] = (
        "network",
    )  # arguments whose parts see the field behind the renderer, not the data

    def __init__(
        self,
        network: CoordinateNetwork,  # type: ignore[type-arg]  # jsonargparse finds no subclasses of generic aliases
        parametrization: Parametrization,  # type: ignore[type-arg]
        start: Start,
        inner: GradientSteps | None = None,
        refinement: Refinement | None = None,
        renderer: Renderer | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, InstanceMetric] | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.parametrization = parametrization
        self.start = start
        self.inner = inner
        self.refinement = refinement or Refinement(steps=0)
        self.renderer = renderer or PointRenderer()
        self.loss = loss or MeanSquaredError()
        self.optimizer = optimizer
        self.scheduler = scheduler
        stated = metrics or {"psnr": PSNR()}
        self.measures = {name: metric for name, metric in stated.items() if not metric.missing}
        self.unmeasured = {name: metric.missing for name, metric in stated.items() if metric.missing}
        self.means = nn.ModuleDict(
            {
                f"{stage}_{name}": DefinedMean()
                for stage in ("val", "test")
                for measured in [self._measured_in(stage)]
                for name in ("loss", *measured, *(f"refined_{name}" for name in measured))
            }
        )
        self._connect()
        self.config: dict[str, Any] | None = None
        self.training_codes: CodeStatistics | None = None
        self._settings: dict[str, Any] | None = None  # of the optimizer and its schedule
        self._resumed: dict[str, Any] | None = None  # the checkpoint that is about to be restored
        self._initial = True  # as constructed: neither initialised from data nor loaded
        self.instance_losses: Tensor | None = None  # of the last training batch
        self._of_step: dict[str, list[Tensor]] = {}  # values of the instances of an optimizer step, by name

    def _connect(self) -> None:
        """Connect the parts, and raise an error if training would not reach some latents or parameters."""
        self.parametrization.connect(self.network)
        self.start.connect(self.parametrization.latents)
        self._check_starts()
        self._check_order_of_steps()
        if self.inner is None:
            return
        if not self.inner.rule.differentiable:
            raise ValueError(
                f"The rule of inner is {type(self.inner.rule).__name__}, which training cannot differentiate through: use "
                "DifferentiableSGD, or give it to refinement."
            )
        self.inner.connect(self.parametrization.latents)
        self._check_dependence()
        trained = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}
        adapted = {id(parameter) for parameter in self.start.parameters()}
        if self.inner.rule.outer == "reptile" and trained != adapted:
            raise ValueError(
                "Reptile learns only what the inner loop adapts: set modulates to both, modulated_layers to all and learned_lr "
                "to []."
            )

    def _check_starts(self) -> None:
        """Raise an error if a test would refine from codes with constant latents that belong to no signal."""
        constant = [name for name, spec in self.parametrization.latents.items() if spec.constant]
        if constant and self._starts_elsewhere:
            raise ValueError(
                f"starts of refinement is {list(self.refinement.starts)}; this {type(self.network).__name__} reads "
                f"{', '.join(constant)} as facts of a signal, which a mean or random code does not have: set "
                "refinement.init_args.starts to [prediction]."
            )

    def _check_order_of_steps(self) -> None:
        """Raise an error if gradient steps on random samples would minimise a loss of whole signals."""
        slots = {"inner": self.inner, "refinement": self.refinement, "network of refinement": self.refinement.network}
        for slot, steps in slots.items():
            if steps is None or not steps.steps:
                continue
            ordered = (steps.loss or self.loss).needs_order
            counts = {"samples_per_step": steps.samples_per_step, "test_samples_per_step": steps.test_samples_per_step}
            for argument, count in counts.items():
                if ordered and count != "all":
                    raise ValueError(
                        f"{argument} of {slot} is {count}, and its loss, {', '.join(ordered)}, compares whole signals: "
                        "set it to all, or give these steps a loss of their own, such as composers.losses.MeanSquaredError."
                    )

    @property
    def _starts_elsewhere(self) -> bool:
        """Whether a test refines from other codes than the predicted ones as well."""
        return bool(self.refinement.steps) and "test" in self.refinement.stages and len(self.refinement.starts) > 1

    def _check_dependence(self) -> None:
        """Raise an error if the field does not depend on some latents, which then have no gradient."""
        if any(-1 in spec.shape for spec in self.parametrization.latents.values()):
            return  # their shape depends on a signal
        latents = {name: spec.initial()[None].requires_grad_() for name, spec in self.parametrization.latents.items()}
        with torch.enable_grad():
            values = self.bind(latents, Layout())(torch.zeros(1, self.network.coord_dim))
            gradients = torch.autograd.grad(values.sum(), list(latents.values()), allow_unused=True)
        if unused := [name for name, gradient in zip(latents, gradients, strict=True) if gradient is None]:
            raise ValueError(
                f"The modulations that {type(self.parametrization).__name__} composes do not depend on {', '.join(unused)}: "
                "compose modulations of all latents, or remove these."
            )

    def layout(self, observation: Observation) -> Layout:
        """Return the layout of the latents of an observation, from its shapes alone.

        Raises:
            ValueError: If start and parametrization divide the signal into different grids.
        """
        layout = self.start.layout(observation)
        if not isinstance(observation.signal, Tensor):
            return layout
        stated = self.parametrization.layout(observation.signal.shape[2:])
        if layout.grid is None or stated.grid in (None, layout.grid):
            return stated if layout.grid is None else layout
        raise ValueError(
            f"The start divides the signal into a grid {layout.grid}, and the parametrization into {stated.grid}: set "
            "patch_size of encoder and network to the same."
        )

    def encode(self, observation: Observation) -> Latents:
        """Return the predicted latents ``(B, ...)`` by name: the start, then the inner loop if there is one.

        In training they are differentiable; in evaluation the inner loop keeps no graph.

        Raises:
            ValueError: If something that the parts read was not observed, or the inner loop diverged.
        """
        return self._infer(observation)[1]

    def _infer(self, observation: Observation) -> tuple[Latents, Latents]:
        """Return the latents of the start and those after the inner loop."""
        start = self.start(observation, self.layout(observation))
        if self.inner is None:
            return start, start
        trajectory = self._adapt(observation, start, training=self.training)
        check_finite(trajectory.losses)
        return start, trajectory.last

    def _adapt(
        self,
        observation: Observation,
        start: Latents,
        *,
        training: bool = False,
        steps: int | None = None,
        report: Sequence[int] = (),
    ) -> Trajectory:
        """Take the steps of the inner loop."""
        assert self.inner is not None
        if observation.samples is None or observation.samples.values is None:
            raise ValueError(
                "An inner loop adapts to samples: pass an Observation whose samples have coords and values."
            )
        training = training and torch.is_grad_enabled()
        return self._take(
            self.inner,
            partial(self.bind, layout=self.layout(observation)),
            start,
            observation.samples,
            training=training,
            steps=steps,
            report=report,
            address=(self.global_step,) if training else (),
        )

    def _take(
        self,
        gradient_steps: GradientSteps,
        field_of: FieldOf,
        latents: Latents,
        samples: Samples,
        scales: Scales | None = None,
        **options: Any,
    ) -> Trajectory:
        """Take gradient steps on latents, scaled as the parametrization states if ``scales`` is None.

        In evaluation, activations of more than 1 GiB are recomputed, so that memory does not grow with the signal.
        """

        def reconstruct(moved: Latents, coords: Tensor) -> Reconstruction:
            field, batch_size = field_of(moved), len(next(iter(moved.values())))
            if not options.get("training"):
                field = bounded(field, batch_size * self.network.floats_per_coord)
            return self.renderer.reconstruct(field, coords)

        trajectory: Trajectory = gradient_steps(
            latents, samples, reconstruct, self.loss, scales or self.parametrization.step_scales, **options
        )
        return trajectory

    def compose(self, latents: Latents, layout: Layout | None = None) -> Any:
        """Return the modulations of latents ``(B, ...)``.

        Args:
            latents: By name.
            layout: Of the latents; the empty layout if None, for latents whose shape does not depend on the signal.
        """
        return self.parametrization.compose(latents, layout or Layout())

    def bind(self, latents: Latents, layout: Layout | None = None) -> Field:
        """Return the field of latents ``(B, ...)``: `compose`, then bind the network."""
        return self.network.bind(self.compose(latents, layout))

    def modulate(self, observation: Observation) -> Any:
        """Return the modulations of an observation: `encode`, then `compose`."""
        return self.compose(self.encode(observation), self.layout(observation))

    def reconstruct(self, modulations: Any, coords: Tensor) -> Reconstruction:
        """Return the reconstruction of modulations at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        return self.renderer.reconstruct(self.network.bind(modulations), coords)

    def reconstruction(
        self, latents: Latents, layout: Layout | None = None, source: Mapping[str, Any] | None = None
    ) -> Reconstruction:
        """Return the reconstruction of latents ``(B, ...)`` without rendering; its values are empty.

        Args:
            latents: By name.
            layout: Of the latents, as for `compose`.
            source: Facts of the source of the signals.
        """
        field = self.bind(latents, layout)
        latent = next(iter(latents.values()))
        return self.renderer.reconstruction(field, Rendered(latent.new_empty(len(latent), 0, 0)), source)

    def render(self, modulations: Any, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        return self.reconstruct(modulations, coords).values

    def forward(self, observation: Observation, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` of an observation at ``coords``."""
        return self.render(self.modulate(observation), coords)

    def refine(
        self, latents: Latents, samples: Samples, refinement: Refinement | None = None, layout: Layout | None = None
    ) -> dict[int, Latents]:
        """Fit latents to samples of their instances by gradient steps.

        Args:
            latents: Where to begin, left unchanged.
            samples: Coordinates and values of the same instances.
            refinement: The composer's own if None.
            layout: Of the latents, as for `compose`.

        Returns:
            The latents after every reported step; 0 are those it began with.
        """
        return self._refine(partial(self.bind, layout=layout), latents, samples, refinement or self.refinement)

    def _refine(
        self,
        field_of: FieldOf,
        latents: Latents,
        samples: Samples,
        refinement: Refinement,
        scales: Scales | None = None,
    ) -> dict[int, Latents]:
        """Refine latents of the parametrization, or of a free network."""
        return self._take(refinement, field_of, latents, samples, scales, report=refinement.report).latents

    def trajectory(self, observation: Observation, steps: Sequence[int]) -> dict[int, Latents]:
        """Return the latents after some numbers of steps of the inner loop, with its settings of evaluation.

        Args:
            observation: With samples and their values.
            steps: Numbers of steps; 0 is the start. Empty, or without an inner loop, nothing is returned.
        """
        if self.inner is None or not steps:
            return {}
        start = self.start(observation, self.layout(observation))
        kept = self._adapt(observation, start, steps=max(steps), report=steps).latents
        return {step: kept[step] for step in sorted(steps)}

    @property
    def context(self) -> int | None:
        """Samples of the signal along each axis, on either side, that a reconstruction depends on; None if all of them.

        It is stated by encoders without patches, so that a tile with this margin gives the result of the whole signal.
        """
        encoder = self.start.encoder
        if encoder is None or encoder.context is None:
            return None
        return encoder.context + self.parametrization.radius + self.network.radius

    def facts(self) -> dict[str, str]:
        """Return the lines about this method in the summary of a run, by name."""
        return self.start.facts() | ({} if self.inner is None else {"inner loop": self.inner.describe()})

    def training_step(self, batch: CoordinateBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch, and log the mean over all batches and devices of the optimizer step."""
        evaluation = self._evaluate(batch, "train")
        losses = evaluation["losses"]
        assert losses is not None, "training needs a query with values"
        self.instance_losses = losses.detach()
        loss = losses.mean()
        self._log_step("train/loss", losses, batch_idx)
        headline = self._headline.metric
        reconstruction = evaluation["reconstructions"][0]
        if headline == "psnr":  # of the samples of this step, which need not be whole signals
            metric = psnr_of_mse(instance_mse(reconstruction.values.detach(), batch.query))
        elif headline in self.measures and self.measures[headline].in_training:
            with torch.no_grad():
                metric = self._measure(batch, reconstruction, {headline: self.measures[headline]})[headline]
        else:
            return loss * self._share(batch_idx)
        self._log_step(f"train/{headline}", metric, batch_idx, prog_bar=True)
        return loss * self._share(batch_idx)

    def _share(self, batch_idx: int) -> float:
        """Return a factor for the loss: Lightning divides by `accumulate_grad_batches` even if fewer batches are left."""
        if self._trainer is None or (accumulated := self.trainer.accumulate_grad_batches) == 1:
            return 1.0
        left = self.trainer.num_training_batches - batch_idx // accumulated * accumulated
        return max(accumulated / left, 1.0)

    def _log_step(self, name: str, values: Tensor, batch_idx: int, prog_bar: bool = False) -> None:
        """Log the mean of values ``(B,)`` over the instances of the optimizer step so far, on all devices where it is logged.

        Between two logged steps, which only the progress bar shows, the devices do not wait for each other.
        """
        trainer = self._trainer
        first = trainer is None or batch_idx % trainer.accumulate_grad_batches == 0
        self._of_step[name] = parts = [*([] if first else self._of_step.get(name, [])), values.detach()]
        mean = torch.cat(parts).mean()
        every = 0 if trainer is None else trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer is not None and every and (trainer.global_step + 1) % every == 0:
            mean = trainer.strategy.reduce(mean)
        self.log(name, mean, batch_size=len(values), prog_bar=prog_bar)

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
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.optimizer(trained) if self.optimizer else torch.optim.Adam(trained, lr=1e-4)
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        self._settings = resume.settings(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, RunSchedule):
            self.trainer.fit_loop.setup_data()  # counts the batches
            per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            scheduler.set_length(self.trainer.estimated_stepping_batches, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Check that the data fit this model, and that inner loops work in the precision of the trainer.

        Raises:
            ValueError: If they do not.
        """
        if self.inner is not None and str(self.trainer.precision).startswith("16"):
            raise ValueError(
                f"precision is {self.trainer.precision}: the gradients of inner loops are not scaled, and many are too small "
                "for float16. Train in bf16-mixed or 32-true."
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            self.check_sizes(data)
            if stage == "fit" and self._initial:
                self.initialize(data)

    def initialize(self, data: CoordinateDataModule) -> None:
        """Initialise parts in closed form from training signals, where they can; the same on every process.

        The first training items are used, shuffled and augmented, without drawing random numbers. Training does so once,
        and not after weights were loaded; a checkpoint that is resumed overrides the result. Without training signals, as with
        posed views, nothing is changed.
        """
        self._initial = False
        mixture = self.parametrization.initialize(_training_signals(data))
        if mixture is not None:
            self.start.initialize(mixture)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights, which training then keeps rather than initialising parts from its data."""
        self._initial = False
        return super().load_state_dict(state_dict, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint of a resumed run until its optimizer exists."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint

    def on_fit_start(self) -> None:
        """Apply the configuration of a resumed run before its states are restored."""
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is not None and self._settings is not None:
            resume.apply_configuration(self.trainer, checkpoint, self._settings)

    def on_train_batch_start(self, batch: CoordinateBatch, batch_idx: int) -> None:
        """Seed dropout by epoch and step, so that a resumed run draws the same masks as an uninterrupted one."""
        torch.manual_seed(seed_at(global_seed(), "dropout", self.current_epoch, batch_idx, self.global_rank))

    def on_test_start(self) -> None:
        """Measure the training codes where a curve of this test starts from them."""
        self._check_starts()  # a user may have set another refinement
        self.training_codes = measure_training_codes(self) if self._starts_elsewhere else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the config for `composers.load`, the settings of training, and the specification of the data."""
        checkpoint["composer"] = self.config
        checkpoint[resume.KEY] = {"settings": self._settings, "batches": resume.batches(self.trainer)}
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            checkpoint["data"] = data.spec.facts()

    def _evaluate(self, batch: CoordinateBatch, stage: str) -> Evaluation:
        """Encode, refine if this stage does, render and measure."""
        try:
            start, predicted = self._infer(batch.observation)
        except DivergenceError as error:
            raise self._diverged(batch.names[error.instance], error.step) from error
        samples, layout = batch.observation.samples, self.layout(batch.observation)
        latents = {0: predicted}
        refined = stage in self.refinement.stages and samples is not None and samples.values is not None
        if refined and samples is not None:
            latents = self.refine(predicted, samples, layout=layout)
        reconstructions = {
            step: self.reconstruct(self.compose(some, layout), batch.query.coords) for step, some in latents.items()
        }
        objective = self.loss.at(self.global_step) if stage == "train" else self.loss
        losses: Tensor | None = None if batch.query.values is None else objective(reconstructions[0], batch.query)
        if stage == "train" and losses is not None and self.inner is not None:
            losses = self.inner.outer_losses(losses, start, predicted)
        measured = stage != "train" and losses is not None
        return Evaluation(
            losses=losses,
            latents=latents,
            layout=layout,
            reconstructions=reconstructions,
            values={step: reconstruction.values for step, reconstruction in reconstructions.items()},
            metrics={
                step: self._measure(batch, some, self._measured_in(stage))
                for step, some in reconstructions.items()
                if measured
            },
            starts=self._curves(batch, predicted, layout, refined) if stage == "test" and measured else {},
        )

    def _diverged(self, name: str, step: int) -> ValueError:
        """Return the error of an inner loop that diverged on an instance."""
        lr = getattr(self.inner.rule if self.inner else None, "lr", float("nan"))
        return ValueError(
            f"The inner loop diverged on {name}: after {step} steps its loss is not finite. Lower the lr of inner.rule "
            f"({lr:g}), or that of the optimizer if training went well before."
        )

    def _curves(
        self, batch: CoordinateBatch, predicted: Latents, layout: Layout, refined: bool
    ) -> dict[str, dict[int, dict[str, Tensor]]]:
        """Return the metrics of all other curves by step; they are refined one after another to bound memory."""
        curves: dict[str, dict[int, dict[str, Tensor]]] = {}
        bind = partial(self.bind, layout=layout)
        if refined:
            assert batch.observation.samples is not None
            samples, codes = batch.observation.samples, self.training_codes
            starts = other_starts(self.refinement.starts, codes, predicted, batch.names) if codes else {}
            for name, latents in starts.items():
                curves[name] = self._curve(batch, bind, self._refine(bind, latents, samples, self.refinement))
            if self.refinement.network is not None:
                free = self.network.free(self.compose(predicted, layout))
                fitted = self._refine(free.field, free.latents, samples, self.refinement.network, unit_scales)
                curves[NETWORK] = self._curve(batch, free.field, fitted)
        if self.inner is not None and self.inner.report:
            curves[INNER] = self._curve(batch, bind, self.trajectory(batch.observation, self.inner.report))
        return curves

    def _curve(
        self, batch: CoordinateBatch, field_of: FieldOf, latents: Mapping[int, Latents]
    ) -> dict[int, dict[str, Tensor]]:
        """Return every metric of a test by step."""
        metrics = self._measured_in("test")
        return {
            step: self._measure(batch, self.renderer.reconstruct(field_of(some), batch.query.coords), metrics)
            for step, some in latents.items()
        }

    def _measured_in(self, stage: str) -> dict[str, InstanceMetric]:
        """Return the metrics of a stage by name."""
        return {name: metric for name, metric in self.measures.items() if stage in metric.stages}

    def _measure(
        self, batch: CoordinateBatch, reconstruction: Reconstruction, metrics: Mapping[str, InstanceMetric]
    ) -> dict[str, Tensor]:
        """Return metrics of every instance ``(B,)``, without autocast: filters in bfloat16 change the SSIM."""
        with torch.autocast(self.device.type, enabled=False):
            return {name: metric.measure(reconstruction, batch.query, batch.shape) for name, metric in metrics.items()}

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
        repeated = self._repeats(stage)
        for name, numbers in reported.items():
            mean = self.means[f"{stage}_{name}"]
            assert isinstance(mean, DefinedMean)
            mean.update(numbers[:0] if repeated else numbers)
            self.log(f"{stage}/{name}", mean, batch_size=len(batch.names), prog_bar=name == self._headline.metric)
        return evaluation

    def _repeats(self, stage: str) -> bool:
        """Return whether this process evaluates an item of another process, because there are fewer items than processes."""
        if self._trainer is None:
            return False
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        return bool(getattr(getattr(loaders, "sampler", None), "repeats", False))

    @property
    def _headline(self) -> Headline:
        """The headline metric of the data; the PSNR without a `CoordinateDataModule`."""
        data = getattr(self._trainer, "datamodule", None)
        return data.spec.modality.headline if isinstance(data, CoordinateDataModule) else Modality.headline

    def check_sizes(self, data: CoordinateDataModule) -> None:
        """Compare what a data module states with what this model was built for; see `check_spec`.

        Raises:
            ValueError: If they disagree, or if the loss compares whole signals and training would use other samples.
        """
        self.check_spec(data.spec)
        for argument, value, allowed in (
            ("coordinate_subset", data.coordinate_subset, None),
            ("coordinate_noise", data.coordinate_noise, "none"),
        ):
            if self.loss.needs_order and value != allowed:
                raise ValueError(
                    f"{argument} is {value}, and the loss, {', '.join(self.loss.needs_order)}, compares whole signals: "
                    f"set data.init_args.{argument} to {allowed or 'null'}, or use another loss."
                )

    def check_spec(self, spec: DataSpec) -> None:
        """Compare what data states with what the parts of this model were built for, as they declare it (`FromData`).

        Raises:
            ValueError: If they disagree, with the part, its argument and both values.
        """
        field = self.renderer.field_spec(spec)
        for slot, child in self.named_children():
            stated = field if slot in self.of_field else spec
            for part in child.modules():
                for argument, value in ((name, of(stated)) for name, of in checked(part).items()):
                    given = getattr(part, argument, None)
                    if not agrees(given, value):
                        changed = value != checked(part)[argument](spec)
                        asked = f"{type(self.renderer).__name__} asks for" if changed else "the data has"
                        raise ValueError(
                            f"{type(part).__name__} was built for {argument} {given}; {asked} {value}: leave {argument} out of "
                            "the config, or give both the same."
                        )


def _training_signals(data: CoordinateDataModule) -> Iterator[Tensor]:
    """Yield batches of the first training signals ``(B, C, *shape)``; none if the data has none, or posed views."""
    values = 0
    try:
        for batch in data.training_batches(_INITIAL_ITEMS):
            signal = batch.observation.signal
            if not isinstance(signal, Tensor) or values > _INITIAL_VALUES:
                return
            values += signal.numel()
            yield signal
    except TRAINING_DATA_ERRORS:
        return
