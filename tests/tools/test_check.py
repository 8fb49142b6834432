"""The check of image data sets: every kind of problem is counted and reported with a fix."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datamodules.base import CoordinateDataModule
from datamodules.domain import Grid
from datamodules.images.base import ImageSet
from datamodules.spec import DataSpec, Modality
from datamodules.storage.download import Source
from datamodules.storage.folders import NamedFile
from tools.check import check_images
from tools.check.__main__ import main

TESTS = Path(__file__).resolve().parent.parent
ARCHIVE = b"the archive"
FACES = {"train": range(8), "val": range(8, 12), "test": range(8, 12)}


class Faces(ImageSet):
    """Twelve images of 6 x 4 pixels with known names, from an archive; validation and test are the same."""

    shape = (6, 4)
    source = Source("http://127.0.0.1:1/faces.zip", "faces.zip", f"md5:{hashlib.md5(ARCHIVE).hexdigest()}")

    def expected(self, split):
        return [f"{number:02}.png" for number in FACES[split]]

    def files(self, split):
        folder = self.root / "faces" / "aligned"
        if not folder.is_dir():
            raise ValueError(f"There are no faces in {self.root}.")
        paths = [folder / name for name in self.expected(split)]
        return [NamedFile(path.name, path) for path in paths if path.exists()]

    def fetch(self):
        if not (self.root / "faces").exists():
            make_faces(self.root)


class Counted(ImageSet):
    """Images with published counts but unknown names: 3 for training and 2 for validation."""

    published = {"train": 3, "val": 2}  # noqa: RUF012

    def files(self, split):
        if Path(self.root, f"no {split}").exists():
            raise ValueError(f"There is no {split}.\nTake it from elsewhere.")
        return [NamedFile(path.name, path) for path in sorted(self.root.glob(f"{split}/*.png"))]

    def how_to_get(self):
        return f"ask the authors, and put it into {self.root}."


class Numbers(CoordinateDataModule):
    """Signals that are not stored in files, without a test split."""

    spec = DataSpec(Grid.unit(1), 1, (1, 2), Modality())

    def setup(self, stage):
        if stage == "fit":
            self.train_set, self.val_set = range(1200), range(34)


def write_image(path, height=6, width=4):
    """Write a noise image and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((width, height), 50).save(path)
    return path


def make_faces(root):
    """Write all images of `Faces` and return their folder."""
    for number in range(12):
        write_image(root / "faces" / "aligned" / f"{number:02}.png")
    return root / "faces" / "aligned"


def config(data, root, **arguments):
    """Write a config of a data module of this file and return the arguments that pass it."""
    lines = [f"    {name}: {value}\n" for name, value in {"root": root, "size": 4, **arguments}.items()]
    path = Path(f"{data.__name__}.yaml")
    path.write_text(f"data:\n  class_path: test_check.{data.__name__}\n  init_args:\n{''.join(lines)}")
    return ["--config", str(path)]


def check(*args, status=0, capsys):
    """Run the check, and return its output followed by its errors."""
    capsys.readouterr()
    actual = 0
    try:
        main([str(argument) for argument in args])
    except SystemExit as exited:
        actual = exited.code
    printed = capsys.readouterr()
    assert actual == status, printed
    assert (printed.err != "") == printed.err.startswith("error: ")
    return printed.out + printed.err


def row(printed, name):
    """Return the cells of a row of the printed table."""
    [line] = [line for line in printed.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).split()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder and a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run_check(capsys):
    """Return `check` with captured output."""
    return lambda *args, status=0: check(*args, status=status, capsys=capsys)


def problems(data, **options):
    """Return splits, kind, file name and number of files of every problem."""
    findings = check_images(data, **options)
    return {(problem.splits, problem.kind, Path(problem.path).name, problem.images) for problem in findings.problems}


def test_a_complete_data_set_passes(run_check):
    make_faces(Path("data"))
    Path("data/faces.zip").write_bytes(ARCHIVE)
    printed = run_check(*config(Faces, "data"))
    assert row(printed, "train") == ["8", "8", "0", "0", "0", "0"]
    assert row(printed, "val, test") == ["4", "4", "0", "0", "0", "0"]
    assert "The archive data/faces.zip has the expected checksum." in printed
    assert printed.endswith("No problems: 12 images, all decoded.\n")
    assert "Fix" not in printed


