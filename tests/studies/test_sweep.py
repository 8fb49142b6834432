"""`studies.sweep`: runs are trained, resumed, stopped early and compared; a small script stands for the program."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from program import FOLDERS, REPOSITORY, SAVE_DIR, asked, assert_same, checkpoint, rows, run, tiny

from studies import sweep, sweep_runs

LIMIT = 60  # seconds that a process may take
# Writes one validation per value of `losses`; after the values, it finishes, fails, or waits for a signal as training does.
PROGRAM = """
import json, signal, sys
from pathlib import Path
signal.alarm(60)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
folder = Path(given["trainer.logger.init_args.save_dir"], given["trainer.logger.init_args.name"])
version = folder / f"version_{len(list(folder.glob('version_*')))}"
(version / "checkpoints").mkdir(parents=True)
(version / "given.json").write_text(json.dumps(given))
losses = [float(loss) for loss in given["losses"].split(",")]
done = 3 * (given.get("ckpt_path") == "last")
with (version / "metrics.csv").open("w") as file:
    file.write("epoch,step,train/loss,val/m\\n")
    for step, loss in list(enumerate(losses))[done:]:
        file.write(f"{step},{step},1.0,\\n{step},{step},,{loss}\\n")
end = given.get("end", "finish")
if end == "fail":
    sys.exit("error: rank is -1; it must be at least 1.")
(version / "checkpoints" / "last.ckpt").touch()
if end == "wait" and not done:
    Path("waiting").touch()
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder with the script, and look at metrics often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_runs, "_POLL", 0.02)
    Path("program.py").write_text(PROGRAM)


def _write(**content):
    """Write a sweep file."""
    base = {"program": "program.py", "method": "grid", "metric": {"name": "val/m", "goal": "minimize"}}
    base["command"] = ["${env}", "${interpreter}", "${program}", "${args}"]
    Path("sweep.yaml").write_text(yaml.safe_dump(base | content, sort_keys=False))


def _run(*args):
    """Run the command and return its exit status or message."""
    try:
        sweep.main(["sweep.yaml", "--output=out", *args])
    except SystemExit as ended:
        return ended.code
    return 0


def _states():
    """Return the states of the runs by number."""
    return {int(path.parent.name): json.loads(path.read_text())["state"] for path in Path("out").glob("*/run.json")}


def test_grid_is_trained_once_and_the_best_run_is_first(capsys):
    _write(parameters={"losses": {"values": ["3,2", "3,1", "4,5"]}})
    assert _run() == 0
    assert _states() == dict.fromkeys((1, 2, 3), "finished")
    table = rows("out/runs.csv")
    assert [(row["run"], row["validations"], row["losses"], row["val/m"]) for row in table] == [
        ("2", "2", "3,1", "1.0"),
        ("1", "2", "3,2", "2.0"),
        ("3", "2", "4,5", "5.0"),
    ]
    assert Path("out/runs.png").stat().st_size > 5000
    assert "3 run(s)" in capsys.readouterr().out
    assert _run() == 0
    assert len(list(Path("out").glob("*/version_*"))) == 3  # no run was repeated


def test_failed_run_is_named_the_sweep_goes_on_and_the_next_command_tries_again(capsys):
    _write(parameters={"losses": {"value": "1"}, "end": {"values": ["fail", "finish"]}})
    assert _run() == "error: run 1 of sweep.yaml failed; the same command tries again."
    assert _states() == {1: "failed", 2: "finished"}
    assert "run 1 failed with exit status 1: rank is -1; it must be at least 1. (out/001/output.log)" in (
        capsys.readouterr().err
    )
    Path("program.py").write_text(PROGRAM.replace('end == "fail"', "False"))
    assert _run() == 0
    assert _states() == {1: "finished", 2: "finished"}


def test_hyperband_stops_a_run_with_a_signal_and_its_row_says_so():
    hyperband = {"type": "hyperband", "min_iter": 2, "eta": 2}
    losses = {"losses": {"values": ["3,1", "3,1.5", "3,2"]}, "end": {"value": "wait"}}
    _write(parameters=losses, early_terminate=hyperband)
    Path("program.py").write_text(PROGRAM.replace('end == "wait"', 'end == "wait" and losses[1] > 1.5'))
    assert _run() == 0
    assert _states() == {1: "finished", 2: "finished", 3: "stopped"}
    assert {row["run"]: (row["state"], row["val/m"]) for row in rows("out/runs.csv")}["3"] == ("stopped", "2.0")
    assert json.loads(Path("out/003/run.json").read_text())["status"] == 143
    assert _run() == 0
    assert not Path("out/003/version_1").exists()  # a stopped run is complete


