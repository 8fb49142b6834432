"""Run folders: each run claims a new folder, a requeued SLURM job reuses its own, and without a logger there is none."""

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

from application.run_files import MetricsFile
from callbacks.folders import NO_FOLDER
from callbacks.predictions import PredictionWriter
from callbacks.saving import LAST
from composers.checkpoint import intact
from datamodules.storage.files import remove_abandoned, written_whole

MARKER = "slurm_job.json"
_INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which Lightning launches the processes itself
# Seconds before processes other than the first exit: torchrun kills all processes when one fails, and the first has to print.
_EXIT_DELAY = 10.0


class _Launch(NamedTuple):
    """The processes that a launcher started.

    Attributes:
        launcher: Name of the launcher.
        processes: Number of processes on all nodes.
        nodes: Number of nodes.
        rank: Global rank of this process.
    """

    launcher: str
    processes: int
    nodes: int
    rank: int


def trainer_settings(config: Any) -> dict[str, Any]:
    """Return the trainer arguments that the program sets itself.

    Lightning's own SLURM requeueing is disabled: it would resume ``hpc_ckpt_*.ckpt`` of any other run. Without a run folder,
    callbacks that save checkpoints are removed unless they have a ``dirpath``.

    Args:
        config: Instantiated arguments of the trainer.

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
    """Return whether a trainer has a run folder, that is, a logger, and neither ``fast_dev_run`` nor ``barebones``.

    Args:
        config: Instantiated arguments of the trainer.
    """
    logger = config.get("logger")
    disabled = logger is not None and not logger  # None selects Lightning's default logger
    return not (disabled or config.get("barebones") or config.get("fast_dev_run"))


def without_checkpoints(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return callbacks without those that save checkpoints to the run folder; callbacks with a ``dirpath`` are kept."""
    return [
        callback for callback in callbacks if not isinstance(callback, Checkpoint) or getattr(callback, "dirpath", None)
    ]


def check_processes(trainer: Trainer) -> None:
    """Raise if torchrun or srun started another number of processes than the trainer has devices.

    Only the first process raises; the others exit with status 1.

    Raises:
        ValueError: If the numbers differ. The message names the arguments to set.
    """
    launch = _launched()
    devices = trainer.num_devices * trainer.num_nodes
    if launch is None or launch.processes == devices:
        return
    if launch.rank != 0:
        time.sleep(_EXIT_DELAY)
        sys.exit(1)
    raise ValueError(
        f"{launch.launcher} started {launch.processes} process(es), but trainer.devices {trainer.num_devices} and "
        f"trainer.num_nodes {trainer.num_nodes} need {devices}. Set --trainer.devices {launch.processes // launch.nodes} "
        f"--trainer.num_nodes {launch.nodes}, or start {devices} process(es)."
    )


def output_folders(trainer: Trainer, command: str) -> list[Path]:
    """Return the folders that a command writes to: ``--output`` for ``predict``, otherwise the run folders."""
    if command == "predict":
        writers: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return [writer.folder for writer in writers if isinstance(writer, PredictionWriter)]
    return [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]


