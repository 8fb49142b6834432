"""The recipes of ``docs/extending.md`` and the Python lines of ``docs/images.md`` work as written."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import REPOSITORY, column, run

import composers
from datamodules.images.sample_photos import photograph

EXTENDING = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
SMALL_PHOTOS = ["--data.init_args.size=16", "--data.init_args.crops_per_epoch=32", "--data.init_args.scales=[1.0]"]
FEW_STEPS = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
REPORT = "--model.init_args.inner.init_args.report=[0,1]"
STEPS = "--model.init_args.refinement.init_args.steps=2"
SMALL_BATCHES = ["--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=4"]
SMALL_IPC = [
    STEPS,
    "--model.init_args.network.init_args.hidden_dim=32",
    "--model.init_args.transformer.init_args.num_blocks=1",
    *SMALL_BATCHES,
]
# By the name of the run folder: the class that the log names, the headline metric, and options for a run of a few steps.
RECIPES = {
    "A method from existing parts": (
        "photos_meta_transinr",
        "Composer",
        "psnr",
        [*SMALL_PHOTOS, *SMALL_BATCHES, REPORT],
    ),
    "A parametrization": ("photos_low_rank_update", "Composer", "psnr", [*SMALL_PHOTOS, *SMALL_BATCHES, STEPS]),
    "A network and an encoder: feature maps": ("photos_feature_map", "Composer", "psnr", SMALL_PHOTOS),
    "A loss": ("photos_ipc", "TransformerIPC", "psnr", [*SMALL_PHOTOS, *SMALL_IPC]),
    "A data set": ("photos_ipc", "Gratings", "psnr", SMALL_IPC),
    "A modality": ("tones_ipc", "Tones", "largest_error", []),
}


def _sections():
    """Return the sections of the document by title."""
    parts = re.split(r"^## (.*)\n", EXTENDING, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _recipe(title):
    """Return the files, by name, and the command of a section, and check that it has no other code."""
    text = _sections()[title]
    files = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    [command] = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert text.count("```") == 2 * (len(files) + 1)
    assert len(files) > 0
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "cli.py", "fit"]
    return files, arguments[2:]


def _write(files, folder):
    """Write files below a folder without overwriting any."""
    for name, text in files.items():
        path = folder / name
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _make_importable(files, folder, monkeypatch):
    """Extend the packages of this repository by the modules of a recipe."""
    for name in files:
        path = Path(name)
        if path.suffix == ".py":
            package = importlib.import_module(".".join(path.parent.parts))
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder / path.parent)])
    importlib.invalidate_caches()


def test_every_recipe_is_tested():
    assert list(_sections()) == list(RECIPES)


QUICK = ("A network and an encoder: feature maps", "A modality")  # the others take longer


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=[] if title in QUICK else [pytest.mark.slow]) for title in RECIPES]
)
def test_recipe_trains_tests_and_loads(title, tmp_path, monkeypatch):
    run_name, class_name, headline, smaller = RECIPES[title]
    files, arguments = _recipe(title)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    _write(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    _make_importable(files, tmp_path, monkeypatch)
    options = [*smaller, *FEW_STEPS]
    assert class_name in run(*arguments, *options)
    folder = tmp_path / "runs" / run_name / "version_0"
    [value] = column(folder / "metrics.csv", f"val/{headline}")
    assert 0 < value < 60
    assert composers.load(folder / "checkpoints" / "last.ckpt").training is False
    configs = [argument for argument in arguments if "--trainer.max_epochs" not in argument][1:-1]
    run("test", *configs, "--ckpt_path", "last", *options)
    [gallery] = tmp_path.glob("runs/*/version_1/gallery.png")
    with Image.open(gallery) as image:
        assert min(image.size) > 100


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_recipe_word_for_word(title, tmp_path):
    files, arguments = _recipe(title)
    for folder in ("application", "callbacks", "composers", "datamodules", "modalities", "configs"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "cli.py", tmp_path)
    _write(files, tmp_path)
    load = "import composers, glob; composers.load(glob.glob('runs/*/*/checkpoints/last.ckpt')[0])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in (["cli.py", *arguments, *FEW_STEPS[:2]], ["-c", load]):
        finished = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr


def _all_files():
    """Return the files of all recipes by name."""
    return {name: text for title in RECIPES for name, text in _recipe(title)[0].items()}


def test_recipes_pass_the_linter(tmp_path):
    for package in ("composers", "datamodules", "modalities"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    files = _all_files()
    _write(files, tmp_path)
    modules = [name for name in files if name.endswith(".py")]
    for command in (["check"], ["format", "--check", "--diff"]):
        finished = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *modules],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
def test_recipes_are_typed(tmp_path):
    for package in ("composers", "datamodules", "modalities"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    config = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(re.sub(r"^packages = \[.*\n", "", config, flags=re.MULTILINE))
    files = _all_files()
    _write(files, tmp_path)
    modules = [name for name in files if name.endswith(".py")]
    finished = subprocess.run([sys.executable, "-m", "mypy", *modules], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def _python_lines():
    """Return the lines of Python that the documentation shows for an image."""
    document = (REPOSITORY / "docs" / "images.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```python\n(import composers\n.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert len([line for line in text.splitlines() if " = " in line or "save(" in line]) == 4
    return text


@pytest.mark.slow
def test_python_lines_encode_and_render(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    astronaut = photograph("astronaut").permute(1, 2, 0).numpy()
    Image.fromarray(astronaut[:384]).resize((64, 48)).save("photo.jpg")
    text = _python_lines().replace("size=2048", "size=128")
    exec(compile(text, "images.md", "exec"), {})
    with Image.open("large.png") as large, Image.open("photo.jpg") as photo:
        assert large.size == (128, 96)
        actual, expected = np.asarray(large.resize((64, 48)), float), np.asarray(photo, float)
    assert 10 * np.log10(255**2 / np.square(actual - expected).mean()) > 24


@pytest.mark.slow
def test_python_lines_are_typed(tmp_path):
    config = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(re.sub(r"^packages = \[.*\n", "", config, flags=re.MULTILINE))
    for text, has_errors in ((_python_lines(), False), (_python_lines().replace('"photo.jpg"', "3"), True)):
        (tmp_path / "lines.py").write_text(text, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(tmp_path / "pyproject.toml"),
            str(tmp_path / "lines.py"),
        ]
        finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert ("incompatible type" in finished.stdout) == has_errors == bool(finished.returncode), finished.stdout
