"""The Weights & Biases logger and its settings, enabled with ``configs/overlays/wandb.yaml``."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from jsonargparse import ArgumentParser
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from callbacks.folders import relative_path
from callbacks.tables import staged_below

if TYPE_CHECKING:
    from wandb import Artifact, Run


_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_ANSWER_TIMEOUT = 10.0  # seconds that W&B may take to ask its server before it accepts an artifact
_GRACE = 15.0  # seconds that W&B may take to finish a run in addition to uploading
DEFAULT_PROJECT = "generalizable-inr"


@dataclass(frozen=True)
class WandbSettings:
    """Settings of the Weights & Biases (W&B) logger, which runs in addition to the `CSVLogger` of ``trainer.logger``.

    The config of the W&B run is the content of ``config.yaml``. W&B stores its files in ``wandb`` below the run folder. A fit
    that resumes a checkpoint continues the W&B run in the run folder of that checkpoint. In a sweep, the agent sets project,
    entity, name and id.

    Args:
        project: W&B project. If None, the environment variable ``WANDB_PROJECT``, or ``generalizable-inr``.
        entity: User or team that owns the project. If None, the default of the account.
        group: Name of a group of runs.
        tags: Tags of the run.
        notes: Longer description of the run.
        mode: ``online``, ``offline`` (upload later), ``disabled`` (no W&B), or ``auto``: the environment variable
            ``WANDB_MODE``, otherwise online if an API key is configured and offline if not. Never prompts for a key.
        log_model: Whether to upload the best and the last checkpoint at the end of a fit, with the aliases ``best`` and
            ``latest``. Requires online mode.
        run_id: Id of a W&B run to continue. If None, that of a resumed checkpoint, otherwise a new one.
        finish_timeout: Seconds to wait for the server at the end. Data that were not uploaded by then remain in the run
            folder. Increase it if ``log_model`` uploads large checkpoints.

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
        """Raise if the timeout is not positive."""
        if not self.finish_timeout > 0:
            raise ValueError(f"finish_timeout is {self.finish_timeout}; it must be a positive number of seconds.")


class BoundedWandbLogger(WandbLogger):
    """A `WandbLogger` that finishes the W&B run with the program and waits for the server for a limited time.

    The console output of the run is uploaded, and the traceback if it fails.

    Args:
        settings: Settings of the W&B run.
        local: Logger whose ``log_dir`` is the run folder.
        config: Configuration of the run.
        stage: Command: ``fit``, ``validate`` or ``test``.
        resumed: Checkpoint that a fit resumes.

    Raises:
        ValueError: If wandb is not installed, ``WANDB_MODE`` is unknown, or ``log_model`` is set and the mode is not online.
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
                f"wandb.log_model uploads checkpoints to a server, but W&B is {self.mode} because {self.reason}: set "
                "wandb.log_model to false or wandb.mode to online. Checkpoints are saved in the run folder in either case."
            )
        import wandb

        self.settings = settings
        self._local = local
        self._unresponsive = False
        self.savers: Sequence[Checkpoint] = ()
        run_id = settings.run_id
        if run_id is None and stage == "fit" and resumed:
            run_id = _recorded_id(Path(resumed).parent.parent)
        folder = Path(local.log_dir).absolute()
        identity: dict[str, Any] = {
            "id": run_id,
            "name": f"{local.name}/{folder.name}",
            "project": settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            "entity": settings.entity,
            # offline, the id alone lets `wandb sync` join the parts of a resumed run
            "resume": "allow" if run_id is not None and self.mode == "online" else None,
        }
        if os.environ.get("WANDB_SWEEP_ID"):
            identity = dict.fromkeys(identity) | {"project": os.environ.get("WANDB_PROJECT")}
        super().__init__(
            save_dir=folder,
            prefix=local._prefix,
            **identity,
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
        """The W&B run, created on first access."""
        import wandb

        if self._experiment is not None:
            return cast("Run", self._experiment)
        # creates the run folder, which has to be empty; without it, W&B would use another folder
        _ = self._local.experiment
        try:
            run = cast("Run", super().experiment)
        except wandb.Error as error:
            raise ValueError(
                f"W&B cannot create a run: {str(error).splitlines()[0]}. Use --wandb.mode offline to train without its server."
            ) from error
        if self.mode == "online":
            _print(f"W&B: {run.url}")
        else:
            _print(f"W&B: offline because {self.reason}; saved to {relative_path(run.dir).parent}")
        return run

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Do nothing: `finalize` uploads the checkpoints of ``savers``."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints if ``log_model`` is set, and finish the W&B run, with the traceback if it failed."""
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
        if self._finish(run, int(failed)) and self.mode == "online":
            return
        _print(f"W&B: to upload this run later: wandb sync {relative_path(run.dir).parent}")

    def log_table(self, key: str, *arguments: Any, **options: Any) -> None:
        """Log a table; does nothing once the server has failed to respond."""
        if rank_zero_only.rank == 0 and not self._unresponsive:  # type: ignore[attr-defined]
            self._send(
                f"the table {key}", lambda: super(BoundedWandbLogger, self).log_table(key, *arguments, **options)
            )

    def _send(self, name: str, call: Callable[[], None]) -> None:
        """Call a function that waits for the server; a timeout or error disables further calls, but does not stop the run."""
        try:
            done = _within(_ANSWER_TIMEOUT, call)
            reason = f"the server did not respond within {_ANSWER_TIMEOUT:g} s"
        except Exception as error:
            done, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
        if not done:
            self._unresponsive = True
            _print(f"W&B: {name} was not uploaded, and further ones will not be, because {reason}.")

    def _finish(self, run: Run, exit_code: int) -> bool:
        """Finish a W&B run and return whether everything was uploaded; errors and timeouts are printed, not raised."""
        seconds = self.settings.finish_timeout
        reason = f"the server did not respond within {seconds:g} s"
        try:
            if _within(seconds + _GRACE, lambda: run.finish(exit_code=exit_code)):
                return True
            _abandon_service()
        except TimeoutError:
            pass  # W&B has finished the run itself
        except Exception as error:
            reason = f"W&B failed with {type(error).__name__}"
            _abandon_service()
        _print(f"W&B: not everything was uploaded, because {reason}.")
        return False

    def _upload(self, run: Run) -> None:
        """Upload the best and the last checkpoint as versions of one artifact, with the aliases ``best`` and ``latest``."""
        import wandb

        for alias, name in (("best", "best_model_path"), ("latest", "last_model_path")):
            paths = [Path(path) for saver in self.savers if (path := getattr(saver, name, ""))]
            for path in [path for path in paths if path.is_file()][:1]:
                artifact = wandb.Artifact(f"model-{run.id}", "model", metadata={"original_filename": path.name})
                with staged_below(Path(str(self.save_dir), "wandb")):
                    artifact.add_file(str(path), name="model.ckpt", policy="immutable")
                    if not self._unresponsive:
                        self._send(path.name, partial(self._log_artifact, run, artifact, alias))

    @staticmethod
    def _log_artifact(run: Run, artifact: Artifact, alias: str) -> None:
        """Log an artifact."""
        run.log_artifact(artifact, aliases=[alias])


