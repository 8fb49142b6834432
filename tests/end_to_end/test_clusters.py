"""The commands of docs/clusters.md: scripts that start runs again, torchrun, SLURM with stand-ins, and the Kubernetes job."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from program import FOLDERS, REPOSITORY, checkpoint, tiny

CLUSTERS = REPOSITORY / "configs" / "clusters"
LIMIT = 120  # seconds that a command may take
TINY = [*tiny("ipc"), "--trainer.accelerator=cpu"]
TWO = ["--trainer.strategy=ddp", "--data.init_args.batch_size=2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder that contains the program, with this Python first in PATH."""
    monkeypatch.chdir(tmp_path)
    for name in ("cli.py", "configs"):
        Path(name).symlink_to(REPOSITORY / name)
    Path("bin").mkdir()
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def _program(name, text):
    """Write an executable shell script that is found in PATH."""
    path = Path("bin", name)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _shell(script, *args, limit=LIMIT, **environment):
    """Run a script of configs/clusters."""
    return subprocess.run(
        ["sh", str(CLUSTERS / script), *map(str, args)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )


def _wait(condition, process):
    """Wait until a condition holds while a process runs, at most `LIMIT` seconds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_fit_starts_a_run_and_continues_it_if_it_has_a_checkpoint():
    _program("python", 'printf "%s\\n" "$@"')
    options = ["--trainer.logger.init_args.save_dir=elsewhere", "--trainer.logger.init_args.name=a run"]
    first = ["cli.py", "fit", "--config", "some file.yaml", *options]
    command = ["fit.sh", "a run", "--config", "some file.yaml"]
    assert _shell(*command, RUNS="elsewhere").stdout.splitlines() == first
    for version in (3, 4):
        folder = Path(f"elsewhere/a run/version_{version}/checkpoints")
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    assert _shell(*command, RUNS="elsewhere").stdout.splitlines() == [*first, "--ckpt_path=last"]
    assert _shell("fit.sh").returncode != 0


@pytest.mark.parametrize(("status", "times"), [(0, 1), (1, 1), (2, 1), (143, 3), (137, 3), (75, 3)])
def test_command_is_repeated_while_it_is_interrupted(status, times):
    _program("job", f'echo run >> runs.txt; [ "$(wc -l < runs.txt)" -ge 3 ] && exit 0; exit {status}')
    process = _shell("until_done.sh", "job", PAUSE="0")
    assert len(Path("runs.txt").read_text().splitlines()) == times
    assert process.returncode == (0 if times == 3 else status)


def test_signal_to_the_loop_is_passed_on_and_ends_it():
    _program("job", "trap 'echo saved > saved.txt; exit 143' TERM; touch started; while :; do sleep 0.05; done")
    command = ["sh", str(CLUSTERS / "until_done.sh"), "job"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            _wait(Path("started").exists, process)
            process.terminate()
            process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 143
    assert Path("saved.txt").read_text() == "saved\n"


SLURM = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "2"}


def test_slurm_script_sets_devices_and_nodes():
    _program("srun", 'printf "%s\\n" "$@"')
    process = _shell("slurm.sh", "--config", "a b.yaml", **SLURM)
    expected = ["python", "cli.py", "fit", "--config", "a b.yaml", "--trainer.devices=1", "--trainer.num_nodes=2"]
    assert process.stdout.splitlines() == [*expected, "--trainer.strategy=ddp"], process.stderr
    one = _shell("slurm.sh", **SLURM | {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"})
    assert "ddp" not in one.stdout
    sweep = _shell("slurm_sweep.sh", "configs/sweeps/images.yaml", "--runs=3")
    assert sweep.stdout.split() == ["python", "-m", "studies.sweep", "configs/sweeps/images.yaml", "--runs=3"]


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_sweep.sh"])
def test_slurm_scripts_are_requeued_before_the_limit(script):
    directives = re.findall(r"^#SBATCH (\S+)$", (CLUSTERS / script).read_text(), re.MULTILINE)
    assert {"--signal=USR1@120", "--requeue", "--open-mode=append"} <= set(directives)
    assert (CLUSTERS / script).read_text().startswith("#!/bin/sh\n")


def test_kubernetes_job_saves_and_continues():
    job = yaml.safe_load((CLUSTERS / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] >= 60
    [container] = pod["containers"]
    assert container["command"][-3:] == ["sh", "configs/clusters/fit.sh", "celeba178_ipc"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted.keys() == volumes.keys()
    [shared] = [name for name, path in mounted.items() if path == "/dev/shm"]
    assert volumes[shared]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in volumes["storage"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert rules[1]["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    for argument in container["args"]:
        option, _, value = argument.partition("=")
        assert option == "--config" or value.startswith(mounted["storage"])
        assert option != "--config" or (REPOSITORY / value).is_file()


def test_documented_scripts_exist():
    text = (REPOSITORY / "docs" / "clusters.md").read_text()
    assert set(re.findall(r"configs/clusters/([\w.]+)", text)) == {path.name for path in CLUSTERS.iterdir()}


def _torchrun(*args, **options):
    """Start torchrun in a new session."""
    command = [sys.executable, "-m", "torch.distributed.run", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    )


def _end(process):
    """End torchrun and its workers, which have sessions of their own, and close its output."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)  # torchrun kills workers after 30 s
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT)
    process.stdout.close()


def _rank(number):
    """Return the process id of the rank that torchrun of this test started."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(item.split("=", 1) for item in path.read_text().split("\0") if "=" in item)
            if variables.get("RANK") == str(number) and (path.parent / "cwd").resolve() == Path.cwd():
                return int(path.parent.name)
        except (OSError, UnicodeDecodeError):
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process by /proc")
def test_killed_process_is_started_again_and_the_run_continues():
    arguments = ["--trainer.max_epochs=15", "--trainer.check_val_every_n_epoch=15", "--trainer.devices=2", *TWO]
    script = ["sh", str(CLUSTERS / "fit.sh"), "elastic", *TINY, *arguments]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--no-python", *script]
    process = _torchrun(*command, env=environment)
    try:
        _wait(Path("runs/elastic/version_0/checkpoints/last.ckpt").is_file, process)
        os.kill(_rank(1), signal.SIGKILL)
        printed = process.communicate(timeout=LIMIT)[0]
    finally:
        _end(process)
    assert process.returncode == 0, printed
    assert sorted(path.name for path in Path("runs/elastic").iterdir()) == ["version_0", "version_1"]
    assert checkpoint("runs/elastic/version_1")["global_step"] == 15 * 6
    first = checkpoint("runs/elastic/version_0")["global_step"]
    assert 0 < first < 15 * 6


@pytest.mark.slow
def test_two_nodes_meet_and_train_one_model():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "photos", "--rdzv-backend", "c10d"]
    rendezvous += ["--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"]
    arguments = ["--trainer.num_nodes=2", "--trainer.devices=1", *TWO]
    nodes = [_torchrun(*rendezvous, "cli.py", "fit", *TINY, *arguments) for _ in range(2)]
    try:
        printed = [node.communicate(timeout=LIMIT)[0] for node in nodes]
    finally:
        for node in nodes:
            _end(node)
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert [path.name for path in Path("runs/unnamed").iterdir()] == ["version_0"]
    assert checkpoint("runs/unnamed/version_0")["global_step"] == 6
