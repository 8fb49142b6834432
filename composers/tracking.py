"""Weights & Biases, laid over a run by ``configs/wandb.yaml``: the logger, gradient norms, a table of fixed samples."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from jsonargparse import ArgumentParser
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.data import Dataset

from composers.base import Composer
from composers.callbacks import relative_path
from composers.inner_settings import InnerLoop
from composers.meta_learned import MetaLearned
from composers.metrics import instance_mse, psnr_of_mse
from composers.orbits import Camera, orbit_frames, write_gif
from composers.pictures import picture
from composers.refinement import Latents
from composers.sound import sampling_rate
from composers.spectrogram import Panel, draw, figure_picture, pieces_of_sound
from composers.view_metrics import ViewPSNR
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Samples, Views

if TYPE_CHECKING:
    from wandb import Artifact, Run


class Film(NamedTuple):
    """A film.

    Attributes:
        gif: The content of a GIF.
    """

    gif: bytes


Cell = str | float | Image.Image | Panel | Film
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_ANSWER_TIMEOUT = 10.0  # seconds for what W&B asks its server before it takes an artifact
_GRACE = 15.0  # seconds for what W&B does at the end beside sending
DEFAULT_PROJECT = "generalizable-inr"
_PSNR = {"prediction": "PSNR", "refined": "refined PSNR"}  # columns of what is rendered
_MOST_VIEWS = 4  # of one instance that are shown beside each other
_ORBIT_SIZE = 64  # pixels of the longer side of a film, for every validation waits
_ORBIT_SECONDS = 3.0


@dataclass(frozen=True)
class WandbSettings:
    """What Weights & Biases is told of a run, beside the `CSVLogger` of ``trainer.logger``.

    The W&B run has the content of ``config.yaml`` as its config, and its files in ``wandb`` below the folder of the run. A fit
    that resumes a checkpoint continues the W&B run of that checkpoint's folder. In a sweep, project, entity, name and id are
    the agent's.

    Args:
        project: Project in W&B; the environment's ``WANDB_PROJECT``, or else ``generalizable-inr``, if None.
        entity: User or team that owns the project; the default of the account if None.
        group: Puts runs together.
        tags: Labels to search for.
        notes: A longer description.
        mode: ``online``, ``offline`` (files to be sent later), ``disabled`` (no W&B), or ``auto``: the environment's
            ``WANDB_MODE``, else online where an API key is found, else offline. Never asks for a key.
        log_model: Whether to upload the best and the last checkpoint at the end, with the aliases ``best`` and ``latest``;
            needs a server.
        run_id: Id of a W&B run to continue; that of a resumed checkpoint, or else a new one, if None.
        finish_timeout: Seconds to wait for the server at the end. What was not sent by then stays in the folder of the run.
            Raise it where ``log_model`` uploads large checkpoints.

    Raises:
        ValueError: If ``finish_timeout`` is not positive.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    log_model: bool = False
    run_id: str | None = None
    finish_timeout: float = 90.0

    def __post_init__(self) -> None:
        """Refuse a time that is not positive."""
        if not self.finish_timeout > 0:
            raise ValueError(f"finish_timeout is {self.finish_timeout}; it must be a positive number of seconds.")