def _wait(condition):
    """Wait until a condition holds, at most `LIMIT` seconds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start(*args):
    """Start the command in a process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "studies.sweep", "sweep.yaml", "--output=out", *args]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _signal_when_waiting():
    """Send SIGTERM to this process once the script waits."""
    _wait(Path("waiting").exists)
    os.kill(os.getpid(), signal.SIGTERM)


def test_interrupted_sweep_continues_the_run():
    _write(parameters={"losses": {"value": "5,4,3,2,1"}, "end": {"values": ["wait", "finish"]}})
    sender = threading.Thread(target=_signal_when_waiting, daemon=True)
    sender.start()
    assert _run() == 128 + signal.SIGTERM
    sender.join(LIMIT)
    assert _states() == {1: "interrupted"}
    assert _run() == 0
    assert json.loads(Path("out/001/version_1/given.json").read_text())["ckpt_path"] == "last"
    assert {row["run"]: row["validations"] for row in rows("out/runs.csv")} == {"1": "5", "2": "5"}
    assert _states() == {1: "finished", 2: "finished"}


def test_run_in_progress_elsewhere_is_left_alone(capsys):
    _write(parameters={"losses": {"values": ["1", "2"]}})
    with sweep_runs.SweepRun(1, Path("out/001"), {}, [], []).reserved():
        assert _run() == 0
    assert _states() == {2: "finished"}
    assert "1 of 2 runs are not complete; the same command continues them." in capsys.readouterr().out


