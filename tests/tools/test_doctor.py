"""The doctor reports versions, devices, threads, disks and data, and exits with status 1 if something prevents training."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from program import REPOSITORY

from tools import doctor


def _report(*arguments, cwd, limit=120, within=(), **environment):
    """Run the doctor in a folder; return its exit status, its findings by name, and what it printed.

    Args:
        arguments: Command-line arguments.
        cwd: Working directory.
        limit: Time limit in seconds.
        within: Command that runs the doctor, such as one that enters a namespace.
        environment: Additional environment variables.
    """
    result = subprocess.run(
        [*within, sys.executable, "-m", "tools.doctor", "--json", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert result.returncode in (0, 1), result.stderr
    report = json.loads(result.stdout)
    assert report["healthy"] == (result.returncode == 0)
    return result.returncode, {finding["name"]: SimpleNamespace(**finding) for finding in report["findings"]}


def _findings(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def mounted():
    """Return a command that runs a shell script, for mounts, before a command in its own mount namespace."""
    space = ["unshare", "--mount", "--propagation=private"]
    if shutil.which("unshare") is None or subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("requires unshare and the right to mount")
    return lambda script: [*space, "sh", "-ec", f'{script}; exec "$@"', "sh"]


def test_quick_report_is_healthy_and_does_not_import_torch(tmp_path):
    status, findings = _report("--quick", cwd=tmp_path, HOME=str(tmp_path))
    assert status == 0
    assert findings["torch"].value.partition("+")[0] == torch.__version__.partition("+")[0]
    assert findings["runs"].value.endswith(f"in {tmp_path}")
    code = "import sys, tools.doctor; list(tools.doctor.quick('a', 'b')); print('torch' in sys.modules)"
    code = code.replace("'a', 'b'", "tools.doctor.Path('a'), tools.doctor.Path('b')")
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout == "False\n", result.stderr


def test_complete_report_names_devices_precision_and_data_sets(tmp_path):
    (tmp_path / "images").mkdir()
    findings = {}
    for finding in doctor.thorough(tmp_path):
        findings[finding.section, finding.name] = finding
    assert torch.backends.cpu.get_cpu_capability() in findings["devices", "CPU"].value
    assert findings["precision", "bf16 on CPU"].value.startswith(("in hardware", "emulated"))
    assert findings["threads", "torch"].value == str(torch.get_num_threads())
    assert findings["data", "sample_photos"].value == "bundled"
    assert findings["data", "celeba"].value == "not present"
    assert {name for section, name in findings if section == "data"} == {
        path.stem for path in (REPOSITORY / "configs" / "data").glob("*.yaml")
    }


def test_data_sets_are_found_below_the_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(20):
        shutil.copyfile(REPOSITORY / "docs" / "units.png", tmp_path / "images" / f"{number}.png")
    data = {finding.name: finding.value for finding in doctor.thorough(tmp_path) if finding.section == "data"}
    assert data["image_folder"] == data["super_resolution_folder"] == "18 for training"


def test_a_missing_package_is_an_error_and_another_version_is_not(monkeypatch):
    versions = {"lightning": None, "torch": "2.11.0+cu130"}
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else installed(name))
    findings = _findings(doctor._versions())
    assert findings["lightning"].fatal
    assert findings["lightning"].advice.startswith("lightning==2.6.6 is required: python -m pip install")
    assert not findings["torch"].fatal
    assert findings["torch"].advice.startswith("Tested with 2.13.0: ")


@pytest.mark.parametrize(
    ("name", "content", "quota"),
    [
        ("cpu.max", "150000 100000\n", 1.5),
        ("cpu.max", "max 100000\n", float("inf")),
        ("cpu/cpu.cfs_quota_us", "50000\n", 0.5),
        ("cpu/cpu.cfs_quota_us", "-1\n", float("inf")),
        ("none", "", float("inf")),
    ],
)
def test_quota_of_the_control_group_limits_the_processors(name, content, quota, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert doctor.available_processors() == min(quota, affinity)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert "set OMP_NUM_THREADS=" in _findings(doctor._processors())["processors"].advice


def test_small_shared_memory_is_explained(tmp_path, mounted):
    within = mounted("mount -t tmpfs -o size=64m tmpfs /dev/shm")
    status, findings = _report("--quick", cwd=tmp_path, within=within, HOME=str(tmp_path))
    assert status == 0
    assert findings["shared memory"].value == "0.07 GB"
    assert "--ipc=host or --shm-size" in findings["shared memory"].advice


def test_read_only_folder_of_runs_is_an_error_and_of_data_is_not(tmp_path, mounted):
    for name in ("runs", "data"):
        (tmp_path / name).mkdir()
    script = f"for d in runs data; do mount -t tmpfs -o ro tmpfs {tmp_path}/$d; done"
    status, findings = _report("--quick", cwd=tmp_path, within=mounted(script), HOME=str(tmp_path / "data"))
    assert status == 1
    assert findings["runs"].value == f"{tmp_path / 'runs'} is not writable (Read-only file system)"
    assert findings["runs"].fatal
    assert findings["runs"].advice == "Pass a writable folder or volume as runs."
    assert not findings["data"].fatal
    assert not findings["home"].fatal
    assert "set HOME to a writable folder" in findings["home"].advice


@pytest.mark.parametrize("options", ["size=1m", "size=8g,nr_inodes=20"])
def test_full_disk_is_an_error(options, tmp_path, mounted):
    (tmp_path / "runs").mkdir()
    within = mounted(f"mount -t tmpfs -o {options} tmpfs {tmp_path}/runs")
    status, findings = _report("--quick", cwd=tmp_path, within=within, HOME=str(tmp_path))
    assert status == 1
    assert findings["runs"].fatal
    assert findings["runs"].advice == "Free space, or use another disk for runs."
    assert ("inodes" in findings["runs"].value) == ("inodes" in options)


def test_no_folder_for_temporary_files_is_an_error(monkeypatch):
    def raise_missing():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", raise_missing)
    finding = doctor._temporary()
    assert finding.fatal
    assert "--tmpfs /tmp" in finding.advice


def test_login_to_wandb_is_recognised(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert doctor._wandb().value == "not logged in"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert doctor._wandb().value == "logged in to api.wandb.ai"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert doctor._wandb().value == "logged in by WANDB_API_KEY"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert doctor._wandb().value == "WANDB_MODE is offline"


def test_a_cpu_build_beside_a_gpu_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_has_gpu", lambda: True)
    assert "install a CUDA build" in _findings(doctor._devices(torch))["CUDA"].advice
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "--gpus all" in _findings(doctor._devices(torch))["CUDA"].advice


def test_text_marks_errors_and_advice(capsys):
    findings = [
        doctor.Finding("disk", "runs", "full", "Free space.", fatal=True),
        doctor.Finding("disk", "data", "fine"),
    ]
    doctor._print(findings, healthy=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["disk", "  runs  full", "        error: Free space.", "  data  fine", "1 error, see above."]