class BoundedWandbLogger(WandbLogger):
    """Lightning's `WandbLogger`, which ends the W&B run with the run of the program, and waits for the server only so long.

    The console output of the run is sent, and the traceback of a run that fails.

    Args:
        settings: What W&B is told.
        local: The logger whose ``log_dir`` is the folder of the run.
        config: The configuration of the run.
        stage: The command, ``fit``, ``validate`` or ``test``.
        resumed: Checkpoint that a fit resumes.

    Raises:
        ValueError: If wandb is not installed, ``WANDB_MODE`` is unknown, or ``log_model`` is asked for without a server.
    """

    def __init__(
        self,
        settings: WandbSettings,
        local: CSVLogger,
        config: Mapping[str, Any] | None = None,
        stage: str | None = None,
        resumed: str | Path | None = None,
    ) -> None:
        self.mode, self.reason = _resolved(settings.mode)
        if settings.log_model and self.mode != "online":
            raise ValueError(
                f"wandb.log_model uploads checkpoints as artifacts, which needs a server, and this run is {self.mode}, because "
                f"{self.reason}: set log_model to false, or run online. The checkpoints are in the folder of the run anyway."
            )
        import wandb

        self.settings = settings
        self._local = local
        self._late = False
        self.savers: Sequence[Checkpoint] = ()
        run_id = settings.run_id
        if run_id is None and stage == "fit" and resumed:
            run_id = _recorded_id(Path(resumed).parent.parent)
        folder = Path(local.log_dir).absolute()
        own: dict[str, Any] = {
            "id": run_id,
            "name": f"{local.name}/{folder.name}",
            "project": settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            "entity": settings.entity,
            # offline, the id alone makes wandb sync put the parts together
            "resume": "allow" if run_id is not None and self.mode == "online" else None,
        }
        if os.environ.get("WANDB_SWEEP_ID"):
            own = dict.fromkeys(own) | {"project": os.environ.get("WANDB_PROJECT")}
        super().__init__(
            save_dir=folder,
            prefix=local._prefix,
            **own,
            mode=self.mode,
            group=settings.group,
            tags=settings.tags or None,
            notes=settings.notes,
            job_type=stage,
            config=dict(config or {}),
            settings=wandb.Settings(
                silent=True, console="wrap", finish_timeout=settings.finish_timeout, finish_timeout_raises=True
            ),
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The W&B run, begun where it is first asked for."""
        import wandb

        if self._experiment is not None:
            return cast("Run", self._experiment)
        _ = self._local.experiment  # makes the folder, and expects it to be empty; without it W&B takes another one
        try:
            run = cast("Run", super().experiment)
        except wandb.Error as error:
            raise ValueError(
                f"W&B cannot begin a run: {str(error).splitlines()[0]}. Train without its server with --wandb.mode offline."
            ) from error
        if self.mode == "online":
            _tell(f"W&B: {run.url}")
        else:
            _tell(f"W&B: offline, because {self.reason}; in {relative_path(run.dir).parent}")
        return run

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Upload nothing during training: the files of ``savers`` are uploaded at the end."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints if asked to, and end the W&B run; with its traceback if it failed."""
        if self._experiment is None:
            return
        run = cast("Run", self._experiment)
        failed = status == "failed"
        error = sys.exc_info()[1]
        if failed and error is not None:
            run.write_logs("".join(traceback.format_exception(error)))
        if self.settings.log_model and self._wandb_init["job_type"] == "fit":
            self._upload(run)
        self._experiment, self._id = None, run.id
        self._wandb_init["id"] = run.id
        if self._end(run, int(failed)) and self.mode == "online":
            return
        _tell(f"W&B: to send it later, wandb sync {relative_path(run.dir).parent}")

    def log_table(self, key: str, *arguments: Any, **options: Any) -> None:
        """Send a table; without effect once the server has been waited for in vain."""
        if rank_zero_only.rank == 0 and not self._late:  # type: ignore[attr-defined]
            self._try(f"the table {key}", lambda: super(BoundedWandbLogger, self).log_table(key, *arguments, **options))

    def _try(self, what: str, call: Callable[[], None]) -> None:
        """Send what W&B asks its server about first, which must not hold up or end the run."""
        try:
            done = _within(_ANSWER_TIMEOUT, call)
            reason = f"its server did not answer within {_ANSWER_TIMEOUT:g} s"
        except Exception as error:
            done, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
        if not done:
            self._late = True
            _tell(f"W&B: {what} was not sent, nor will be further ones, because {reason}.")

    def _end(self, run: Run, exit_code: int) -> bool:
        """End a W&B run and return whether all was written and sent; a late server is no failure of the run."""
        seconds = self.settings.finish_timeout
        reason = f"its server did not answer within {seconds:g} s"
        try:
            if _within(seconds + _GRACE, lambda: run.finish(exit_code=exit_code)):
                return True
            _abandon_service()
        except TimeoutError:
            pass  # W&B has ended the run by itself, in order
        except Exception as error:
            reason = f"W&B failed with {type(error).__name__}"
            _abandon_service()
        _tell(f"W&B: not everything was sent, because {reason}.")
        return False

    def _upload(self, run: Run) -> None:
        """Upload the best and the last checkpoint as versions of one artifact, with their aliases."""
        import wandb

        for alias, name in (("best", "best_model_path"), ("latest", "last_model_path")):
            paths = [Path(path) for saver in self.savers if (path := getattr(saver, name, ""))]
            for path in [path for path in paths if path.is_file()][:1]:
                artifact = wandb.Artifact(f"model-{run.id}", "model", metadata={"original_filename": path.name})
                with _staged_below(Path(str(self.save_dir), "wandb")):
                    artifact.add_file(str(path), name="model.ckpt", policy="immutable")
                    if not self._late:
                        self._try(path.name, partial(self._log_artifact, run, artifact, alias))

    @staticmethod
    def _log_artifact(run: Run, artifact: Artifact, alias: str) -> None:
        """Hand over an artifact."""
        run.log_artifact(artifact, aliases=[alias])


def beside(
    logger: Any, settings: WandbSettings, config: Mapping[str, Any], stage: str, resumed: str | Path | None
) -> list[Logger]:
    """Return the loggers of a run that is sent to W&B: its own, and that of W&B.

    Args:
        logger: That of the configuration, ``trainer.logger``.
        settings: What W&B is told.
        config: The configuration of the run.
        stage: The command.
        resumed: Checkpoint that a fit resumes.

    Raises:
        ValueError: If the logger is not a `CSVLogger`, whose folder is that of the run; and as `BoundedWandbLogger` does.
    """
    if not isinstance(logger, CSVLogger):
        found = type(logger).__name__ if isinstance(logger, Logger) else repr(logger)
        raise ValueError(
            f"wandb needs a CSVLogger in trainer.logger, whose folder takes the files of the run, and found {found}: "
            "leave trainer.logger as configs/default.yaml has it, or set wandb to null."
        )
    if _resolved(settings.mode)[0] == "disabled" and not settings.log_model:
        return [logger, DummyLogger()]  # takes tables, and forgets them
    return [logger, BoundedWandbLogger(settings, logger, config, stage, resumed)]


def add_settings(parser: ArgumentParser, *, ignored: bool = False) -> None:
    """Add the argument ``--wandb``; one that is ignored is not in the help, and takes what the config of a run says.

    Args:
        parser: Of a command.
        ignored: Whether the command does without W&B.
    """
    if ignored:
        parser.add_argument("--wandb", type=dict[str, Any] | None, default=None, help=SUPPRESS)
    else:
        described = "Weights & Biases beside the CSVLogger; null for none."
        parser.add_argument("--wandb", type=WandbSettings | None, default=None, help=described)


def read_nulls(arguments: list[str]) -> list[str]:
    """Return the arguments of a program as its parser reads them: ``wandb agent`` writes the null of a sweep as ``None``.

    Example:
        >>> os.environ["WANDB_SWEEP_ID"] = "s1"
        >>> read_nulls(["fit", "--trainer.max_time=None"])
        ['fit', '--trainer.max_time=null']
        >>> del os.environ["WANDB_SWEEP_ID"]
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return arguments
    return [f"{one[:-4]}null" if one.startswith("--") and one.endswith("=None") else one for one in arguments]


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Cell]], step: int) -> None:
    """Send a table to every logger that takes tables; to be called on the first process.

    Args:
        trainer: Whose loggers are asked.
        key: Name of the table.
        rows: Cells by column, the columns the same in all rows; pictures and films are shown, and clips of sound can be heard.
        step: The optimizer step it belongs to.
    """
    for logger in table_loggers(trainer):
        with _staged_below(Path(logger.save_dir or ".", "wandb")):
            data = [[_medium(cell) for cell in row.values()] for row in rows]
            logger.log_table(key, columns=list(rows[0]), data=data, step=step)


def table_loggers(trainer: Trainer) -> list[Any]:
    """Return the loggers that take tables, as Lightning's `WandbLogger` does."""
    return [
        logger
        for logger in trainer.loggers
        if not isinstance(logger, DummyLogger) and callable(getattr(logger, "log_table", None))
    ]


class GradientNorms(Callback):
    """Logs the norm of the gradient, ``grad_norm/total`` and one number for each part of the composer, by attribute name.

    Measured where the optimizer is about to step: after accumulation, averaging over devices and unscaling (not by fused
    optimizers, which unscale themselves), before clipping.

    Args:
        every_n_steps: Optimizer steps from one to the next; the trainer's ``log_every_n_steps`` if None.

    Raises:
        ValueError: If the number is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1, or null.")
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norms of this step."""
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and every and (trainer.global_step + 1) % every == 0:
            norms = {f"grad_norm/{part}": norm for part, norm in gradient_norms(pl_module).items()}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step)


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the Euclidean norms of the gradients of a module, in float32: of each attribute of it, then ``total``.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.weight.grad, layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
        >>> gradient_norms(layer)
        {'weight': 3.0, 'bias': 4.0, 'total': 5.0}
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0], []).append(parameter.grad.float())
    norms = {part: get_total_norm(gradients) for part, gradients in parts.items()}
    norms["total"] = get_total_norm(list(norms.values()))
    numbers: list[float] = torch.stack(list(norms.values())).tolist()  # the only wait for the device
    return dict(zip(norms, numbers, strict=True))


