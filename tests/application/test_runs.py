"""Run folders: each run claims a new one, a requeued job reuses its own, and without a logger there is none."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from program import NAME, REPOSITORY, TESTS, checkpoint, column, damage, refused, rows, run, run_process, tiny

from application import command_line, runs
from application.runs import MARKER, RunFolders, check_processes, without_checkpoints
from callbacks.saving import LastCheckpoint
from datamodules import SamplePhotos

FOLDER = Path("runs/unnamed")
LOGGER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: %s, name: %s}}"
SHORT = ["--data.init_args.crops_per_epoch", 4, "--trainer.limit_val_batches", 1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder, outside SLURM and torchrun."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.fixture
def job(monkeypatch):
    """Return a function that sets the environment of a SLURM job with one task."""

    def enter(number=77, restarts=None, **changes):
        variables = {"JOB_ID": number, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
        variables |= {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "RESTART_COUNT": restarts} | changes
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(f"SLURM_{name}", raising=False)
            else:
                monkeypatch.setenv(f"SLURM_{name}", str(value))

    return enter


def _environment(**changes):
    """Return the environment of a subprocess that runs the program."""
    path = os.pathsep.join([str(REPOSITORY), str(TESTS)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | changes


def _files():
    """Return all files and folders below the working directory."""
    return sorted(str(path) for path in Path().rglob("*"))


def _claimed(*loggers, command=()):
    """Claim the folders of loggers and return their names."""
    folders = RunFolders(list(loggers), command)
    trainer = Trainer(logger=list(loggers), enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    folders.take(trainer)
    return [Path(logger.log_dir).name for logger in loggers]


@pytest.mark.slow
def test_concurrent_processes_claim_different_folders():
    code = (
        "import sys; from pathlib import Path; from application.runs import _claim\n"
        "sys.stdin.readline()\n"
        "print(*[_claim(Path('runs/unnamed')) for _ in range(30)])\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=_environment())
        for _ in "1234"
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    numbers = [int(number) for process in processes for number in process.communicate(timeout=100)[0].split()]
    assert sorted(numbers) == list(range(120))


@pytest.mark.slow
def test_concurrent_commands_use_different_folders():
    command = [sys.executable, str(REPOSITORY / "cli.py"), "fit", *map(str, [*tiny("ipc"), *SHORT])]
    processes = [
        subprocess.Popen([*command, "--seed_everything", seed], env=_environment(), stdout=-1) for seed in "12"
    ]
    for process in processes:
        assert process.communicate(timeout=200) is not None
        assert process.returncode == 0
    folders = sorted(FOLDER.iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert sorted(seeds) == [1, 2]
    assert all(len(column(folder / "metrics.csv", "val/psnr")) == 1 for folder in folders)


@pytest.mark.slow
def test_folder_is_claimed_before_data_are_prepared(monkeypatch):
    folders = []

    def prepare(self):
        folders.extend(path.name for path in FOLDER.iterdir())
        folders.extend(_claimed(CSVLogger("runs", "unnamed")))

    monkeypatch.setattr(SamplePhotos, "prepare_data", prepare)
    run("fit", *tiny("ipc"), *SHORT)
    assert folders == ["version_0", "version_1"]
    assert (FOLDER / "version_0" / "metrics.csv").is_file()
    assert not list((FOLDER / "version_1").iterdir())


@pytest.mark.slow
def test_saved_config_claims_a_new_folder():
    run("fit", *tiny("ipc"), *SHORT)
    saved = FOLDER / "version_0" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["trainer"]["logger"]["init_args"]["version"] is None
    run("fit", "--config", saved)
    assert {path.name for path in FOLDER.iterdir()} == {"version_0", "version_1"}


def test_every_logger_claims_a_folder():
    Path("runs/b/version_4").mkdir(parents=True)
    run("fit", *tiny("ipc"), *SHORT, "--trainer.logger", f"[{LOGGER % ('runs', 'a')}, {LOGGER % ('runs', 'b')}]")
    assert {path.name for path in Path("runs/a/version_0").iterdir()} == {"checkpoints", "config.yaml", "metrics.csv"}
    assert [path.name for path in Path("runs/b/version_5").iterdir()] == ["metrics.csv"]


def test_explicit_version_is_kept():
    version = CSVLogger("runs", "unnamed", version="mine")
    assert _claimed(version, CSVLogger("runs", "unnamed"), CSVLogger("runs", "unnamed")) == [
        "mine",
        "version_0",
        "version_1",
    ]


def test_existing_file_and_other_names_are_skipped():
    FOLDER.mkdir(parents=True)
    (FOLDER / "version_0").write_text("")
    (FOLDER / "version_notes").mkdir()
    assert _claimed(CSVLogger("runs", "unnamed")) == ["version_1"]


def test_invalid_command_claims_no_folder():
    Path("broken.ckpt").write_text("")
    refused("fit", *tiny("ipc"), "--ckpt_path", "broken.ckpt")
    assert not Path("runs").exists()


@pytest.mark.slow
def test_launched_processes_claim_no_folder(tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    run_process("fit", *tiny("ipc"), *two, *SHORT, cwd=tmp_path)
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]


def _torchrun(*args):
    """Run the program in two processes with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(REPOSITORY / "cli.py"), "fit", *map(str, [*tiny("ipc"), *SHORT, *args])]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_torchrun_with_one_device_raises():
    process = _torchrun()
    assert process.returncode != 0
    assert process.stderr.count("error: ") == 1
    assert "torchrun started 2 process(es), but trainer.devices 1 and trainer.num_nodes 1 need 1" in process.stderr
    assert "--trainer.devices 2" in process.stderr
    assert not Path("runs").exists()


