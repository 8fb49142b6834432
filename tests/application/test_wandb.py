"""The W&B logger in offline runs: records are read back from the file of W&B, and all other results are unchanged."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from program import REPOSITORY, asked, assert_same, checkpoint, keep_every, refused, rows, run, run_process, tiny
from wandb_records import make_logger, no_account, read_records

import cli
import composers
from application.wandb_logger import WandbSettings, replace_sweep_nulls, with_wandb
from callbacks.gradient_norms import GradientNorms, gradient_norms
from callbacks.saving import LastCheckpoint
from callbacks.tables import ValidationTable, sample_rows
from composers import Refinement
from datamodules import SamplePhotos
from datamodules.batch import Observation
from datamodules.domain import Grid
from modalities import Images

OVERLAY = ["--config", str(REPOSITORY / "configs" / "overlays" / "wandb.yaml")]
TABLE = "val/samples"
KEY = "0123456789" * 4
EPOCHS, STEPS, LR, WARMUP = 2, 3, 0.1, 2  # 3 steps per epoch, of 2 batches each
SGD_WITH_SCHEDULE = ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", LR]
SGD_WITH_SCHEDULE += ["--model.init_args.scheduler", "composers.training.schedules.WarmupCosine"]
SGD_WITH_SCHEDULE += ["--model.init_args.scheduler.init_args.warmup_steps", WARMUP]
SGD_WITH_SCHEDULE += ["--trainer.max_epochs", EPOCHS, "--trainer.accumulate_grad_batches", 2, *keep_every(1)]


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    """Run each test in an empty folder, without a W&B account."""
    with no_account(tmp_path_factory.mktemp("home")):
        monkeypatch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Train for two epochs with W&B without an API key, and return the run folder and the output."""
    folder = tmp_path_factory.mktemp("offline")
    with contextlib.chdir(folder), no_account(tmp_path_factory.mktemp("home")):
        printed = run("fit", *tiny("ipc"), *OVERLAY, *SGD_WITH_SCHEDULE)
    return folder / "runs" / "unnamed" / "version_0", printed