class LearnedStepSizes(Callback):
    """Logs after every validation what an inner loop has learned of its step sizes: the mean factor of every latent.

    ``inner_lr_factor/<latent>/step_<k>`` for every step of training, the first is 1, and ``inner_lr_factor/<latent>`` where all
    steps share it. Factors start at 1 and are means over the numbers of the latent where each has its own. Nothing is
    logged where nothing is learned.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the factors, where Lightning puts what it validates."""
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(pl_module, MetaLearned):
            return
        factors = mean_factors(pl_module.inner_loop)
        if factors:
            for logger in trainer.loggers:
                logger.log_metrics(factors, step=max(trainer.global_step - 1, 0))


def mean_factors(loop: InnerLoop) -> dict[str, float]:
    """Return the mean learned factor of the step size of every latent, and every step, as `LearnedStepSizes` names them.

    Example:
        >>> loop = InnerLoop(steps=2, learned_lr=["step"])
        >>> loop.learn_step_sizes({"latent": torch.zeros(5)})
        >>> mean_factors(loop)
        {'inner_lr_factor/latent/step_1': 1.0, 'inner_lr_factor/latent/step_2': 1.0}
    """
    found: dict[str, float] = {}
    for latent, factors in loop.factors.items():
        means = factors.detach().float().flatten(1).mean(1).tolist()
        names = [f"/step_{step}" for step in range(1, len(means) + 1)] if "step" in loop.learned_lr else [""]
        found |= {f"inner_lr_factor/{latent}{name}": mean for name, mean in zip(names, means, strict=True)}
    return found


