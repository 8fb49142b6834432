"""The check of data sets that super-resolution wraps: low resolutions, several archives, and images that are too small."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml
from program import REPOSITORY
from test_check import check, row, write_image

from datamodules import DIV2K
from datamodules.storage.download import Source

CONFIGS = REPOSITORY / "configs" / "data"
NUMBERS = {"train": range(1, 4), "valid": range(801, 803)}


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Work in an empty folder and a terminal of 80 columns, and reduce DIV2K to five images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(DIV2K, "numbers", NUMBERS)
    checksum = f"sha256:{hashlib.sha256(b'archive').hexdigest()}"
    sources = {name: Source(f"http://127.0.0.1:1/{name}", f"{name}.zip", checksum) for name in DIV2K.archives}
    monkeypatch.setattr(DIV2K, "archives", sources)


@pytest.fixture
def run_check(capsys):
    """Return `check` with captured output, of a config that is changed by further arguments."""

    def run(name, *args, status=0, **images):
        config = {"_base_": str(CONFIGS / f"super_resolution_{name}.yaml")}
        config["data"] = {"init_args": {"size": 8, "num_queries": 16, "images": {"init_args": images}}}
        Path("check.yaml").write_text(yaml.safe_dump(config))
        return check("--config", "check.yaml", *args, status=status, capsys=capsys)

    return run


def _div2k(folder="data/div2k"):
    """Write the images of DIV2K and return their folder."""
    for part, numbers in NUMBERS.items():
        for number in numbers:
            write_image(Path(folder, f"DIV2K_{part}_HR", f"{number:04}.png"), 24, 36)
    for scale in (2, 3, 4):
        for number in NUMBERS["valid"]:
            small = Path(folder, f"DIV2K_valid_LR_bicubic/X{scale}/{number:04}x{scale}.png")
            write_image(small, 24 // scale, 36 // scale)
    return Path(folder)


def test_a_complete_data_set_passes(run_check):
    _div2k()
    printed = run_check("div2k")
    assert "DIV2K in data\n" in printed
    assert row(printed, "train") == ["3", "3", "0", "0", "0", "0"]
    assert row(printed, "val, test") == ["2", "2", "0", "0", "0", "0"]
    assert "No problems: 5 images, all decoded." in printed
    assert "Not in any split" not in printed
    for name in DIV2K.archives:
        assert f"The archive data/{name}.zip does not exist." in printed


def test_missing_and_truncated_low_resolutions_are_reported_with_a_fix(run_check):
    folder = _div2k() / "DIV2K_valid_LR_bicubic"
    (folder / "X3" / "0801x3.png").unlink()
    path = folder / "X4" / "0802x4.png"
    path.write_bytes(path.read_bytes()[:50])
    printed = run_check("div2k", status=1)
    assert "\nLow resolutions that are missing or unreadable: 2\n" in printed
    assert f"  {folder}/X3/0801x3.png does not exist" in printed
    assert f"  {path} is corrupt or truncated" in printed
    for scale in (3, 4):
        assert f"Fix: Move {folder}/X{scale} away to obtain them again" in printed
    assert "--data.init_args.images.init_args.low_resolution false" in printed
    assert "on_bad_file" not in printed


def test_missing_images_and_damaged_archives_are_reported(run_check):
    folder = _div2k()
    (folder / "DIV2K_train_HR" / "0002.png").unlink()
    Path("data/DIV2K_train_HR.zip").write_bytes(b"archive")
    Path("data/DIV2K_valid_HR.zip").write_bytes(b"damaged")
    printed = run_check("div2k", status=1)
    assert "0002.png is missing." in printed
    assert "The archive data/DIV2K_train_HR.zip has the expected checksum." in printed
    assert "\nArchives: 1\n  data/DIV2K_valid_HR.zip has the checksum" in printed
    fetch = "python -m tools.check --config check.yaml --fetch true"
    assert f"Fix: mv data/div2k data/div2k.old && rm data/DIV2K_valid_HR.zip && {fetch}\n" in printed
    assert "Or use the existing files only: --data.init_args.images.init_args.partial true" in printed


def test_a_missing_data_set_raises_an_error_with_a_fix(run_check):
    printed = run_check("div2k", status=1)
    assert printed.startswith("error: DIV2K_train_HR was not found in data")
    assert "Pass --data.init_args.images.init_args.download true" in printed
    assert printed.endswith("Fix: python -m tools.check --config check.yaml --fetch true\n")


def test_training_images_that_are_too_small_are_errors(run_check):
    write_image(Path("images/train/a.png"), 7, 30)
    write_image(Path("images/train/b.png"), 8, 8)
    write_image(Path("images/val/c.png"), 3, 3)
    printed = run_check("folder", status=1, root="images")
    assert row(printed, "train") == ["2", "-", "0", "0", "0", "1"]
    assert row(printed, "val, test") == ["1", "-", "0", "0", "0", "0"]
    assert "images/train/a.png has 7 x 30 pixels, but training takes squares of 8." in printed
    assert "Fix: remove the images that are too small, or lower size or scales." in printed
    assert "enlarged" not in printed


def test_a_benchmark_has_no_training_images(run_check):
    for name in ("baby", "bird", "butterfly", "head", "woman"):
        write_image(Path(f"data/Set5/HR/{name}.png"))
    printed = run_check("set5")
    assert row(printed, "val, test") == ["5", "5", "0", "0", "0", "0"]
    assert "train" not in printed
    Path("data/Set5/HR/bird.png").unlink()
    printed = run_check("set5", status=1)
    assert row(printed, "val, test") == ["4", "5", "1", "0", "0", "0"]
    assert "Fix: put the images into data/Set5/HR" in printed
    assert "error: Set14 was not found" in run_check("set14", status=1)


def test_items_of_bundled_photographs_are_counted(run_check):
    printed = run_check("photos")
    assert re.fullmatch(r"train: \d\d items\nval: 4 items\ntest: 10 items\n", printed)
