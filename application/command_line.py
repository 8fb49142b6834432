"""A `LightningCLI` that reads sizes from the data and validates a command before it runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from application.failures import explain_failure
from application.global_batch import add_global_batch_option, apply_global_batch
from application.preflight import check_output_folder
from application.run_files import ConfigFile
from application.runs import RunFolders, check_processes, has_run_folder, output_folders, trainer_settings
from application.shortcuts import (
    add_shortcuts,
    add_weights_option,
    expand_shortcuts,
    folder_of_runs,
    modality_of,
    name_plugins,
    resolve_weights,
    state_signal,
    stated_facts,
    stated_model,
)
from application.sizes import state_sizes
from application.trainer_options import apply_switches
from application.wandb_logger import BoundedWandbLogger, add_wandb_option, with_wandb
from callbacks.heartbeat import Heartbeat
from callbacks.non_finite import NonFinite
from composers.checkpoint import check_data, check_state, located, newest, read
from composers.construction import check_weights
from composers.plugins import add_plugins_option
from datamodules import data_sets
from datamodules.configuration import load_config

_CONFIG_OPTIONS = ("--config", "-c", "--model", "--data", "--trainer")

data_sets()  # imports all data sets, so that a config can name one without its module


class ConfigParser(LightningArgumentParser):
    """A parser that writes configs without validating them again, which takes a quarter of the time of a short command."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return a config, which parsing has validated, as text."""
        text: str = super().dump(*args, **{"skip_validation": True} | kwargs)
        return text

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write a config, which parsing has validated, to a file."""
        super().save(*args, **{"skip_validation": True} | kwargs)


class CLI(LightningCLI):
    """A `LightningCLI` that reads sizes from the data and validates a command before it runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = _as_list(kwargs.get("args"))
        self.requested = arguments[0] if arguments else None
        kwargs.setdefault("save_config_callback", ConfigFile)
        kwargs.setdefault("parser_class", ConfigParser)
        try:
            super().__init__(*args, **kwargs)
        except (MemoryError, RuntimeError, OSError) as error:
            message = self._failure(error)
            if message is None:
                raise
            raise ValueError(message) from error

    def _failure(self, error: BaseException) -> str | None:
        """Return the message of an exception that concerns memory or another process, or None."""
        command = self.requested if self.requested in self.subcommands() else None
        config = getattr(self, "config", {}).get(command) if command else None
        return explain_failure(error, command, config or {}, getattr(self, "trainer", None))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; take the model from the checkpoint and sizes from the data, and resolve ``--ckpt_path last``."""
        arguments = _as_list(args)
        for path in _config_files(arguments):
            load_config(path)  # whose errors name the file; the parser only sees its text
        name_plugins(arguments)
        self._default_model(arguments)
        if self.requested == "predict":
            modality = modality_of(arguments, self._facts(arguments))
            self._subcommand_parsers["predict"].set_defaults({"data": {"class_path": modality.reader}})
        self.command = [str(argument) for argument in arguments]
        self._parse(parser, args)
        config: Namespace = self.config[self.config.subcommand]
        if self.config.subcommand == "predict":
            self.save_config_callback = None  # a prediction has no run folder
            config.ckpt_path = config.ckpt_path or self._default_weights(arguments)
            expand_shortcuts(config)
            state_signal(config.model, config.data, config.ckpt_path)
        resolve_weights(config, arguments, self.config.subcommand)
        state_sizes(config.model, config.data)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest(folder_of_runs(config.trainer.logger)))
        elif config.get("ckpt_path") is not None:
            config.ckpt_path = str(located(config.ckpt_path))

    def _parse(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with the parser of the command alone; the parser of all commands would parse everything twice.

        The latter prints configs, and its error messages name options in full.
        """
        printing = any(argument.startswith("--print_config") for argument in self.command)
        if self.requested in self._subcommand_parsers and not printing:
            with suppress(ArgumentError):
                config = self._subcommand_parsers[self.requested].parse_args(self.command[1:])
                self.config = Namespace(  # type: ignore[no-untyped-call]
                    {"subcommand": self.requested, self.requested: config}
                )
                return
        super().parse_arguments(parser, args)

    @staticmethod
    def _default_weights(arguments: list[Any]) -> str | None:
        """Return the bundled weights for the signals that the command line names.

        Raises:
            ValueError: If there are none, and the command line names neither a checkpoint nor a config.
        """
        modality, options = modality_of(arguments), {str(argument).partition("=")[0] for argument in arguments}
        if modality.weights is None and not options & {"--ckpt_path", "-c", "--config", "--model"}:
            raise ValueError(
                f"--ckpt_path is required: no weights for {modality.name} are bundled; pass the path of a checkpoint, or "
                "`last` for the newest of this config."
            )
        return modality.weights

    def _facts(self, arguments: list[Any]) -> dict[str, Any]:
        """Return the facts of the training data in the checkpoint that the command line names; empty if it states none."""
        if {"-h", "--help"} & set(arguments):
            return {}
        return stated_facts(arguments[1:], self._default_weights(arguments))

    def _default_model(self, arguments: list[Any]) -> None:
        """Use the model config of the checkpoint that the command line names as the default; a ``--config`` overrides it."""
        command = arguments[0] if arguments else None
        if command in self._subcommand_parsers and not {"-h", "--help"} & set(arguments):
            option = "--weights" if command == "fit" else "--ckpt_path"
            default = self._default_weights(arguments) if command == "predict" else None
            model = stated_model(arguments[1:], default, option)
            if model is not None:
                self._subcommand_parsers[command].set_defaults({"model": model})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser of a subcommand; an empty one if another subcommand was requested.

        Building a parser with all classes takes a third of a second.
        """
        if self.requested in self.subcommands() and subcommand != self.requested:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs | {"default_config_files": []})
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            add_shortcuts(parser)
        add_weights_option(parser, subcommand)
        add_plugins_option(parser)
        add_wandb_option(parser, ignored=subcommand == "predict")
        add_global_batch_option(parser, ignored=subcommand != "fit")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has, independently of ``trainer.callbacks``."""
        parser.add_lightning_class_args(NonFinite, "non_finite")
        parser.add_lightning_class_args(Heartbeat, "heartbeat")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer, with an additional W&B logger if ``wandb`` is set."""
        config = self._get(self.config_init, "trainer")
        self.folders = RunFolders(config.logger, self.command)
        kwargs = trainer_settings(config) | kwargs
        if not has_run_folder(config):
            self.save_config_callback = None
        if (loggers := self._wandb_loggers()) is not None:
            kwargs["logger"] = loggers
        return super().instantiate_trainer(**kwargs)

    def _wandb_loggers(self) -> list[Logger] | None:
        """Return the configured logger and the W&B logger; None if ``wandb`` is not set."""
        settings = None if self.subcommand == "predict" else self._get(self.config_init, "wandb")
        if settings is None:
            return None
        config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        assert self.subcommand is not None
        logger, path = self._get(self.config_init, "trainer").logger, self._get(self.config_init, "ckpt_path")
        return with_wandb(logger, settings, yaml.safe_load(config), self.subcommand, path)

    def _claim_run_folder(self) -> None:
        """Claim the run folder, and rebuild the W&B logger, which writes below it."""
        self.folders.take(self.trainer)
        loggers = self._wandb_loggers()
        if loggers is not None and has_run_folder(self._get(self.config_init, "trainer")):
            self.trainer.loggers = loggers
        for logger in self.trainer.loggers:
            if isinstance(logger, BoundedWandbLogger):
                logger.savers = self.trainer.checkpoint_callbacks

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would merge the hyperparameters of the checkpoint into the config."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the trainer's arguments that are no options."""
        commands = LightningCLI.subcommands()
        hidden = {"test": {"verbose"}, "predict": {"return_predictions"}}
        return {name: skipped | hidden.get(name, set()) for name, skipped in commands.items()}

    def test(self, **arguments: Any) -> None:
        """Run the test; `ResultsTable` prints the results."""
        self.trainer.test(**arguments, verbose=False)

    def predict(self, **arguments: Any) -> None:
        """Run the prediction; `PredictionWriter` writes results batch by batch."""
        self.trainer.predict(**arguments, return_predictions=False)

    def before_instantiate_classes(self) -> None:
        """Remove callbacks of the default config that options of the trainer switch off."""
        trainer = self.config[self.config.subcommand].trainer
        apply_switches(trainer)
        if trainer.get("barebones"):
            self.save_config_callback = None  # there is no run folder

    def after_instantiate_classes(self) -> None:
        """Give the composer its config for checkpoints; check sizes, checkpoint and output folder before anything runs."""
        assert self.subcommand is not None
        check_processes(self.trainer)
        if self.subcommand == "fit" and (size := self._get(self.config, "global_batch_size")) is not None:
            apply_global_batch(self.trainer, self.datamodule, size)
        self._get(self.config_init, "heartbeat").attach(self.trainer)
        self._dump_config()
        self.model.config = self.config_dump["model"]
        self.model.check_sizes(self.datamodule)
        path, weights = self._get(self.config, "ckpt_path"), self._get(self.config, "weights")
        if self.subcommand == "fit" and (resumed := self.folders.last_checkpoint(self.trainer)) is not None:
            self.config_init[self.subcommand].ckpt_path = path = str(resumed)
        if path is None and self.subcommand != "fit":
            raise ValueError(
                "--ckpt_path is required: pass the path of a checkpoint, or `last` for the newest of this config."
            )
        if (source := path or weights) is not None:
            checkpoint = read(source)
            check_weights(self.model, checkpoint, source)
            check_data(self.datamodule, checkpoint, source)
            if path is None:
                self.model.load_state_dict(checkpoint["state_dict"])
            else:
                check_state(checkpoint, path, self.subcommand)
        for folder in output_folders(self.trainer, self.subcommand):
            check_output_folder(folder, self.model, self.subcommand)
        self._claim_run_folder()


def _as_list(args: ArgsType) -> list[Any]:
    """Return command-line arguments as a list: ``sys.argv`` if None, and an empty list for a mapping."""
    if args is None:
        return sys.argv[1:]
    return args if isinstance(args, list) else []


def _config_files(arguments: list[Any]) -> list[str]:
    """Return the existing files and folders that a command line names as configs or as sections of one."""
    texts = [str(argument) for argument in arguments]
    values = [value for option, value in pairwise(texts) if option in _CONFIG_OPTIONS]
    values += [value for name, _, value in (text.partition("=") for text in texts) if name in _CONFIG_OPTIONS]
    return [value for value in values if value and os.path.exists(value)]  # noqa: PTH110 - for text that is no path
