"""W&B beside a real run, offline: what was written is read back from W&B's own file, and nothing else changes."""

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
from application.wandb_logger import WandbSettings, beside, read_nulls
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
EPOCHS, STEPS, RATE, WARMUP = 2, 3, 0.1, 2  # 3 steps an epoch of 2 batches each
SLOWER = ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", RATE]
SLOWER += ["--model.init_args.scheduler", "composers.training.schedules.WarmupCosine"]
SLOWER += ["--model.init_args.scheduler.init_args.warmup_steps", WARMUP]
SLOWER += ["--trainer.max_epochs", EPOCHS, "--trainer.accumulate_grad_batches", 2, *keep_every(1)]


@pytest.fixture(autouse=True)
def _nobody_anywhere(tmp_path_factory, monkeypatch):
    """Run every test in an empty folder, as nobody."""
    with no_account(tmp_path_factory.mktemp("home")):
        monkeypatch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Return the folder of two epochs with W&B by a user without a key, and what that printed."""
    folder = tmp_path_factory.mktemp("offline")
    with contextlib.chdir(folder), no_account(tmp_path_factory.mktemp("home")):
        printed = run("fit", *tiny("ipc"), *OVERLAY, *SLOWER)
    return folder / "runs" / "unnamed" / "version_0", printed


def _history(folder):
    """Return what was logged, one dictionary for each call."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_records(folder)
        if record.HasField("history")
    ]


def _logged(folder, name):
    """Return the numbers logged under a name, by step."""
    return {row["trainer/global_step"]: row[name] for row in _history(folder) if name in row}


def _run_record(folder):
    """Return what the file says of the run itself."""
    return next(record.run for record in read_records(folder) if record.HasField("run"))


def _tables(folder):
    """Return the tables in order, as rows by column, with images as arrays."""
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


def test_everything_is_where_it_is_without_wandb(offline):
    folder, _ = offline
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "wandb"}
    assert {"best.ckpt", "last.ckpt"} < {path.name for path in (folder / "checkpoints").iterdir()}
    assert {path.name for path in folder.parents[2].iterdir()} == {"runs"}  # nothing in the working directory


def test_without_a_key_the_run_is_offline_and_says_how_to_send_it(offline):
    folder, printed = offline
    [kept] = folder.glob("wandb/offline-run-*")
    place = kept.relative_to(folder.parents[2])
    assert f"W&B: offline, because no key was found (wandb login); in {place}\n" in printed
    assert f"W&B: to send it later, wandb sync {place}\n" in printed
    assert printed.count("W&B") == 2
    assert "wandb:" not in printed


def test_the_images_that_wait_lie_below_the_run(offline):
    folder, _ = offline
    [*artifacts] = [record.artifact for record in read_records(folder) if record.HasField("artifact")]
    paths = [Path(entry.local_path) for artifact in artifacts for entry in artifact.manifest.contents]
    assert len(paths) > 24
    assert all(path.is_relative_to(folder / "wandb") for path in paths)


def test_the_whole_config_is_in_the_run(offline):
    folder, _ = offline
    record = _run_record(folder)
    found = {item.key: json.loads(item.value_json) for item in record.config.update if not item.key.startswith("_")}
    assert found == yaml.safe_load((folder / "config.yaml").read_text())
    assert found["model"]["init_args"]["inr"]["init_args"]["coord_dim"] == 2
    assert record.project == "generalizable-inr"
    assert record.display_name == "unnamed/version_0"
    assert record.job_type == "fit"


def test_what_is_sent_is_what_metrics_csv_says(offline):
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


def test_the_learning_rate_is_that_of_the_schedule(offline):
    folder, _ = offline
    total = EPOCHS * STEPS
    found = _logged(folder, "lr-SGD")
    assert list(found) == list(range(total))
    for step, rate in found.items():
        done = (step - WARMUP) / (total - WARMUP)
        wanted = (step + 1) / WARMUP if step < WARMUP else (1 + math.cos(math.pi * done)) / 2
        assert rate == pytest.approx(RATE * wanted, rel=1e-5)


