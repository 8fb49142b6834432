"""Checkpoints may name classes of this software, and of modules that the user names; nothing else is imported."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from program import REPOSITORY, TESTS, refused

import composers
from composers import plugins
from composers.plugins import allow_classes_of, check_classes, import_plugins

PHOTOS = REPOSITORY / "weights" / "photos_liif" / "weights.ckpt"
EVIL = "from pathlib import Path\nPath('imported').touch()\n\nclass Thing:\n    pass\n"


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch):
    """Forget the modules that other tests named, and those of this one."""
    monkeypatch.setattr(plugins, "_named", set())


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Work in a folder of modules that leave a file behind when they are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil_part.py").write_text(EVIL)
    Path("config_of_evil").write_text("class_path: evil_part.Thing\n")
    yield tmp_path
    sys.modules.pop("evil_part", None)


def _checkpoint(change):
    """Write a checkpoint of bundled weights whose config was changed, and return its name."""
    content = torch.load(PHOTOS, weights_only=True)
    change(content["composer"]["init_args"])
    torch.save(content, "weights.ckpt")
    return "weights.ckpt"


def _cycle(arguments):
    arguments["loss"] = arguments


REFUSED = {
    "class_path": (lambda config: config["network"].update(class_path="evil_part.Thing"), "evil_part.Thing"),
    "text": (lambda config: config.update(network="evil_part.Thing"), "evil_part.Thing"),
    "list": (lambda config: config.update(metrics={"a": [["evil_part.Thing"]]}), "evil_part.Thing"),
    "unused": (lambda config: config.update(anything={"class_path": "evil_part.Thing"}), "evil_part.Thing"),
    "yaml": (lambda config: config.update(network="{class_path: evil_part.Thing}"), "would be read as a config"),
    "file": (lambda config: config.update(network="config_of_evil"), "would be read as a config"),
    "function": (
        lambda config: config.update(loss={"class_path": "composers.construction.load"}),
        "which is not a class",
    ),
    "through": (lambda config: config.update(loss={"class_path": "composers.checkpoint.torch.hub.load"}), "torch.hub"),
    "standard": (lambda config: config.update(loss={"class_path": "subprocess.Popen"}), "subprocess.Popen"),
    "torch": (lambda config: config.update(loss={"class_path": "torch.nn.Linear"}), "torch.nn.Linear"),
    "number": (lambda config: config.update(loss={"class_path": 3}), "cannot be built"),
    "name": (lambda config: config.update(loss={"class_path": "not a name"}), "not the path of a class"),
    "cycle": (_cycle, "nested too deeply"),
    "long": (lambda config: config.update(skip="x" * 2000), "2,000 characters"),
    "many": (lambda config: config["network"]["init_args"].update(hidden_dim=1 << 40), "an integer above"),
    "size": (lambda config: config["network"]["init_args"].update(hidden_dim=1 << 24), "belongs to another model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_imports_no_module_that_was_not_named(case, evil):
    change, message = REFUSED[case]
    path = _checkpoint(change)
    with pytest.raises(ValueError, match=r"^weights\.ckpt ") as raised:
        composers.load(path)
    assert message in str(raised.value)
    assert not Path("imported").exists()
    assert "evil_part" not in sys.modules


def test_the_refusal_names_the_fix(evil):
    path = _checkpoint(REFUSED["class_path"][0])
    with pytest.raises(ValueError, match="weights") as raised:
        composers.load(path)
    assert str(raised.value) == (
        "weights.ckpt names evil_part.Thing (class_path in its config), which is not a class of this software: its module is "
        "not imported. If you trust the file, name the module: `--plugins evil_part`, or "
        '`composers.load(path, plugins=["evil_part"])` in Python.'
    )
    message = refused("predict", "--images", "x.png", "--ckpt_path", path)
    assert "name the module: `--plugins evil_part`" in message
    assert not Path("imported").exists()


@pytest.mark.slow
def test_a_package_in_the_working_directory_does_not_pass_for_ours(tmp_path):
    """In a new process, whose working directory comes first in the path of modules."""
    Path(tmp_path, "modalities").mkdir()
    Path(tmp_path, "modalities", "__init__.py").write_text("open('imported', 'w').close()\n")
    script = (
        "from composers.plugins import check_classes\n"
        "check_classes({'loss': {'class_path': 'modalities.audio_losses.MultiResolutionSTFT'}}, 'a.ckpt')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"imports from {tmp_path / 'modalities'} rather than {REPOSITORY / 'modalities'}" in process.stderr
    assert not Path(tmp_path, "imported").exists()


def test_named_modules_are_imported_and_their_classes_allowed(evil):
    config = {"class_path": "evil_part.Thing"}
    import_plugins(["evil_part"])
    assert Path("imported").exists()
    check_classes(config, "a.ckpt")
    with pytest.raises(ValueError, match=r"names pathlib\.Path .* not a class of this software"):
        check_classes({"class_path": "pathlib.Path"}, "a.ckpt")
    with pytest.raises(ValueError, match=r"names evil_part\.Path .*--plugins pathlib(\._local)?`"):  # of Python 3.13
        check_classes({"class_path": "evil_part.Path"}, "a.ckpt")
    with pytest.raises(ValueError, match="--plugins names 'no_such', which cannot be imported"):
        import_plugins(["no_such"])


def test_a_config_of_the_user_names_its_classes(evil):
    config = {"model": {"init_args": {"network": {"class_path": "evil_part.Thing"}}}}
    allow_classes_of(config)
    assert not Path("imported").exists()
    check_classes(config, "a.ckpt")


def test_configs_of_this_software_pass():
    for path in sorted(REPOSITORY.glob("weights/*/weights.ckpt")):
        config = torch.load(path, weights_only=True)["composer"]
        before = copy.deepcopy(config)
        check_classes(config, path)
        assert config == before


def test_plugins_of_the_command_line_reach_every_command(evil, monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "strangers")
    path = _checkpoint(lambda config: config["network"].update(class_path="attention.CrossAttention", init_args={}))
    predict = ["predict", "--images", "x.png", "--ckpt_path", path]
    assert "--plugins attention" in refused(*predict)
    message = refused(*predict, "--plugins", "attention")
    assert "--plugins" not in message
    Path("plugins.yaml").write_text("plugins: [evil_part]\n")
    refused(*predict, "--plugins", "attention", "--config", "plugins.yaml")
    assert Path("imported").exists()
