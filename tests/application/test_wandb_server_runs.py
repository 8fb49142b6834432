"""W&B with a server: the real client and the real agent, in processes of their own, against a stand-in on this machine."""

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
FASTER = ["--trainer.max_epochs", "1", "--wandb.finish_timeout", "8"]
LIMIT = 120.0  # seconds that a server which vanishes may cost
pytestmark = pytest.mark.slow


class Failing(Callback):
    """Ends a fit with an error of the second step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("this run is meant to fail")


class Vanishing(Callback):
    """Lets the server vanish during the first step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/vanish", data=b"{}", timeout=5)


def _environment(folder, url):
    """Return the environment of a user with a key for the server at an address."""
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


def _ended(command, folder, url):
    """Return a finished process and what it printed, and how long it took."""
    begun = time.monotonic()
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=_environment(folder, url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return finished.returncode, finished.stdout, time.monotonic() - begun


def _fit(folder, url, *options):
    return _ended(
        [sys.executable, REPOSITORY / "cli.py", "fit", *tiny("ipc"), *OVERLAY, *FASTER, *options], folder, url
    )


def _config(server, run_id):
    """Return the config of a run as its page shows it."""
    return {name: part["value"] for name, part in json.loads(server.runs[run_id]["config"]).items()}


def test_a_run_arrives_with_its_config_its_console_and_its_checkpoints(tmp_path):
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
    models = [made["input"] for made in server.artifacts if made["input"]["artifactTypeName"] == "model"]
    aliases = {json.loads(one["metadata"])["original_filename"]: one["aliases"] for one in models}
    assert {name: sorted(one["alias"] for one in found) for name, found in aliases.items()} == {
        "best.ckpt": ["best", "latest"],  # W&B calls each latest when it comes
        "last.ckpt": ["latest"],
    }


def test_a_run_that_fails_is_marked_and_has_its_traceback(tmp_path):
    with serve() as (server, url):
        code, printed, _ = _fit(tmp_path, url, "--trainer.callbacks+", "test_wandb_server_runs.Failing")
        [run_id] = server.runs
    assert code == 1
    assert server.ended == {run_id: 1}
    assert "Traceback (most recent call last)" in server.console(run_id)
    assert "RuntimeError: this run is meant to fail" in server.console(run_id)
    assert printed.count("RuntimeError: this run is meant to fail") == 1


@pytest.mark.parametrize(("callbacks", "status"), [(["Vanishing"], 0), (["Vanishing", "Failing"], 1)])
def test_a_server_that_vanishes_costs_little(callbacks, status, tmp_path):
    more = [part for name in callbacks for part in ("--trainer.callbacks+", f"test_wandb_server_runs.{name}")]
    with serve() as (server, url):
        code, printed, seconds = _fit(tmp_path, url, *more, "--wandb.log_model", "true")
        assert server.vanished
    assert code == status, printed
    assert seconds < LIMIT
    [kept] = tmp_path.glob("runs/unnamed/version_0/wandb/run-*")
    assert printed.count(f"W&B: to send it later, wandb sync {kept.relative_to(tmp_path)}\n") == 1
    assert "W&B: not everything was sent, because its server did not answer within 8 s.\n" in printed
    assert (kept.parents[1] / "checkpoints" / "last.ckpt").exists() == (status == 0)


def _agent(folder, url, *commands):
    """Run a command of W&B."""
    code, printed, _ = _ended([sys.executable, "-m", "wandb", *commands], folder, url)
    assert code == 0, printed
    return printed


def test_a_sweep_of_every_type_goes_on_after_a_failure_and_a_stop(tmp_path):
    every = {
        "data.init_args.batch_size": 8,
        "model.init_args.optimizer": "torch.optim.SGD",
        "model.init_args.optimizer.init_args.lr": 1e-05,
        "trainer.detect_anomaly": True,
        "trainer.gradient_clip_val": None,
        "wandb.tags": ["one", "two"],
    }
    planned = [every, {"data.init_args.batch_size": -1}, {"trainer.max_epochs": 10000}, {"seed_everything": 5}]
    sweep = yaml.safe_load((REPOSITORY / "configs" / "sweeps" / "ablations.yaml").read_text())
    assert sweep["project"] == "generalizable-inr"
    sweep |= {"program": str(REPOSITORY / "cli.py"), "parameters": {"seed_everything": {"values": [0]}}}
    sweep["command"] = ["${env}", sys.executable, "${program}", "fit", *tiny("ipc"), *OVERLAY, *FASTER, "${args}"]
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
    for name, value in every.items():
        assert (sent[name], type(sent[name])) == (value, type(value))  # as the sweep has it
    assert sent["data"]["init_args"]["batch_size"] == 8  # and as the program has understood it
    optimizer = sent["model"]["init_args"]["optimizer"]
    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.SGD", 1e-05)
    assert sent["trainer"]["detect_anomaly"] is True
    assert sent["trainer"]["gradient_clip_val"] is None
    assert sent["wandb"]["tags"] == server.runs["run1"]["tags"] == ["one", "two"]
    for run_id in ("run1", "run4"):
        assert server.runs[run_id]["project"] == "generalizable-inr"
        assert any("val/gain" in row or "val/psnr" in row for row in server.history(run_id))
