"""A global batch gives the same training however it is split, and every held-out instance counts once."""

import pytest
from program import NAME, REPOSITORY, checkpoint, column, refused, rows, run, run_two, tiny

SGD = "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.5}}"
IPC = ["--model.init_args.transformer.init_args.residual_dropout=0", SGD]
MODELS = {
    "ipc": [*tiny("ipc"), *IPC, "--data.init_args.crops_per_epoch=30"],
    "meta_ipc": [*tiny("meta_ipc"), SGD, "--data.init_args.crops_per_epoch=30"],
    "patch_ipc": [*tiny("patch_ipc"), SGD, "--data.init_args.crops_per_epoch=30"],
    "speech": [
        *tiny("speech"),
        "--data.init_args.crops_per_epoch=16",
        "--data.init_args.seconds=16",
    ],  # padded, with masks
}
METRICS = ("train/loss", "val/loss")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _fit(model, largest, folder, devices=1):
    """Return the command that trains on global batches of 8, of at most ``largest`` instances per device."""
    strategy = [f"--trainer.devices={devices}", "--trainer.strategy=ddp"] if devices > 1 else []
    size = ["--global_batch_size=8", f"--data.init_args.batch_size={largest}"]
    return ["fit", *MODELS[model], *size, *strategy, "--trainer.enable_progress_bar=false", NAME, f"{model}_{folder}"]


def _assert_same(model, *folders):
    """Compare the losses of every step, and the weights after the last."""
    whole = checkpoint(f"runs/{model}_whole/version_0")
    for folder in folders:
        parts = checkpoint(f"runs/{model}_{folder}/version_0")
        assert parts["global_step"] == whole["global_step"] >= 2
        for key, weight in whole["state_dict"].items():
            assert (parts["state_dict"][key] - weight).abs().max() < 2e-6, (folder, key)
        for name in METRICS:
            expected, actual = (
                column(f"runs/{model}_{run_name}/version_0/metrics.csv", name) for run_name in ("whole", folder)
            )
            assert len(expected) == (whole["global_step"] if name == "train/loss" else 1)
            assert actual == pytest.approx(expected, rel=2e-5), (folder, name)


@pytest.mark.slow
def test_every_split_of_a_global_batch_trains_the_same_model(tmp_path):
    for model in MODELS:
        run(*_fit(model, 8, "whole"))
    run(*_fit("ipc", 4, "1x4x2"))
    commands = [_fit(model, 2, "2x2x2", devices=2) for model in MODELS]
    printed = run_two([_fit("ipc", 4, "2x4x1", devices=2), *commands], tmp_path)
    assert "8 = 4 x 2 device(s) x 1 accumulated" in printed
    assert printed.count("8 = 2 x 2 device(s) x 2 accumulated") == len(MODELS)
    _assert_same("ipc", "1x4x2", "2x4x1", "2x2x2")
    for model in ("meta_ipc", "patch_ipc", "speech"):
        _assert_same(model, "2x2x2")


@pytest.mark.slow
def test_eight_processes_train_as_one(tmp_path):
    run(*_fit("ipc", 8, "whole"))
    run_two([_fit("ipc", 8, "8x1x1", devices=8)], tmp_path, count=8)
    _assert_same("ipc", "8x1x1")


@pytest.mark.slow
def test_run_resumes_with_another_split_of_its_global_batch(tmp_path):
    run(*_fit("ipc", 8, "whole"), "--trainer.max_epochs=2")
    run_two([_fit("ipc", 4, "first", devices=2)], tmp_path)
    last = "runs/ipc_first/version_0/checkpoints/last.ckpt"
    run(*_fit("ipc", 2, "second"), "--trainer.max_epochs=2", "--ckpt_path", last)
    whole, parts = (checkpoint(f"runs/ipc_{folder}/version_0") for folder in ("whole", "second"))
    assert whole["global_step"] == parts["global_step"] == 6
    for key, weight in whole["state_dict"].items():
        assert (parts["state_dict"][key] - weight).abs().max() < 2e-6, key


