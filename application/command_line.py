"""The command line: a LightningCLI whose sizes come from the data, and which looks before it trains."""

from __future__ import annotations

import sys
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from application.preflight import check_output_folder
from application.runs import RunFolders, check_processes, has_run_folder, output_folders, trainer_settings
from application.shortcuts import (
    add_shortcuts,
    add_start,
    expand_shortcuts,
    folder_of_runs,
    kind_of_prediction,
    settle_start,
    state_signal,
    stated_model,
)
from application.sizes import state_sizes
from application.trainer_options import settle_trainer
from application.wandb_logger import BoundedWandbLogger, add_settings, beside
from callbacks.non_finite import NonFinite
from composers.checkpoint import check_data, check_state, check_weights, located, newest, read
from datamodules import data_sets

data_sets()  # with the imports above: a config can name one without its module

SHIPPED = "photos_ipc"  # the weights that predict takes where no checkpoint is named


class CLI(LightningCLI):
    """A LightningCLI whose sizes come from the data, and which looks before it trains."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        self.asked = given[0] if isinstance(given, list) and given else None
        super().__init__(*args, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; take the model from the checkpoint and the sizes from the data, and look for what ``last`` means."""
        given = sys.argv[1:] if args is None else args
        self._take_model(given)
        self._take_reader(given)
        self.command = [str(one) for one in given] if isinstance(given, list) else []
        super().parse_arguments(parser, args)
        config: Namespace = self.config[self.config.subcommand]
        if self.config.subcommand == "predict":
            self.save_config_callback = None  # predictions are no run
            config.ckpt_path = config.ckpt_path or SHIPPED
            expand_shortcuts(config)
            state_signal(config.model, config.data, config.ckpt_path)
        settle_start(config, given if isinstance(given, list) else [], self.config.subcommand)
        state_sizes(config.model, config.data)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest(folder_of_runs(config.trainer.logger)))
        elif config.get("ckpt_path") is not None:
            config.ckpt_path = str(located(config.ckpt_path))

    def _take_model(self, args: ArgsType) -> None:
        """Let the checkpoint of an evaluation, or the weights that a run starts from, state the model, unless a config does."""
        given = args if isinstance(args, list) else []
        command = given[0] if given else None
        if command in self._subcommand_parsers and not {"-h", "--help"} & set(given):
            option = "--weights" if command == "fit" else "--ckpt_path"
            model = stated_model(given[1:], SHIPPED if command == "predict" else None, option)
            if model is not None:
                self._subcommand_parsers[command].set_defaults({"model": model})

    def _take_reader(self, args: ArgsType) -> None:
        """Let the option that names files choose the data module of a prediction, unless a config does."""
        if self.asked == "predict":
            reader = kind_of_prediction(args if isinstance(args, list) else []).reader
            self._subcommand_parsers["predict"].set_defaults({"data": {"class_path": reader}})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser of a command, with the options of ``predict`` and ``fit``; an empty one if another is asked for.

        Building a parser with all classes takes a third of a second.
        """
        if self.asked in self.subcommands() and subcommand != self.asked:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs | {"default_config_files": []})
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            add_shortcuts(parser)
        add_start(parser, subcommand)
        add_settings(parser, ignored=subcommand == "predict")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callback that every training has, whatever its list of callbacks."""
        parser.add_lightning_class_args(NonFinite, "non_finite")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer, with the logger of W&B beside its own if ``wandb`` is stated."""
        config = self._get(self.config_init, "trainer")
        self.folders = RunFolders(config.logger, self.command)
        kwargs = trainer_settings(config) | kwargs
        if not has_run_folder(config):
            self.save_config_callback = None
        if (loggers := self._loggers()) is not None:
            kwargs["logger"] = loggers
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Logger] | None:
        """Return the logger of the config and that of W&B; None if ``wandb`` is not stated."""
        settings = None if self.subcommand == "predict" else self._get(self.config_init, "wandb")
        if settings is None:
            return None
        config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        assert self.subcommand is not None
        own, path = self._get(self.config_init, "trainer").logger, self._get(self.config_init, "ckpt_path")
        return beside(own, settings, yaml.safe_load(config), self.subcommand, path)

    def _take_folder(self) -> None:
        """Claim the run folder, and let W&B write there."""
        self.folders.take(self.trainer)
        loggers = self._loggers()
        if loggers is not None and has_run_folder(self._get(self.config_init, "trainer")):
            self.trainer.loggers = loggers
        for logger in self.trainer.loggers:
            if isinstance(logger, BoundedWandbLogger):
                logger.savers = self.trainer.checkpoint_callbacks

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given: the checkpoint is compared with it, never mixed in."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands with the trainer's arguments that are not the user's."""
        commands = LightningCLI.subcommands()
        hidden = {"test": {"verbose"}, "predict": {"return_predictions"}}
        return {name: skipped | hidden.get(name, set()) for name, skipped in commands.items()}

    def test(self, **arguments: Any) -> None:
        """Run the test, whose table `ResultsTable` prints."""
        self.trainer.test(**arguments, verbose=False)

    def predict(self, **arguments: Any) -> None:
        """Run the prediction, whose results are written as they come."""
        self.trainer.predict(**arguments, return_predictions=False)

    def before_instantiate_classes(self) -> None:
        """Settle the options of the trainer with what the default config brings along."""
        trainer = self.config[self.config.subcommand].trainer
        settle_trainer(trainer)
        if trainer.get("barebones"):
            self.save_config_callback = None  # it has no folder of the run

    def after_instantiate_classes(self) -> None:
        """Let the composer know its config, for its checkpoints; look at sizes, checkpoint and folder first."""
        assert self.subcommand is not None
        check_processes(self.trainer)
        self._dump_config()
        self.model.config = self.config_dump["model"]
        self.model.check_sizes(self.datamodule)
        path, weights = self._get(self.config, "ckpt_path"), self._get(self.config, "weights")
        if self.subcommand == "fit" and (resumed := self.folders.last_checkpoint(self.trainer)) is not None:
            self.config_init[self.subcommand].ckpt_path = path = str(resumed)
        if path is None and self.subcommand != "fit":
            raise ValueError("Which weights? Give --ckpt_path, a checkpoint or last, the newest of this config.")
        if (begin := path or weights) is not None:
            checkpoint = read(begin)
            check_weights(self.model, checkpoint, begin)
            check_data(self.datamodule, checkpoint, begin)
            if path is None:
                self.model.load_state_dict(checkpoint["state_dict"])
            else:
                check_state(checkpoint, path, self.subcommand)
        for folder in output_folders(self.trainer, self.subcommand):
            check_output_folder(folder, self.model, self.subcommand)
        self._take_folder()
