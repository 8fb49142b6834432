"""The command line: ``cli.py fit|validate|test --config FILE``, ``cli.py predict --images|--audio|--views|--shapes PATH``."""

from __future__ import annotations

import signal
import sys

from application.threads import limit_spinning

if __name__ == "__main__":  # the imports below take seconds; process 1 of a container ignores signals without a handler
    limit_spinning()
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
from application.streams import quiet_lightning, robust_output
from application.wandb_logger import replace_sweep_nulls
from callbacks.exact_resume import ExactResume
from callbacks.signals import StopOnSignal
from composers import Composer
from datamodules import CoordinateDataModule
from datamodules.configuration import load_layers

CONFIGS = Path(__file__).resolve().parent / "configs"
DEFAULTS = [str(CONFIGS / "default.yaml")]
PREDICT = CONFIGS / "predict.yaml"
IGNORED_WARNINGS = (
    ".*LeafSpec.*",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*does not have many workers.*",  # data in memory need none
    ".*when using `ckpt_path`, callbacks used.*",  # prediction does not use the callbacks of training
    ".*dirpath has changed.*",  # an evaluation writes to its own folder
    ".*is smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # it is: data order is a function of seed, epoch and index
    r".*module\(s\) in eval mode at the start of training.*",  # frozen encoders stay in evaluation mode
    ".*You are trying to `self.log.*barebones.*",  # the user requested barebones
    "Grad strides do not match bucket view strides",  # of depthwise convolutions, whose sizes of 1 have other strides
)


def main(args: ArgsType = None) -> None:
    """Run a command with standard streams that never raise, for example on a closed pipe.

    See `run` for the arguments.
    """
    with robust_output():
        run(args)


def run(args: ArgsType = None) -> None:
    """Run a command; a user error prints one message and exits with status 2 for invalid arguments, otherwise 1.

    Args:
        args: Command-line arguments; ``sys.argv`` if None.
    """
    stopper = StopOnSignal()
    stopper.install()
    set_loader("yaml", load_layers, exceptions=(yaml.YAMLError,))
    if args is None:
        sys.argv[1:] = replace_sweep_nulls(sys.argv[1:])
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    quiet_lightning()
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
    except (ArgumentError, ValueError, OSError, RuntimeError, MemoryError, MisconfigurationException) as error:
        message = explain(error)
        if message is None or os.environ.get("CLI_TRACEBACK"):
            raise
        print(f"error: {message}\n(Set CLI_TRACEBACK=1 to show the traceback.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    finally:
        stopper.restore()


if __name__ == "__main__":
    main()
