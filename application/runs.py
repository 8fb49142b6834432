"""The folder of a run: claimed by one run only, taken again by a requeued SLURM job, absent without a logger."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks.folders import NO_FOLDER
from callbacks.predictions import PredictionWriter
from callbacks.saving import LAST
from composers.checkpoint import intact

MARKER = "slurm_job.json"
_INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which Lightning starts the processes by itself
_PATIENCE = (
    10.0  # seconds that other processes wait for the message of the first: torchrun ends all with the first that fails
)


class _Launch(NamedTuple):
    """Processes that a launcher has started.

    Attributes:
        launcher: Its name.
        processes: Their number on all nodes.
        nodes: Number of nodes.
        rank: Index of this process.
    """

    launcher: str
    processes: int
    nodes: int
    rank: int


def trainer_settings(config: Any) -> dict[str, Any]:
    """Return the arguments of the trainer that the program sets itself.

    Lightning does not requeue SLURM jobs: it would resume ``hpc_ckpt_*.ckpt`` of any other run. Without a run folder,
    callbacks save no checkpoints unless they have a ``dirpath``.

    Args:
        config: The instantiated arguments of the trainer.

    Raises:
        ValueError: If ``srun`` started several tasks without ``--ntasks-per-node``.
    """
    settings: dict[str, Any] = {}
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        settings["plugins"] = _without_requeue(config.get("plugins"))
    if not has_run_folder(config):
        callbacks = config.get("callbacks") or []
        kept = without_checkpoints(callbacks if isinstance(callbacks, list) else [callbacks])
        settings |= {"default_root_dir": NO_FOLDER, "callbacks": kept}
        if not any(isinstance(callback, Checkpoint) for callback in kept):
            settings["enable_checkpointing"] = False
    return settings


def has_run_folder(config: Any) -> bool:
    """Return whether a trainer has a run folder: it has a logger, and ``fast_dev_run`` is off.

    Args:
        config: The instantiated arguments of the trainer.
    """
    logger = config.get("logger")
    off = logger is not None and not logger  # None is Lightning's default logger
    return not (off or config.get("barebones") or config.get("fast_dev_run"))


def without_checkpoints(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return callbacks without those that save checkpoints in the run folder; those with a ``dirpath`` stay."""
    return [one for one in callbacks if not isinstance(one, Checkpoint) or getattr(one, "dirpath", None)]


def check_processes(trainer: Trainer) -> None:
    """Refuse processes of torchrun or srun that are more or fewer than the devices of the trainer.

    Only the first process raises; the others exit with status 1.

    Raises:
        ValueError: With both numbers and the arguments to set.
    """
    launch = _launched()
    wanted = trainer.num_devices * trainer.num_nodes
    if launch is None or launch.processes == wanted:
        return
    if launch.rank != 0:
        time.sleep(_PATIENCE)
        sys.exit(1)
    devices = launch.processes // launch.nodes
    fix = f"--trainer.devices {devices} --trainer.num_nodes {launch.nodes}"
    raise ValueError(
        f"{launch.launcher} started {launch.processes} process(es), but trainer.devices {trainer.num_devices} on "
        f"trainer.num_nodes {trainer.num_nodes} need {wanted}: the processes would not train one model together. "
        f"Set {fix}, or start {wanted} process(es)."
    )


def output_folders(trainer: Trainer, command: str) -> list[Path]:
    """Return the folders that a command writes to; of ``predict`` that of ``--output``, else those of the run."""
    if command == "predict":
        writers: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return [writer.folder for writer in writers if isinstance(writer, PredictionWriter)]
    return [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]