def _assert_norms_are_what_moved_the_weights(folder):
    """Compare the norms with the differences of the weights from step to step, over the rate: plain gradient descent."""
    rates = _logged(folder, "lr-SGD")
    weights = [checkpoint(folder, f"step-{step}")["state_dict"] for step in range(1, EPOCHS * STEPS + 1)]
    for step in range(1, EPOCHS * STEPS - 1):
        squares = {"bases": 0.0, "hypernet": 0.0, "inr": 0.0}
        for name, before in weights[step - 1].items():
            if not name.startswith("means."):
                moved = before.double() - weights[step][name].double()
                squares[name.split(".")[0]] += float((moved / rates[step]).square().sum())
        for part, square in squares.items():
            assert _logged(folder, f"grad_norm/{part}")[step] == pytest.approx(math.sqrt(square), rel=1e-3)
        total = math.sqrt(sum(squares.values()))
        assert _logged(folder, "grad_norm/total")[step] == pytest.approx(total, rel=1e-3)


def test_gradient_norms_are_what_moved_the_weights(offline):
    _assert_norms_are_what_moved_the_weights(offline[0])


def _held_out():
    """Return the first 8 validation images as floating point ``(8, 3, 16, 16)``, and their names."""
    data = SamplePhotos(size=16)
    data.setup("validate")
    items = [data.val_set[index] for index in range(8)]
    return torch.stack([item.values for item in items]).float() / 255, [item.name for item in items]


def _psnr(found, wanted):
    """Return the PSNR of arrays in [0, 1]."""
    return 10 * math.log10(1 / np.mean((np.asarray(found, np.float64) - np.asarray(wanted, np.float64)) ** 2))


def test_the_table_has_the_same_rows_every_time(offline):
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


def test_the_table_says_what_the_checkpoint_makes_of_the_images(offline):
    folder, _ = offline
    composer = composers.load(folder / "checkpoints" / "last.ckpt")
    signal, _ = _held_out()
    centres = (torch.arange(16) + 0.5) / 8 - 1
    coords = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).flatten(0, 1)
    for row, image in zip(_tables(folder)[-1], signal, strict=True):
        with torch.no_grad():
            latents = composer.encode(Observation(image[None]))
            found = composer.render(composer.compose(latents), coords)[0]
        wanted = image.permute(1, 2, 0).flatten(0, 1)
        assert row["PSNR"] == pytest.approx(_psnr(found, wanted), abs=1e-4)
        for column, values in (("reconstruction", found), ("error x 5", (found - wanted).abs() * 5)):
            levels = (values.clamp(0, 1) * 255).reshape(16, 16, 3).numpy()
            assert np.abs(row[column] - levels).max() < 0.51
        [(name, predicted)] = latents.items()
        patterns = predicted.clone().requires_grad_()
        optimizer = torch.optim.Adam([patterns], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            (composer.render(composer.compose({name: patterns}), coords)[0] - wanted).square().mean().backward()
            optimizer.step()
        refined = composer.render(composer.compose({name: patterns}), coords)[0].detach()
        assert row["refined PSNR"] == pytest.approx(_psnr(refined, wanted), abs=1e-3)


@pytest.mark.slow
def test_disabled_needs_no_wandb_and_trains_the_same(offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run("fit", *tiny("ipc"), *OVERLAY, *SLOWER, "--wandb.mode", "disabled")
    folder = Path("runs/unnamed/version_0")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints"}
    assert_same(checkpoint(folder)["state_dict"], checkpoint(offline[0])["state_dict"])
    assert rows(folder / "metrics.csv") == rows(offline[0] / "metrics.csv")


def test_a_resumed_fit_goes_on_with_the_run(offline, monkeypatch):
    folder, _ = offline
    monkeypatch.chdir(folder.parents[2])
    name = ["--trainer.logger.init_args.version", "resumed"]
    again = [*SLOWER, "--trainer.max_epochs", EPOCHS + 1, *name]
    run("fit", *tiny("ipc"), *OVERLAY, *again, "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    resumed = folder.parent / "resumed"
    assert _run_record(resumed).run_id == _run_record(folder).run_id
    assert list(_logged(resumed, "train/loss")) == [6, 7, 8]
    assert len(_tables(resumed)) == 1


@pytest.mark.slow
def test_the_overlay_keeps_the_folder_of_the_experiment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    made = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: made.append(self)):
        run("fit", "--config", REPOSITORY / "configs" / "experiments" / "photos_ipc.yaml", *OVERLAY)
    logger = made[0].trainer.logger
    assert type(logger) is CSVLogger
    assert (logger.save_dir, logger.name) == ("runs", "photos_ipc")
    names = [type(callback).__name__ for callback in made[0].trainer.callbacks]
    for name in ("StartSummary", "RefinementPlot", "LearningRateMonitor", "GradientNorms", "ValidationTable"):
        assert names.count(name) == 1
    assert names.count("Gallery") == 2  # one of them beside the bundled weights


def test_checkpoints_are_not_uploaded_without_a_server():
    model = ["--wandb.log_model", "true", "--wandb.mode", "offline"]
    message = refused("fit", *tiny("ipc"), *OVERLAY, *model)
    assert "log_model uploads checkpoints as artifacts, which needs a server" in message
    assert "this run is offline, because mode is offline: set log_model to false" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("mode", "environment", "reason"),
    [
        ("disabled", None, "this run is disabled, because mode is disabled"),
        ("auto", "offline", "this run is offline, because WANDB_MODE is offline"),
        ("auto", "dryrun", "this run is offline, because WANDB_MODE is dryrun"),
        ("auto", None, "this run is offline, because no key was found"),
    ],
)
def test_why_checkpoints_are_not_uploaded(mode, environment, reason, monkeypatch):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    with pytest.raises(ValueError, match=reason):
        beside(CSVLogger("runs"), WandbSettings(mode=mode, log_model=True), {}, "fit", None)


def test_nobody_is_ever_asked_for_a_key(monkeypatch):
    asked = mock.Mock(side_effect=AssertionError("asked for a key"))
    monkeypatch.setattr("wandb.sdk.lib.wbauth.prompt.prompt_and_save_api_key", asked)
    assert make_logger().mode == "offline"


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_a_key_that_is_found_means_online(place, monkeypatch):
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        Path(os.environ["NETRC"]).write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
        Path(os.environ["NETRC"]).chmod(0o600)
    assert make_logger(log_model=True).mode == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert make_logger().mode == "offline"
    assert make_logger(mode="online").mode == "online"


def test_an_unknown_mode_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "perhaps")
    with pytest.raises(ValueError, match="WANDB_MODE is 'perhaps'; allowed are online"):
        make_logger()


