"""Composers and checkpoints: `build`, `save`, `load`, and files that do not fit."""

import contextlib
import copy
from pathlib import Path

import pytest
import torch
import yaml
from coordinates import grid
from PIL import Image
from program import COMPOSERS, TESTS, refused, rows, run, tiny
from safetensors.torch import save_file

import composers
from composers.checkpoint import located, read
from composers.construction import check_weights
from datamodules.batch import Observation
from datamodules.configuration import load_layers

PLAIN = (dict, list, str, int, float, bool, type(None))


def _config(composer):
    """Return the model of a tiny config, with the sizes that are filled in from the data."""
    path = TESTS / "configs" / f"tiny_{composer}.yaml"
    with contextlib.chdir(path.parent):
        config = load_layers(path.read_text())["model"]
    config["init_args"]["network"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["encoder"]["init_args"]["signal_shape"] = [3, 16, 16]
    return config


def _perturbed(name):
    """Return a composer of a tiny config with random changes to its initial weights."""
    composer = composers.build(_config(name)).eval()
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return composer


def _values(composer):
    """Return the values of fixed images at fixed coordinates."""
    signal = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return composer(Observation(signal), grid((5, 7)))


def _leaves(tree):
    """Yield all objects nested in dictionaries and lists."""
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    yield tree
    for child in children:
        yield from _leaves(child)


@pytest.fixture(scope="module", params=COMPOSERS)
def trained(request, tmp_path_factory):
    """Return the checkpoint of a tiny composer trained by the program."""
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.chdir(folder):
        run("fit", *tiny(request.param))
    return folder / "runs" / "unnamed" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("composer", COMPOSERS)
def test_loaded_composer_equals_the_saved_one(composer, tmp_path):
    original = _perturbed(composer)
    composers.save(original, tmp_path / "model.ckpt")
    torch.manual_seed(7)
    loaded = composers.load(tmp_path / "model.ckpt")
    assert type(loaded) is type(original)
    assert not loaded.training
    assert torch.equal(_values(loaded), _values(original))
    assert loaded.config == original.config
    assert list(loaded.measures) == ["psnr", "ssim", "gain"]
    assert loaded.refinement.steps == 3
    assert loaded.configure_optimizers().defaults["lr"] == 1e-2


@pytest.mark.parametrize("composer", COMPOSERS)
def test_repeated_saving_and_loading_changes_nothing(composer, tmp_path):
    original = _perturbed(composer)
    loaded = original
    for generation in range(3):
        composers.save(loaded, tmp_path / f"{generation}.ckpt")
        loaded = composers.load(tmp_path / f"{generation}.ckpt")
    assert torch.equal(_values(loaded), _values(original))


@pytest.mark.parametrize("composer", COMPOSERS)
def test_build_does_not_modify_the_config(composer):
    config = _config(composer)
    before = copy.deepcopy(config)
    built = composers.build(config)
    assert config == before
    assert built.config == before
    config["init_args"]["network"]["init_args"]["hidden_dim"] = 99
    assert built.config == before


def test_trained_checkpoint_holds_plain_data_and_builds_its_model(trained):
    content = torch.load(trained, weights_only=True)
    assert all(type(leaf) in PLAIN for leaf in _leaves(content["composer"]))
    loaded = composers.load(trained)
    assert type(loaded).__name__ == content["composer"]["class_path"].rpartition(".")[2]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, content["state_dict"][name])
    saved = yaml.safe_load((trained.parents[1] / "config.yaml").read_text())
    assert saved["model"] == content["composer"]


def test_save_leaves_out_the_state_of_training(trained, tmp_path):
    composers.save(composers.load(trained), tmp_path / "weights.ckpt")
    assert (tmp_path / "weights.ckpt").stat().st_size < trained.stat().st_size / 2
    assert torch.equal(_values(composers.load(tmp_path / "weights.ckpt")), _values(composers.load(trained)))


def test_load_moves_weights_to_map_location(trained):
    on_meta = composers.load(trained, map_location="meta")
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}
    on_cpu = composers.load(str(trained), map_location=torch.device("cpu"))
    assert {tensor.device.type for tensor in on_cpu.state_dict().values()} == {"cpu"}


def test_composer_created_in_python_cannot_be_saved(make_ipc, tmp_path):
    with pytest.raises(ValueError, match=r"created in Python and has no config: create it with `composers\.build"):
        composers.save(make_ipc(), tmp_path / "model.ckpt")
    assert not (tmp_path / "model.ckpt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_path": "composers.TransformerICP"}, r"not a valid Composer in this version: .*'TransformerICP'"),
        ({"class_path": "torch.nn.Linear"}, r"not a valid Composer in this version: .*torch\.nn\.Linear"),
        ({"init_args": {"rnk": 4}}, r"not a valid Composer in this version: .*'rnk' is not accepted"),
        ({"init_args": {"rank": "many"}}, r"not a valid Composer in this version: .*rank.*int.*many"),
    ],
)
def test_build_with_an_invalid_config_raises(change, message):
    config = _config("ipc")
    config["init_args"] |= change.pop("init_args", {})
    with pytest.raises(ValueError, match=message) as raised:
        composers.build(config | change)
    assert "Union subtypes" not in str(raised.value)


