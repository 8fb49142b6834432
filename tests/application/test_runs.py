"""Run folders: each run claims its own, a requeued job takes its own again, and without a logger there is none."""

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
from program import NAME, REPOSITORY, TESTS, checkpoint, column, refused, rows, run, run_process, tiny

from application import command_line, runs
from application.runs import MARKER, RunFolders, check_processes, without_checkpoints
from callbacks.saving import LastCheckpoint
from datamodules import SamplePhotos

FOLDER = Path("runs/unnamed")
LOGGER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: %s, name: %s}}"
SHORT = ["--data.init_args.crops_per_epoch", 4, "--trainer.limit_val_batches", 1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, outside SLURM and torchrun."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.fixture
def job(monkeypatch):
    """Return a function that puts this process into a SLURM job of one task."""

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
    """Return the environment of a process that runs the program."""
    path = os.pathsep.join([str(REPOSITORY), str(TESTS)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | changes


def _files():
    """Return all files and folders below the working directory."""
    return sorted(str(path) for path in Path().rglob("*"))


def _claimed(*loggers, command=()):
    """Take the folders of loggers and return their names."""
    folders = RunFolders(list(loggers), command)
    trainer = Trainer(logger=list(loggers), enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    folders.take(trainer)
    return [Path(logger.log_dir).name for logger in loggers]


@pytest.mark.slow
def test_processes_that_start_together_get_different_folders():
    code = (
        "import sys; from pathlib import Path; from application.runs import _claim\n"
        "sys.stdin.readline()\n"
        "print(*[_claim(Path('runs/unnamed')) for _ in range(30)])\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=_environment())
        for _ in "1234"
    ]
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    numbers = [int(number) for process in started for number in process.communicate(timeout=100)[0].split()]
    assert sorted(numbers) == list(range(120))


@pytest.mark.slow
def test_commands_that_start_together_do_not_mix():
    command = [sys.executable, str(REPOSITORY / "cli.py"), "fit", *map(str, [*tiny("ipc"), *SHORT])]
    started = [subprocess.Popen([*command, "--seed_everything", seed], env=_environment(), stdout=-1) for seed in "12"]
    for process in started:
        assert process.communicate(timeout=200) is not None
        assert process.returncode == 0
    folders = sorted(FOLDER.iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert sorted(seeds) == [1, 2]
    assert all(len(column(folder / "metrics.csv", "val/psnr")) == 1 for folder in folders)


def test_the_folder_is_claimed_before_data_are_prepared(monkeypatch):
    seen = []

    def prepare(self):
        seen.extend(path.name for path in FOLDER.iterdir())
        seen.extend(_claimed(CSVLogger("runs", "unnamed")))

    monkeypatch.setattr(SamplePhotos, "prepare_data", prepare)
    run("fit", *tiny("ipc"), *SHORT)
    assert seen == ["version_0", "version_1"]
    assert (FOLDER / "version_0" / "metrics.csv").is_file()
    assert not list((FOLDER / "version_1").iterdir())


@pytest.mark.slow
def test_a_saved_config_claims_a_folder_of_its_own():
    run("fit", *tiny("ipc"), *SHORT)
    saved = FOLDER / "version_0" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["trainer"]["logger"]["init_args"]["version"] is None
    run("fit", "--config", saved)
    assert {path.name for path in FOLDER.iterdir()} == {"version_0", "version_1"}


def test_every_logger_of_a_list_claims_a_folder():
    Path("runs/b/version_4").mkdir(parents=True)
    run("fit", *tiny("ipc"), *SHORT, "--trainer.logger", f"[{LOGGER % ('runs', 'a')}, {LOGGER % ('runs', 'b')}]")
    assert {path.name for path in Path("runs/a/version_0").iterdir()} == {"checkpoints", "config.yaml", "metrics.csv"}
    assert [path.name for path in Path("runs/b/version_5").iterdir()] == ["metrics.csv"]


def test_a_stated_version_stays():
    version = CSVLogger("runs", "unnamed", version="mine")
    assert _claimed(version, CSVLogger("runs", "unnamed"), CSVLogger("runs", "unnamed")) == [
        "mine",
        "version_0",
        "version_1",
    ]


def test_a_file_in_the_way_is_passed_over():
    FOLDER.mkdir(parents=True)
    (FOLDER / "version_0").write_text("")
    (FOLDER / "version_notes").mkdir()
    assert _claimed(CSVLogger("runs", "unnamed")) == ["version_1"]


def test_a_refused_command_claims_no_folder():
    Path("broken.ckpt").write_text("")
    refused("fit", *tiny("ipc"), "--ckpt_path", "broken.ckpt")
    assert not Path("runs").exists()


@pytest.mark.slow
def test_the_children_of_the_launcher_claim_no_folder(tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    run_process("fit", *tiny("ipc"), *two, *SHORT, cwd=tmp_path)
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]


def _torchrun(*args):
    """Run the program in two processes of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(REPOSITORY / "cli.py"), "fit", *map(str, [*tiny("ipc"), *SHORT, *args])]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_torchrun_with_one_device_is_refused():
    ended = _torchrun()
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1
    assert "torchrun started 2 process(es), but trainer.devices 1 on trainer.num_nodes 1 need 1" in ended.stderr
    assert "--trainer.devices 2" in ended.stderr
    assert not Path("runs").exists()


@pytest.mark.slow
def test_torchrun_with_two_devices_trains_one_model():
    ended = _torchrun("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.init_args.batch_size", 2)
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]
    assert checkpoint(FOLDER / "version_0")["global_step"] > 0


@pytest.mark.parametrize(
    ("tasks", "devices", "nodes", "fix"),
    [(4, 1, 1, "--trainer.devices 2 --trainer.num_nodes 2"), (1, 4, 1, "--trainer.devices 1 --trainer.num_nodes 1")],
)
def test_srun_with_another_number_of_devices_is_refused(job, tasks, devices, nodes, fix):
    job(NTASKS=tasks, NNODES=2 if tasks == 4 else 1)
    with pytest.raises(ValueError, match=rf"srun started {tasks} .*devices {devices} .*need {devices}: .*{fix}"):
        check_processes(SimpleNamespace(num_devices=devices, num_nodes=nodes))


def test_srun_with_the_number_of_devices_is_accepted(job):
    job(NTASKS=4, NNODES=2)
    check_processes(SimpleNamespace(num_devices=2, num_nodes=2))


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_the_tasks_of_an_interactive_job_do_not_count(job, name):
    job(NTASKS=4, JOB_NAME=name)
    check_processes(SimpleNamespace(num_devices=1, num_nodes=1))


def test_other_processes_end_without_a_message(job, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_PATIENCE", 0)
    job(NTASKS=2, PROCID=1)
    with pytest.raises(SystemExit) as ended:
        check_processes(SimpleNamespace(num_devices=1, num_nodes=1))
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "")


def test_the_program_refuses_tasks_that_are_no_devices(job):
    job(NTASKS=2, NTASKS_PER_NODE=2)
    assert "srun started 2 process(es)" in refused("fit", *tiny("ipc"))
    job(NTASKS=2, NTASKS_PER_NODE=None)
    assert "--ntasks-per-node" in refused("fit", *tiny("ipc"))
    assert not Path("runs").exists()


@pytest.mark.parametrize("logger", [True, False])
def test_a_checkpoint_of_another_run_is_not_resumed(job, logger):
    job()
    Path("hpc_ckpt_1.ckpt").write_text("of another run")  # which Lightning would load
    run("fit", *tiny("ipc"), *SHORT, *([] if logger else ["--trainer.logger", "false"]))
    assert (FOLDER / "version_0" / "metrics.csv").is_file() is logger


def test_lightning_does_not_requeue(job):
    job()
    config = {"plugins": None, "logger": True, "callbacks": []}
    [environment] = runs.trainer_settings(config)["plugins"]
    assert not environment.auto_requeue


def test_a_requeued_job_goes_on_in_its_folder(job):
    arguments = ["fit", *tiny("ipc"), *SHORT, "--trainer.max_epochs", 2]
    run("fit", *tiny("ipc"), *SHORT)
    job()
    run(*arguments)
    first = FOLDER / "version_1"
    assert json.loads((first / MARKER).read_text())["job"] == "77"
    config, metrics = (first / "config.yaml").read_text(), (first / "metrics.csv").read_text()
    steps = checkpoint(first)["global_step"]
    state = torch.load(first / "checkpoints/last.ckpt", weights_only=True)
    job(number=78)
    run(*arguments)  # another job, newer
    job(restarts=1)
    (first / "checkpoints" / "best.ckpt").unlink()
    run(*arguments)
    assert {path.name for path in FOLDER.iterdir()} == {"version_0", "version_1", "version_2"}
    assert (first / "metrics_1.csv").read_text() == metrics
    assert (first / "config.yaml").read_text() == config
    assert checkpoint(first)["global_step"] == steps
    assert torch.equal(checkpoint(first)["state_dict"]["inr.biases.2"], state["state_dict"]["inr.biases.2"])


@pytest.mark.slow
def test_a_requeued_job_resumes_the_middle_of_training(job, monkeypatch):
    whole = ["fit", *tiny("ipc"), "--trainer.max_epochs", 2]
    run(*whole, NAME, "whole")
    job()
    saved = LastCheckpoint.save

    def killed(self, trainer):
        saved(self, trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(LastCheckpoint, "save", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*whole)
    monkeypatch.setattr(LastCheckpoint, "save", saved)
    job(restarts=1)
    run(*whole)
    folder = FOLDER / "version_0"
    wanted = column("runs/whole/version_0/metrics.csv", "train/loss")
    assert column(folder / "metrics.csv", "train/loss") == wanted[-len(wanted) // 2 :]
    assert column(folder / "metrics_1.csv", "train/loss") == wanted[: len(wanted) // 2]
    assert torch.equal(
        checkpoint(folder)["state_dict"]["inr.biases.2"],
        checkpoint("runs/whole/version_0")["state_dict"]["inr.biases.2"],
    )


@pytest.mark.slow
def test_a_requeued_job_goes_on_from_the_checkpoint_before_a_damaged_one(job, capsys):
    arguments = ["fit", *tiny("ipc"), *SHORT, "--trainer.max_epochs", 2]
    job()
    run(*arguments)
    last = FOLDER / "version_0/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    job(restarts=1)
    run(*arguments)
    assert "previous.ckpt" in capsys.readouterr().err
    assert checkpoint(FOLDER / "version_0")["epoch"] == 1


@pytest.mark.slow
def test_a_requeued_job_without_a_checkpoint_starts_anew_in_its_folder(job):
    run("fit", *tiny("ipc"), *SHORT, NAME, "before")
    given = ["--ckpt_path", "runs/before/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", 2]
    job()
    run("fit", *tiny("ipc"), *SHORT, *given)
    (FOLDER / "version_0/checkpoints/last.ckpt").unlink()
    job(restarts=1)
    run("fit", *tiny("ipc"), *SHORT, *given)
    assert [path.name for path in FOLDER.iterdir()] == ["version_0"]
    assert checkpoint(FOLDER / "version_0")["epoch"] == 1
    saved = yaml.safe_load((FOLDER / "version_0/config.yaml").read_text())
    assert saved["ckpt_path"] == "runs/before/version_0/checkpoints/last.ckpt"


def test_a_requeued_checkpoint_is_checked(job):
    arguments = ["fit", *tiny("ipc"), *SHORT]
    job()
    run(*arguments)
    (FOLDER / "version_0/checkpoints/last.ckpt").write_text("cut off")
    job(restarts=2)
    assert "version_0/checkpoints/last.ckpt is cut off" in refused(*arguments)


def test_two_commands_of_a_job_find_their_own_folders(job):
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
def test_without_a_run_folder_nothing_is_written(off):
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


def test_a_checkpoint_with_a_folder_of_its_own_is_written_without_a_logger():
    Path("config.yaml").write_text("of something else")
    saver = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: kept, filename: one}}"
    printed = run("fit", *tiny("ipc"), *SHORT, "--trainer.logger", "false", "--trainer.callbacks+", saver)
    assert _files() == ["config.yaml", "kept", "kept/one.ckpt"]
    assert "Checkpoint: kept/one.ckpt" in printed
    assert "Next:" not in printed


def test_checkpoint_callbacks_without_a_folder_are_switched_off():
    kept = ModelCheckpoint(dirpath="kept")
    assert without_checkpoints([ModelCheckpoint(), kept, LastCheckpoint()]) == [kept]


@pytest.mark.slow
def test_prediction_looks_only_at_its_own_folder(tmp_path):
    run("fit", *tiny("ipc"), *SHORT)
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16), "red").save(image)
    arguments = ["predict", "--images", image, "--ckpt_path", FOLDER / "version_0/checkpoints/last.ckpt"]
    probed = []
    with mock.patch.object(command_line, "check_output_folder", lambda folder, *rest: probed.append(str(folder))):
        run(*arguments, "--output", "made/here")
    assert probed == ["made/here"]
    Path("file").write_text("")
    message = refused(*arguments, "--output", "file/below")
    assert "The output folder file/below cannot be written" in message
    assert "--output" in message
    assert "save_dir" not in message


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of the superuser")
def test_prediction_runs_in_a_folder_that_is_read_only():
    code = (
        "import os, sys, cli\n"
        "from PIL import Image\n"
        "Image.new('RGB', (16, 16)).save(sys.argv[2] + '/image.png')\n"
        "os.seteuid(65534)\n"
        "cli.main(['predict', '--images', sys.argv[2] + '/image.png', '--output', sys.argv[2] + '/out'])\n"
    )
    with tempfile.TemporaryDirectory() as locked, tempfile.TemporaryDirectory() as given:
        out = Path(given)
        Path(locked).chmod(0o555)
        out.chmod(0o777)
        command = [sys.executable, "-c", code, "x", given]
        ended = subprocess.run(command, cwd=locked, env=_environment(), capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert (out / "out").is_dir()
        assert not list(Path(locked).iterdir())


@pytest.mark.slow
def test_rows_of_a_run_are_not_mixed():
    run("fit", *tiny("ipc"), *SHORT)
    run("fit", *tiny("ipc"), *SHORT)
    first, second = (rows(FOLDER / name / "metrics.csv") for name in ("version_0", "version_1"))
    assert first == second