class RunFolders:
    """The run folders ``save_dir/name/version_<n>``, one for each `CSVLogger`.

    In a SLURM job every folder has a file that names the job and the command, by which the requeued job finds it.

    Args:
        loggers: Instantiated ``trainer.logger``, before anybody asked for a version.
        command: The arguments of the program.
    """

    def __init__(self, loggers: Any, command: Sequence[str]) -> None:
        listed = loggers if isinstance(loggers, list) else [loggers]
        self._numbered = [one for one in listed if isinstance(one, CSVLogger) and one._version is not None]
        job = None if os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE else os.environ.get("SLURM_JOB_ID")
        self._mark = None if job is None else {"job": job, "command": list(command)}
        self._requeued = self._mark is not None and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0

    def last_checkpoint(self, trainer: Trainer) -> Path | None:
        """Return the last intact checkpoint that this job saved before it was requeued, or None.

        Raises:
            ValueError: If the last two checkpoints of the job are damaged.
        """
        for index, logger in _csv_loggers(trainer):
            path = (self._earlier(logger, index) or Path(NO_FOLDER)) / "checkpoints" / LAST
            if path.is_file():
                return intact(path)
        return None

    def take(self, trainer: Trainer) -> None:
        """Give every logger its folder: an explicit version, that of the requeued job, or else a new one.

        To be called on all processes before data are prepared; only the first makes folders.
        """
        first = trainer.is_global_zero
        for index, logger in _csv_loggers(trainer):
            earlier = self._earlier(logger, index)
            if earlier is not None:
                self._take_again(logger, earlier, first)
            elif first:
                if logger not in self._numbered:
                    logger._version = _claim(Path(logger.root_dir))
                if self._mark is not None:
                    self._write_mark(logger, index)
        if any(_csv_loggers(trainer)):
            trainer._default_root_dir = str(trainer.log_dir)  # type: ignore[attr-defined] # where Lightning looks for hpc_ckpt_*.ckpt

    def _earlier(self, logger: CSVLogger, index: int) -> Path | None:
        """Return the folder that a logger had before the job was requeued, the newest if there are several, or None."""
        if not self._requeued:
            return None
        mark = {**(self._mark or {}), "logger": index}
        pattern = Path(logger.log_dir).name if logger in self._numbered else "version_*"
        found = [path for path in Path(logger.root_dir).glob(f"{pattern}/{MARKER}") if _content(path) == mark]
        return max(found, key=lambda path: path.stat().st_mtime).parent if found else None

    def _write_mark(self, logger: CSVLogger, index: int) -> None:
        """Write the file by which the requeued job finds the folder."""
        _ = logger.experiment  # expects an empty folder
        path = Path(logger.log_dir, MARKER)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{MARKER}.part")
        part.write_text(json.dumps({**(self._mark or {}), "logger": index}), encoding="utf-8")
        part.replace(path)

    def _take_again(self, logger: CSVLogger, folder: Path, first: bool) -> None:
        """Let a logger write to a folder again, whose earlier metrics stay as ``metrics_<n>.csv``."""
        number = folder.name.removeprefix("version_")
        logger._version = int(number) if number.isdigit() else folder.name
        metrics = folder / "metrics.csv"
        if first and metrics.is_file():
            metrics.rename(_free(folder))
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # which is meant


def _csv_loggers(trainer: Trainer) -> list[tuple[int, CSVLogger]]:
    """Return the loggers with a folder, and their places in the list."""
    return [(index, one) for index, one in enumerate(trainer.loggers) if isinstance(one, CSVLogger)]


def _claim(root: Path) -> int:
    """Make the next free ``version_<n>`` in a folder and return its number; of several processes, each gets its own."""
    root.mkdir(parents=True, exist_ok=True)
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    number = max((int(one) for one in numbers if one.isdigit()), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return number


def _free(folder: Path) -> Path:
    """Return the first ``metrics_<n>.csv`` that does not exist."""
    number = 1
    while (path := folder / f"metrics_{number}.csv").exists():
        number += 1
    return path


def _content(path: Path) -> Any:
    """Return the content of a JSON file, None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _launched() -> _Launch | None:
    """Return what torchrun or srun has started, None if neither did."""
    given = os.environ
    if TorchElasticEnvironment.detect():
        processes = int(given["WORLD_SIZE"])
        return _Launch("torchrun", processes, processes // int(given["LOCAL_WORLD_SIZE"]), int(given["RANK"]))
    if "SLURM_NTASKS" in given and given.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        nodes = int(given.get("SLURM_NNODES") or 1)
        return _Launch("srun", int(given["SLURM_NTASKS"]), nodes, int(given.get("SLURM_PROCID") or 0))
    return None


def _without_requeue(plugins: Any) -> list[Any]:
    """Return the plugins of a trainer with an environment of SLURM that does not requeue.

    Raises:
        ValueError: If ``srun`` started several tasks without ``--ntasks-per-node``.
    """
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if tasks > 1 and not os.environ.get("SLURM_NTASKS_PER_NODE"):
        if int(os.environ.get("SLURM_PROCID") or 0) != 0:
            time.sleep(_PATIENCE)
            sys.exit(1)
        raise ValueError(
            f"SLURM started {tasks} tasks with --ntasks, and training needs their number on each node: start "
            f"with --ntasks-per-node, and set --trainer.devices to it and --trainer.num_nodes to --nodes."
        )
    kept = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins] if plugins is not None else []
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in kept):
        kept.append(SLURMEnvironment(auto_requeue=False))
    for plugin in kept:
        if isinstance(plugin, SLURMEnvironment):
            plugin.auto_requeue = False
    return kept
