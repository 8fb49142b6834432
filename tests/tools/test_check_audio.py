"""The check of audio data sets: every kind of problem is counted and reported with a fix."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules import AudioFolder, LibriSpeech
from datamodules.audio.base import RecordingSet
from datamodules.storage.audio import read_recording
from datamodules.storage.folders import NamedFile
from tools.check import recordings as looking
from tools.check.__main__ import main
from tools.check.recordings import check_recordings, soundings

RATE = 1000
FOLDER = ("--data", "datamodules.AudioFolder", "--data.root", "sound", "--data.rate", RATE)


class Numbered(RecordingSet):
    """Three published recordings for training and two for each other split; `fetch` writes them."""

    def files(self, split):
        return [NamedFile(path.name, path) for path in sorted(self.root.glob(f"part/{_part(split)}/*.wav"))]

    def count(self, split):
        return 3 if split == "train" else 2

    def fetch(self, splits):
        for split in splits:
            for number in range(self.count(split)):
                recording(self.root / "part" / _part(split) / f"{number}.wav")


def _part(split):
    """Return the folder of a split."""
    return "train" if split == "train" else "held"


def recording(path, samples=2000, rate=RATE, channels=1, loudness=0.5, **options):
    """Write a recording of noise whose loudest sample is ``loudness``, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(samples).uniform(-1, 1, (samples, channels))
    soundfile.write(path, loudness * values / np.abs(values).max(), rate, **options)
    return path


def check(*args, status=0, capsys):
    """Run the check, and return its output followed by its errors."""
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
def checked(capsys):
    """Return `check` with captured output."""
    return lambda *args, status=0: check(*args, status=status, capsys=capsys)


def found(data, **options):
    """Return splits, kind, file name and number of files of every problem."""
    findings = check_recordings(data, **options)
    return {(problem.splits, problem.kind, Path(problem.path).name, problem.images) for problem in findings.problems}


def spoil():
    """Write a folder with two splits and one recording for every kind of problem."""
    for number in range(3):
        recording(f"sound/train/{number}.flac")
    recording("sound/val/a.wav")
    recording("sound/lost.flac")
    cut = recording("sound/train/cut.flac", 30000)
    cut.write_bytes(cut.read_bytes()[:30000])
    tail = recording("sound/train/tail.wav", 3000)
    tail.write_bytes(tail.read_bytes()[:-500])
    values = np.zeros(2000)
    values[1999] = np.nan
    soundfile.write("sound/val/nan.wav", values, RATE, subtype="FLOAT")
    Path("sound/train/empty.wav").touch()
    Path("sound/train/text.flac").write_text("no sound")
    recording("sound/train/rate.flac", 4000, 2 * RATE)
    recording("sound/train/pair.wav", 2000, channels=2)
    recording("sound/train/short.wav", 999)
    recording("sound/val/quiet.wav", loudness=0.0009, subtype="FLOAT")


def test_a_complete_data_set_passes(checked):
    for number in range(3):
        recording(f"sound/train/{number}.flac", 1000)
    recording("sound/val/a.wav", 1000, loudness=0.002)
    printed = checked(*FOLDER)
    assert row(printed, "split") == ["files", "published", "missing", "extra", "unreadable", "short", "silent"]
    assert row(printed, "train") == ["3", "-", "0", "0", "0", "0", "0"]
    assert row(printed, "val, test") == ["1", "-", "0", "0", "0", "0", "0"]
    assert "split: by folders: sound/train and sound/val\n" in printed
    assert printed.endswith("No problems: 4 files, all decoded.\n")
    assert "Fix" not in printed
    assert len(printed.splitlines()) == 7