class ValidationTable(Callback):
    """Sends after every validation a table of the first validation samples to W&B, ``val/samples``: the same rows each time.

    Pictures have the columns input, reconstruction and error x 5, sound the columns input, reconstruction and spectrograms of
    both. Scenes have the columns support, query, prediction and refined, up to four views beside each other, and orbit, a small
    film around the object as refined. Other signals have numbers only. The rows are made on the first process from the data set
    itself, so they do not depend on the number of devices. The refined PSNR is that after the composer's own refinement, be
    there one in validation or not; its column is missing if it has no steps. Each validation costs the refinement of these
    samples, and the films of scenes.

    Args:
        num_samples: Rows.
        refinement_steps: At most so many steps before the refined PSNR, for every validation waits; the composer's own if None.
        orbit_frames: Pictures of the film around a scene; 0 for none.

    Raises:
        ValueError: If a number is out of range, or, at set-up, if no logger takes tables.
    """

    def __init__(self, num_samples: int = 8, refinement_steps: int | None = None, orbit_frames: int = 12) -> None:
        if num_samples < 1 or (refinement_steps is not None and refinement_steps < 1) or orbit_frames < 0:
            raise ValueError(
                f"num_samples is {num_samples}, refinement_steps {refinement_steps}; they must be at least 1, "
                f"and orbit_frames, which is {orbit_frames}, at least 0."
            )
        self.num_samples = num_samples
        self.refinement_steps = refinement_steps
        self.orbit_frames = orbit_frames

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse loggers that take no tables."""
        if not any(callable(getattr(logger, "log_table", None)) for logger in trainer.loggers):
            found = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise ValueError(
                f"ValidationTable fills a table of W&B, and no logger takes tables (found: {found}): "
                "add --config configs/wandb.yaml, or leave the callback out."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the rows and send them."""
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not trainer.is_global_zero or not table_loggers(trainer):
            return
        assert isinstance(pl_module, Composer)
        assert isinstance(data, CoordinateDataModule)
        rows: list[dict[str, Cell]] = []
        with trainer.precision_plugin.val_step_context():
            for batch in _first(data.val_set, self.num_samples, data.eval_batch_size):
                moved = trainer.strategy.batch_to_device(data.collate(batch))
                rows += sample_rows(pl_module, moved, self.refinement_steps, data.coord_range, self.orbit_frames)
        log_table(trainer, "val/samples", rows, max(trainer.global_step - 1, 0))  # where Lightning puts val/psnr


