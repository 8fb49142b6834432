"""Weights & Biases, laid over a run by ``configs/overlays/wandb.yaml``: its logger and settings."""

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
_ANSWER_TIMEOUT = 10.0  # seconds for what W&B asks its server before it takes an artifact
_GRACE = 15.0  # seconds for what W&B does at the end beside sending
DEFAULT_PROJECT = "generalizable-inr"


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
                with staged_below(Path(str(self.save_dir), "wandb")):
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
            "wandb is not installed: pip install wandb, leave configs/overlays/wandb.yaml out, or add --wandb.mode disabled."
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


def _tell(line: str) -> None:
    """Print a line."""
    Console(soft_wrap=True).print(line)