def test_every_kind_of_problem_is_counted_and_reported(run_check):
    folder = make_faces(Path("data"))
    for name in ("01.png", "03.png", "09.png"):
        (folder / name).unlink()
    content = (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(content[:-30])
    (folder / "08.png").write_bytes(b"")
    write_image(folder / "05.png", 4, 6)
    write_image(folder / "more" / "12.png")
    Path("data/faces.zip").write_bytes(ARCHIVE[:-1])
    assert problems(Faces(4, "data")) == {
        ("train", "missing", "01.png", 1),
        ("train", "missing", "03.png", 1),
        ("val, test", "missing", "09.png", 1),
        ("train", "unreadable", "00.png", 1),
        ("val, test", "unreadable", "08.png", 1),
        ("train", "wrong size", "05.png", 1),
        ("", "unused", "12.png", 1),
    }
    printed = run_check(*config(Faces, "data"), status=1)
    assert row(printed, "train") == ["6", "8", "2", "0", "1", "1"]
    assert row(printed, "val, test") == ["3", "4", "1", "0", "1", "0"]
    assert row(printed, "no split") == ["1", "-", "0", "1", "0", "0"]
    assert "\nMissing: 3\n  01.png is missing.\n  03.png is missing.\n  09.png is missing.\nUnreadable: 2\n" in printed
    assert "  data/faces/aligned/08.png is empty: obtain a new copy.\n" in printed
    assert "\nWrong size: 1\n  data/faces/aligned/05.png has 4 x 6 pixels, expected 6 x 4.\n" in printed
    unused = "data/faces/aligned/more/12.png does not belong to a split."
    assert f"\nNot in any split (harmless): 1\n  {unused}\n" in printed
    assert "\nArchives: 1\n  data/faces.zip has the checksum md5:" in printed
    fetch = "python -m tools.check --config Faces.yaml --fetch true"
    assert f"\nFix: mv data/faces data/faces.old && rm data/faces.zip && {fetch}\n" in printed
    assert "No problems" not in printed


def test_headers_do_not_reveal_truncated_images(run_check):
    folder = make_faces(Path("data"))
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes()[:-30])
    write_image(folder / "05.png", 5, 4)
    assert problems(Faces(4, "data"), decode=False) == {("train", "wrong size", "05.png", 1)}
    (folder / "05.png").write_bytes(b"not an image")
    assert problems(Faces(4, "data"), decode=False) == {("train", "unreadable", "05.png", 1)}
    write_image(folder / "05.png")
    assert "12 images, only headers read" in run_check(*config(Faces, "data"), "--decode", "false")


@pytest.mark.parametrize(("images", "kind", "number"), [(1, "missing", 2), (4, "extra", 1)])
def test_wrong_counts_are_reported_if_names_are_unknown(images, kind, number, run_check):
    for index in range(images):
        write_image(Path(f"data/train/{index}.png"))
    for index in range(2):
        write_image(Path(f"data/val/{index}.png"))
    assert [problem[:3] for problem in check_images(Counted(4, "data")).problems] == [("train", kind, "")]
    printed = run_check(*config(Counted, "data"), status=1)
    counts = [str(number if kind == column else 0) for column in ("missing", "extra")]
    assert row(printed, "train") == [str(images), "3", *counts, "0", "0"]
    assert row(printed, "val") == ["2", "2", "0", "0", "0", "0"]
    assert f"{number} in split train. Only the number of files was published" in printed
    assert "Or use the existing files only: --data.init_args.partial true" in printed


def test_an_error_in_one_split_does_not_hide_the_others(run_check):
    for index in range(3):
        write_image(Path(f"data/train/{index}.png"))
    Path("data/no val").touch()
    printed = run_check(*config(Counted, "data"), status=1)
    assert row(printed, "train") == ["3", "3", "0", "0", "0", "0"]
    assert row(printed, "val") == ["0", "2", "2", "0", "0", "0"]
    assert "\nMissing: 2\n  There is no val. Take it from elsewhere.\n" in printed
    assert "\nFix: ask the authors, and put it into data.\n" in printed


def test_equal_splits_without_images_are_counted_once(run_check):
    folder = make_faces(Path("data"))
    for number in FACES["val"]:
        (folder / f"{number:02}.png").unlink()
    printed = run_check(*config(Faces, "data"), status=1)
    assert row(printed, "val, test") == ["0", "4", "4", "0", "0", "0"]
    assert "\nMissing: 4\n" in printed


class Lists(Faces):
    """Validation and test sets that share some names, without a published size or an archive."""

    shape = source = None

    def expected(self, split):
        return {"train": ["00.png"], "val": ["08.png", "09.png"], "test": ["08.png", "09.png", "99.png"]}[split]