class RunFolders:
    """The run folders ``save_dir/name/version_<n>``, one for each `CSVLogger`.

    In a SLURM job, a marker file in each folder records the job and the command, so that the requeued job finds its folders.

    Args:
        loggers: Instantiated ``trainer.logger`` whose ``version`` has not been read yet: reading it fixes the number.
        command: Command-line arguments of the program.
    """

    def __init__(self, loggers: Any, command: Sequence[str]) -> None:
        loggers = loggers if isinstance(loggers, list) else [loggers]
        self._versioned = [
            logger for logger in loggers if isinstance(logger, CSVLogger) and logger._version is not None
        ]
        job = None if os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE else os.environ.get("SLURM_JOB_ID")
        self._marker = None if job is None else {"job": job, "command": list(command)}
        self._requeued = self._marker is not None and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0

    def last_checkpoint(self, trainer: Trainer) -> Path | None:
        """Return the last intact checkpoint that this job saved before it was requeued, or None.

        Raises:
            ValueError: If the last two checkpoints of the job are damaged.
        """
        for index, logger in _csv_loggers(trainer):
            path = (self._previous(logger, index) or Path(NO_FOLDER)) / "checkpoints" / LAST
            if path.is_file():
                return intact(path)
        return None

    def take(self, trainer: Trainer) -> None:
        """Assign a folder to every logger: its explicit version, the folder of the requeued job, or a new one.

        Call this on all processes, before data are prepared. Only the first process creates folders.
        """
        is_first = trainer.is_global_zero
        for index, logger in _csv_loggers(trainer):
            previous = self._previous(logger, index)
            if previous is not None:
                _reuse(logger, previous, is_first)
            elif is_first and logger not in self._versioned:
                logger._version = _claim(Path(logger.root_dir))
            if is_first:
                _clean(Path(logger.root_dir))
                logger._experiment = MetricsFile(logger.log_dir)  # expects an empty folder
            if is_first and previous is None and self._marker is not None:
                self._write_marker(logger, index)
        if any(_csv_loggers(trainer)):
            trainer._default_root_dir = str(trainer.log_dir)  # type: ignore[attr-defined] # where Lightning looks for hpc_ckpt_*.ckpt

    def _previous(self, logger: CSVLogger, index: int) -> Path | None:
        """Return the newest folder that a logger had before the job was requeued, or None."""
        if not self._requeued:
            return None
        marker = {**(self._marker or {}), "logger": index}
        pattern = Path(logger.log_dir).name if logger in self._versioned else "version_*"
        paths = [path for path in Path(logger.root_dir).glob(f"{pattern}/{MARKER}") if _read_json(path) == marker]
        return max(paths, key=lambda path: path.stat().st_mtime).parent if paths else None

    def _write_marker(self, logger: CSVLogger, index: int) -> None:
        """Write the file by which the requeued job finds the folder."""
        path = Path(logger.log_dir, MARKER)
        with written_whole(path) as part:
            part.write_text(json.dumps({**(self._marker or {}), "logger": index}), encoding="utf-8")


def _csv_loggers(trainer: Trainer) -> list[tuple[int, CSVLogger]]:
    """Return the loggers that have a folder, with their indices."""
    return [(index, logger) for index, logger in enumerate(trainer.loggers) if isinstance(logger, CSVLogger)]


def _reuse(logger: CSVLogger, folder: Path, is_first: bool) -> None:
    """Let a logger write to an existing folder; earlier metrics are renamed to the next free ``metrics_<n>.csv``."""
    version = folder.name.removeprefix("version_")
    logger._version = int(version) if version.isdigit() else folder.name
    metrics = folder / "metrics.csv"
    if is_first and metrics.is_file():
        number = 1
        while (path := folder / f"metrics_{number}.csv").exists():
            number += 1
        metrics.rename(path)
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # this is intended


def _clean(root: Path) -> None:
    """Remove the temporary files that killed runs left in their folders."""
    for folder in (*root.glob("version_*"), *root.glob("version_*/checkpoints")):
        remove_abandoned(folder)


def _claim(root: Path) -> int:
    """Create the next free ``version_<n>`` in a folder and return its number; safe with concurrent processes."""
    root.mkdir(parents=True, exist_ok=True)
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    number = max((int(number) for number in numbers if number.isdigit()), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return number


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _launched() -> _Launch | None:
    """Return the processes that torchrun or srun started; None without a launcher."""
    environment = os.environ
    if TorchElasticEnvironment.detect():
        processes = int(environment["WORLD_SIZE"])
        nodes = processes // int(environment["LOCAL_WORLD_SIZE"])
        return _Launch("torchrun", processes, nodes, int(environment["RANK"]))
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        nodes = int(environment.get("SLURM_NNODES") or 1)
        return _Launch("srun", int(environment["SLURM_NTASKS"]), nodes, int(environment.get("SLURM_PROCID") or 0))
    return None


def _without_requeue(plugins: Any) -> list[Any]:
    """Return the plugins of a trainer with a SLURM environment that does not requeue.

    Raises:
        ValueError: If ``srun`` started several tasks without ``--ntasks-per-node``.
    """
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if tasks > 1 and not os.environ.get("SLURM_NTASKS_PER_NODE"):
        if int(os.environ.get("SLURM_PROCID") or 0) != 0:
            time.sleep(_EXIT_DELAY)
            sys.exit(1)
        raise ValueError(
            f"SLURM started {tasks} tasks with --ntasks, but training needs the number of tasks per node: use "
            f"--ntasks-per-node instead, and set --trainer.devices to it and --trainer.num_nodes to --nodes."
        )
    result = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins] if plugins is not None else []
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in result):
        result.append(SLURMEnvironment(auto_requeue=False))
    for plugin in result:
        if isinstance(plugin, SLURMEnvironment):
            plugin.auto_requeue = False
    return result
