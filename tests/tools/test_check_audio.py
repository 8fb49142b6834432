"""The check of audio data sets finds, counts and names every kind of problem and states the fix."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules import AudioFolder, LibriSpeech
from datamodules.audio.base import RecordingSet
from datamodules.storage.audio import read_recording
from datamodules.storage.folders import NamedFile
from tools.check import recordings
from tools.check.__main__ import main
from tools.check.recordings import check_recordings, recording_problems

SAMPLE_RATE = 1000
FOLDER = ("--data", "datamodules.AudioFolder", "--data.root", "sound", "--data.sample_rate", SAMPLE_RATE)


class Numbered(RecordingSet):
    """Three published recordings for training and two for the other splits; `fetch` writes them."""

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


def recording(path, samples=2000, sample_rate=SAMPLE_RATE, channels=1, peak=0.5, **options):
    """Write a recording of noise with the given peak, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(samples).uniform(-1, 1, (samples, channels))
    soundfile.write(path, peak * values / np.abs(values).max(), sample_rate, **options)
    return path


def check(*args, status=0, capsys):
    """Run the check and return its output, followed by its errors."""
    actual = 0
    try:
        main([str(argument) for argument in args])
    except SystemExit as exit_:
        actual = exit_.code
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
    """Work in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def checked(capsys):
    """Return `check` with captured output."""
    return lambda *args, status=0: check(*args, status=status, capsys=capsys)


def problems(data, **options):
    """Return the splits, kind, name and number of files of every problem."""
    return {
        (problem.splits, problem.kind, Path(problem.path).name, problem.images)
        for problem in check_recordings(data, **options).problems
    }


def write_problems():
    """Write a folder of two splits with a recording for every kind of problem."""
    for number in range(3):
        recording(f"sound/train/{number}.flac")
    recording("sound/val/a.wav")
    recording("sound/lost.flac")
    flac = recording("sound/train/truncated.flac", 30000)
    flac.write_bytes(flac.read_bytes()[:30000])
    wav = recording("sound/train/truncated.wav", 3000)
    wav.write_bytes(wav.read_bytes()[:-500])
    values = np.zeros(2000)
    values[1999] = np.nan
    soundfile.write("sound/val/nan.wav", values, SAMPLE_RATE, subtype="FLOAT")
    Path("sound/train/empty.wav").touch()
    Path("sound/train/text.flac").write_text("not audio")
    recording("sound/train/rate.flac", 4000, 2 * SAMPLE_RATE)
    recording("sound/train/stereo.wav", 2000, channels=2)
    recording("sound/train/short.wav", 999)
    recording("sound/val/quiet.wav", peak=0.0009, subtype="FLOAT")


def test_data_set_without_problems(checked):
    for number in range(3):
        recording(f"sound/train/{number}.flac", 1000)
    recording("sound/val/a.wav", 1000, peak=0.002)
    printed = checked(*FOLDER)
    assert row(printed, "split") == ["files", "published", "missing", "extra", "unreadable", "short", "silent"]
    assert row(printed, "train") == ["3", "-", "0", "0", "0", "0", "0"]
    assert row(printed, "val, test") == ["1", "-", "0", "0", "0", "0", "0"]
    assert "split: by folders: sound/train and sound/val\n" in printed
    assert printed.endswith("No problems: 4 files, all decoded.\n")
    assert "Fix" not in printed
    assert len(printed.splitlines()) == 7


def test_every_kind_of_problem_is_counted_and_named(checked):
    write_problems()
    unreadable = {
        ("train", "unreadable", name, 1) for name in ("truncated.flac", "truncated.wav", "empty.wav", "text.flac")
    }
    unreadable |= {("val, test", "unreadable", "nan.wav", 1)}
    warnings = {("train", kind, name, 1) for kind, name in (("sample_rate", "rate.flac"), ("channels", "stereo.wav"))}
    warnings |= {
        ("train", "short", "short.wav", 1),
        ("val, test", "silent", "quiet.wav", 1),
        ("", "unused", "lost.flac", 1),
    }
    assert problems(AudioFolder("sound", sample_rate=SAMPLE_RATE)) == unreadable | warnings
    printed = checked(*FOLDER, "--csv", "all.csv", status=1)
    assert row(printed, "train") == ["10", "-", "0", "0", "4", "1", "0"]
    assert row(printed, "val, test") == ["3", "-", "0", "0", "1", "0", "1"]
    assert row(printed, "no split") == ["1", "-", "0", "1", "0", "0", "0"]
    for line in (
        "Unreadable: 5",
        "  sound/train/empty.wav is empty: obtain a new copy.",
        "  sound/train/text.flac is not an audio file of a supported format: convert it to FLAC or WAV.",
        "  sound/train/truncated.wav is truncated: it holds 5,500 of 6,000 bytes. Obtain a new copy.",
        "  sound/val/nan.wav holds NaN or infinite samples: obtain a new copy.",
        "  sound/val/quiet.wav is silent: its peak is 0.0009, at a full scale of 1.",
        "  sound/train/short.wav has 999 of the 1,000 samples of a crop: it is zero-padded.",
        "  sound/train/rate.flac has a sampling rate of 2,000 Hz: it is resampled to 1,000 Hz.",
        "  sound/train/stereo.wav has 2 channels, which are mixed to one.",
        "  sound/lost.flac belongs to no split.",
        "Fix: obtain new copies of these files, or delete them.",
        "Or skip unreadable files: --data.init_args.on_bad_file skip",
    ):
        assert line in printed.splitlines()
    assert "No problems" not in printed
    assert "partial" not in printed
    with Path("all.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["split", "path", "problem", "files", "detail"]
    actual = {(split, kind, Path(path).name, int(count)) for split, path, kind, count, _ in rows}
    assert actual == unreadable | warnings
    assert all(detail.startswith(path) for _, path, _, _, detail in rows)


def test_warnings_are_no_failure(checked):
    write_problems()
    for name in ("train/truncated.flac", "train/truncated.wav", "train/empty.wav", "train/text.flac", "val/nan.wav"):
        Path("sound", name).unlink()
    printed = checked(*FOLDER)
    assert "Silent (warning): 1\n" in printed
    assert "Fix" not in printed
    assert printed.endswith("No problems: 8 files, all decoded.\n")


def test_headers_do_not_reveal_corrupt_samples(checked):
    write_problems()
    by_header = problems(AudioFolder("sound", sample_rate=SAMPLE_RATE), decode=False)
    unreadable = {name for _, kind, name, _ in by_header if kind == "unreadable"}
    assert unreadable == {"truncated.wav", "empty.wav", "text.flac"}
    assert {kind for _, kind, _, _ in by_header} == {"unreadable", "short", "sample_rate", "channels", "unused"}
    for name in unreadable:
        Path("sound/train", name).unlink()
    assert "No problems: 10 files" in checked(*FOLDER, "--decode", "false")


def test_whole_recording_is_decoded_in_blocks(monkeypatch):
    monkeypatch.setattr(recordings, "_BLOCK", 300)
    calls = []
    monkeypatch.setattr(recordings, "read_recording", lambda *args: calls.append(args[1:]) or read_recording(*args))
    values = np.zeros(1000)
    values[950] = -0.5
    Path("sound").mkdir()
    soundfile.write("sound/a.wav", values, SAMPLE_RATE)
    assert list(recording_problems(AudioFolder("sound", sample_rate=SAMPLE_RATE), [Path("sound/a.wav")])) == [[]]
    assert calls == [(0, 300), (300, 300), (600, 300), (900, 100)]


@pytest.mark.parametrize(
    ("samples", "cropping", "message"),
    [
        (3000, "whole", None),
        (2999, "whole", "a.flac has 2,999 of the 3,000 samples of a crop: it is zero-padded."),
        (4000, "released", None),
        (
            3500,
            "released",
            "a.flac without its last second has 2,500 of the 3,000 samples of a crop: it is zero-padded.",
        ),
        (800, "released", "a.flac without its last second has 0 of the 3,000 samples of a crop: it is zero-padded."),
    ],
)
def test_short_recordings_depend_on_cropping(samples, cropping, message):
    data = Numbered(seconds=3.0, sample_rate=SAMPLE_RATE, cropping=cropping)
    [result] = recording_problems(data, [recording("a.flac", samples)])
    expected = [] if message is None else [("short", message)]
    assert [(problem.kind, problem.detail) for problem in result] == expected


def test_recordings_that_cannot_be_converted_are_unreadable():
    stereo = Numbered(sample_rate=SAMPLE_RATE, channels=2)
    [[problem]] = recording_problems(stereo, [recording("a.wav")], decode=False)
    assert problem.kind == "unreadable"
    assert "a.wav has 1 channel(s), not 2: convert it" in problem.detail
    [[problem]] = recording_problems(Numbered(sample_rate=16000), [recording("b.wav", 9000, 96001)])
    assert problem.kind == "unreadable"
    assert problem.detail.startswith("b.wav: cannot resample from 96,001 to 16,000 Hz")


def test_counts_are_compared_with_published_ones(checked):
    data = ("--data", "test_check_audio.Numbered", "--data.sample_rate", SAMPLE_RATE, "--data.root", "data")
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
    assert [tuple(row) for row in findings.rows] == [("train", 2, 2), ("val, test", 1, 1)]
    assert findings.problems == []
    Path("data/librispeech/train-clean-100/19/198/19-198-0000.flac").write_bytes(b"")
    assert problems(LibriSpeech(on_bad_file="skip", partial=True)) == {("train", "unreadable", "19-198-0000.flac", 1)}


def test_split_without_recordings_fails(checked):
    recording("sound/train/a.wav")
    Path("sound/val").mkdir()
    printed = checked(*FOLDER, status=1)
    assert "  There are no recordings of the split val in sound.\n" in printed
    assert "No problems" not in printed
    Path("sound/train/a.wav").unlink()
    assert checked(*FOLDER, status=1) == "error: There are no recordings of the split train in sound.\n"
    assert "error: There is no folder nowhere" in checked(*FOLDER[:3], "nowhere", status=1)