@pytest.mark.slow
def test_run_of_a_killed_sweep_stays_reserved_while_it_trains():
    _write(parameters={"losses": {"value": "1"}, "end": {"value": "wait"}})
    with _start() as process:
        try:
            _wait(Path("waiting").exists)
            [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.kill()
            process.communicate(timeout=LIMIT)
    assert _run() == 0
    assert not Path("out/001/version_1").exists()
    os.kill(int(child), signal.SIGKILL)

    def is_free():
        with sweep_runs.SweepRun(1, Path("out/001"), {}, [], []).reserved() as lock:
            return lock is not None

    _wait(is_free)
    assert _run() == 0
    assert _states() == {1: "finished"}


def test_random_search_needs_an_end(capsys):
    _write(method="random", parameters={"losses": {"values": ["1", "2"]}})
    assert _run() == "error: sweep.yaml: method random has no end: pass --runs, or set run_cap in the file."
    assert _run("--runs=2") == 0
    earlier = [json.loads(Path(f"out/00{number}/run.json").read_text())["values"] for number in (1, 2)]
    assert _run("--runs=3") == 0
    assert len(_states()) == 3
    assert [json.loads(Path(f"out/00{number}/run.json").read_text())["values"] for number in (1, 2)] == earlier


def test_bayesian_search_uses_earlier_runs():
    _write(method="bayes", run_cap=6, parameters={"losses": {"min": 0.0, "max": 9.0}})
    assert _run() == 0
    actual = {int(row["run"]): float(row["losses"]) for row in rows("out/runs.csv")}
    planned = sweep.read_sweep(Path("sweep.yaml"))
    random = {number: planned.values_at(planned.drawn(0, number))["losses"] for number in range(1, 7)}
    assert [number for number in random if actual[number] != random[number]] == [6]
    assert actual[6] < min(random.values())


def test_folder_of_another_sweep_is_refused():
    _write(parameters={"losses": {"value": "1"}})
    assert _run() == 0
    _write(parameters={"losses": {"value": "2"}})
    message = _run()
    assert message.startswith("error: out/001 contains a run of another sweep or with other options (")
    assert message.endswith("): choose another --output, or delete the folder.")


def test_values_and_numbers_of_runs_are_chosen():
    _write(parameters={"losses": {"values": ["1", "2", "3"]}})
    assert _run("--only", '{"losses": ["3"]}') == 0
    assert [row["losses"] for row in rows("out/runs.csv")] == ["3"]
    assert _run("--runs=0") == 2


def test_damaged_record_is_named():
    _write(parameters={"losses": {"value": "1"}})
    assert _run() == 0
    Path("out/001/run.json").write_text("{")
    assert _run() == "error: out/001/run.json is damaged: delete out/001 to train this run again."


def test_wandb_is_disabled_unless_its_mode_is_set(monkeypatch):
    Path("program.py").write_text(
        PROGRAM + 'import os; (version / "mode").write_text(os.environ["WANDB_MODE"] + os.environ["PATH"])'
    )
    _write(parameters={"losses": {"values": ["1", "2"]}})
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert _run("--runs=1") == 0
    assert Path("out/001/version_0/mode").read_text().startswith(f"disabled{Path(sys.executable).parent}:")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _run() == 0
    assert Path("out/002/version_0/mode").read_text().startswith("offline")


@pytest.mark.slow
def test_interrupted_run_of_the_program_equals_an_uninterrupted_one():
    base = [
        "${env}",
        "python",
        "${program}",
        "fit",
        *tiny("ipc"),
        "--trainer.max_epochs=60",
        "--trainer.accelerator=cpu",
    ]
    base += ["--trainer.check_val_every_n_epoch=15", f"--config={REPOSITORY}/configs/overlays/wandb.yaml", "${args}"]
    rank = "model.init_args.rank"
    _write(
        program=str(REPOSITORY / "cli.py"), command=base, parameters={rank: {"value": 2}}, metric={"name": "val/psnr"}
    )
    with _start() as process:
        try:
            _wait(lambda: list(Path("out").glob("001/version_0/checkpoints/last.ckpt")))
            process.terminate()
            process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "SIGTERM: training stopped at step" in Path("out/001/output.log").read_text()
    with _start() as process:
        try:
            printed = process.communicate(timeout=120)[0]
        finally:
            process.kill()
    assert process.returncode == 0, printed
    [row] = rows("out/runs.csv")
    assert (row["state"], row["validations"], row["step"]) == ("finished", "4", "359.0")
    settings = [
        "--trainer.max_epochs=60",
        "--trainer.check_val_every_n_epoch=15",
        f"--{rank}=2",
        f"{SAVE_DIR}=reference",
    ]
    run("fit", *tiny("ipc"), *settings)
    assert_same(checkpoint("out/001/version_1")["state_dict"], checkpoint("reference/unnamed/version_0")["state_dict"])


SWEEPS = sorted((REPOSITORY / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_bundled_sweeps_name_both_commands(path):
    comments = " ".join(
        line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")
    )
    assert f"`python -m studies.sweep configs/sweeps/{path.name}`" in comments
    assert f"`wandb sweep configs/sweeps/{path.name}`" in comments


def _choices(planned):
    """Return values of runs that together contain every value of every parameter, and three draws of continuous ones."""
    sizes = [len(parameter.choices() or (1, 2, 3)) for parameter in planned.parameters]
    positions = [[(number % size + 0.5) / size for size in sizes] for number in range(max(sizes))]
    return [planned.values_at(position) for position in positions]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[] if path.stem in ("images", "audio", "inner_loops") else pytest.mark.slow
        )
        for path in SWEEPS
    ],
)
def test_metrics_and_first_values_of_bundled_sweeps_belong_to_the_program(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    planned = sweep.read_sweep(path)
    first, *_ = _choices(planned)
    config = _parsed(planned, first)
    assert planned.metric.name.removeprefix("val/") in config["model"]["init_args"]["metrics"]
    epochs, interval = (config["trainer"][name] for name in ("max_epochs", "check_val_every_n_epoch"))
    if planned.hyperband is not None:
        assert planned.hyperband.brackets[0] < epochs // interval  # something is left to save


def _parsed(planned, values):
    """Return the config that the program reads from the command of a run."""
    command = planned.render(values)
    config = yaml.safe_load(asked(*command[command.index("cli.py") + 1 :], "--print_config"))
    for name, value in values.items():
        if name not in ("config", "model"):
            assert _value(config, name) == value, name
    return config


def _value(config, name):
    """Return the value of a dotted option in a config."""
    for key in name.split("."):
        config = config[key]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SWEEPS if "ablations" not in path.stem], ids=lambda path: path.stem)
def test_every_value_of_bundled_sweeps_is_read_by_the_program(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    planned = sweep.read_sweep(path)
    for values in _choices(planned)[1:]:
        _parsed(planned, values)