@pytest.mark.slow
def test_fewer_held_out_instances_than_processes_count_once(tmp_path):
    """Five images for validation, and one for the test, on two processes."""
    few = [*MODELS["ipc"], "--data.class_path=program.FivePhotos", "--data.init_args.eval_batch_size=2"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    run("fit", *few, NAME, "whole")
    weights = ["--ckpt_path", "runs/whole/version_0/checkpoints/last.ckpt"]
    for command in ("validate", "test"):
        run(command, *few, *weights, NAME, command)
    printed = run_two([[name, *few, *weights, *two, NAME, f"{name}_two"] for name in ("validate", "test")], tmp_path)
    assert printed.count("Mean over 1 instances") == 1
    for command, count in (("validate", 5), ("test", 1)):
        expected, actual = (rows(f"runs/{name}/version_0/metrics.csv")[-1] for name in (command, f"{command}_two"))
        assert expected.keys() == actual.keys()
        for key, value in expected.items():
            assert float(actual[key]) == pytest.approx(float(value), rel=1e-6), (command, count, key)
    expected, actual = (rows(f"runs/{name}/version_0/test_instances.csv") for name in ("test", "test_two"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    assert len(actual) == 1


@pytest.mark.slow
def test_padded_recordings_on_four_processes_count_once(tmp_path):
    """Six recordings: two processes evaluate two, and two evaluate one."""
    run("fit", *MODELS["speech"], "--data.init_args.batch_size=8", NAME, "whole")
    test = ["test", *MODELS["speech"], "--ckpt_path", "runs/whole/version_0/checkpoints/last.ckpt"]
    run(*test, NAME, "one")
    run_two([[*test, "--trainer.devices=4", "--trainer.strategy=ddp", NAME, "four"]], tmp_path, count=4)
    expected, actual = (rows(f"runs/{name}/version_0/test_instances.csv") for name in ("one", "four"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    assert len(actual) == 6
    one, four = (rows(f"runs/{name}/version_0/metrics.csv")[-1] for name in ("one", "four"))
    for name in ("test/loss", "test/psnr"):
        assert float(four[name]) == pytest.approx(float(one[name]), rel=1e-5)


@pytest.mark.slow
def test_sharded_weights_train_as_complete_ones(tmp_path):
    """Processes without GPUs share the weights; their checkpoint is that of one process."""
    run(*_fit("ipc", 8, "whole"))
    overlay = ["--config", REPOSITORY / "configs" / "overlays" / "fsdp.yaml", "--trainer.precision=32-true"]
    run_two([[*_fit("ipc", 4, "sharded"), *overlay, "--trainer.devices=2"]], tmp_path)
    _assert_same("ipc", "sharded")
    run("test", *MODELS["ipc"], "--ckpt_path", "runs/ipc_sharded/version_0/checkpoints/last.ckpt", NAME, "tested")


@pytest.mark.slow
def test_sharded_run_resumes_and_is_evaluated_as_with_complete_weights(tmp_path):
    """With its momentum and another learning rate, from a checkpoint of two processes."""
    momentum = "--model.init_args.optimizer={{class_path: torch.optim.SGD, init_args: {{lr: {}, momentum: 0.9}}}}"
    overlay = ["--config", REPOSITORY / "configs" / "overlays" / "fsdp.yaml", "--trainer.precision=32-true"]
    sharded = [*overlay, "--trainer.devices=2"]
    last = "runs/ipc_{}/version_0/checkpoints/last.ckpt"
    resumed = [momentum.format(0.2), "--trainer.max_epochs=2", "--ckpt_path", last.format("first")]
    validate, test = ([name, *MODELS["ipc"], "--ckpt_path", last.format("sharded")] for name in ("validate", "test"))
    commands = [
        [*_fit("ipc", 4, "first"), momentum.format(0.3), *sharded],
        [*_fit("ipc", 4, "sharded"), *resumed, *sharded],
        [*validate, *sharded, NAME, "validated"],
        [*test, *sharded, NAME, "tested"],
    ]
    assert "lr 0.3 -> 0.2" in run_two(commands, tmp_path)
    run(*_fit("ipc", 8, "whole"), *resumed)
    run(*test, NAME, "tested_whole")
    whole, parts = (checkpoint(f"runs/ipc_{folder}/version_0") for folder in ("whole", "sharded"))
    assert parts["global_step"] == whole["global_step"] == 6
    for key, weight in whole["state_dict"].items():
        assert (parts["state_dict"][key] - weight).abs().max() < 2e-6, key
    [expected], [actual] = whole["optimizer_states"], parts["optimizer_states"]
    assert actual["param_groups"][0]["lr"] == expected["param_groups"][0]["lr"] == 0.2
    assert len(expected["state"]) > 10
    for number, state in expected["state"].items():
        difference = actual["state"][number]["momentum_buffer"] - state["momentum_buffer"]
        assert difference.abs().max() < 2e-6, number
    for name, *folders in (("val/psnr", "ipc_sharded", "validated"), ("test/psnr", "tested_whole", "tested")):
        [expected], [actual] = (column(f"runs/{folder}/version_0/metrics.csv", name) for folder in folders)
        assert actual == pytest.approx(expected, rel=1e-6), name


@pytest.mark.slow
def test_model_that_cannot_be_sharded_is_refused(tmp_path):
    overlay = ["--config", REPOSITORY / "configs" / "overlays" / "fsdp.yaml", "--trainer.devices=1"]
    message = refused("fit", *MODELS["meta_ipc"], *overlay)
    assert "this MetaIPC has none: use --trainer.strategy ddp" in message
