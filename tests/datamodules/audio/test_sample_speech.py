"""The bundled recordings of speech, and training on them."""

import csv
import hashlib
import math
import re
import socket
from itertools import islice
from pathlib import Path

import pytest
import torch
from program import REPOSITORY, TESTS, column, run

from datamodules import SampleSpeech
from datamodules.audio.sample_speech import (
    HELD_OUT_RECORDINGS,
    MORE_SPEECH,
    SPEECH,
    TRAINING_RECORDINGS,
    read_prompt,
)
from datamodules.domain import Grid
from datamodules.loading import Addressed
from datamodules.storage.audio import read_recording, recording_facts

SAMPLE_RATE = 16000


def _items(dataset):
    """Return all items of a dataset."""
    return [dataset[index] for index in range(len(dataset))]


def _manifest(folder):
    """Return the rows of the manifest of a folder by name."""
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["file"].removesuffix(".flac"): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def manifest():
    """Return the rows of the manifest of the recordings that are used by default."""
    return _manifest(SPEECH)


@pytest.fixture(scope="module")
def speech():
    """Return the data module, loaded without network access."""

    def refuse(*arguments, **keywords):
        raise OSError("this test has no network access")

    read_prompt.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "create_connection", refuse)
        data = SampleSpeech(crops_per_epoch=70, batch_size=8)
        data.setup("fit")
    return data


@pytest.mark.parametrize(("folder", "count"), [(SPEECH, 24), (MORE_SPEECH, 151)], ids=["speech", "speech_more"])
def test_files_agree_with_manifest_and_licence(folder, count):
    manifest = _manifest(folder)
    assert len(manifest) == count
    assert {path.stem for path in folder.glob("*.flac")} == set(manifest)
    for name, row in manifest.items():
        facts = recording_facts(folder / f"{name}.flac")
        assert facts[1:] == (SAMPLE_RATE, 1)
        assert facts.frames / SAMPLE_RATE == pytest.approx(float(row["seconds"]), abs=0.006)
        assert row["licence"] == "CC-BY-SA-3.0"
        assert row["speaker"] == {"ast_en_": "Allison Smith", "ast_fr_": "June Wallack"}[name[:7]]
    licence = (folder / "LICENSES.md").read_text() + (folder / "ATTRIBUTION.txt").read_text()
    assert f"{count} FLAC files" in licence
    for text in ("Allison Smith", "June Wallack", "https://creativecommons.org/licenses/by-sa/3.0/", "Changes made"):
        assert text in licence
    assert "meshes" not in licence


def test_recordings_are_not_silent(manifest):
    for name in manifest:
        values = read_prompt(name)
        assert values.dtype == torch.float32
        assert 0.4 < float(values.abs().max()) < 0.75
        assert float(values.square().mean().sqrt()) > 0.02


def test_training_and_held_out_recordings_are_disjoint_and_have_both_speakers(manifest):
    assert set(TRAINING_RECORDINGS) | set(HELD_OUT_RECORDINGS) == set(manifest)
    assert len(TRAINING_RECORDINGS) + len(HELD_OUT_RECORDINGS) == 24
    speakers = [manifest[name]["speaker"] for name in HELD_OUT_RECORDINGS]
    assert (speakers.count("Allison Smith"), speakers.count("June Wallack")) == (4, 2)
    assert {manifest[name]["speaker"] for name in TRAINING_RECORDINGS} == set(speakers)


def _prompt(name):
    """Return the name of a prompt without the number or letter of its version."""
    return re.sub(r"(-[a-z]|\d)$", "", name)


def test_additional_recordings_are_no_version_of_held_out_ones():
    assert _prompt("ast_fr_confbridge-begin-glorious-c") == _prompt("ast_fr_confbridge-begin-glorious-b")
    assert _prompt("ast_en_vm-tempgreeting2") == "ast_en_vm-tempgreeting"
    additional = {path.stem for path in MORE_SPEECH.glob("*.flac")}
    assert {*map(_prompt, additional)} & {*map(_prompt, HELD_OUT_RECORDINGS)} == set()
    assert additional & {*TRAINING_RECORDINGS} == set()
    existing = {path.read_bytes() for path in SPEECH.glob("*.flac")}
    assert not any(path.read_bytes() in existing for path in MORE_SPEECH.glob("*.flac"))


def test_additional_recordings_extend_training_and_nothing_else(speech):
    data = SampleSpeech(extended=True, crops_per_epoch=1024)
    data.setup("fit")
    names = [item.name for item in data.train_set.items]
    assert names[:18] == list(TRAINING_RECORDINGS)
    assert names[18:] == sorted(path.stem for path in MORE_SPEECH.glob("*.flac"))
    assert torch.equal(data.train_set[168].values, read_recording(MORE_SPEECH / f"{names[168]}.flac").values)
    for split in ("val_set", "test_set"):
        for actual, expected in zip(_items(getattr(data, split)), _items(getattr(speech, split)), strict=True):
            assert (actual.name, actual.length) == (expected.name, expected.length)
            assert torch.equal(actual.values, expected.values)


def test_held_out_seconds_are_those_of_published_results(speech):
    samples = torch.stack([(item.values * 32768).round().short() for item in _items(speech.val_set)])
    digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
    assert digest == "252e8ae370424ce891a5f92b2a4520498deccf3abf52dc7fbbc13f53adeff520"