def test_every_kind_of_problem_is_counted_and_reported(checked):
    spoil()
    broken = {("train", "unreadable", name, 1) for name in ("cut.flac", "tail.wav", "empty.wav", "text.flac")}
    broken |= {("val, test", "unreadable", "nan.wav", 1)}
    notes = {("train", kind, name, 1) for kind, name in (("rate", "rate.flac"), ("channels", "pair.wav"))}
    notes |= {
        ("train", "short", "short.wav", 1),
        ("val, test", "silent", "quiet.wav", 1),
        ("", "unused", "lost.flac", 1),
    }
    assert found(AudioFolder("sound", rate=RATE)) == broken | notes
    printed = checked(*FOLDER, "--csv", "all.csv", status=1)
    assert row(printed, "train") == ["10", "-", "0", "0", "4", "1", "0"]
    assert row(printed, "val, test") == ["3", "-", "0", "0", "1", "0", "1"]
    assert row(printed, "no split") == ["1", "-", "0", "1", "0", "0", "0"]
    for line in (
        "Unreadable: 5",
        "  sound/train/empty.wav is empty: take it from its source again.",
        "  sound/train/text.flac is no sound of a kind that can be read: convert it to FLAC or WAV.",
        "  sound/train/tail.wav is cut off: 5,500 of 6,000 bytes came. Take it from its source again.",
        "  sound/val/nan.wav holds samples that are no numbers (NaN or infinite): take it from its source again.",
        "  sound/val/quiet.wav is silent: its loudest sample is 0.0009, of 1 at most.",
        "  sound/train/short.wav has 999 of the 1,000 samples of a piece: zeros follow.",
        "  sound/train/rate.flac has 2,000 samples a second, which become 1,000.",
        "  sound/train/pair.wav has 2 channels, which are mixed to one.",
        "  sound/lost.flac belongs to no split.",
        "Fix: obtain new copies of these files, or delete them.",
        "Or skip unreadable files: --data.init_args.on_bad_file skip",
    ):
        assert line in printed.splitlines()
    assert "No problems" not in printed
    assert "partial" not in printed
    with Path("all.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["split", "path", "problem", "files", "detail"]
    assert {(splits, kind, Path(path).name, int(number)) for splits, path, kind, number, _ in rows} == broken | notes
    assert all(detail.startswith(path) for _, path, _, _, detail in rows)


def test_warnings_do_not_fail_the_check(checked):
    spoil()
    for name in ("train/cut.flac", "train/tail.wav", "train/empty.wav", "train/text.flac", "val/nan.wav"):
        Path("sound", name).unlink()
    printed = checked(*FOLDER)
    assert "Silent (warning): 1\n" in printed
    assert "Fix" not in printed
    assert printed.endswith("No problems: 8 files, all decoded.\n")


def test_headers_do_not_reveal_silence_and_most_damage(checked):
    spoil()
    told = {name for _, kind, name, _ in found(AudioFolder("sound", rate=RATE), decode=False) if kind == "unreadable"}
    assert told == {"tail.wav", "empty.wav", "text.flac"}
    kinds = {kind for _, kind, _, _ in found(AudioFolder("sound", rate=RATE), decode=False)}
    assert kinds == {"unreadable", "short", "rate", "channels", "unused"}
    for name in told:
        Path("sound/train", name).unlink()
    assert "No problems: 10 files, only headers read" in checked(*FOLDER, "--decode", "false")


def test_recordings_are_decoded_completely_in_blocks(monkeypatch):
    monkeypatch.setattr(looking, "_BLOCK", 300)
    asked = []
    monkeypatch.setattr(looking, "read_recording", lambda *place: asked.append(place[1:]) or read_recording(*place))
    values = np.zeros(1000)
    values[950] = -0.5
    Path("sound").mkdir()
    soundfile.write("sound/a.wav", values, RATE)
    assert list(soundings(AudioFolder("sound", rate=RATE), [Path("sound/a.wav")])) == [[]]
    assert asked == [(0, 300), (300, 300), (600, 300), (900, 100)]


@pytest.mark.parametrize(
    ("samples", "cropping", "told"),
    [
        (3000, "whole", None),
        (2999, "whole", "has 2,999 of the 3,000 samples of a piece: zeros follow."),
        (4000, "released", None),
        (3500, "released", "has 2,500 of the 3,000 samples of a piece without its last second: zeros follow."),
        (800, "released", "has 0 of the 3,000 samples of a piece without its last second: zeros follow."),
    ],
)
def test_short_recordings_depend_on_the_cropping(samples, cropping, told):
    data = Numbered(seconds=3.0, rate=RATE, cropping=cropping)
    [only] = soundings(data, [recording("a.flac", samples)])
    assert [(one.kind, one.detail) for one in only] == ([] if told is None else [("short", f"a.flac {told}")])


def test_recordings_that_cannot_be_converted_are_unreadable():
    pair = Numbered(rate=RATE, channels=2)
    [single] = soundings(pair, [recording("a.wav")], decode=False)
    assert [one.kind for one in single] == ["unreadable"]
    assert "a.wav has 1 channel(s), not 2: convert it" in single[0].detail
    [odd] = soundings(Numbered(rate=16000), [recording("b.wav", 9000, 96001)])
    assert [one.kind for one in odd] == ["unreadable"]
    assert odd[0].detail.startswith("b.wav: 96,001 samples a second cannot be made 16,000")


def test_counts_are_compared_with_published_ones(checked):
    data = ("--data", "test_check_audio.Numbered", "--data.rate", RATE, "--data.root", "data")
    printed = checked(*data, status=1)
    assert printed.startswith("error: There are no recordings of the split train in data.\n")
    fix = f"python -m tools.check {' '.join(map(str, data))} --fetch true"
    assert printed.endswith(f"\nFix: {fix}\n")
    assert "No problems: 5 files" in checked(*data, "--fetch", "true")
    Path("data/part/held/1.wav").unlink()
    printed = checked(*data, "--data.partial", "true", status=1)
    assert row(printed, "val, test") == ["1", "2", "1", "0", "0", "0", "0"]
    assert "\nMissing: 1\n  1 in split val, test. Only the number of files was published" in printed
    assert "\nFix: mv data/part data/part.old && python -m tools.check" in printed
    assert "\nOr use the existing files only: --data.init_args.partial true\n" in printed


def test_librispeech_is_counted_and_decoded(monkeypatch):
    for number, subset in enumerate(("train-clean-100", "train-clean-100", "test-clean")):
        recording(f"data/librispeech/{subset}/19/198/19-198-{number:04}.flac", 16000, 16000)
    monkeypatch.setattr(LibriSpeech, "published", {"train-clean-100": 2, "test-clean": 1})
    findings = check_recordings(LibriSpeech())
    assert [tuple(one) for one in findings.rows] == [("train", 2, 2), ("val, test", 1, 1)]
    assert findings.problems == []
    Path("data/librispeech/train-clean-100/19/198/19-198-0000.flac").write_bytes(b"")
    assert found(LibriSpeech(on_bad_file="skip", partial=True)) == {("train", "unreadable", "19-198-0000.flac", 1)}


def test_a_split_without_recordings_is_reported(checked):
    recording("sound/train/a.wav")
    Path("sound/val").mkdir()
    printed = checked(*FOLDER, status=1)
    assert "  There are no recordings of the split val in sound.\n" in printed
    assert "No problems" not in printed
    Path("sound/train/a.wav").unlink()
    assert checked(*FOLDER, status=1) == "error: There are no recordings of the split train in sound.\n"
    assert "error: There is no folder nowhere" in checked(*FOLDER[:3], "nowhere", status=1)
