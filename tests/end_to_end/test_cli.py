"""The program on tiny data: fit, validate, test and resume, with its files and output."""

import contextlib
import inspect
import math
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from program import (
    COMPOSERS,
    NAME,
    REPOSITORY,
    asked,
    assert_same,
    checkpoint,
    column,
    keep_every,
    rows,
    run,
    run_process,
    tiny,
)

import composers
from composers import Composer, TransformerIPC, TransINR
from datamodules import CoordinateDataModule, SamplePhotos

STEPS = 6  # per epoch
HELD_OUT = 34


@pytest.fixture(scope="module", params=["ipc", pytest.param("transinr", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """Train a tiny composer for one epoch and return the working directory, the name of the composer, and the output."""
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.chdir(folder):
        printed = run("fit", *tiny(request.param))
    return folder, request.param, printed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Train for two epochs with a checkpoint at every second step, and return the run folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with contextlib.chdir(folder):
        run("fit", *tiny("ipc"), *keep_every(2), "--trainer.max_epochs", 2, NAME, "uninterrupted")
    return folder / "runs" / "uninterrupted" / "version_0"


@pytest.fixture(scope="module")
def tested(trained):
    """Test the trained composer and return the run folder and the output."""
    folder, composer, _ = trained
    with contextlib.chdir(folder):
        weights = "runs/unnamed/version_0/checkpoints/last.ckpt"
        printed = run("test", *tiny(composer), NAME, "tested", "--ckpt_path", weights)
    return folder / "runs" / "tested" / "version_0", printed


@pytest.fixture
def evaluated(trained, monkeypatch):
    """Return a function that runs a command on the trained composer and returns the run folder and the output."""
    folder, composer, _ = trained
    monkeypatch.chdir(folder)

    def evaluate(command, *args):
        printed = run(command, *tiny(composer), "--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt", *args)
        newest = max((folder / "runs" / "unnamed").iterdir(), key=lambda path: int(path.name.removeprefix("version_")))
        return newest, printed

    return evaluate


def test_fit_writes_config_metrics_and_checkpoints(trained):
    run_folder = trained[0] / "runs" / "unnamed" / "version_0"
    assert {path.name for path in run_folder.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints"}
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    metrics = run_folder / "metrics.csv"
    assert len(column(metrics, "train/loss")) == len(column(metrics, "train/psnr")) == STEPS
    assert [float(row["step"]) for row in rows(metrics) if "train/loss" in row] == list(range(STEPS))
    for name in ("val/psnr", "val/loss", "val/ssim", "val/gain"):
        assert len(column(metrics, name)) == 1
    for loss, psnr in zip(column(metrics, "train/loss"), column(metrics, "train/psnr"), strict=True):
        assert 0 < loss < 1
        assert psnr > -10 * math.log10(loss) - 1e-3  # by Jensen's inequality
    assert checkpoint(run_folder)["global_step"] == STEPS


def test_summary_describes_model_and_data(trained):
    folder, composer, printed = trained
    facts = dict(re.findall(r"│ (\S[^│]*?)\s+│ ([^│]*?)\s+│", printed))
    rebuilt = composers.load(folder / "runs/unnamed/version_0/checkpoints/last.ckpt")
    assert facts["parameters"] == f"{sum(parameter.numel() for parameter in rebuilt.parameters()):,}"
    # IPC: one token for each of the 8 columns of layer 1, with 8 values; TransINR: scales for all 8 + 8 + 3 outputs
    assert facts["tokens"] == {"ipc": "4 data + 8 weight", "transinr": "4 data + 19 weight"}[composer]
    assert (
        facts["instance code"]
        == {
            "ipc": "64 numbers, 0.3 kB in float32, 8.00 bits per pixel",  # of 16 x 16 pixels
            "transinr": f"{8 * 8 + 8 * 8 + 8 * 3} numbers, 0.6 kB in float32, 19.00 bits per pixel",
        }[composer]
    )
    assert facts["data"].startswith("SamplePhotos (3, 16, 16), 24 training and 34 validation")
    assert facts["effective batch"] == "4 = 4 x 1 device(s) x 1 accumulated"
    assert facts["steps"] == "6"
    assert facts["precision"] == "32-true"
    assert facts["device"] == "1 x cpu"
    assert facts["output"] == "runs/unnamed/version_0"
    assert "Checkpoint: runs/unnamed/version_0/checkpoints/last.ckpt" in printed


def test_command_printed_after_training_works(trained, monkeypatch):
    folder, _, printed = trained
    monkeypatch.chdir(folder)
    command = shlex.split(re.search(r"Next: python cli\.py (.*)", printed)[1])
    assert "Mean over 34 instances" in run(*command)


def test_validate_reproduces_the_logged_metrics(trained, evaluated):
    written, printed = evaluated("validate")
    logged = column(trained[0] / "runs/unnamed/version_0/metrics.csv", "val/psnr")
    assert column(written / "metrics.csv", "val/psnr") == pytest.approx(logged, abs=1e-4)
    assert f"{logged[0]:.6f}"[:5] in printed  # the table shows more digits than it rounds to
    assert "val/refined_psnr" not in rows(written / "metrics.csv")[0]  # not in the stages of refinement


def test_test_writes_a_row_per_instance_and_prints_the_mean(tested):
    written, printed = tested
    instances = rows(written / "test_instances.csv")
    columns = [f"{metric}@{step}" for step in (0, 1, 3) for metric in ("psnr", "ssim", "gain")]
    further = [f"{column} from {start}" for start in ("mean", "random") for column in columns]
    code = ["code size", "kB", "bits per pixel", "linear code", "psnr linear", "ssim linear", "gain linear"]
    assert list(instances[0]) == ["name", *columns, *further, *code]
    names = [row["name"] for row in instances]
    assert len(set(names)) == len(names) == HELD_OUT
    assert names[0] == "astronaut"
    assert names[-1] == "coffee-33"
    assert "Mean over 34 instances" in printed
    numbers = instances[0].keys() - {"name", "linear code"}
    means = {key: sum(float(row[key]) for row in instances) / HELD_OUT for key in numbers}
    for step, label in {0: "0 (predicted)", 1: "1", 3: "3"}.items():
        line = re.search(rf"│ {re.escape(label)}\s*│(.*)│", printed)[1]
        cells = [float(cell.partition("±")[0]) for cell in line.split("│")]
        shown = ("psnr@{}", "psnr@{} from mean", "psnr@{} from random", "ssim@{}", "gain@{}")
        assert cells == pytest.approx([means[column.format(step)] for column in shown], abs=6e-4)
    assert "Held-out items: these 34 images are two photographs and their crops" in printed
    logged = rows(written / "metrics.csv")[-1]
    for metric in ("psnr", "ssim", "gain"):
        assert float(logged[f"test/{metric}"]) == pytest.approx(means[f"{metric}@0"], abs=1e-4)
        assert float(logged[f"test/refined_{metric}"]) == pytest.approx(means[f"{metric}@3"], abs=1e-4)
    assert means["psnr@3"] > means["psnr@1"] > means["psnr@0"]


def test_refinement_curves_are_drawn(tested):
    written, printed = tested
    with Image.open(written / "refinement.png") as plot:
        assert plot.size == (720, 450)
    points = {(row["start"], row["step"]): float(row["mean"]) for row in rows(written / "refinement.csv")}
    instances = rows(written / "test_instances.csv")
    assert len(points) == 9
    for (start, step), mean in points.items():
        title = f"psnr@{step}" if start == "prediction" else f"psnr@{step} from {start}"
        assert mean == pytest.approx(sum(float(row[title]) for row in instances) / HELD_OUT)
    assert "Refinement curves: runs/tested/version_0/refinement.png" in printed


def test_gallery_has_a_row_per_image(tested):
    written, printed = tested
    with Image.open(written / "gallery.png") as figure:
        # 6 rows of original, predicted, refined and decoded, enlarged to 256 x 256, with margins of 8 and labels of 18 pixels;
        # and the linear code, if the code is smaller than the image
        columns = 4 + rows(written / "test_instances.csv")[0]["linear code"].startswith("PCA")
        assert figure.size == (columns * (256 + 8) + 8, 6 * (256 + 8 + 18) + 8)
        first = figure.crop((8, 8 + 18, 8 + 256, 8 + 18 + 256))
        assert len(first.getcolors(256 * 256)) > 20  # not blank
    assert "Gallery: runs/tested/version_0/gallery.png\n" in printed
    assert not (written / "gallery").exists()  # images have no video or audio files


@pytest.mark.slow
def test_gallery_compares_with_another_model_if_it_fits(evaluated):
    arguments = "filename: beside.png, num_instances: 2, linear: false, beside: %s"
    gallery = f"{{class_path: callbacks.gallery.Gallery, init_args: {{{arguments}}}}}"
    written, _ = evaluated("test", "--trainer.callbacks+", gallery % "runs/unnamed/version_0/checkpoints/last.ckpt")
    with Image.open(written / "beside.png") as image:
        assert image.size == (7 * (256 + 8) + 8, 2 * (256 + 8 + 18) + 8)
        width = 3 * (256 + 8)  # predicted, refined and decoded, for both models, which are equal
        top = 8 + 18
        first, second = (image.crop((8 + 264 + start, top, 8 + 264 + start + width, top + 256)) for start in (0, width))
        difference = np.abs(np.asarray(first).astype(int) - np.asarray(second))
        assert difference.max() <= 1
    written, printed = evaluated("test", "--trainer.callbacks+", gallery % "photos_ipc")
    assert not (written / "beside.png").exists()
    assert (written / "gallery.png").exists()
    assert "No beside.png: photos_ipc takes signals of shape (3, 64, 64), not (3, 16, 16)." in printed


@pytest.mark.slow
def test_refinement_is_configured_on_the_command_line(evaluated):
    setting = "--model.init_args.refinement.init_args"
    written, _ = evaluated("validate", f"{setting}.stages", "[val]")
    logged = rows(written / "metrics.csv")[-1]
    assert float(logged["val/refined_psnr"]) > float(logged["val/psnr"])
    written, _ = evaluated(
        "test", f"{setting}.steps", 2, f"{setting}.report", "[]", f"{setting}.starts", "[prediction]"
    )
    assert [key for key in rows(written / "test_instances.csv")[0] if "psnr@" in key] == ["psnr@0", "psnr@2"]


def test_last_selects_the_newest_checkpoint(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = checkpoint(uninterrupted) | {"callbacks": {}}
    for version, age in {"version_2": 30, "version_10": 10, "version_9": 20}.items():
        path = tmp_path / "runs" / "unnamed" / version / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        offset = float(version.removeprefix("version_"))
        weights = content["state_dict"] | {"network.biases.2": torch.full((3,), offset)}
        torch.save(content | {"state_dict": weights}, path)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    run("validate", *tiny("ipc"), "--ckpt_path", "last")
    used = yaml.safe_load((tmp_path / "runs/unnamed/version_11/config.yaml").read_text())["ckpt_path"]
    assert used == "runs/unnamed/version_10/checkpoints/last.ckpt"
    psnr = column(tmp_path / "runs/unnamed/version_11/metrics.csv", "val/psnr")[0]
    assert -25 < psnr < -15  # for an output of about 10.5 everywhere


@pytest.mark.parametrize(
    ("start", "num_workers"),
    [
        ("epoch", 0),
        pytest.param("epoch", 2, marks=pytest.mark.slow),
        pytest.param("step-2", 0, marks=pytest.mark.slow),
        ("step-2", 2),
        ("step-6", 0),
        pytest.param("step-10", 2, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, start, num_workers):
    monkeypatch.chdir(tmp_path)
    if start == "epoch":
        run("fit", *tiny("ipc"), *keep_every(2), NAME, "first")
        path = "runs/first/version_0/checkpoints/last.ckpt"
        assert checkpoint("runs/first/version_0")["global_step"] == STEPS
    else:
        path = uninterrupted / "checkpoints" / f"{start}.ckpt"
    arguments = ["--ckpt_path", path, "--trainer.max_epochs", 2, "--data.init_args.num_workers", num_workers]
    run("fit", *tiny("ipc"), *keep_every(2), NAME, "rest", *arguments)
    actual, expected = checkpoint("runs/rest/version_0"), checkpoint(uninterrupted)
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(actual[key], expected[key])
    remaining = len(column("runs/rest/version_0/metrics.csv", "train/loss"))
    assert remaining == 2 * STEPS - (STEPS if start == "epoch" else int(start.removeprefix("step-")))
    for name in ("train/loss", "val/psnr"):
        logged = column("runs/rest/version_0/metrics.csv", name)
        assert logged == column(uninterrupted / "metrics.csv", name)[-len(logged) :]


@pytest.mark.slow
def test_training_does_not_depend_on_num_workers(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("ipc"), *keep_every(2), "--trainer.max_epochs", 2, "--data.init_args.num_workers", 2)
    assert_same(checkpoint("runs/unnamed/version_0")["state_dict"], checkpoint(uninterrupted)["state_dict"])


def test_seed_changes_training(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("ipc"), "--seed_everything", 1)
    losses = column("runs/unnamed/version_0/metrics.csv", "train/loss")
    assert len(losses) == STEPS
    assert not set(losses) & set(column(uninterrupted / "metrics.csv", "train/loss"))


@pytest.mark.slow
def test_resumed_schedule_has_the_length_of_the_resumed_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schedule = "--model.init_args.scheduler"
    arguments = [
        *tiny("ipc"),
        schedule,
        "composers.training.schedules.WarmupCosine",
        f"{schedule}.init_args.warmup_steps",
        2,
    ]
    run("fit", *arguments)
    assert checkpoint("runs/unnamed/version_0")["lr_schedulers"][0]["_last_lr"] == [0.0]
    run("fit", *arguments, "--trainer.max_epochs", 3, "--ckpt_path", "last", *keep_every(2))
    [lr] = checkpoint("runs/unnamed/version_1", "step-8")["lr_schedulers"][0]["_last_lr"]
    assert lr == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * (8 - 2) / (3 * STEPS - 2))))


@pytest.mark.parametrize("composer", ["ipc", pytest.param("transinr", marks=pytest.mark.slow)])
def test_mixed_precision_trains_a_step(composer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    once = ["--data.init_args.crops_per_epoch", 4, "--trainer.limit_val_batches", 1]
    printed = run("fit", *tiny(composer), *once, "--trainer.precision", "bf16-mixed", NAME, "mixed")
    run("fit", *tiny(composer), *once, NAME, "full")
    assert "bf16-mixed" in printed
    [mixed], [full] = (column(f"runs/{name}/version_0/metrics.csv", "train/loss") for name in ("mixed", "full"))
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.02)
    assert all(weight.dtype != torch.bfloat16 for weight in checkpoint("runs/mixed/version_0")["state_dict"].values())


def test_help_lists_commands_and_options():
    for command in ("fit", "validate", "test"):
        assert command in asked("--help")
        assert {"--trainer.max_epochs", "--model.help", "--data.help", "--ckpt_path"} <= set(
            asked(command, "--help").split()
        )


PRESET = ("parametrization", "start")  # chosen by presets, not by their users


@pytest.mark.parametrize(
    ("kind", "class_path", "documented"),
    [
        ("model", "composers.TransformerIPC", (TransformerIPC, Composer)),
        ("model", "composers.TransINR", (TransINR, Composer)),
        ("data", "datamodules.SamplePhotos", (SamplePhotos, CoordinateDataModule)),
    ],
)
def test_help_of_a_class_contains_its_docstring_and_that_of_its_base(kind, class_path, documented):
    printed = " ".join(asked("fit", f"--{kind}.help", class_path).split())
    assert " ".join(documented[0].__doc__.split("\n\n")[0].split()).removesuffix(".") in printed
    for owner in documented:
        arguments = inspect.cleandoc(owner.__doc__).partition("Args:")[2].partition("Raises:")[0]
        descriptions = dict(re.findall(r"^ {4}(\w+): (.*?)(?=^ {0,4}\S|\Z)", arguments, re.MULTILINE | re.DOTALL))
        for name in ("kwargs", *(PRESET if owner is Composer else ())):
            descriptions.pop(name, None)
        assert len(descriptions) > 3
        for name, text in descriptions.items():
            assert f"--{kind}.{name} " in printed
            assert " ".join(text.split()).removesuffix(".") in printed


@pytest.mark.parametrize("composer", COMPOSERS)
def test_printed_config_reproduces_itself(composer, tmp_path):
    printed = asked("fit", *tiny(composer), "--print_config")
    assert yaml.safe_load(printed)["data"]["class_path"] == "datamodules.SamplePhotos"
    (tmp_path / "printed.yaml").write_text(printed)
    assert asked("fit", "--config", tmp_path / "printed.yaml", "--print_config") == printed


@pytest.mark.slow
def test_a_link_to_the_program_finds_its_configs(tmp_path):
    (tmp_path / "ginr").symlink_to(REPOSITORY / "cli.py")
    command = [sys.executable, "ginr", "fit", *tiny("ipc"), "--print_config"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout) == yaml.safe_load(asked("fit", *tiny("ipc"), "--print_config"))


@pytest.mark.slow
def test_data_set_can_be_named_without_its_module(tmp_path):
    printed = run_process("fit", *tiny("ipc"), "--data", "ImageFolder", "--print_config", cwd=tmp_path)
    assert yaml.safe_load(printed)["data"]["class_path"] == "datamodules.ImageFolder"