def test_load_of_a_checkpoint_without_config_raises(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    torch.save(content | {"composer": None}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"bare\.ckpt holds weights of a composer .* but no config of its model"):
        composers.load(tmp_path / "bare.ckpt")


def _by_other_tools(state, config):
    """Return what other tools write for the weights of a composer, by name."""
    averaged = {f"module.{name}": weight for name, weight in state.items()}
    return {
        "plain": state,
        "lightning": {"state_dict": state, "hyper_parameters": {}, "epoch": 3},
        "fabric": {"model": state, "optimizer": {"param_groups": []}},
        "parallel": {"state_dict": averaged},
        "averaged": {"n_averaged": torch.tensor(3), **averaged},
        "compiled": {f"_orig_mod.{name}": weight for name, weight in state.items()},
        "compiled_part": {name.replace("start.", "start._orig_mod.", 1): weight for name, weight in state.items()},
        "fsdp": {"model": {f"_forward_module._fsdp_wrapped_module.{name}": weight for name, weight in state.items()}},
        "attribute": {"state_dict": {f"model.composer.{name}": weight for name, weight in state.items()}},
    }


@pytest.mark.slow
def test_weights_of_our_models_that_other_tools_saved_are_recognised(tmp_path):
    original, config = _perturbed("ipc"), tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {}, "model": original.config}))
    state = original.state_dict()
    for name, content in _by_other_tools(state, original.config).items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=rf"{name}\.pt holds weights of a composer of this software \(.*start.*\), but no"
        ):
            composers.load(path)
        loaded = composers.load(path, config=config)
        assert torch.equal(_values(loaded), _values(original))
    save_file(state, tmp_path / "weights.safetensors")
    assert torch.equal(
        _values(composers.load(tmp_path / "weights.safetensors", config=original.config)), _values(original)
    )
    composers.save(loaded, tmp_path / "complete.ckpt")
    assert torch.equal(_values(composers.load(tmp_path / "complete.ckpt")), _values(original))
    torch.save({"state_dict": state, "hyper_parameters": original.config}, tmp_path / "stated.ckpt")
    assert torch.equal(_values(composers.load(tmp_path / "stated.ckpt")), _values(original))


def test_the_program_takes_weights_of_other_tools_with_a_config(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({f"_orig_mod.{name}": weight for name, weight in read(trained)["state_dict"].items()}, "plain.pt")
    Image.new("RGB", (16, 16), "teal").save("teal.png")
    predict = ["predict", "--images", "teal.png", "--ckpt_path"]
    assert "pass its config with `--config FILE` of cli.py" in refused(*predict, "plain.pt")
    config = yaml.safe_load((trained.parents[1] / "config.yaml").read_text())["model"]
    Path("model.yaml").write_text(yaml.safe_dump({"model": config}))
    run(*predict, "plain.pt", "--config", "model.yaml", "--output", "of_weights")
    run(*predict, trained, "--output", "of_run")
    assert Path("of_weights/teal.png").read_bytes() == Path("of_run/teal.png").read_bytes()


def test_weights_of_other_software_are_refused(tmp_path):
    foreign = torch.nn.Linear(2, 2).state_dict()
    torch.save({"state_dict": foreign}, tmp_path / "foreign.pt")
    with pytest.raises(
        ValueError, match=r"foreign\.pt has no config of its model, and its weights are not those of a composer"
    ):
        composers.load(tmp_path / "foreign.pt")
    torch.save(foreign, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt is not a checkpoint of this software: it has no `state_dict`"):
        composers.load(tmp_path / "foreign.pt")


def test_load_with_weights_that_do_not_match_the_config_raises(tmp_path):
    composer = composers.build(_config("ipc"))
    weights = composer.state_dict()
    weights["parametrization.bases.1"] = weights["parametrization.bases.1"][:4]
    weights["extra"] = weights.pop("start.readout.positions")
    torch.save({"state_dict": weights, "composer": composer.config}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"odd\.ckpt belongs to another model than the TransformerIPC") as raised:
        composers.load(tmp_path / "odd.ckpt")
    for line in (
        "bases.1: (4, 8) in the file, (8, 8) in the model",
        "start.readout.positions: missing in the file",
        "extra: not in the model",
    ):
        assert line in str(raised.value)


def test_error_message_lists_the_first_differences_only(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    torch.save(content | {"state_dict": {}}, tmp_path / "none.ckpt")
    count = len(content["state_dict"])
    with pytest.raises(ValueError, match=rf"and {count - 8} more") as raised:
        composers.load(tmp_path / "none.ckpt")
    assert str(raised.value).count("missing in the file") == 8


def test_config_of_bundled_weights_builds_their_model():
    folder = located("photos_ipc").parent
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    composer = composers.build(config["model"])
    check_weights(composer, read("photos_ipc"), "photos_ipc")
    steps = [int(row["step"]) for row in rows(folder / "metrics.csv") if "train/loss" in row]
    assert steps == sorted(steps)
    assert steps[-1] > 19_000
