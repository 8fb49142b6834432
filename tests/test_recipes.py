"""The recipes of the README for adding a composer and a data set work as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import invalidate_caches

import numpy as np
import pytest
from PIL import Image
from program import REPOSITORY, column, run

import composers
import datamodules
from datamodules.images.sample_photos import photograph

SECTIONS = {"Add a composer": composers, "Add an inner-loop method": composers, "Add a data set": datamodules}
# The commands of the README train for a minute; these arguments reduce that to a second.
SMALLER = {
    "Add a composer": [
        "--data.init_args.size=16",
        "--data.init_args.crops_per_epoch=32",
        "--data.init_args.scales=[1.0]",
    ],
    "Add an inner-loop method": [
        "--data.init_args.size=16",
        "--data.init_args.crops_per_epoch=32",
        "--data.init_args.scales=[1.0]",
    ],
    "Add a data set": ["--model.init_args.transformer.init_args.embed_dim=24", "--trainer.limit_train_batches=2"],
}


def _section(title):
    """Return the files by name, and the command, in a section of the README."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    text = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)[1]
    files = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    commands = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    assert len(commands) == 1
    assert text.count("```") == 6  # there are no other code blocks
    return files, shlex.split(commands[0])


def _write(files, folder):
    """Write files below a folder, without overwriting."""
    for name, text in files.items():
        path = folder / name
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _class_of(files):
    """Return the name of the class in the YAML file of a recipe."""
    [text] = [text for name, text in files.items() if name.endswith(".yaml")]
    return re.search(r"class_path: \S+\.(\w+)\n", text)[1]


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe_trains_a_model_that_can_be_loaded(title, tmp_path, monkeypatch):
    files, command = _section(title)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    _write(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    package = SECTIONS[title]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / package.__name__)])
    invalidate_caches()
    assert command[:2] == ["python", "cli.py"]
    printed = run(*command[2:], *SMALLER[title])
    assert _class_of(files) in printed
    [path] = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
    loaded = composers.load(path)
    assert (type(loaded).__name__ == _class_of(files)) == (title != "Add a data set")
    [psnr] = column(path.parents[1] / "metrics.csv", "val/psnr")
    assert 0 < psnr < 30


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_recipe_works_word_for_word(title, tmp_path):
    files, command = _section(title)
    for folder in ("application", "callbacks", "composers", "datamodules", "modalities", "configs"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "cli.py", tmp_path)
    _write(files, tmp_path)
    load = (
        "import composers, glob; print(type(composers.load(glob.glob('runs/*/*/checkpoints/last.ckpt')[0])).__name__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for arguments in (command[1:], ["-c", load]):
        process = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stdout + process.stderr
    assert (process.stdout.strip() == _class_of(files)) == (title != "Add a data set")


def test_code_of_recipes_passes_lint(tmp_path):
    for package in set(SECTIONS.values()):
        shutil.copytree(REPOSITORY / package.__name__, tmp_path / package.__name__)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    files = {name: text for title in SECTIONS for name, text in _section(title)[0].items()}
    _write(files, tmp_path)
    for command in (["check"], ["format", "--check", "--diff"]):
        process = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *(name for name in files if name.endswith(".py"))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr


def _python_lines():
    """Return the Python example of the README for an image."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```python\n(import composers\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len([line for line in text.splitlines() if " = " in line or "save(" in line]) == 3
    return text


def test_python_example_encodes_and_renders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    astronaut = photograph("astronaut").permute(1, 2, 0).numpy()
    Image.fromarray(astronaut[:384]).resize((64, 48)).save("photo.jpg")
    text = _python_lines().replace("size=2048", "size=128")
    exec(compile(text, "README.md", "exec"), {})
    with Image.open("large.png") as large, Image.open("photo.jpg") as photo:
        assert large.size == (128, 96)
        actual, expected = np.asarray(large.resize((64, 48)), float), np.asarray(photo, float)
    assert 10 * np.log10(255**2 / np.square(actual - expected).mean()) > 24


@pytest.mark.slow
def test_python_example_is_typed(tmp_path):
    config = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(re.sub(r"^packages = \[.*\n", "", config, flags=re.MULTILINE))
    for text, is_wrong in ((_python_lines(), False), (_python_lines().replace('"photo.jpg"', "3"), True)):
        (tmp_path / "lines.py").write_text(text, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(tmp_path / "pyproject.toml"),
            str(tmp_path / "lines.py"),
        ]
        process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert ("incompatible type" in process.stdout) == is_wrong == bool(process.returncode), process.stdout