@pytest.mark.slow
def test_torchrun_with_two_devices_trains_one_model():
    process = _torchrun("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.init_args.batch_size", 2)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]
    assert checkpoint(FOLDER / "version_0")["global_step"] > 0


@pytest.mark.parametrize(
    ("tasks", "devices", "nodes", "fix"),
    [(4, 1, 1, "--trainer.devices 2 --trainer.num_nodes 2"), (1, 4, 1, "--trainer.devices 1 --trainer.num_nodes 1")],
)
def test_srun_with_a_different_number_of_devices_raises(job, tasks, devices, nodes, fix):
    job(NTASKS=tasks, NNODES=2 if tasks == 4 else 1)
    with pytest.raises(ValueError, match=rf"srun started {tasks} .*devices {devices} .*need {devices}\. .*{fix}"):
        check_processes(SimpleNamespace(num_devices=devices, num_nodes=nodes))


def test_srun_with_the_same_number_of_devices_is_accepted(job):
    job(NTASKS=4, NNODES=2)
    check_processes(SimpleNamespace(num_devices=2, num_nodes=2))


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_tasks_of_an_interactive_job_are_ignored(job, name):
    job(NTASKS=4, JOB_NAME=name)
    check_processes(SimpleNamespace(num_devices=1, num_nodes=1))


def test_other_processes_exit_silently(job, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_EXIT_DELAY", 0)
    job(NTASKS=2, PROCID=1)
    with pytest.raises(SystemExit) as ended:
        check_processes(SimpleNamespace(num_devices=1, num_nodes=1))
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "")


def test_program_rejects_tasks_without_devices(job):
    job(NTASKS=2, NTASKS_PER_NODE=2)
    assert "srun started 2 process(es)" in refused("fit", *tiny("ipc"))
    job(NTASKS=2, NTASKS_PER_NODE=None)
    assert "--ntasks-per-node" in refused("fit", *tiny("ipc"))
    assert not Path("runs").exists()


@pytest.mark.parametrize("logger", [True, False])
def test_checkpoint_of_another_run_is_not_resumed(job, logger):
    job()
    Path("hpc_ckpt_1.ckpt").write_text("of another run")  # Lightning would load it
    run("fit", *tiny("ipc"), *SHORT, *([] if logger else ["--trainer.logger", "false"]))
    assert (FOLDER / "version_0" / "metrics.csv").is_file() is logger


def test_lightning_does_not_requeue(job):
    job()
    config = {"plugins": None, "logger": True, "callbacks": []}
    [environment] = runs.trainer_settings(config)["plugins"]
    assert not environment.auto_requeue