def with_wandb(
    logger: Any, settings: WandbSettings, config: Mapping[str, Any], stage: str, resumed: str | Path | None
) -> list[Logger]:
    """Return the configured logger and the W&B logger.

    Args:
        logger: Logger of the configuration, ``trainer.logger``.
        settings: Settings of the W&B run.
        config: Configuration of the run.
        stage: Command: ``fit``, ``validate`` or ``test``.
        resumed: Checkpoint that a fit resumes.

    Raises:
        ValueError: If the configured logger is not a `CSVLogger`, or for the reasons of `BoundedWandbLogger`.
    """
    if not isinstance(logger, CSVLogger):
        received = type(logger).__name__ if isinstance(logger, Logger) else repr(logger)
        raise ValueError(
            f"wandb needs a CSVLogger in trainer.logger, which creates the run folder, but trainer.logger is {received}: "
            "use the logger of configs/default.yaml, or set wandb to null."
        )
    if _resolved(settings.mode)[0] == "disabled" and not settings.log_model:
        return [logger, DummyLogger()]  # accepts tables, and discards them
    return [logger, BoundedWandbLogger(settings, logger, config, stage, resumed)]


def add_wandb_option(parser: ArgumentParser, *, ignored: bool = False) -> None:
    """Add the option ``--wandb``; an ignored one is hidden, and accepts the setting in the config of a run.

    Args:
        parser: Parser of a command.
        ignored: Whether the command does not use W&B.
    """
    if ignored:
        parser.add_argument("--wandb", type=dict[str, Any] | None, default=None, help=SUPPRESS)
    else:
        description = "Log to Weights & Biases in addition to the CSVLogger; null to disable."
        parser.add_argument("--wandb", type=WandbSettings | None, default=None, help=description)


def replace_sweep_nulls(arguments: list[str]) -> list[str]:
    """Return command-line arguments of a sweep with ``=null`` for ``=None``: ``wandb agent`` writes null values as ``None``.

    Example:
        >>> os.environ["WANDB_SWEEP_ID"] = "s1"
        >>> replace_sweep_nulls(["fit", "--trainer.max_time=None"])
        ['fit', '--trainer.max_time=null']
        >>> del os.environ["WANDB_SWEEP_ID"]
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return arguments
    return [
        f"{argument.removesuffix('None')}null" if argument.startswith("--") and argument.endswith("=None") else argument
        for argument in arguments
    ]


def _resolved(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """Return the effective mode, and a reason that completes a sentence after ``because``."""
    reason = f"mode is {mode}"
    if mode == "auto":
        variable = os.environ.get("WANDB_MODE")
        if variable and variable not in _MODES:
            raise ValueError(f"WANDB_MODE is {variable!r}; it must be one of {', '.join(_MODES)}.")
        if variable:
            mode, reason = _MODES[variable], f"WANDB_MODE is {variable}"
        elif rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _check_installed()
            online = _has_key()
            mode, reason = (
                ("online", "an API key exists") if online else ("offline", "there is no API key (wandb login)")
            )
        else:
            mode, reason = "online", "the first process decides"
    if mode != "disabled":
        _check_installed()
    return cast(Literal["online", "offline", "disabled"], mode), reason


def _check_installed() -> None:
    """Raise if wandb is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "wandb is not installed: run `pip install wandb`, omit configs/overlays/wandb.yaml, or add --wandb.mode disabled."
        ) from error


def _has_key() -> bool:
    """Return whether credentials are configured, without prompting for them or contacting a server."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def _within(seconds: float, call: Callable[[], None]) -> bool:
    """Call a function in a thread and return whether it finished in time; re-raise its exception."""
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if outcome and outcome[0] is not None:
        raise outcome[0]
    return bool(outcome)


def _abandon_service() -> None:
    """Kill the unresponsive W&B process, so that the program does not wait for it at exit; its data are in its file."""
    import wandb

    connection = wandb.setup()._connection
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    cleanup = getattr(connection, "_cleanup", None)
    if process is not None and cleanup is not None:
        cleanup()
        process.kill()
        process.wait()


def _recorded_id(folder: Path) -> str | None:
    """Return the id of the newest W&B run below a run folder, or None."""
    paths = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return paths[-1].stem.removeprefix("run-") if paths else None


def _print(line: str) -> None:
    """Print a line without wrapping it."""
    Console(soft_wrap=True).print(line)
