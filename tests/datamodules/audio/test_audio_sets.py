"""Pieces of recordings: where they are cut, what is measured of them, and that no more is decoded; the benchmark of it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import recordings
from datamodules.audio.base import RandomPiece, RecordingSet, padded
from datamodules.domain import Grid
from datamodules.loading import Addressed
from datamodules.storage.audio import read_recording
from datamodules.storage.folders import NamedFile

RATE = 100  # samples a second, so that samples can be counted
LENGTHS = (50, 99, 100, 101, 129, 200, 250, 517)


class Recordings(RecordingSet):
    """The files of a folder, as every split."""

    def files(self, split):
        return [NamedFile(path.name, path) for path in sorted(self.root.iterdir())]


def ramp(path, length, rate=RATE, channels=1):
    """Write a recording whose samples say where they are: sample ``i`` of channel ``c`` is ``(i + 1) / 32768 + c / 2``."""
    places = np.arange(1, length + 1, dtype=np.int16)[:, None] + 16384 * np.arange(channels, dtype=np.int16)
    soundfile.write(path, places, rate)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder of ramps, one of every length."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for length in LENGTHS:
        ramp(folder / f"{length:03d}.flac", length)
    return folder


def ready(folder, stage="fit", **arguments):
    """Return the recordings of a folder after what the trainer calls."""
    data = Recordings(**{"rate": RATE, "root": str(folder), "batch_size": 2} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def numbers(values):
    """Return the places that samples of ramps have, from 1; 0 is padding."""
    return (values * 32768).round().int().tolist()


def trained_on(data, epoch=0, seed=0):
    """Return what training sees in an epoch, by name."""
    items = Addressed(data.train_set, data.augmentation, seed)
    return {item.name: item for item in (items[epoch, index] for index in range(len(data.train_set)))}


@pytest.mark.parametrize(("seconds", "ends"), [(1, 1.0), (3.0, 3.0), (0.5, 0.5), (0.014, 0.01)])
def test_coordinates_have_two_units_per_second(folder, seconds, ends):
    data = ready(folder, seconds=seconds)
    count = round(seconds * RATE)
    assert data.signal_shape == (1, count)
    assert (data.spec.domain.coord_dim, data.spec.value_dim) == (1, 1)
    assert data.spec.domain == Grid(((-ends, ends),))
    coords = data.to_coordinates(next(iter(data.val_dataloader()))).query.coords
    wanted = [-ends + 2 * ends * (place + 0.5) / count for place in range(count)]
    assert coords.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_evaluation_sees_the_first_seconds_and_what_is_measured_of_them(folder):
    data = ready(folder, eval_batch_size=len(LENGTHS))
    collated = next(iter(data.val_dataloader()))
    assert collated.values.shape == (len(LENGTHS), 1, 100)
    batch = data.to_coordinates(collated)
    assert batch.shape == (100,)
    assert batch.names == [f"{length:03d}.flac" for length in LENGTHS]
    for row, length in enumerate(LENGTHS):
        measured = min(length, 100)
        assert numbers(batch.query.values[row, :, 0]) == [*range(1, measured + 1), *[0] * (100 - measured)]
        assert batch.query.mask[row].tolist() == [True] * measured + [False] * (100 - measured)
        assert torch.equal(batch.observation.samples.mask[row], batch.query.mask[row])
    assert collated.length.tolist() == [50, 99] + [-1] * 6


def test_without_short_recordings_nothing_is_masked(folder):
    data = ready(folder, seconds=0.5)
    assert data.to_coordinates(next(iter(data.val_dataloader()))).query.mask is None


def test_training_sees_slices_that_change_with_the_epoch_and_are_addressed(folder):
    data = ready(folder, seconds=0.5)
    starts = {}
    for epoch in range(60):
        for name, item in trained_on(data, epoch).items():
            found = numbers(item.values[0])
            assert found == list(range(found[0], found[0] + 50))
            assert found[-1] <= int(name[:3])
            assert item.length == -1
            starts.setdefault(name, []).append(found[0])
    assert set(starts["050.flac"]) == {1}
    assert len(set(starts["517.flac"])) > 45
    assert min(starts["517.flac"]) < 50 < 420 < max(starts["517.flac"]) <= 468
    first, again, other = (trained_on(ready(folder, seconds=0.5), 7, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name].values, again[name].values) for name in first)
    assert any(not torch.equal(first[name].values, other[name].values) for name in first)


def test_every_place_is_drawn(folder):
    data = ready(folder)
    items = Addressed(data.train_set, data.augmentation, 0)
    index = LENGTHS.index(129)
    places = [numbers(items[epoch, index].values[0])[0] for epoch in range(400)]
    assert set(places) == set(range(1, 31))


def test_short_recordings_are_padded_in_training_too(folder):
    item = trained_on(ready(folder))["050.flac"]
    assert numbers(item.values[0]) == [*range(1, 51), *[0] * 50]
    assert item.length == 50


def test_a_subset_of_coordinates_takes_its_masks_along(folder):
    data = ready(folder, coordinate_subset=30, batch_size=len(LENGTHS))
    batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    assert batch.query.mask.shape == (len(LENGTHS), 30)
    assert batch.shape is None
    assert torch.equal(batch.query.mask, batch.query.values[..., 0] != 0)
    assert 0 < (~batch.query.mask).sum() < 60


def _released(recording, count, rate, start):
    """Return a piece as published code cuts it, sample by sample; ``start`` is what it draws, if it is long."""
    left = recording[: max(0, len(recording) - rate)]
    if len(left) > count:
        return left[start : start + count]
    return left + [0] * (count - len(left))


@pytest.mark.parametrize("seconds", [0.5, 1, 3])
def test_released_cropping_loses_the_last_second_and_masks_nothing(folder, seconds):
    data = ready(folder, seconds=seconds, cropping="released", eval_batch_size=len(LENGTHS))
    count = round(seconds * RATE)
    batch = data.to_coordinates(next(iter(data.val_dataloader())))
    assert batch.query.mask is None
    for row, length in enumerate(LENGTHS):
        recording = list(range(1, length + 1))
        assert numbers(batch.query.values[row, :, 0]) == _released(recording, count, RATE, 0)
    last = 0
    for epoch in range(40):
        for name, item in trained_on(data, epoch).items():
            found = numbers(item.values[0])
            assert found == _released(list(range(1, int(name[:3]) + 1)), count, RATE, max(0, found[0] - 1))
            assert item.length == -1
            last = max(last, *found)
    assert last > 380  # of 417 that are left of the longest


def test_the_published_example_of_released_cropping(tmp_path):
    ramp(tmp_path / "a.flac", 20560, 16000)  # 1.285 s
    values = ready(tmp_path, rate=16000, cropping="released").val_set[0].values
    assert int((values != 0).sum()) == 4560
    assert int((ready(tmp_path, rate=16000).val_set[0].values != 0).sum()) == 16000


def test_released_cropping_counts_a_second_at_the_rate_of_the_pieces(tmp_path):
    ramp(tmp_path / "a.flac", 400, 4 * RATE)  # a second, of which nothing is left
    ramp(tmp_path / "b.flac", 480, 4 * RATE)
    left = [int((item.values != 0).sum()) for item in ready(tmp_path, cropping="released").val_set]
    assert left == [0, 20]


def test_no_more_is_decoded_than_is_seen(folder, monkeypatch):
    asked, original = [], soundfile.SoundFile.read

    def read(self, frames=-1, *arguments, **keywords):
        asked.append(frames)
        return original(self, frames, *arguments, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    data = ready(folder, seconds=0.4)
    assert asked == []  # nor is anything decoded at set-up
    trained_on(data)
    assert asked == [40] * len(LENGTHS)
    asked.clear()
    assert [len(data.val_set[index].values[0]) for index in range(len(data.val_set))] == [40] * len(LENGTHS)
    assert asked == [40] * len(LENGTHS)


def test_pieces_of_resampled_recordings_are_slices_of_the_whole_resampled(tmp_path):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.3 * random.uniform(-1, 1, 3 * 44100), 44100)
    whole = ready(tmp_path, seconds=3, rate=16000).val_set[0].values[0]
    data = ready(tmp_path, seconds=0.25, rate=16000)
    for epoch in range(5):
        piece = trained_on(data, epoch)["a.wav"].values[0]
        start = int((whole.unfold(0, 8, 1) - piece[:8]).abs().amax(1).argmin())
        assert (whole[start : start + 4000] - piece).abs().max() < 1e-5


def test_two_channels_are_kept_or_mixed(tmp_path):
    ramp(tmp_path / "a.wav", 150, channels=2)
    pair = ready(tmp_path, channels=2).val_set[0].values
    assert pair.shape == (2, 100)
    assert torch.equal(pair, read_recording(tmp_path / "a.wav", 0, 100).values)
    mixed = ready(tmp_path).val_set[0].values
    torch.testing.assert_close(mixed, pair.mean(0, keepdim=True))
    ramp(tmp_path / "b.wav", 150)
    with pytest.raises(ValueError, match=r"b\.wav has 1 channel\(s\), not 2.*on_bad_file skip"):
        ready(tmp_path, channels=2).val_set[1]
    assert list(ready(tmp_path, channels=2, on_bad_file="skip").skipped) == [str(tmp_path / "b.wav")]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_processes_see_the_same(folder, workers):
    batch = next(iter(ready(folder, num_workers=workers, batch_size=8).train_dataloader()))
    wanted = trained_on(ready(folder))
    for name, values in zip(batch.name, batch.values, strict=True):
        assert torch.equal(values, wanted[name].values)


def test_training_batches_are_augmented_and_at_the_coordinates_of_evaluation(folder):
    data = ready(folder, eval_batch_size=3)
    batches = list(data.training_batches(5))
    assert [len(batch.names) for batch in batches] == [3, 2]
    wanted = trained_on(data)
    for batch in batches:
        for name, signal in zip(batch.names, batch.observation.signal, strict=True):
            assert torch.equal(signal, wanted[name].values)


def _spoil(folder):
    """Cut one recording off after a third, and make another text."""
    path = folder / "517.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(20000), RATE)
    path.write_bytes(path.read_bytes()[:12000])
    (folder / "101.flac").write_text("no sound")
    return {str(folder / "101.flac"), str(path)}


def test_unreadable_recordings_stop_where_they_are_met(folder):
    _spoil(folder)
    data = ready(folder)
    with pytest.raises(
        ValueError, match=r"101\.flac is no sound .*leave such recordings out: .*on_bad_file skip"
    ) as caught:
        data.val_set[LENGTHS.index(101)]
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"101\.flac"):
        trained_on(data)


def test_unreadable_recordings_are_left_out_on_request(folder, capsys):
    spoilt = _spoil(folder)
    data = ready(folder, on_bad_file="skip")
    assert set(data.skipped) == spoilt
    assert len(data.train_set) == len(data.val_set) == len(LENGTHS) - 2
    assert len(trained_on(data)) == len(LENGTHS) - 2
    assert "Skipped 2 unreadable recordings" in capsys.readouterr().err


def test_only_unreadable_recordings_are_refused(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(
        ValueError, match=r"None of 1 recordings of the split train can be read:\n  .*a\.wav is no sound"
    ):
        ready(tmp_path, on_bad_file="skip")


def test_a_split_without_recordings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Recordings has no recordings of the split train in .*: name another folder"):
        ready(tmp_path)


def test_silence_is_kept(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(300, np.int16), RATE)
    item = trained_on(ready(tmp_path))["a.flac"]
    assert item.length == -1
    assert not item.values.any()


@pytest.mark.parametrize(
    "arguments",
    [{"seconds": 0}, {"seconds": -1.0}, {"seconds": float("inf")}, {"seconds": 1e-9}, {"rate": 0}, {"channels": 3}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{name} {'is ' if name == 'seconds' else ''}{value}"):
        Recordings(**arguments)


def test_pieces_in_memory_are_cut_like_those_in_files(folder):
    crop = RandomPiece(100)
    for length in LENGTHS:
        item = ready(folder, seconds=length / RATE).val_set[LENGTHS.index(length)]
        cut = crop(item, torch.Generator().manual_seed(length))
        found = numbers(cut.values[0])
        measured = min(length, 100)
        assert found == [*range(found[0], found[0] + measured), *[0] * (100 - measured)]
        assert cut.length == (length if length < 100 else -1)


def test_nothing_is_padded_where_all_is_there():
    values = torch.ones(2, 3)
    found, length = padded(values, 3)
    assert found is values
    assert length == -1


def test_loading_of_recordings_is_measured(tmp_path, capsys):
    table = tmp_path / "recordings.csv"
    arguments = ["--count=8", "--recording_seconds=0.5", "--seconds=0.1", "--batch_size=2", "--epochs=1"]
    recordings.main([*arguments, "--workers=[0]", f"--folder={tmp_path / 'recordings'}", f"--csv={table}"])
    assert "8 FLAC of about 0.5 s" in capsys.readouterr().out
    with table.open() as file:
        [row] = csv.DictReader(file)
    assert (row["count"], row["workers"]) == ("8", "0")
    assert float(row["a second, slowest epoch"].replace(",", "")) > 0
    assert 0.3 < recordings.share(recordings.RecordingsSettings(count=8, batch_size=2), tmp_path / "recordings") < 0.7
    dates = {path: path.stat().st_mtime_ns for path in Path(tmp_path, "recordings").iterdir()}
    recordings.generate(recordings.RecordingsSettings(count=8, recording_seconds=0.5, batch_size=2), tmp_path / "recordings")
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path, "recordings").iterdir()} == dates
    with pytest.raises(ValueError, match="recordings for two batches"):
        recordings.RecordingsSettings(count=8)