def test_splits_with_different_published_names_are_counted_separately(run_check):
    make_faces(Path("data"))
    printed = run_check(*config(Lists, "data"), status=1)
    assert row(printed, "val") == ["2", "2", "0", "0", "0", "0"]
    assert row(printed, "test") == ["2", "3", "1", "0", "0", "0"]
    assert row(printed, "no split") == ["9", "-", "0", "9", "0", "0"]
    assert "\nFix: obtain new copies of these images, or delete them.\n" in printed


def test_partial_and_on_bad_file_do_not_hide_problems(run_check):
    folder = make_faces(Path("data"))
    (folder / "00.png").unlink()
    (folder / "01.png").write_bytes(b"")
    printed = run_check(*config(Faces, "data", partial="true", on_bad_file="skip"), status=1)
    assert row(printed, "train") == ["7", "8", "1", "0", "1", "0"]


def test_small_and_unused_images_are_warnings(run_check):
    for index in range(7):
        write_image(Path(f"images/train/{index}.png"), 9 if index else 3, 9)
    write_image(Path("images/val/0.png"), 9, 9)
    write_image(Path("images/lost.png"))
    args = ["--data", "datamodules.ImageFolder", "--data.init_args.root", "images", "--data.init_args.size", "9"]
    printed = run_check(*args)
    assert row(printed, "train") == ["7", "-", "0", "0", "0", "1"]
    assert row(printed, "val, test") == ["1", "-", "0", "0", "0", "0"]
    assert "images/train/0.png has 3 x 9 pixels: its shorter side is enlarged to 9." in printed
    assert "images/lost.png does not belong to a split." in printed
    assert "No problems: 8 images" in printed
    Path("images/val/1.jpg").write_bytes(b"GIF89a")
    printed = run_check(*args, status=1)
    assert "\nUnreadable: 1\n  images/val/1.jpg " in printed
    assert "--data.init_args.on_bad_file skip" in printed
    assert "partial" not in printed


