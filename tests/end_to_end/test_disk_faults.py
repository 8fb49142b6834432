"""Runs survive faults of disks, or end with one line that names the file, the reason and the fix."""

import contextlib
import io
import os
import re
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from disks import fill, limited, protect, small_disk
from PIL import Image
from program import SAVE_DIR, checkpoint, column, run, start_fork, tiny

from application.run_files import MetricsFile
from callbacks.saving import LastCheckpoint

RUN = Path("runs/unnamed/version_0")
SHORT = ["--data.init_args.crops_per_epoch", 4, "--trainer.limit_val_batches", 1]
IMAGES = [
    *("--data.class_path=datamodules.ImageFolder", "--data.init_args.root=images", "--data.init_args.size=16"),
    *("--data.init_args.val_ratio=0.2", "--data.init_args.batch_size=2"),
]
RESUME = (
    "Last checkpoint: {run}/checkpoints/last.ckpt. Resume: python cli.py fit --config {run}/config.yaml "
    "--ckpt_path {run}/checkpoints/last.ckpt"
)
NO_SPACE = "No space left on device. Free some space, or choose another folder."
TOO_LARGE = "File too large. Raise the limit on the size of files: ulimit -f unlimited."
READ_ONLY = "Read-only file system. Mount it writable, or choose another folder."


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images():
    """Write 15 images of 16 x 16 pixels."""
    Path("images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(15):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"images/{index:02d}.png")


def _error(*args):
    """Run a command that fails; return the lines from the error message on, and the lines before."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as exit_info:
        run(*args)
    assert exit_info.value.code == 1
    lines = printed.getvalue().splitlines()
    [start] = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    assert "Traceback" not in printed.getvalue()
    assert lines[-1] == "(Set CLI_TRACEBACK=1 to show the traceback.)"
    return lines[start:-1], lines[:start]


def _after_first_epoch(monkeypatch, inject):
    """Inject a fault once the first epoch is saved."""
    original, calls = LastCheckpoint.save, []

    def save(callback, trainer):
        path = original(callback, trainer)
        if not calls:
            inject()
        calls.append(path)
        return path

    monkeypatch.setattr(LastCheckpoint, "save", save)


def _parts():
    """Return the temporary files below the working directory."""
    return [str(path) for path in Path().rglob("*.part")]


def _fit(*args, epochs=3):
    return ["fit", *tiny("ipc"), *SHORT, "--trainer.max_epochs", epochs, *args]


@pytest.mark.parametrize(
    ("fault", "num_workers"),
    [
        ("truncated", 1),
        pytest.param("truncated", 0, marks=pytest.mark.slow),
        pytest.param("changed", 0, marks=pytest.mark.slow),
    ],
)
def test_damaged_cache_in_mid_run_ends_training_with_its_name(images, monkeypatch, fault, num_workers):
    def inject():
        [cache] = sorted(Path("data/cache").glob("*/pixels.bin"), key=lambda path: path.stat().st_size)[1:]
        if fault == "truncated":
            os.truncate(cache, 10)
        else:
            content = bytearray(cache.read_bytes())
            content[::100] = (byte ^ 4 for byte in content[::100])
            cache.write_bytes(content)

    _after_first_epoch(monkeypatch, inject)
    lines, _ = _error(
        *("fit", *tiny("ipc"), *IMAGES, "--trainer.max_epochs", 3, "--trainer.limit_val_batches", 1),
        *("--data.init_args.num_workers", num_workers),
    )
    place = {"truncated": "within", "changed": "in"}[fault]
    assert re.fullmatch(
        rf"error: (data/cache/imagefolder-\w+)/pixels\.bin was {fault} during the run, {place} the pixels of \d\d\.png: "
        r"delete \1 and run again, which decodes the images again\.",
        lines[0],
    )
    assert lines[1:] == [RESUME.format(run=RUN)]
    assert checkpoint(RUN)["epoch"] == 0


@pytest.mark.slow
def test_deleted_or_replaced_cache_in_mid_run_is_survived(images, monkeypatch):
    def inject():
        for path in Path("data/cache").glob("*/pixels.bin"):
            path.unlink()
            path.write_bytes(b"replaced")

    _after_first_epoch(monkeypatch, inject)
    run("fit", *tiny("ipc"), *IMAGES, "--trainer.max_epochs", 2, "--trainer.limit_val_batches", 1)
    assert checkpoint(RUN)["epoch"] == 1


@pytest.mark.parametrize("rule", ["skip", pytest.param("raise", marks=pytest.mark.slow)])
def test_image_damaged_in_mid_run_ends_training_with_its_name(images, monkeypatch, rule):
    def inject():
        for path in Path("images").iterdir():
            os.truncate(path, 60)

    _after_first_epoch(monkeypatch, inject)
    lines, _ = _error(
        *("fit", *tiny("ipc"), *IMAGES, "--trainer.max_epochs", 2, "--trainer.limit_val_batches", 1),
        *("--data.init_args.cache", "null", "--data.init_args.on_bad_file", rule),
    )
    assert re.match(r"error: images/\d\d\.png is corrupt or truncated \(.*\): ", lines[0])
    assert lines[0].endswith("skip to skip such images, which checks all of them at set-up.")
    assert lines[1:] == [RESUME.format(run=RUN)]


@pytest.mark.parametrize(
    "name",
    ["checkpoints/best.ckpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("config.yaml", "metrics.csv"))],
)
def test_limit_on_file_sizes_names_the_file(monkeypatch, name):
    limits = {"config.yaml": 1000, "metrics.csv": 8192, "checkpoints/best.ckpt": 50_000}
    if name == "metrics.csv":  # of which a part was written
        monkeypatch.setattr(MetricsFile, "log_metrics", _with_padding(MetricsFile.log_metrics))
    with limited("RLIMIT_FSIZE", limits[name]):
        lines, _ = _error(*_fit("--trainer.logger.init_args.flush_logs_every_n_steps", 1))
    assert lines == [f"error: {RUN / name} cannot be written: {TOO_LARGE}"]
    assert not (RUN / name).exists()
    assert not _parts()


def _with_padding(log_metrics):
    """Return a method that logs another column of 9000 digits."""
    return lambda writer, metrics, step=None: log_metrics(writer, metrics | {"padding": "1" * 9000}, step)


def test_full_disk_in_mid_run_keeps_the_checkpoint(monkeypatch):
    with small_disk("disk"):
        _after_first_epoch(monkeypatch, partial(fill, "disk"))
        lines, _ = _error(*_fit(SAVE_DIR, "disk"))
        folder = Path("disk/unnamed/version_0")
        assert re.fullmatch(rf"error: {folder}/checkpoints/(best|last)\.ckpt cannot be written: {NO_SPACE}", lines[0])
        assert lines[1:] == [RESUME.format(run=folder)]
        assert checkpoint(folder)["epoch"] == 0
        assert not _parts()
        Path("disk/ballast").unlink()
        run(*_fit(SAVE_DIR, "disk", "--ckpt_path", "last", epochs=2))
        assert checkpoint("disk/unnamed/version_1")["epoch"] == 1


def test_full_disk_while_images_are_decoded_names_the_option(images):
    with small_disk("disk"):
        fill("disk")
        lines, _ = _error("fit", *tiny("ipc"), *IMAGES, "--data.init_args.cache", "disk/cache")
        assert len(lines) == 1
        assert re.match(
            r"error: The (disk of disk/cache became full|decoded images need .* more in disk/cache)", lines[0]
        )
        assert "--data.init_args.cache" in lines[0]
        assert not list(Path("disk").rglob("*.bin"))


def test_read_only_folders_are_named_with_their_option(images):
    with small_disk("disk"):
        protect("disk")
        lines, _ = _error(*_fit(SAVE_DIR, "disk"))
        assert lines == [
            "error: The output folder disk/unnamed/version_0 cannot be written: Read-only file system "
            f"({Path('disk').resolve()}). "
            "Make it writable, or choose another folder with --trainer.logger.init_args.save_dir."
        ]
        lines, _ = _error("fit", *tiny("ipc"), *IMAGES, "--data.init_args.cache", "disk/cache")
        assert re.fullmatch(
            r"error: The cache disk/cache/imagefolder-\w+ cannot be read or written: Read-only file system \(disk/cache\)\. "
            r"Mount it writable, or choose another folder with --data\.init_args\.cache, or null to decode .*",
            lines[0],
        )


@pytest.mark.parametrize(
    "change",
    ["deleted", *(pytest.param(change, marks=pytest.mark.slow) for change in ("moved", "config", "last", "metrics"))],
)
def test_deleted_run_folder_is_created_again(monkeypatch, capsys, change):
    def inject():
        if change == "deleted":
            shutil.rmtree(RUN)
        elif change == "moved":
            RUN.rename("elsewhere")
        else:
            path = {"config": "config.yaml", "last": "checkpoints/last.ckpt", "metrics": "metrics.csv"}[change]
            (RUN / path).unlink()

    _after_first_epoch(monkeypatch, inject)
    run(*_fit(epochs=2))
    warning = (
        f"The run folder {RUN} was deleted or moved during training. It is created again with config.yaml; it lacks earlier "
        "metrics and checkpoints."
    )
    assert capsys.readouterr().err.splitlines().count(warning) == (change in ("deleted", "moved", "config"))
    assert checkpoint(RUN)["epoch"] == 1
    assert checkpoint(RUN, "best")["epoch"] == 1 or change in ("config", "last", "metrics")
    assert (RUN / "config.yaml").stat().st_size > 1000
    assert column(RUN / "metrics.csv", "epoch")[-1] == 1
    run("fit", "--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints/last.ckpt")


@pytest.mark.slow
def test_run_folder_replaced_by_a_file_ends_training(monkeypatch):
    def inject():
        RUN.rename("elsewhere")
        RUN.write_text("here")

    _after_first_epoch(monkeypatch, inject)
    lines, _ = _error(*_fit(epochs=2))
    assert re.fullmatch(
        rf"error: {RUN}/\S+ cannot be written: (Not a directory|File exists)\. "
        r"Move away the file that is in the place of a folder, or choose another folder\.",
        lines[0],
    )


def test_leftovers_of_killed_runs_do_not_disturb():
    (RUN / "checkpoints").mkdir(parents=True)
    left = [RUN / "checkpoints/.last.ckpt.0.part", RUN / ".metrics.csv.0.part"]
    for path in left:
        path.write_bytes(b"half")
    Path("runs/unnamed/version_1").mkdir()
    run(*_fit(epochs=1))
    assert not any(path.exists() for path in left)
    assert checkpoint("runs/unnamed/version_2")["epoch"] == 0


@pytest.mark.slow
def test_full_disk_during_prediction_names_the_file(images):
    run(*_fit(epochs=1))
    with small_disk("disk", "64k"):
        fill("disk")
        arguments = ["--ckpt_path", RUN / "checkpoints/last.ckpt", "--output", "disk/out"]
        [line], _ = _error("predict", "--images", "images/00.png", *arguments)
        assert re.fullmatch(rf"error: disk/out\S* cannot be written: {NO_SPACE}", line)
        assert not _parts()


def _set_up_read_only(folder):
    """Let the standard folders of this process lie on a read-only disk."""
    tempfile.tempdir = None
    os.chdir(folder)


@pytest.mark.slow
def test_run_needs_only_its_output_folder_to_be_writable(tmp_path):
    with small_disk("disk"):
        for name in ("home", "tmp", "work"):
            Path("disk", name).mkdir()
        protect("disk")
        disk, output = Path("disk").resolve(), Path("files").resolve()
        variables = {"HOME": disk / "home", "TMPDIR": disk / "tmp", "XDG_CACHE_HOME": disk / "home/.cache"}
        process = start_fork(
            [[*_fit(SAVE_DIR, output, epochs=1)]],
            tmp_path,
            ["stdout", "stderr"],
            partial(_set_up_read_only, disk / "work"),
            **{name: str(path) for name, path in variables.items()},
        )
        _join(process)
        assert process.exitcode == 0, Path("stderr").read_text()
        assert checkpoint(output / "unnamed/version_0")["epoch"] == 0


def _join(*processes, limit=150):
    """Wait for processes, and fail if one does not end in time."""
    deadline = time.monotonic() + limit
    try:
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        assert all(process.exitcode is not None for process in processes), "a process hangs"
    finally:
        for process in processes:
            process.kill()
            process.join(10)