def test_a_missing_wandb_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused("fit", *tiny("ipc"), *OVERLAY)
    assert "wandb is not installed: pip install wandb, leave configs/overlays/wandb.yaml out" in message


def test_the_table_needs_the_logger():
    message = refused("fit", *tiny("ipc"), "--trainer.callbacks+", "callbacks.tables.ValidationTable")
    assert "ValidationTable requires a logger that supports tables, such as W&B (loggers: CSVLogger)" in message


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="num_samples is 0"):
        ValidationTable(num_samples=0)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        GradientNorms(every_n_steps=0)


def _printed(record):
    """Return what a record holds of the console."""
    return record.output_raw.line + record.output.line + record.output_logger.line


def test_what_a_run_is_about():
    about = {"project": "inrs", "group": "ours", "tags": ["a", "b"], "notes": "why", "run_id": "seven-7"}
    logger = make_logger(CSVLogger("here", "experiment", 3, prefix="p"), "test", mode="offline", **about)
    logger.log_metrics({"x": 1.5}, step=4)
    logger.finalize("success")
    folder = Path("here/experiment/version_3")
    record = _run_record(folder)
    assert (record.project, record.run_group, list(record.tags), record.notes) == ("inrs", "ours", ["a", "b"], "why")
    assert (record.run_id, record.job_type, record.display_name) == ("seven-7", "test", "experiment/version_3")
    assert _logged(folder, "p-x") == {4: 1.5}
    assert read_records(folder)[-1].exit.exit_code == 0


def test_a_failed_run_is_marked_as_failed_and_has_its_traceback():
    logger = make_logger(mode="offline")
    assert logger.experiment is not None
    try:
        raise RuntimeError("what went wrong")
    except RuntimeError:
        logger.finalize("failed")
    records = read_records(Path("runs/unnamed/version_0"))
    assert records[-1].exit.exit_code == 1
    told = "".join(_printed(record) for record in records)
    assert "Traceback (most recent call last)" in told
    assert "RuntimeError: what went wrong" in told


def test_only_a_fit_goes_on_with_the_run_of_its_checkpoint(offline):
    folder, _ = offline
    logger = make_logger(None, "test", folder / "checkpoints" / "last.ckpt", mode="offline")
    run = logger.experiment
    logger.finalize("success")
    assert run.id != _run_record(folder).run_id


def test_in_a_sweep_the_agent_decides(offline, monkeypatch):
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
    sent = mock.Mock(id="x1", dir=str(folder / "files"))
    logger._experiment = sent
    logger.finalize("success")
    found = {}
    for [artifact], options in sent.log_artifact.call_args_list:
        assert (artifact.name, artifact.type, set(artifact.manifest.entries)) == ("model-x1", "model", {"model.ckpt"})
        found[artifact.metadata["original_filename"]] = options["aliases"]
    assert found == {"best.ckpt": ["best"], "last.ckpt": ["latest"]}
    assert [call[0] for call in sent.method_calls] == ["log_artifact", "log_artifact", "finish"]


