"""Crops of recordings: position, padding and how much is decoded; and the benchmark that measures them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import recordings
from datamodules.audio.base import RandomAudioCrop, RecordingSet, pad_to
from datamodules.domain import Grid
from datamodules.loading import Addressed
from datamodules.storage.audio import read_recording
from datamodules.storage.folders import NamedFile

SAMPLE_RATE = 100  # low, so that samples can be counted
LENGTHS = (50, 99, 100, 101, 129, 200, 250, 517)


class Recordings(RecordingSet):
    """The files of a folder; all splits are the same."""

    def files(self, split):
        return [NamedFile(path.name, path) for path in sorted(self.root.iterdir())]


def ramp(path, length, sample_rate=SAMPLE_RATE, channels=1):
    """Write a recording whose samples encode their position: sample ``i`` of channel ``c`` is ``(i + 1) / 32768 + c / 2``."""
    positions = np.arange(1, length + 1, dtype=np.int16)[:, None] + 16384 * np.arange(channels, dtype=np.int16)
    soundfile.write(path, positions, sample_rate)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a ramp of every length."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for length in LENGTHS:
        ramp(folder / f"{length:03d}.flac", length)
    return folder


def ready(folder, stage="fit", **arguments):
    """Return the data module of a folder, set up as by the trainer."""
    data = Recordings(**{"sample_rate": SAMPLE_RATE, "root": str(folder), "batch_size": 2} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def positions(values):
    """Return the positions of samples of ramps, from 1; 0 is padding."""
    return (values * 32768).round().int().tolist()


def training_items(data, epoch=0, seed=0):
    """Return the training items of an epoch by name."""
    items = Addressed(data.train_set, data.augmentation, seed)
    return {item.name: item for item in (items[epoch, index] for index in range(len(data.train_set)))}


@pytest.mark.parametrize(("seconds", "ends"), [(1, 1.0), (3.0, 3.0), (0.5, 0.5), (0.014, 0.01)])
def test_coordinates_have_two_units_per_second(folder, seconds, ends):
    data = ready(folder, seconds=seconds)
    count = round(seconds * SAMPLE_RATE)
    assert data.signal_shape == (1, count)
    assert (data.spec.domain.coord_dim, data.spec.value_dim) == (1, 1)
    assert data.spec.domain == Grid(((-ends, ends),))
    coords = data.to_coordinates(next(iter(data.val_dataloader()))).query.coords
    expected = [-ends + 2 * ends * (sample + 0.5) / count for sample in range(count)]
    assert coords.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_evaluation_takes_first_seconds_and_masks_padding(folder):
    data = ready(folder, eval_batch_size=len(LENGTHS))
    collated = next(iter(data.val_dataloader()))
    assert collated.values.shape == (len(LENGTHS), 1, 100)
    batch = data.to_coordinates(collated)
    assert batch.shape == (100,)
    assert batch.names == [f"{length:03d}.flac" for length in LENGTHS]
    for row, length in enumerate(LENGTHS):
        count = min(length, 100)
        assert positions(batch.query.values[row, :, 0]) == [*range(1, count + 1), *[0] * (100 - count)]
        assert batch.query.mask[row].tolist() == [True] * count + [False] * (100 - count)
        assert torch.equal(batch.observation.samples.mask[row], batch.query.mask[row])
    assert collated.length.tolist() == [50, 99] + [-1] * 6


def test_mask_is_none_without_short_recordings(folder):
    data = ready(folder, seconds=0.5)
    assert data.to_coordinates(next(iter(data.val_dataloader()))).query.mask is None


def test_training_crops_depend_on_epoch_recording_and_seed_only(folder):
    data = ready(folder, seconds=0.5)
    starts = {}
    for epoch in range(60):
        for name, item in training_items(data, epoch).items():
            crop = positions(item.values[0])
            assert crop == list(range(crop[0], crop[0] + 50))
            assert crop[-1] <= int(name[:3])
            assert item.length == -1
            starts.setdefault(name, []).append(crop[0])
    assert set(starts["050.flac"]) == {1}
    assert len(set(starts["517.flac"])) > 45
    assert min(starts["517.flac"]) < 50 < 420 < max(starts["517.flac"]) <= 468
    first, repeated, other = (training_items(ready(folder, seconds=0.5), 7, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name].values, repeated[name].values) for name in first)
    assert any(not torch.equal(first[name].values, other[name].values) for name in first)


def test_crops_start_at_every_possible_sample(folder):
    data = ready(folder)
    items = Addressed(data.train_set, data.augmentation, 0)
    index = LENGTHS.index(129)
    starts = [positions(items[epoch, index].values[0])[0] for epoch in range(400)]
    assert set(starts) == set(range(1, 31))


def test_short_recordings_are_padded_in_training(folder):
    item = training_items(ready(folder))["050.flac"]
    assert positions(item.values[0]) == [*range(1, 51), *[0] * 50]
    assert item.length == 50


def test_subset_of_coordinates_has_the_matching_mask(folder):
    data = ready(folder, coordinate_subset=30, batch_size=len(LENGTHS))
    batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    assert batch.query.mask.shape == (len(LENGTHS), 30)
    assert batch.shape is None
    assert torch.equal(batch.query.mask, batch.query.values[..., 0] != 0)
    assert 0 < (~batch.query.mask).sum() < 60


def _released(recording, count, sample_rate, start):
    """Return the crop of the published code; ``start`` is its random start in a long recording."""
    shortened = recording[: max(0, len(recording) - sample_rate)]
    if len(shortened) > count:
        return shortened[start : start + count]
    return shortened + [0] * (count - len(shortened))


@pytest.mark.parametrize("seconds", [0.5, 1, 3])
def test_released_cropping_drops_last_second_and_masks_nothing(folder, seconds):
    data = ready(folder, seconds=seconds, cropping="released", eval_batch_size=len(LENGTHS))
    count = round(seconds * SAMPLE_RATE)
    batch = data.to_coordinates(next(iter(data.val_dataloader())))
    assert batch.query.mask is None
    for row, length in enumerate(LENGTHS):
        recording = list(range(1, length + 1))
        assert positions(batch.query.values[row, :, 0]) == _released(recording, count, SAMPLE_RATE, 0)
    last = 0
    for epoch in range(40):
        for name, item in training_items(data, epoch).items():
            crop = positions(item.values[0])
            assert crop == _released(list(range(1, int(name[:3]) + 1)), count, SAMPLE_RATE, max(0, crop[0] - 1))
            assert item.length == -1
            last = max(last, *crop)
    assert last > 380  # of 417 available samples of the longest recording


def test_released_cropping_of_a_published_example(tmp_path):
    ramp(tmp_path / "a.flac", 20560, 16000)  # 1.285 s
    values = ready(tmp_path, sample_rate=16000, cropping="released").val_set[0].values
    assert int((values != 0).sum()) == 4560
    assert int((ready(tmp_path, sample_rate=16000).val_set[0].values != 0).sum()) == 16000


def test_released_cropping_drops_a_second_after_resampling(tmp_path):
    ramp(tmp_path / "a.flac", 400, 4 * SAMPLE_RATE)  # one second, all of which is dropped
    ramp(tmp_path / "b.flac", 480, 4 * SAMPLE_RATE)
    counts = [int((item.values != 0).sum()) for item in ready(tmp_path, cropping="released").val_set]
    assert counts == [0, 20]


def test_only_the_crop_is_decoded(folder, monkeypatch):
    decoded, original = [], soundfile.SoundFile.read

    def read(self, frames=-1, *arguments, **keywords):
        decoded.append(frames)
        return original(self, frames, *arguments, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    data = ready(folder, seconds=0.4)
    assert decoded == []  # set-up decodes nothing
    training_items(data)
    assert decoded == [40] * len(LENGTHS)
    decoded.clear()
    assert [len(data.val_set[index].values[0]) for index in range(len(data.val_set))] == [40] * len(LENGTHS)
    assert decoded == [40] * len(LENGTHS)


def test_crops_equal_slices_of_the_resampled_recording(tmp_path):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.3 * random.uniform(-1, 1, 3 * 44100), 44100)
    recording = ready(tmp_path, seconds=3, sample_rate=16000).val_set[0].values[0]
    data = ready(tmp_path, seconds=0.25, sample_rate=16000)
    for epoch in range(5):
        crop = training_items(data, epoch)["a.wav"].values[0]
        start = int((recording.unfold(0, 8, 1) - crop[:8]).abs().amax(1).argmin())
        assert (recording[start : start + 4000] - crop).abs().max() < 1e-5


def test_two_channels_are_kept_or_mixed_down(tmp_path):
    ramp(tmp_path / "a.wav", 150, channels=2)
    stereo = ready(tmp_path, channels=2).val_set[0].values
    assert stereo.shape == (2, 100)
    assert torch.equal(stereo, read_recording(tmp_path / "a.wav", 0, 100).values)
    mixed = ready(tmp_path).val_set[0].values
    torch.testing.assert_close(mixed, stereo.mean(0, keepdim=True))
    ramp(tmp_path / "b.wav", 150)
    with pytest.raises(ValueError, match=r"b\.wav has 1 channel\(s\), not 2.*on_bad_file skip"):
        ready(tmp_path, channels=2).val_set[1]
    assert list(ready(tmp_path, channels=2, on_bad_file="skip").skipped) == [str(tmp_path / "b.wav")]


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_do_not_depend_on_worker_processes(folder, workers):
    batch = next(iter(ready(folder, num_workers=workers, batch_size=8).train_dataloader()))
    expected = training_items(ready(folder))
    for name, values in zip(batch.name, batch.values, strict=True):
        assert torch.equal(values, expected[name].values)


def test_training_batches_are_augmented(folder):
    data = ready(folder, eval_batch_size=3)
    batches = list(data.training_batches(5))
    assert [len(batch.names) for batch in batches] == [3, 2]
    expected = training_items(data)
    for batch in batches:
        for name, signal in zip(batch.names, batch.observation.signal, strict=True):
            assert torch.equal(signal, expected[name].values)


def _corrupt(folder):
    """Truncate one recording, replace another by text, and return the paths of both."""
    path = folder / "517.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(20000), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:12000])
    (folder / "101.flac").write_text("not audio")
    return {str(folder / "101.flac"), str(path)}


def test_unreadable_recordings_raise_on_access(folder):
    _corrupt(folder)
    data = ready(folder)
    with pytest.raises(
        ValueError, match=r"101\.flac is not an audio file .*skip unreadable recordings: .*on_bad_file skip"
    ) as caught:
        data.val_set[LENGTHS.index(101)]
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"101\.flac"):
        training_items(data)


def test_unreadable_recordings_are_skipped_on_request(folder, capsys):
    corrupt = _corrupt(folder)
    data = ready(folder, on_bad_file="skip")
    assert set(data.skipped) == corrupt
    assert len(data.train_set) == len(data.val_set) == len(LENGTHS) - 2
    assert len(training_items(data)) == len(LENGTHS) - 2
    assert "Skipped 2 unreadable recordings" in capsys.readouterr().err


def test_split_of_unreadable_recordings_raises(tmp_path):
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(
        ValueError, match=r"None of the 1 recordings of the split train can be read:\n  .*a\.wav is not an audio file"
    ):
        ready(tmp_path, on_bad_file="skip")


def test_split_without_recordings_raises(tmp_path):
    with pytest.raises(ValueError, match=r"Recordings has no recordings of the split train in .*: set another folder"):
        ready(tmp_path)


def test_silent_recordings_are_kept(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(300, np.int16), SAMPLE_RATE)
    item = training_items(ready(tmp_path))["a.flac"]
    assert item.length == -1
    assert not item.values.any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"seconds": 0},
        {"seconds": -1.0},
        {"seconds": float("inf")},
        {"seconds": 1e-9},
        {"sample_rate": 0},
        {"channels": 3},
    ],
    ids=str,
)
def test_arguments_out_of_range_raise(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{name} {'is ' if name == 'seconds' else ''}{value}"):
        Recordings(**arguments)


def test_random_crop_of_a_recording_in_memory(folder):
    random_crop = RandomAudioCrop(100)
    for length in LENGTHS:
        item = ready(folder, seconds=length / SAMPLE_RATE).val_set[LENGTHS.index(length)]
        crop = random_crop(item, torch.Generator().manual_seed(length))
        actual = positions(crop.values[0])
        count = min(length, 100)
        assert actual == [*range(actual[0], actual[0] + count), *[0] * (100 - count)]
        assert crop.length == (length if length < 100 else -1)


def test_values_of_the_requested_length_are_not_padded():
    values = torch.ones(2, 3)
    result, length = pad_to(values, 3)
    assert result is values
    assert length == -1


def test_benchmark_of_recordings(tmp_path, capsys):
    table = tmp_path / "recordings.csv"
    arguments = ["--count=8", "--recording_seconds=0.5", "--seconds=0.1", "--batch_size=2", "--epochs=1"]
    recordings.main([*arguments, "--workers=[0]", f"--folder={tmp_path / 'recordings'}", f"--csv={table}"])
    assert "8 FLAC of about 0.5 s" in capsys.readouterr().out
    with table.open() as file:
        [row] = csv.DictReader(file)
    assert (row["count"], row["workers"]) == ("8", "0")
    assert float(row["crops per second, slowest epoch"].replace(",", "")) > 0
    assert (
        0.3
        < recordings.compression(recordings.RecordingsSettings(count=8, batch_size=2), tmp_path / "recordings")
        < 0.7
    )
    dates = {path: path.stat().st_mtime_ns for path in Path(tmp_path, "recordings").iterdir()}
    recordings.generate(
        recordings.RecordingsSettings(count=8, recording_seconds=0.5, batch_size=2), tmp_path / "recordings"
    )
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path, "recordings").iterdir()} == dates
    with pytest.raises(ValueError, match="count at least two batches"):
        recordings.RecordingsSettings(count=8)