def sample_rows(
    composer: Composer,
    batch: CoordinateBatch,
    refinement_steps: int | None = None,
    coord_range: tuple[float, float] = (-1.0, 1.0),
    frames: int = 0,
) -> list[dict[str, Cell]]:
    """Return a row for every instance of a batch, as `ValidationTable` describes them.

    Args:
        composer: The model.
        batch: On its device.
        refinement_steps: At most so many; the composer's own if None.
        coord_range: Ends of the coordinates, from which the rate of sound follows.
        frames: Pictures of the film around a scene; 0 for none.
    """
    latents = composer.encode(batch.observation)
    values = {"prediction": composer.render(composer.compose(latents), batch.query.coords)}
    if composer.refinement.steps and batch.observation.samples is not None:
        latents = _refined(composer, latents, batch.observation.samples, refinement_steps)
        values["refined"] = composer.render(composer.compose(latents), batch.query.coords)
    numbers = {_PSNR[name]: _psnr(batch, found).tolist() for name, found in values.items()}
    rows: list[dict[str, Cell]] = []
    for index, name in enumerate(batch.names):
        row: dict[str, Cell] = {"name": name} | _media(batch, values, index, coord_range)
        if frames and isinstance(batch.observation.signal, Views):
            row["orbit"] = _orbit(composer, latents, batch.observation.signal, index, frames)
        rows.append(row | {column: of_instance[index] for column, of_instance in numbers.items()})
    return rows


def _psnr(batch: CoordinateBatch, values: Tensor) -> Tensor:
    """Return the PSNR of every instance ``(B,)``; of scenes the mean of their views."""
    if isinstance(batch.observation.signal, Views):
        return ViewPSNR().measure(values, batch.query, batch.shape)
    return psnr_of_mse(instance_mse(values, batch.query))


def _refined(composer: Composer, latents: Latents, samples: Samples, steps: int | None) -> Latents:
    """Return latents after the composer's own refinement, or its first steps."""
    own = composer.refinement
    refinement = own.with_steps(min(own.steps, steps or own.steps))
    return composer.refine(latents, samples, refinement)[refinement.steps]


def _media(
    batch: CoordinateBatch, values: Mapping[str, Tensor], index: int, coord_range: tuple[float, float]
) -> dict[str, Cell]:
    """Return what can be seen or heard of one instance, of values ``(B, N, C)``; nothing of signals of another kind."""
    found = values["prediction"]
    if batch.shape is None or batch.query.values is None:
        return {}
    if isinstance(batch.observation.signal, Views):
        true = {"query": batch.query.values[index]} | {name: some[index] for name, some in values.items()}
        pictures = {column: _strip(some, batch.shape) for column, some in true.items()}
        return {"support": _support(batch.observation.signal.images[index]), **pictures}
    if len(batch.shape) == 2 and found.shape[-1] in (1, 3):
        return _pictures(batch.query.values[index], found[index], batch.shape)
    return _sounds(batch, found, index, sampling_rate(batch.shape[0], coord_range)) if len(batch.shape) == 1 else {}


def _support(images: Tensor) -> Image.Image:
    """Return views ``(V, 3, H, W)`` side by side."""
    return _strip(images.movedim(1, -1).flatten(0, 2), (len(images), *images.shape[2:]))


def _strip(values: Tensor, shape: tuple[int, ...]) -> Image.Image:
    """Return the first of as many views as ``shape (V, H, W)`` says side by side, of values ``(V H W, 3)``."""
    views = values.unflatten(0, shape)[:_MOST_VIEWS]
    return picture(views.transpose(0, 1).flatten(0, 2), (shape[1], len(views) * shape[2]))


