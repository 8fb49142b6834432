"""The metrics and the config of a run: as Lightning writes them, but never incomplete, and with errors that name the file."""

from __future__ import annotations

import csv
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from datamodules.storage.files import UnwritableError, naming, written_whole


class MetricsFile(ExperimentWriter):
    """The file ``metrics.csv`` of a `CSVLogger`.

    If the folder or the file was deleted, it is created again with the metrics from then on. If rows cannot be written, the
    file keeps the earlier rows, and no more are written.

    Args:
        log_dir: Folder of the file, created if missing.
    """

    def __init__(self, log_dir: str) -> None:
        self._failed = False
        self._intact: int | None = None  # bytes of complete rows
        with naming(Path(log_dir, self.NAME_METRICS_FILE)):
            super().__init__(log_dir)

    def save(self) -> None:
        """Append the metrics since the last call.

        Raises:
            UnwritableError: If they cannot be written, unless this is called because of an earlier error.
        """
        path, ends_with_error = Path(self.metrics_file_path), isinstance(sys.exc_info()[1], Exception)
        if self._failed:
            return
        self._intact = path.stat().st_size if path.is_file() else None
        try:
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                super().save()
        except OSError:
            self._failed = True
            with suppress(OSError):
                path.unlink() if self._intact is None else os.truncate(path, self._intact)
            if not ends_with_error:
                raise

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write hyperparameters as Lightning does."""
        with naming(Path(self.log_dir, self.NAME_HPARAMS_FILE)):
            super().log_hparams(params)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns to the file, atomically."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            metrics = list(csv.DictReader(file))
        with written_whole(path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(metrics)
        self._intact = path.stat().st_size


class ConfigFile(SaveConfigCallback):
    """The file ``config.yaml`` of a run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, or leave none that is incomplete.

        Raises:
            UnwritableError: If it cannot be written.
        """
        path = Path(trainer.log_dir or "", self.config_filename)
        try:
            with naming(path):
                super().setup(trainer, pl_module, stage)
        except UnwritableError:
            with suppress(OSError):
                path.unlink()
            raise