@pytest.mark.slow
def test_requeued_job_continues_in_its_folder(job):
    arguments = ["fit", *tiny("ipc"), *SHORT, "--trainer.max_epochs", 2]
    run("fit", *tiny("ipc"), *SHORT)
    job()
    run(*arguments)
    folder = FOLDER / "version_1"
    assert json.loads((folder / MARKER).read_text())["job"] == "77"
    config, metrics = (folder / "config.yaml").read_text(), (folder / "metrics.csv").read_text()
    steps = checkpoint(folder)["global_step"]
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    job(number=78)
    run(*arguments)  # a newer run of another job
    job(restarts=1)
    (folder / "checkpoints" / "best.ckpt").unlink()
    run(*arguments)
    assert {path.name for path in FOLDER.iterdir()} == {"version_0", "version_1", "version_2"}
    assert (folder / "metrics_1.csv").read_text() == metrics
    assert (folder / "config.yaml").read_text() == config
    assert checkpoint(folder)["global_step"] == steps
    assert torch.equal(checkpoint(folder)["state_dict"]["network.biases.2"], state["state_dict"]["network.biases.2"])


@pytest.mark.slow
def test_requeued_job_resumes_mid_training(job, monkeypatch):
    arguments = ["fit", *tiny("ipc"), "--trainer.max_epochs", 2]
    run(*arguments, NAME, "uninterrupted")
    job()
    save = LastCheckpoint.save

    def save_and_interrupt(self, trainer):
        save(self, trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(LastCheckpoint, "save", save_and_interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*arguments)
    monkeypatch.setattr(LastCheckpoint, "save", save)
    job(restarts=1)
    run(*arguments)
    folder = FOLDER / "version_0"
    expected = column("runs/uninterrupted/version_0/metrics.csv", "train/loss")
    assert column(folder / "metrics.csv", "train/loss") == expected[-len(expected) // 2 :]
    assert column(folder / "metrics_1.csv", "train/loss") == expected[: len(expected) // 2]
    assert torch.equal(
        checkpoint(folder)["state_dict"]["network.biases.2"],
        checkpoint("runs/uninterrupted/version_0")["state_dict"]["network.biases.2"],
    )


@pytest.mark.slow
def test_requeued_job_falls_back_to_the_previous_checkpoint_if_the_last_is_damaged(job, capsys):
    arguments = ["fit", *tiny("ipc"), *SHORT, "--trainer.max_epochs", 2]
    job()
    run(*arguments)
    last = FOLDER / "version_0/checkpoints/last.ckpt"
    damage(last)
    job(restarts=1)
    run(*arguments)
    assert "previous.ckpt" in capsys.readouterr().err
    assert checkpoint(FOLDER / "version_0")["epoch"] == 1


@pytest.mark.slow
def test_requeued_job_without_a_checkpoint_restarts_in_its_folder(job):
    run("fit", *tiny("ipc"), *SHORT, NAME, "before")
    arguments = ["--ckpt_path", "runs/before/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", 2]
    job()
    run("fit", *tiny("ipc"), *SHORT, *arguments)
    (FOLDER / "version_0/checkpoints/last.ckpt").unlink()
    job(restarts=1)
    run("fit", *tiny("ipc"), *SHORT, *arguments)
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]
    assert checkpoint(FOLDER / "version_0")["epoch"] == 1
    saved = yaml.safe_load((FOLDER / "version_0/config.yaml").read_text())
    assert saved["ckpt_path"] == "runs/before/version_0/checkpoints/last.ckpt"


def test_checkpoint_of_a_requeued_job_is_validated(job):
    arguments = ["fit", *tiny("ipc"), *SHORT]
    job()
    run(*arguments)
    (FOLDER / "version_0/checkpoints/last.ckpt").write_text("cut off")
    job(restarts=2)
    assert "version_0/checkpoints/last.ckpt is truncated" in refused(*arguments)


def test_commands_of_a_requeued_job_find_their_folders(job):
    job()
    for seed in ("0", "1"):
        assert _claimed(CSVLogger("runs", "unnamed"), command=["fit", seed]) == [f"version_{seed}"]
    job(restarts=1)
    for seed in ("1", "0"):
        assert _claimed(CSVLogger("runs", "unnamed"), command=["fit", seed]) == [f"version_{seed}"]
    assert _claimed(CSVLogger("runs", "unnamed"), command=["fit", "2"]) == ["version_2"]


def test_other_processes_of_a_requeued_job_find_its_folder(job):
    job()
    assert _claimed(CSVLogger("runs", "unnamed")) == ["version_0"]
    assert _claimed(CSVLogger("runs", "unnamed"), command=["another"]) == ["version_1"]
    job(restarts=1)
    logger = CSVLogger("runs", "unnamed")
    strategy = SimpleNamespace(loggers=[logger], is_global_zero=False, log_dir="runs/unnamed/version_0")
    (FOLDER / "version_0" / "metrics.csv").write_text("step\n1\n")
    RunFolders([logger], []).take(strategy)
    assert logger.log_dir == "runs/unnamed/version_0"
    assert (FOLDER / "version_0" / "metrics.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("off", [["--trainer.fast_dev_run", "true"], ["--trainer.logger", "false"]])
def test_nothing_is_written_without_a_run_folder(off):
    run("fit", *tiny("ipc"), *SHORT, NAME, "trained")
    path = "runs/trained/version_0/checkpoints/last.ckpt"
    before = _files()
    printed = run("fit", *tiny("ipc"), *SHORT, *off)
    assert "nothing is written" in printed
    assert "Next:" not in printed
    figure = "{class_path: callbacks.gallery.Gallery, init_args: {num_instances: 1}}"
    for command in ("validate", "test"):
        printed = run(command, *tiny("ipc"), *off, "--trainer.callbacks+", figure, "--ckpt_path", path)
        assert command == "validate" or "Mean over" in printed
        assert "Every instance" not in printed
    assert _files() == before


def test_checkpoint_callback_with_dirpath_works_without_a_logger():
    Path("config.yaml").write_text("of something else")
    saver = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: kept, filename: one}}"
    printed = run("fit", *tiny("ipc"), *SHORT, "--trainer.logger", "false", "--trainer.callbacks+", saver)
    assert _files() == ["config.yaml", "kept", "kept/one.ckpt"]
    assert "Checkpoint: kept/one.ckpt" in printed
    assert "Next:" not in printed


def test_checkpoint_callbacks_without_dirpath_are_removed():
    kept = ModelCheckpoint(dirpath="kept")
    assert without_checkpoints([ModelCheckpoint(), kept, LastCheckpoint()]) == [kept]


@pytest.mark.slow
def test_prediction_checks_only_its_output_folder(tmp_path):
    run("fit", *tiny("ipc"), *SHORT)
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16), "red").save(image)
    arguments = ["predict", "--images", image, "--ckpt_path", FOLDER / "version_0/checkpoints/last.ckpt"]
    checked = []
    with mock.patch.object(command_line, "check_output_folder", lambda folder, *rest: checked.append(str(folder))):
        run(*arguments, "--output", "new/folder")
    assert checked == ["new/folder"]
    Path("file").write_text("")
    message = refused(*arguments, "--output", "file/below")
    assert "The output folder file/below cannot be written" in message
    assert "--output" in message
    assert "save_dir" not in message


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="drops root privileges")
def test_prediction_runs_in_a_read_only_folder():
    code = (
        "import os, sys, cli\n"
        "from PIL import Image\n"
        "Image.new('RGB', (16, 16)).save(sys.argv[2] + '/image.png')\n"
        "os.seteuid(65534)\n"
        "cli.main(['predict', '--images', sys.argv[2] + '/image.png', '--output', sys.argv[2] + '/out'])\n"
    )
    with tempfile.TemporaryDirectory() as read_only, tempfile.TemporaryDirectory() as writable:
        out = Path(writable)
        Path(read_only).chmod(0o555)
        out.chmod(0o777)
        command = [sys.executable, "-c", code, "x", writable]
        process = subprocess.run(
            command, cwd=read_only, env=_environment(), capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        assert (out / "out").is_dir()
        assert not list(Path(read_only).iterdir())


@pytest.mark.slow
def test_metrics_of_two_runs_are_separate():
    run("fit", *tiny("ipc"), *SHORT)
    run("fit", *tiny("ipc"), *SHORT)
    first, second = (rows(FOLDER / name / "metrics.csv") for name in ("version_0", "version_1"))
    assert first == second