def _orbit(composer: Composer, latents: Latents, views: Views, index: int, count: int) -> Film:
    """Return the film around one instance of a batch, as far away as the views ``(B, V, ...)`` of it."""
    modulations = composer.compose({name: latent[index : index + 1] for name, latent in latents.items()})
    own = Views(*(part[index] for part in views))
    camera = Camera.of(own, min(_ORBIT_SIZE, max(own.images.shape[-2:])))
    frames = [colour for colour, _ in orbit_frames(composer, modulations, camera, count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "orbit.gif")
        write_gif(frames, path, _ORBIT_SECONDS)
        return Film(path.read_bytes())


def _pictures(target: Tensor, found: Tensor, shape: tuple[int, ...]) -> dict[str, Cell]:
    """Return the pictures of one instance, of values ``(N, C)``."""
    error = (found.float() - target.float()).abs() * 5
    columns = {"input": target, "reconstruction": found, "error x 5": error}
    return {column: picture(values, shape) for column, values in columns.items()}


def _sounds(batch: CoordinateBatch, found: Tensor, index: int, rate: int) -> dict[str, Cell]:
    """Return the sound of one instance, of values ``(B, N, C)``, and its spectrograms."""
    assert batch.query.values is not None
    mask = None if batch.query.mask is None else batch.query.mask[index, None]
    both = [pieces_of_sound(values[index, None], mask)[0] for values in (batch.query.values, found)]
    heard, made = (Panel(label, values, rate) for label, values in zip(("input", "reconstruction"), both, strict=True))
    spectrograms = figure_picture(draw([[heard], [made]], width=4.2))
    return {"input": heard, "reconstruction": made, "spectrograms": spectrograms}


def _medium(cell: Cell) -> Any:
    """Return a cell as W&B takes it."""
    import wandb

    if isinstance(cell, Image.Image):
        return wandb.Image(cell)
    if isinstance(cell, Film):
        return wandb.Video(BytesIO(cell.gif), format="gif")
    if isinstance(cell, Panel):
        return wandb.Audio(cell.values.clamp(-1, 1).mT.numpy(), sample_rate=cell.rate, caption=cell.label)
    return cell


def _first(dataset: Dataset[Any], number: int, at_once: int) -> Iterator[list[Any]]:
    """Yield the first items of a data set, a few at once."""
    indices = range(min(number, len(dataset)))  # type: ignore[arg-type]
    for start in range(0, len(indices), at_once):
        yield [dataset[index] for index in indices[start : start + at_once]]


def _resolved(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """Return the mode that is meant, and why, in words that follow ``because``."""
    reason = f"mode is {mode}"
    if mode == "auto":
        stated = os.environ.get("WANDB_MODE")
        if stated and stated not in _MODES:
            raise ValueError(f"WANDB_MODE is {stated!r}; allowed are {', '.join(_MODES)}.")
        if stated:
            mode, reason = _MODES[stated], f"WANDB_MODE is {stated}"
        elif rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _check_installed()
            found = _has_key()
            mode, reason = ("online", "a key was found") if found else ("offline", "no key was found (wandb login)")
        else:
            mode, reason = "online", "the first process decides"
    if mode != "disabled":
        _check_installed()
    return cast(Literal["online", "offline", "disabled"], mode), reason


def _check_installed() -> None:
    """Refuse to go on without wandb."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "wandb is not installed: pip install wandb, leave configs/wandb.yaml out, or add --wandb.mode disabled."
        ) from error


def _has_key() -> bool:
    """Return whether wandb finds credentials, without asking for them or calling a server."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def _within(seconds: float, call: Callable[[], None]) -> bool:
    """Return whether a call ends in time; raise what it raises by then."""
    ended: list[Exception | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            ended.append(error)
        else:
            ended.append(None)

    helper = threading.Thread(target=run, daemon=True)
    helper.start()
    helper.join(seconds)
    if ended and ended[0] is not None:
        raise ended[0]
    return bool(ended)


def _abandon_service() -> None:
    """End the process of W&B that does not answer, and do not wait for it at exit; all it was given is in its file."""
    import wandb

    connection = wandb.setup()._connection
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    forget = getattr(connection, "_cleanup", None)
    if process is not None and forget is not None:
        forget()
        process.kill()
        process.wait()


def _recorded_id(folder: Path) -> str | None:
    """Return the id of the newest W&B run recorded below the folder of a run, or None."""
    found = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return found[-1].stem.removeprefix("run-") if found else None


@contextmanager
def _staged_below(folder: Path) -> Iterator[None]:
    """Keep pictures that wait for a server in the folder of the run, not of the user, unless ``WANDB_DATA_DIR`` says where."""
    stated = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if not stated:
            del os.environ["WANDB_DATA_DIR"]


def _tell(line: str) -> None:
    """Print a line."""
    Console(soft_wrap=True).print(line)