def _history(folder):
    """Return the logged values, one dictionary per call."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_records(folder)
        if record.HasField("history")
    ]


def _logged(folder, name):
    """Return the values logged under a name, by step."""
    return {row["trainer/global_step"]: row[name] for row in _history(folder) if name in row}


def _run_record(folder):
    """Return the record that describes the run."""
    return next(record.run for record in read_records(folder) if record.HasField("run"))


def _tables(folder):
    """Return the logged tables in order, each as a list of rows by column, with images as arrays."""
    tables = []
    for record in read_records(folder):
        if not record.HasField("artifact"):
            continue
        files = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
        [path] = [path for path in files if path.endswith(".table.json")]
        table = json.loads(Path(files[path]).read_text())
        cells = [
            [np.asarray(Image.open(files[cell["path"]])) if isinstance(cell, dict) else cell for cell in row]
            for row in table["data"]
        ]
        tables.append([dict(zip(table["columns"], row, strict=True)) for row in cells])
    return tables


def test_other_files_are_unchanged(offline):
    folder, _ = offline
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "wandb"}
    assert {"best.ckpt", "last.ckpt"} < {path.name for path in (folder / "checkpoints").iterdir()}
    assert {path.name for path in folder.parents[2].iterdir()} == {"runs"}  # nothing else in the working directory


def test_run_without_a_key_is_offline_and_prints_the_sync_command(offline):
    folder, printed = offline
    [kept] = folder.glob("wandb/offline-run-*")
    place = kept.relative_to(folder.parents[2])
    assert f"W&B: offline because there is no API key (wandb login); saved to {place}\n" in printed
    assert f"W&B: to upload this run later: wandb sync {place}\n" in printed
    assert printed.count("W&B") == 2
    assert "wandb:" not in printed


def test_staged_images_are_below_the_run_folder(offline):
    folder, _ = offline
    [*artifacts] = [record.artifact for record in read_records(folder) if record.HasField("artifact")]
    paths = [Path(entry.local_path) for artifact in artifacts for entry in artifact.manifest.contents]
    assert len(paths) > 24
    assert all(path.is_relative_to(folder / "wandb") for path in paths)


def test_run_contains_the_whole_config(offline):
    folder, _ = offline
    record = _run_record(folder)
    config = {item.key: json.loads(item.value_json) for item in record.config.update if not item.key.startswith("_")}
    assert config == yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["coord_dim"] == 2
    assert record.project == "generalizable-inr"
    assert record.display_name == "unnamed/version_0"
    assert record.job_type == "fit"


def test_logged_values_match_metrics_csv(offline):
    folder, _ = offline
    written = rows(folder / "metrics.csv")
    names = {name for row in written for name in row} - {"step"}
    assert {"train/loss", "train/psnr", "val/psnr", "lr-SGD", "grad_norm/total", "epoch"} <= names
    history = [row for row in _history(folder) if not any(name.startswith(TABLE) for name in row)]
    assert len(history) == len(written)
    for sent, row in zip(history, written, strict=True):
        assert sent["trainer/global_step"] == int(row["step"])
        for name in row.keys() - {"step"}:
            assert sent[name] == pytest.approx(float(row[name]))


def test_learning_rate_follows_the_schedule(offline):
    folder, _ = offline
    total = EPOCHS * STEPS
    logged = _logged(folder, "lr-SGD")
    assert list(logged) == list(range(total))
    for step, lr in logged.items():
        progress = (step - WARMUP) / (total - WARMUP)
        factor = (step + 1) / WARMUP if step < WARMUP else (1 + math.cos(math.pi * progress)) / 2
        assert lr == pytest.approx(LR * factor, rel=1e-5)


def _assert_norms_match_the_updates(folder):
    """Compare the norms with the weight updates divided by the learning rate, which for SGD are the gradients."""
    lrs = _logged(folder, "lr-SGD")
    weights = [checkpoint(folder, f"step-{step}")["state_dict"] for step in range(1, EPOCHS * STEPS + 1)]
    for step in range(1, EPOCHS * STEPS - 1):
        squares = {"network": 0.0, "parametrization": 0.0, "start": 0.0}
        for name, before in weights[step - 1].items():
            if not name.startswith("means."):
                update = before.double() - weights[step][name].double()
                squares[name.split(".")[0]] += float((update / lrs[step]).square().sum())
        for part, square in squares.items():
            assert _logged(folder, f"grad_norm/{part}")[step] == pytest.approx(math.sqrt(square), rel=1e-3)
        total = math.sqrt(sum(squares.values()))
        assert _logged(folder, "grad_norm/total")[step] == pytest.approx(total, rel=1e-3)


def test_gradient_norms_match_the_updates(offline):
    _assert_norms_match_the_updates(offline[0])


def _held_out():
    """Return the first 8 validation images ``(8, 3, 16, 16)`` in [0, 1], and their names."""
    data = SamplePhotos(size=16)
    data.setup("validate")
    items = [data.val_set[index] for index in range(8)]
    return torch.stack([item.values for item in items]).float() / 255, [item.name for item in items]


def _psnr(actual, expected):
    """Return the PSNR in dB of arrays in [0, 1]."""
    return 10 * math.log10(1 / np.mean((np.asarray(actual, np.float64) - np.asarray(expected, np.float64)) ** 2))


def test_table_has_the_same_rows_in_every_epoch(offline):
    folder, _ = offline
    first, second = _tables(folder)
    signal, names = _held_out()
    for table in (first, second):
        assert list(table[0]) == ["name", "input", "reconstruction", "error x 5", "PSNR", "refined PSNR"]
        assert [row["name"] for row in table] == names
        for row, image in zip(table, signal, strict=True):
            assert np.array_equal(row["input"], (image.permute(1, 2, 0) * 255).round().byte().numpy())
    assert all(row["PSNR"] != other["PSNR"] for row, other in zip(first, second, strict=True))
    assert list(_logged(folder, f"{TABLE}/_type")) == list(_logged(folder, "val/psnr")) == [2, 5]


def test_table_matches_the_reconstructions_of_the_checkpoint(offline):
    folder, _ = offline
    composer = composers.load(folder / "checkpoints" / "last.ckpt")
    signal, _ = _held_out()
    centres = (torch.arange(16) + 0.5) / 8 - 1
    coords = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).flatten(0, 1)
    for row, image in zip(_tables(folder)[-1], signal, strict=True):
        with torch.no_grad():
            latents = composer.encode(Observation(image[None]))
            rendered = composer.render(composer.compose(latents), coords)[0]
        expected = image.permute(1, 2, 0).flatten(0, 1)
        assert row["PSNR"] == pytest.approx(_psnr(rendered, expected), abs=1e-4)
        for column, values in (("reconstruction", rendered), ("error x 5", (rendered - expected).abs() * 5)):
            levels = (values.clamp(0, 1) * 255).reshape(16, 16, 3).numpy()
            assert np.abs(row[column] - levels).max() < 0.51
        [(name, predicted)] = latents.items()
        patterns = predicted.clone().requires_grad_()
        optimizer = torch.optim.Adam([patterns], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            (composer.render(composer.compose({name: patterns}), coords)[0] - expected).square().mean().backward()
            optimizer.step()
        refined = composer.render(composer.compose({name: patterns}), coords)[0].detach()
        assert row["refined PSNR"] == pytest.approx(_psnr(refined, expected), abs=1e-3)


@pytest.mark.slow
def test_disabled_mode_needs_no_wandb_and_trains_identically(offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run("fit", *tiny("ipc"), *OVERLAY, *SGD_WITH_SCHEDULE, "--wandb.mode", "disabled")
    folder = Path("runs/unnamed/version_0")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints"}
    assert_same(checkpoint(folder)["state_dict"], checkpoint(offline[0])["state_dict"])
    assert rows(folder / "metrics.csv") == rows(offline[0] / "metrics.csv")


def test_resumed_fit_continues_the_run(offline, monkeypatch):
    folder, _ = offline
    monkeypatch.chdir(folder.parents[2])
    version = ["--trainer.logger.init_args.version", "resumed"]
    arguments = [*SGD_WITH_SCHEDULE, "--trainer.max_epochs", EPOCHS + 1, *version]
    run("fit", *tiny("ipc"), *OVERLAY, *arguments, "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    resumed = folder.parent / "resumed"
    assert _run_record(resumed).run_id == _run_record(folder).run_id
    assert list(_logged(resumed, "train/loss")) == [6, 7, 8]
    assert len(_tables(resumed)) == 1


@pytest.mark.slow
def test_overlay_keeps_logger_and_callbacks_of_the_experiment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    programs = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: programs.append(self)):
        run("fit", "--config", REPOSITORY / "configs" / "experiments" / "photos_ipc.yaml", *OVERLAY)
    logger = programs[0].trainer.logger
    assert type(logger) is CSVLogger
    assert (logger.save_dir, logger.name) == ("runs", "photos_ipc")
    names = [type(callback).__name__ for callback in programs[0].trainer.callbacks]
    for name in ("StartSummary", "RefinementPlot", "LearningRateMonitor", "GradientNorms", "ValidationTable"):
        assert names.count(name) == 1
    assert names.count("Gallery") == 2  # one of them compares with the bundled weights


@pytest.mark.slow
def test_log_model_without_a_server_raises():
    model = ["--wandb.log_model", "true", "--wandb.mode", "offline"]
    message = refused("fit", *tiny("ipc"), *OVERLAY, *model)
    assert "log_model uploads checkpoints to a server" in message
    assert "W&B is offline because mode is offline: set wandb.log_model to false" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("mode", "environment", "reason"),
    [
        ("disabled", None, "W&B is disabled because mode is disabled"),
        ("auto", "offline", "W&B is offline because WANDB_MODE is offline"),
        ("auto", "dryrun", "W&B is offline because WANDB_MODE is dryrun"),
        ("auto", None, "W&B is offline because there is no API key"),
    ],
)
def test_log_model_error_states_the_reason(mode, environment, reason, monkeypatch):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    with pytest.raises(ValueError, match=reason):
        with_wandb(CSVLogger("runs"), WandbSettings(mode=mode, log_model=True), {}, "fit", None)


def test_user_is_never_prompted_for_a_key(monkeypatch):
    prompt = mock.Mock(side_effect=AssertionError("prompted for a key"))
    monkeypatch.setattr("wandb.sdk.lib.wbauth.prompt.prompt_and_save_api_key", prompt)
    assert make_logger().mode == "offline"


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_configured_key_selects_online_mode(place, monkeypatch):
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        Path(os.environ["NETRC"]).write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
        Path(os.environ["NETRC"]).chmod(0o600)
    assert make_logger(log_model=True).mode == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert make_logger().mode == "offline"
    assert make_logger(mode="online").mode == "online"


def test_unknown_wandb_mode_raises(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "perhaps")
    with pytest.raises(ValueError, match="WANDB_MODE is 'perhaps'; it must be one of online"):
        make_logger()


@pytest.mark.slow
def test_missing_wandb_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused("fit", *tiny("ipc"), *OVERLAY)
    assert "wandb is not installed: run `pip install wandb`, omit configs/overlays/wandb.yaml" in message


def test_table_needs_a_logger():
    message = refused("fit", *tiny("ipc"), "--trainer.callbacks+", "callbacks.tables.ValidationTable")
    assert "ValidationTable requires a logger that supports tables, such as W&B (loggers: CSVLogger)" in message


def test_arguments_out_of_range_raise():
    with pytest.raises(ValueError, match="num_samples is 0"):
        ValidationTable(num_samples=0)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        GradientNorms(every_n_steps=0)


def _printed(record):
    """Return the console output in a record."""
    return record.output_raw.line + record.output.line + record.output_logger.line


def test_settings_are_recorded():
    settings = {"project": "inrs", "group": "ours", "tags": ["a", "b"], "notes": "why", "run_id": "seven-7"}
    logger = make_logger(CSVLogger("here", "experiment", 3, prefix="p"), "test", mode="offline", **settings)
    logger.log_metrics({"x": 1.5}, step=4)
    logger.finalize("success")
    folder = Path("here/experiment/version_3")
    record = _run_record(folder)
    assert (record.project, record.run_group, list(record.tags), record.notes) == ("inrs", "ours", ["a", "b"], "why")
    assert (record.run_id, record.job_type, record.display_name) == ("seven-7", "test", "experiment/version_3")
    assert _logged(folder, "p-x") == {4: 1.5}
    assert read_records(folder)[-1].exit.exit_code == 0


def test_failed_run_is_marked_and_contains_the_traceback():
    logger = make_logger(mode="offline")
    assert logger.experiment is not None
    try:
        raise RuntimeError("something failed")
    except RuntimeError:
        logger.finalize("failed")
    records = read_records(Path("runs/unnamed/version_0"))
    assert records[-1].exit.exit_code == 1
    console = "".join(_printed(record) for record in records)
    assert "Traceback (most recent call last)" in console
    assert "RuntimeError: something failed" in console


def test_only_fit_continues_the_run_of_its_checkpoint(offline):
    folder, _ = offline
    logger = make_logger(None, "test", folder / "checkpoints" / "last.ckpt", mode="offline")
    run = logger.experiment
    logger.finalize("success")
    assert run.id != _run_record(folder).run_id


def test_sweep_agent_sets_run_and_project(offline, monkeypatch):
    for name, value in {"SWEEP_ID": "s1", "RUN_ID": "agents", "PROJECT": "of-the-sweep", "MODE": "offline"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    checkpoint_path = offline[0] / "checkpoints" / "last.ckpt"
    logger = make_logger(None, "fit", checkpoint_path, project="mine", run_id="mine", tags=["kept"])
    assert logger.experiment is not None
    logger.finalize("success")
    record = _run_record(Path("runs/unnamed/version_0"))
    assert (record.run_id, record.project, record.sweep_id) == ("agents", "of-the-sweep", "s1")
    assert list(record.tags) == ["kept"]


def test_log_model_uploads_the_best_and_the_last_checkpoint(offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = make_logger(log_model=True)
    folder = offline[0] / "checkpoints"
    last = LastCheckpoint()
    last.last_model_path = str(folder / "last.ckpt")
    logger.savers = [SimpleNamespace(best_model_path=str(folder / "best.ckpt"), last_model_path=""), last]
    wandb_run = mock.Mock(id="x1", dir=str(folder / "files"))
    logger._experiment = wandb_run
    logger.finalize("success")
    aliases = {}
    for [artifact], options in wandb_run.log_artifact.call_args_list:
        assert (artifact.name, artifact.type, set(artifact.manifest.entries)) == ("model-x1", "model", {"model.ckpt"})
        aliases[artifact.metadata["original_filename"]] = options["aliases"]
    assert aliases == {"best.ckpt": ["best"], "last.ckpt": ["latest"]}
    assert [call[0] for call in wandb_run.method_calls] == ["log_artifact", "log_artifact", "finish"]


def test_evaluation_uploads_no_checkpoints(offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = make_logger(None, "validate", log_model=True)
    logger.savers = [SimpleNamespace(best_model_path=str(offline[0] / "checkpoints" / "best.ckpt"))]
    logger._experiment = wandb_run = mock.Mock(id="x1", dir="here")
    logger.finalize("success")
    assert [call[0] for call in wandb_run.method_calls] == ["finish"]


def test_unresponsive_server_is_called_once(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("application.wandb_logger._ANSWER_TIMEOUT", 0.05)
    logger, requests = make_logger(), []
    logger._experiment = SimpleNamespace(log=lambda metrics: [requests.append(metrics), time.sleep(0.3)])
    for step in range(2):
        logger.log_table("val/samples", columns=["x"], data=[[1]], step=step)
    assert len(requests) == 1
    logger._experiment = None


def test_rejected_table_does_not_stop_the_run(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = make_logger()
    logger._experiment = mock.Mock(log=mock.Mock(side_effect=RuntimeError("no")))
    logger.log_table("val/samples", columns=["x"], data=[[1]], step=1)
    printed = capsys.readouterr().out
    assert printed == (
        "W&B: the table val/samples was not uploaded, and further ones will not be, because RuntimeError: no.\n"
    )
    logger._experiment = None


@pytest.mark.parametrize("late", [True, False], ids=["late", "broken"])
def test_failure_to_finish_is_not_an_error(late, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("application.wandb_logger._GRACE", 0.05)
    monkeypatch.setattr("application.wandb_logger._abandon_service", abandoned := mock.Mock())
    logger = make_logger(finish_timeout=0.05)
    finish = (lambda exit_code: time.sleep(0.4)) if late else mock.Mock(side_effect=OSError("broken"))
    logger._experiment = SimpleNamespace(id="x1", dir="here/files", finish=finish)
    logger.finalize("success")
    reason = "the server did not respond within 0.05 s" if late else "W&B failed with OSError"
    assert f"W&B: not everything was uploaded, because {reason}.\n" in capsys.readouterr().out
    assert abandoned.call_count == 1


def test_prediction_accepts_the_config_of_a_run_with_wandb(offline):
    config = offline[0] / "config.yaml"
    assert yaml.safe_load(config.read_text())["wandb"]["project"] == "generalizable-inr"
    assert "seed_everything: 0" in asked("predict", "--config", config, "--print_config")
    assert "--wandb" not in asked("predict", "--help")


@pytest.mark.slow
def test_logger_receives_the_checkpoint_callbacks(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    programs = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: programs.append(self)):
        run("fit", *tiny("ipc"), *OVERLAY, "--wandb.log_model", "true")
    _, logger = programs[0].trainer.loggers
    assert [type(saver).__name__ for saver in logger.savers] == ["BestCheckpoint", "LastCheckpoint"]


@pytest.mark.slow
def test_logger_is_a_wandb_logger():
    programs = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: programs.append(self)):
        run("fit", *tiny("ipc"), *OVERLAY)
    local, logger = programs[0].trainer.loggers
    assert type(local) is CSVLogger
    assert isinstance(logger, WandbLogger)
    assert isinstance(logger.experiment, wandb.Run)
    logger.watch(torch.nn.Linear(1, 1))
    logger.log_image("image", [np.zeros((4, 4, 3), np.uint8)])
    logger.finalize("success")


@pytest.mark.slow
def test_console_output_is_recorded(tmp_path):
    run_process("fit", *tiny("ipc"), *OVERLAY, "--trainer.max_epochs", 1, cwd=tmp_path)
    records = read_records(tmp_path / "runs" / "unnamed" / "version_0")
    console = "".join(_printed(record) for record in records)
    assert "effective batch" in console
    assert "Next: python cli.py test" in console


@pytest.mark.slow
def test_custom_logger_receives_the_table(monkeypatch):
    logger = ["--trainer.logger", "lightning.pytorch.loggers.WandbLogger", "--trainer.logger.init_args.offline", "true"]
    logger += ["--trainer.logger.init_args.save_dir", "logs", "--trainer.logger.init_args.project", "custom"]
    monkeypatch.setenv("WANDB_MODE", "offline")  # the logger sets it permanently
    run("fit", *tiny("ipc"), *logger, "--trainer.callbacks+", "callbacks.tables.ValidationTable", *keep_every(9))
    wandb.finish()
    assert len(_tables(Path("logs"))) == 1


def test_wandb_needs_a_csv_logger():
    message = refused("fit", *tiny("ipc"), *OVERLAY, "--trainer.logger", "false")
    assert "wandb needs a CSVLogger in trainer.logger" in message
    assert "trainer.logger is False" in message


def test_ckpt_path_last_works_with_wandb(offline, monkeypatch):
    monkeypatch.chdir(offline[0].parents[2])
    printed = run("validate", *tiny("ipc"), *OVERLAY, "--ckpt_path", "last", "--wandb.mode", "disabled")
    assert "psnr" in printed


def test_finish_timeout_must_be_positive():
    with pytest.raises(ValueError, match="finish_timeout is 0; it must be a positive number of seconds"):
        WandbSettings(finish_timeout=0)


def test_nulls_of_a_sweep_are_replaced(monkeypatch):
    arguments = ["fit", "--trainer.max_time=None", "--trainer.logger.init_args.name=a=None ", "None"]
    assert replace_sweep_nulls(arguments) == arguments
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert replace_sweep_nulls(arguments) == ["fit", "--trainer.max_time=null", *arguments[2:]]


def test_table_of_other_signals_has_no_images(tiny_ipc, tiny_batch):
    with torch.no_grad():
        table = sample_rows(tiny_ipc, tiny_batch._replace(shape=None), Images(), Grid.unit(2))
    assert [list(row) for row in table] == [["name", "PSNR"]] * 3
    assert [row["name"] for row in table] == ["a", "b", "c"]


def test_refined_psnr_does_not_depend_on_the_stages_of_refinement(make_ipc, tiny_batch):
    composer = make_ipc(refinement=Refinement(steps=2, stages=())).eval()
    with torch.no_grad():
        table = sample_rows(composer, tiny_batch, Images(), Grid.unit(2))
    assert [list(row)[-2:] for row in table] == [["PSNR", "refined PSNR"]] * 3
    assert all(row["refined PSNR"] > row["PSNR"] for row in table)
    one_step = [row["refined PSNR"] for row in sample_rows(composer, tiny_batch, Images(), Grid.unit(2), 1)]
    assert all(row["refined PSNR"] != pytest.approx(value) for row, value in zip(table, one_step, strict=True))
    beyond_steps = [row["refined PSNR"] for row in sample_rows(composer, tiny_batch, Images(), Grid.unit(2), 9)]
    assert beyond_steps == pytest.approx([row["refined PSNR"] for row in table])


def test_gradient_norm_without_gradients_is_zero():
    assert gradient_norms(torch.nn.Linear(1, 1)) == {"total": 0.0}


@pytest.mark.parametrize(("every", "expected"), [(None, [1, 3, 5]), (3, [2, 5])])
def test_norms_are_logged_every_n_steps(every, expected):
    layer, logger = torch.nn.Linear(1, 1), mock.Mock()
    for step in range(6):
        trainer = SimpleNamespace(is_global_zero=True, log_every_n_steps=2, global_step=step, loggers=[logger])
        GradientNorms(every).on_before_optimizer_step(trainer, layer, None)
    assert [call.kwargs["step"] for call in logger.log_metrics.call_args_list] == expected


@pytest.mark.slow
def test_unreachable_server_is_one_message(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    message = refused("fit", *tiny("ipc"), *OVERLAY)
    assert "W&B cannot create a run: " in message
    assert "--wandb.mode offline" in message


@pytest.mark.slow
def test_two_devices_log_one_run_with_the_same_rows(offline):
    devices = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.init_args.batch_size", 2]
    run_process("fit", *tiny("ipc"), *OVERLAY, *SGD_WITH_SCHEDULE, *devices, cwd=Path.cwd())
    folder = Path.cwd() / "runs" / "unnamed" / "version_0"
    _assert_norms_match_the_updates(folder)
    for actual, expected in zip(_tables(folder), _tables(offline[0]), strict=True):
        assert [row["name"] for row in actual] == [row["name"] for row in expected]
    composer = composers.load(folder / "checkpoints" / "last.ckpt")
    signal, _ = _held_out()
    with torch.no_grad():
        predicted = composer(Observation(signal), Grid.unit(2).coords((16, 16)))
    expected = [_psnr(values, image.flatten(1).mT) for values, image in zip(predicted, signal, strict=True)]
    assert [row["PSNR"] for row in _tables(folder)[-1]] == pytest.approx(expected, abs=1e-3)