def test_the_csv_lists_all_problems(run_check):
    folder = make_faces(Path("data"))
    for number in range(7):
        (folder / f"{number:02}.png").unlink()
    name = os.fsdecode(b'a\nb \xff, "c".png')
    write_image(folder / name)
    printed = run_check(*config(Faces, "data"), "--csv", "all.csv", status=1)
    assert "  and 2 more; --csv FILE lists all of them.\n" in printed
    assert "05.png" not in printed
    assert r'data/faces/aligned/a b \udcff, "c".png does not belong to a split.' in printed
    with Path("all.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "path", "problem", "images", "detail"]
    assert rows[1:8] == [
        ["train", f"0{number}.png", "missing", "1", f"0{number}.png is missing."] for number in range(7)
    ]
    assert [line[:4] for line in rows[8:]] == [["", f"data/faces/aligned/{name}", "unused", "1"]]


def test_long_lines_are_not_wrapped_at_80_columns(run_check):
    root = Path("a folder with a name that is long/" * 3)
    folder = make_faces(root)
    (folder / "00.png").write_bytes(b"")
    printed = run_check(*config(Faces, root), status=1).splitlines()
    assert f"  {folder}/00.png is empty: obtain a new copy." in printed
    assert (
        f"Fix: mv '{root}/faces' '{root}/faces.old' && python -m tools.check --config Faces.yaml --fetch true"
        in printed
    )
    table = [line for line in printed if re.match(r"split|train|val", line)]
    assert len(table) == 3
    assert all(len(line.rstrip()) <= 80 for line in table)


def test_the_checksum_of_an_archive_is_recomputed(run_check):
    make_faces(Path("data"))
    archive = Path("data/faces.zip")
    archive.write_bytes(ARCHIVE)
    run_check(*config(Faces, "data"))
    before = archive.stat()
    archive.write_bytes(ARCHIVE[:-1] + b"!")
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    printed = run_check(*config(Faces, "data"), status=1)
    assert "\nArchives: 1\n  data/faces.zip has the checksum" in printed
    assert "\nFix: rm data/faces.zip\n" in printed


def test_interrupted_downloads_are_reported(run_check):
    make_faces(Path("data"))
    Path("data/faces.zip.part").write_bytes(b"0" * 1200)
    Path("data/faces.zip.part.json").write_text('{"length": 4000}')
    Path("data/other.part").mkdir()
    printed = run_check(*config(Faces, "data"))
    assert "The archive data/faces.zip does not exist." in printed
    assert "data/faces.zip.part is a partial download of 1,200 of 4,000 bytes" in printed
    assert "data/other.part is partially unpacked" in printed


def test_a_missing_data_set_raises_an_error_with_a_fix(run_check):
    printed = run_check(*config(Faces, "nowhere"), status=1)
    assert printed.startswith("error: There are no faces in nowhere.\n")
    assert printed.endswith("Fix: python -m tools.check --config Faces.yaml --fetch true\n")
    assert "error: There is no folder data/images" in run_check("--data", "datamodules.ImageFolder", status=1)
    assert "error: Counted has no images in empty." in run_check(*config(Counted, "empty"), status=1)


def test_downloaded_data_is_checked(run_check):
    printed = run_check(*config(Faces, "data"), "--fetch", "true")
    assert "No problems: 12 images" in printed


def test_later_configs_override_earlier_ones_and_only_data_is_read(run_check):
    make_faces(Path("existing"))
    Path("configs").mkdir()
    config(Faces, "nowhere")
    model = "model: {class_path: no.such.Model, init_args: {rank: -1}}\ntrainer: 7\n"
    Path("configs/top.yaml").write_text(f"_base_: ../Faces.yaml\n{model}data: {{init_args: {{batch_size: 3}}}}\n")
    Path("root.yaml").write_text("data: {init_args: {root: existing}}\n")
    printed = run_check("--config", "configs/top.yaml", status=1)
    assert "no faces in nowhere" in printed
    for args in (["--config", "root.yaml"], ["--data.init_args.root", "existing"], ["--data.init_args.root=existing"]):
        assert "Faces in existing\n" in run_check("--config", "configs/top.yaml", *args)


def test_items_of_data_without_files_are_counted(run_check):
    printed = run_check("--data", "test_check.Numbers")
    assert printed == "train: 1,200 items\nval: 34 items\n"


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        ("", [], "A data set is required: pass a config"),
        ("", ["--config", "nope.yaml"], "The config nope.yaml cannot be read: No such file or directory."),
        ("model: {}", ["--config", "x.yaml"], "The config x.yaml has no section data"),
        ("- 1", ["--config", "x.yaml"], "The config x.yaml contains a list; it must contain a mapping"),
        ("data: [1,\n", ["--config", "x.yaml"], "The config x.yaml is not valid YAML"),
        ("_base_: y.yaml", ["--config", "x.yaml"], "_base_ names y.yaml, but there is no file"),
        ("data: {class_path: datamodules.Nope}", ["--config", "x.yaml"], "'datamodules' has no attribute 'Nope'"),
        ("data: {class_path: datamodules.SamplePhotos, init_args: {sice: 3}}", ["--config", "x.yaml"], "'sice'"),
        ("data: {class_path: datamodules.SamplePhotos, init_args: {size: 0}}", ["--config", "x.yaml"], "size is 0"),
        ("", ["--config"], "--config: expected one argument"),
        ("", ["--wrong", "3"], "unrecognized arguments: --wrong 3"),
        ("", ["--data", "datamodules.SamplePhotos", "--decode", "perhaps"], "perhaps"),
        ("", ["--data", "datamodules.SamplePhotos", "--csv", "no/x.csv"], "--csv no/x.csv cannot be written"),
    ],
)
def test_an_invalid_command_line_raises_a_one_line_error(text, args, expected, run_check):
    Path("x.yaml").write_text(text)
    message = run_check(*args, status=2)
    assert expected in message
    assert message.count("\n") == 1
    for noise in ("Traceback", "usage:", "Union subtypes", "NoneType", "Namespace("):
        assert noise not in message


@pytest.mark.slow
def test_the_suggested_command_fixes_the_data_set(run_check):
    folder = make_faces(Path("data"))
    (folder / "00.png").unlink()
    Path("data/faces.zip").write_bytes(ARCHIVE[:-1])
    printed = run_check(*config(Faces, "data"), status=1)
    [command] = re.findall(r"^Fix: (.*)$", printed, re.MULTILINE)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "tools"))),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    fixed = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=120)
    assert fixed.returncode == 0, fixed.stderr
    assert "No problems: 12 images, all decoded.\n" in fixed.stdout
    assert len(list(Path("data/faces.old/aligned").iterdir())) == 11
    Path("data/faces/aligned/00.png").unlink()
    failed = subprocess.run(
        command.split(" && ")[-1], shell=True, env=environment, capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 1
    assert failed.stderr == ""