def test_an_evaluation_uploads_nothing(offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = make_logger(None, "validate", log_model=True)
    logger.savers = [SimpleNamespace(best_model_path=str(offline[0] / "checkpoints" / "best.ckpt"))]
    logger._experiment = sent = mock.Mock(id="x1", dir="here")
    logger.finalize("success")
    assert [call[0] for call in sent.method_calls] == ["finish"]


def test_a_server_that_is_late_with_an_answer_is_asked_once(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("application.wandb_logger._ANSWER_TIMEOUT", 0.05)
    logger, asked = make_logger(), []
    logger._experiment = SimpleNamespace(log=lambda metrics: [asked.append(metrics), time.sleep(0.3)])
    for step in range(2):
        logger.log_table("val/samples", columns=["x"], data=[[1]], step=step)
    assert len(asked) == 1
    logger._experiment = None


def test_a_table_that_is_refused_does_not_end_the_run(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = make_logger()
    logger._experiment = mock.Mock(log=mock.Mock(side_effect=RuntimeError("no")))
    logger.log_table("val/samples", columns=["x"], data=[[1]], step=1)
    told = capsys.readouterr().out
    assert told == "W&B: the table val/samples was not sent, nor will be further ones, because RuntimeError: no.\n"
    logger._experiment = None


@pytest.mark.parametrize("late", [True, False], ids=["late", "broken"])
def test_a_run_that_cannot_end_is_no_failure(late, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("application.wandb_logger._GRACE", 0.05)
    monkeypatch.setattr("application.wandb_logger._abandon_service", abandoned := mock.Mock())
    logger = make_logger(finish_timeout=0.05)
    finish = (lambda exit_code: time.sleep(0.4)) if late else mock.Mock(side_effect=OSError("broken"))
    logger._experiment = SimpleNamespace(id="x1", dir="here/files", finish=finish)
    logger.finalize("success")
    reason = "its server did not answer within 0.05 s" if late else "W&B failed with OSError"
    assert f"W&B: not everything was sent, because {reason}.\n" in capsys.readouterr().out
    assert abandoned.call_count == 1


def test_the_config_of_a_run_with_wandb_serves_a_prediction(offline):
    config = offline[0] / "config.yaml"
    assert yaml.safe_load(config.read_text())["wandb"]["project"] == "generalizable-inr"
    assert "seed_everything: 0" in asked("predict", "--config", config, "--print_config")
    assert "--wandb" not in asked("predict", "--help")


def test_the_program_uploads_what_its_callbacks_saved(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    made = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: made.append(self)):
        run("fit", *tiny("ipc"), *OVERLAY, "--wandb.log_model", "true")
    _, logger = made[0].trainer.loggers
    assert [type(saver).__name__ for saver in logger.savers] == ["BestCheckpoint", "LastCheckpoint"]


def test_the_logger_is_the_one_that_callbacks_look_for():
    made = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: made.append(self)):
        run("fit", *tiny("ipc"), *OVERLAY)
    local, logger = made[0].trainer.loggers
    assert type(local) is CSVLogger
    assert isinstance(logger, WandbLogger)
    assert isinstance(logger.experiment, wandb.Run)
    logger.watch(torch.nn.Linear(1, 1))
    logger.log_image("image", [np.zeros((4, 4, 3), np.uint8)])
    logger.finalize("success")


@pytest.mark.slow
def test_the_console_of_a_run_is_sent(tmp_path):
    run_process("fit", *tiny("ipc"), *OVERLAY, "--trainer.max_epochs", 1, cwd=tmp_path)
    records = read_records(tmp_path / "runs" / "unnamed" / "version_0")
    told = "".join(_printed(record) for record in records)
    assert "effective batch" in told
    assert "Next: python cli.py test" in told


@pytest.mark.slow
def test_a_users_own_logger_gets_the_table(monkeypatch):
    own = ["--trainer.logger", "lightning.pytorch.loggers.WandbLogger", "--trainer.logger.init_args.offline", "true"]
    own += ["--trainer.logger.init_args.save_dir", "mine", "--trainer.logger.init_args.project", "theirs"]
    monkeypatch.setenv("WANDB_MODE", "offline")  # which the logger sets for good
    run("fit", *tiny("ipc"), *own, "--trainer.callbacks+", "callbacks.tables.ValidationTable", *keep_every(9))
    wandb.finish()
    assert len(_tables(Path("mine"))) == 1


def test_the_slot_needs_a_csv_logger():
    message = refused("fit", *tiny("ipc"), *OVERLAY, "--trainer.logger", "false")
    assert "wandb needs a CSVLogger in trainer.logger" in message
    assert "found False" in message


def test_the_last_checkpoint_is_found_beside_wandb(offline, monkeypatch):
    monkeypatch.chdir(offline[0].parents[2])
    printed = run("validate", *tiny("ipc"), *OVERLAY, "--ckpt_path", "last", "--wandb.mode", "disabled")
    assert "psnr" in printed


def test_a_time_that_is_not_positive():
    with pytest.raises(ValueError, match="finish_timeout is 0; it must be a positive number of seconds"):
        WandbSettings(finish_timeout=0)


def test_nulls_of_a_sweep(monkeypatch):
    given = ["fit", "--trainer.max_time=None", "--trainer.logger.init_args.name=a=None ", "None"]
    assert read_nulls(given) == given
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert read_nulls(given) == ["fit", "--trainer.max_time=null", *given[2:]]


def test_other_signals_have_numbers_only(tiny_ipc, tiny_batch):
    with torch.no_grad():
        found = sample_rows(tiny_ipc, tiny_batch._replace(shape=None), Images(), Grid.unit(2))
    assert [list(row) for row in found] == [["name", "PSNR"]] * 3
    assert [row["name"] for row in found] == ["a", "b", "c"]


def test_the_refined_psnr_is_there_whatever_validation_does(make_ipc, tiny_batch):
    composer = make_ipc(refinement=Refinement(steps=2, stages=())).eval()
    with torch.no_grad():
        found = sample_rows(composer, tiny_batch, Images(), Grid.unit(2))
    assert [list(row)[-2:] for row in found] == [["PSNR", "refined PSNR"]] * 3
    assert all(row["refined PSNR"] > row["PSNR"] for row in found)
    first = [row["refined PSNR"] for row in sample_rows(composer, tiny_batch, Images(), Grid.unit(2), 1)]
    assert all(row["refined PSNR"] != pytest.approx(one) for row, one in zip(found, first, strict=True))
    beyond = [row["refined PSNR"] for row in sample_rows(composer, tiny_batch, Images(), Grid.unit(2), 9)]
    assert beyond == pytest.approx([row["refined PSNR"] for row in found])


def test_no_gradients_have_no_norm():
    assert gradient_norms(torch.nn.Linear(1, 1)) == {"total": 0.0}


@pytest.mark.parametrize(("every", "wanted"), [(None, [1, 3, 5]), (3, [2, 5])])
def test_norms_are_logged_as_often_as_asked(every, wanted):
    layer, logger = torch.nn.Linear(1, 1), mock.Mock()
    for step in range(6):
        trainer = SimpleNamespace(is_global_zero=True, log_every_n_steps=2, global_step=step, loggers=[logger])
        GradientNorms(every).on_before_optimizer_step(trainer, layer, None)
    assert [call.kwargs["step"] for call in logger.log_metrics.call_args_list] == wanted


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_message(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    message = refused("fit", *tiny("ipc"), *OVERLAY)
    assert "W&B cannot begin a run: " in message
    assert "--wandb.mode offline" in message


@pytest.mark.slow
def test_two_devices_send_one_run_with_the_same_rows(offline):
    devices = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.init_args.batch_size", 2]
    run_process("fit", *tiny("ipc"), *OVERLAY, *SLOWER, *devices, cwd=Path.cwd())
    folder = Path.cwd() / "runs" / "unnamed" / "version_0"
    _assert_norms_are_what_moved_the_weights(folder)
    for found, wanted in zip(_tables(folder), _tables(offline[0]), strict=True):
        assert [row["name"] for row in found] == [row["name"] for row in wanted]
    composer = composers.load(folder / "checkpoints" / "last.ckpt")
    signal, _ = _held_out()
    with torch.no_grad():
        predicted = composer(Observation(signal), Grid.unit(2).coords((16, 16)))
    wanted = [_psnr(values, image.flatten(1).mT) for values, image in zip(predicted, signal, strict=True)]
    assert [row["PSNR"] for row in _tables(folder)[-1]] == pytest.approx(wanted, abs=1e-3)