def test_notes_state_duration_and_number_of_recordings(speech):
    assert speech.notes == {
        "training audio": "44.0 s, 18 recordings: 10 English by Allison Smith, 8 Canadian French by June Wallack",
        "held-out audio": "12.0 s, 12 crops of 6 recordings: 7 English by Allison Smith, 5 Canadian French by June Wallack",
        "held-out items": "these 12 crops are from six recordings by two speakers, "
        "whose other recordings are the training data",
    }
    few = SampleSpeech(extended=True, crops_per_epoch=2)
    few.setup("fit")
    seconds = sum(read_prompt(name).shape[1] for name in TRAINING_RECORDINGS[:2]) / SAMPLE_RATE
    assert few.notes["training audio"].startswith(f"{seconds:.1f} s, 2 recordings: 2 English")
    short = SampleSpeech(seconds=3)
    short.setup("test")
    seconds = sum(min(3, read_prompt(name).shape[1] / SAMPLE_RATE) for name in HELD_OUT_RECORDINGS)
    assert list(short.notes) == ["held-out audio", "held-out items"]
    assert short.notes["held-out items"].startswith("these 6 crops are from six recordings")
    assert short.notes["held-out audio"].startswith(f"{seconds:.1f} s, 6 crops of 6 recordings: 4 English")


def test_held_out_recordings_are_cut_into_consecutive_crops(speech):
    expected = []
    for name in HELD_OUT_RECORDINGS:
        recording = read_prompt(name)[0].tolist()
        starts = range(0, len(recording) - SAMPLE_RATE + 1, SAMPLE_RATE)
        expected += [
            (f"{name}-{number}", recording[start : start + SAMPLE_RATE]) for number, start in enumerate(starts)
        ]
    items = _items(speech.val_set)
    assert [(item.name, item.values[0].tolist()) for item in items] == expected
    assert len(items) == len({item.name for item in items}) == 12
    assert all(item.length == -1 for item in items)
    assert [item.name for item in _items(speech.test_set)] == [item.name for item in items]


def test_training_takes_random_crops_of_all_recordings(speech):
    assert len(speech.train_set) == 70
    items = Addressed(speech.train_set, speech.augmentation, 0)
    starts = set()
    for epoch in range(2):
        for index in range(18):
            crop = items[epoch, index]
            assert crop.name == TRAINING_RECORDINGS[index]
            recording = read_prompt(crop.name)[0]
            windows = recording.unfold(0, 64, 1)
            [start, *_] = (windows == crop.values[0, :64]).all(1).nonzero().flatten().tolist()
            assert torch.equal(crop.values[0], recording[start : start + SAMPLE_RATE])
            assert crop.length == -1
            starts.add((index, start))
    assert len(starts) == 36
    assert torch.equal(items[1, 3].values, items[1, 3].values)


def test_crops_longer_than_recordings_are_padded_and_masked():
    data = SampleSpeech(seconds=3, crops_per_epoch=18, eval_batch_size=6, batch_size=18)
    data.setup("fit")
    assert data.signal_shape == (1, 48000)
    assert data.spec.domain == Grid(((-3, 3),))
    batch = data.to_coordinates(next(iter(data.val_dataloader())))
    assert batch.names == [f"{name}-0" for name in HELD_OUT_RECORDINGS]
    lengths = [min(48000, read_prompt(name).shape[1]) for name in HELD_OUT_RECORDINGS]
    assert batch.query.mask.sum(1).tolist() == lengths
    assert 0 < lengths.count(48000) < 6
    training_batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    for name, mask in zip(training_batch.names, training_batch.query.mask, strict=True):
        assert int(mask.sum()) == min(48000, read_prompt(name).shape[1])


def test_recordings_are_resampled():
    data = SampleSpeech(sample_rate=8000)
    data.setup("test")
    assert data.signal_shape == (1, 8000)
    original = read_prompt(HELD_OUT_RECORDINGS[0])[0, :SAMPLE_RATE]
    expected, actual = torch.fft.rfft(original)[:3000] / 2, torch.fft.rfft(data.test_set[0].values[0])[:3000]
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_iteration_ends(speech):
    assert sum(1 for _ in islice(speech.val_set, 100)) == 12
    with pytest.raises(IndexError):
        speech.val_set[12]


@pytest.mark.parametrize("arguments", [{"crops_per_epoch": 0}, {"seconds": 0.0}, {"sample_rate": 0}], ids=str)
def test_arguments_out_of_range_raise(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}"):
        SampleSpeech(**arguments)


CONFIG = """
_base_: [{tests}/configs/tiny_ipc.yaml]
data:
  class_path: datamodules.SampleSpeech
  init_args: {{crops_per_epoch: 8, batch_size: 4, eval_batch_size: 12, coordinate_subset: 500}}
model:
  init_args:
    network: {{init_args: {{output_offset: 0.0}}}}
    encoder: {{init_args: {{patch_size: 200, padding: 0}}}}
    metrics: {{psnr: {{class_path: composers.metrics.PSNR}}}}
"""


def test_training_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("speech.yaml").write_text(CONFIG.format(repository=REPOSITORY, tests=TESTS))
    printed = run("fit", "--config", "speech.yaml", "--trainer.num_sanity_val_steps", 0)
    assert "SampleSpeech (1, 16000), 8 training and 12" in printed
    assert "80 data + 8 weight" in printed
    metrics = Path("runs/unnamed/version_0/metrics.csv")
    losses = column(metrics, "train/loss")
    assert len(losses) == 2
    assert all(0 < loss < 2 for loss in losses)
    [psnr] = column(metrics, "val/psnr")
    assert psnr == pytest.approx(sum(_silence_psnr()) / 12, abs=3)  # after two steps hardly better than silence


def _silence_psnr():
    """Return the PSNR of silence for every held-out second."""
    recordings = (read_recording(SPEECH / f"{name}.flac").values[0] for name in HELD_OUT_RECORDINGS)
    seconds = (
        second for recording in recordings for second in recording.split(SAMPLE_RATE) if len(second) == SAMPLE_RATE
    )
    return [-10 * math.log10(float(second.square().mean())) for second in seconds]
