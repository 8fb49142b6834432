"""W&B with a server: the real client and agent run in subprocesses against a local mock server."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from lightning import Callback
from program import FOLDERS, REPOSITORY, tiny
from wandb_server import KEY, serve

OVERLAY = ["--config", str(REPOSITORY / "configs" / "overlays" / "wandb.yaml")]
SHORT = ["--trainer.max_epochs", "1", "--wandb.finish_timeout", "8"]
LIMIT = 120.0  # seconds that a run may take if the server stops responding
pytestmark = pytest.mark.slow


class Failing(Callback):
    """Raises in the second step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("intended failure")


class Vanishing(Callback):
    """Makes the server unresponsive during the first step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/vanish", data=b"{}", timeout=5)


def _environment(folder, url):
    """Return the environment of a user with a key for the server at a URL."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = {f"WANDB_{name}_DIR": str(folder / name) for name in ("CONFIG", "CACHE", "DATA")}
    return (
        environment
        | places
        | {
            "HOME": str(folder),
            "NETRC": str(folder / "netrc"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))),
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": url,
            "WANDB_ERROR_REPORTING": "false",
        }
    )


def _run_process(command, folder, url):
    """Run a command and return its exit code, its output, and its duration in seconds."""
    start = time.monotonic()
    process = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=_environment(folder, url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return process.returncode, process.stdout, time.monotonic() - start


def _fit(folder, url, *options):
    return _run_process(
        [sys.executable, REPOSITORY / "cli.py", "fit", *tiny("ipc"), *OVERLAY, *SHORT, *options], folder, url
    )


def _config(server, run_id):
    """Return the config of a run on the server."""
    return {name: part["value"] for name, part in json.loads(server.runs[run_id]["config"]).items()}


def test_run_uploads_config_console_and_checkpoints(tmp_path):
    with serve() as (server, url):
        code, printed, _ = _fit(tmp_path, url, "--wandb.log_model", "true")
        assert code == 0, printed
        [run_id] = server.runs
    assert server.runs[run_id]["project"] == "generalizable-inr"
    assert f"W&B: {url}/someone/generalizable-inr/runs/{run_id}" in printed
    sent = _config(server, run_id)
    del sent["_wandb"]
    assert sent == yaml.safe_load((tmp_path / "runs/unnamed/version_0/config.yaml").read_text())
    assert {"train/loss", "val/psnr", "grad_norm/total"} <= {name for row in server.history(run_id) for name in row}
    assert "effective batch" in server.console(run_id)
    assert server.ended == {run_id: 0}
    models = [artifact["input"] for artifact in server.artifacts if artifact["input"]["artifactTypeName"] == "model"]
    aliases = {json.loads(model["metadata"])["original_filename"]: model["aliases"] for model in models}
    assert {name: sorted(item["alias"] for item in items) for name, items in aliases.items()} == {
        "best.ckpt": ["best", "latest"],  # W&B labels each new version latest
        "last.ckpt": ["latest"],
    }


def test_failed_run_is_marked_and_contains_the_traceback(tmp_path):
    with serve() as (server, url):
        code, printed, _ = _fit(tmp_path, url, "--trainer.callbacks+", "test_wandb_server_runs.Failing")
        [run_id] = server.runs
    assert code == 1
    assert server.ended == {run_id: 1}
    assert "Traceback (most recent call last)" in server.console(run_id)
    assert "RuntimeError: intended failure" in server.console(run_id)
    assert printed.count("RuntimeError: intended failure") == 1


@pytest.mark.parametrize(("callbacks", "status"), [(["Vanishing"], 0), (["Vanishing", "Failing"], 1)])
def test_unresponsive_server_delays_a_run_for_a_limited_time(callbacks, status, tmp_path):
    options = [part for name in callbacks for part in ("--trainer.callbacks+", f"test_wandb_server_runs.{name}")]
    with serve() as (server, url):
        limits = ["--wandb.finish_timeout", "3", "--wandb.log_model", "true"]
        code, printed, seconds = _fit(tmp_path, url, *options, *limits)
        assert server.vanished
    assert code == status, printed
    assert seconds < LIMIT
    [kept] = tmp_path.glob("runs/unnamed/version_0/wandb/run-*")
    assert printed.count(f"W&B: to upload this run later: wandb sync {kept.relative_to(tmp_path)}\n") == 1
    assert "W&B: not everything was uploaded, because the server did not respond within 3 s.\n" in printed
    assert (kept.parents[1] / "checkpoints" / "last.ckpt").exists() == (status == 0)


def _agent(folder, url, *commands):
    """Run a subcommand of wandb and return its output."""
    code, printed, _ = _run_process([sys.executable, "-m", "wandb", *commands], folder, url)
    assert code == 0, printed
    return printed


def test_sweep_continues_after_a_failed_and_a_stopped_run(tmp_path):
    settings = {
        "data.init_args.batch_size": 8,
        "model.init_args.optimizer": "torch.optim.SGD",
        "model.init_args.optimizer.init_args.lr": 1e-05,
        "trainer.detect_anomaly": True,
        "trainer.gradient_clip_val": None,
        "wandb.tags": ["one", "two"],
    }
    planned = [settings, {"data.init_args.batch_size": -1}, {"trainer.max_epochs": 10000}, {"seed_everything": 5}]
    sweep = yaml.safe_load((REPOSITORY / "configs" / "sweeps" / "ablations.yaml").read_text())
    assert sweep["project"] == "generalizable-inr"
    sweep |= {"program": str(REPOSITORY / "cli.py"), "parameters": {"seed_everything": {"values": [0]}}}
    sweep["command"] = ["${env}", sys.executable, "${program}", "fit", *tiny("ipc"), *OVERLAY, *SHORT, "${args}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with serve(planned) as (server, url):
        server.stopped.add("run3")
        assert "wandb agent someone/generalizable-inr/s1" in _agent(tmp_path, url, "sweep", "sweep.yaml")
        printed = _agent(tmp_path, url, "agent", "someone/generalizable-inr/s1")
        assert server.projects == ["generalizable-inr"]
        assert server.handed == len(planned)
    assert server.ended.get("run1") == server.ended.get("run4") == 0, printed
    assert "batch_size is -1" in printed
    assert server.ended["run3"] == 1
    assert "SIGTERM" in server.console("run3")
    sent = _config(server, "run1")
    for name, value in settings.items():
        assert (sent[name], type(sent[name])) == (value, type(value))  # as in the sweep
    assert sent["data"]["init_args"]["batch_size"] == 8  # and as parsed by the program
    optimizer = sent["model"]["init_args"]["optimizer"]
    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.SGD", 1e-05)
    assert sent["trainer"]["detect_anomaly"] is True
    assert sent["trainer"]["gradient_clip_val"] is None
    assert sent["wandb"]["tags"] == server.runs["run1"]["tags"] == ["one", "two"]
    for run_id in ("run1", "run4"):
        assert server.runs[run_id]["project"] == "generalizable-inr"
        assert any("val/gain" in row or "val/psnr" in row for row in server.history(run_id))
