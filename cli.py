"""The program: ``cli.py fit|validate|test --config FILE``, and ``cli.py predict --images|--audio|--views PATH``."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # the imports below take seconds; process 1 of a container ignores signals without a handler
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))

import os
import warnings
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType

from application.command_line import CLI
from application.preflight import explain
from application.streams import lasting_output, quiet_lightning
from application.wandb_logger import read_nulls
from callbacks.exact_resume import ExactResume
from callbacks.signals import StopOnSignal
from composers import Composer
from datamodules import CoordinateDataModule
from datamodules.configuration import load_layers

CONFIGS = Path(__file__).parent / "configs"
DEFAULTS = [str(CONFIGS / "default.yaml")]
PREDICT = CONFIGS / "predict.yaml"
QUIET = (
    ".*LeafSpec.*",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*does not have many workers.*",  # data in memory needs none
    ".*when using `ckpt_path`, callbacks used.*",  # prediction needs none of training's
    ".*dirpath has changed.*",  # an evaluation writes into a folder of its own
    ".*is smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # it is, by address
    ".*You are trying to `self.log.*barebones.*",  # which was asked for
)


def main(args: ArgsType = None) -> None:
    """Run a command, which nothing that it prints can end: not a character that a terminal lacks, not a closed pipe.

    See `run` for the arguments.
    """
    with lasting_output():
        run(args)


def run(args: ArgsType = None) -> None:
    """Run a command; a user's mistake ends with one message, and exit status 2 if in the arguments, else 1.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    stopper = StopOnSignal()
    stopper.install()
    set_loader("yaml", load_layers, exceptions=(yaml.YAMLError,))
    if args is None:
        sys.argv[1:] = read_nulls(sys.argv[1:])
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    quiet_lightning()  # the start-up summary says what counts
    try:
        CLI(
            Composer,
            CoordinateDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False}
            | {name: {"default_config_files": DEFAULTS} for name in CLI.subcommands()}
            | {"predict": {"default_config_files": [*DEFAULTS, str(PREDICT)]}},
            trainer_defaults={"callbacks": [stopper, ExactResume()]},
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except (ArgumentError, ValueError, OSError, RuntimeError, MisconfigurationException) as error:
        message = explain(error)
        if message is None or os.environ.get("CLI_TRACEBACK"):
            raise
        print(f"error: {message}\n(CLI_TRACEBACK=1 shows where it arose.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    finally:
        stopper.restore()


if __name__ == "__main__":
    main()
