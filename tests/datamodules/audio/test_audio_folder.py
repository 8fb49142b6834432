"""AudioFolder: splits by subfolders or at random, file formats, and error messages."""

import numpy as np
import pytest
import soundfile
import torch
from program import refused, tiny

from datamodules import AudioFolder
from datamodules.loading import Addressed


def fill(folder, count, kind="wav", sample_rate=16000, channels=1, seconds=0.2):
    """Write tones of different pitch."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        time = np.arange(round(sample_rate * seconds))[:, None] / sample_rate
        tone = 0.5 * np.sin(2 * np.pi * (200 + 20 * number + 100 * np.arange(channels)) * time)
        soundfile.write(folder / f"{number:03d}.{kind}", tone, sample_rate)
    return folder


def names(data, split):
    """Return the names of the recordings of a split."""
    return [file.name for file in data.files(split)]


def test_random_split_has_exact_sizes(tmp_path):
    fill(tmp_path / "a", 15, "flac")
    fill(tmp_path / "b", 15)
    data = AudioFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.1)
    splits = [names(data, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [21, 6, 3]
    kinds = {"a": "flac", "b": "wav"}
    expected = [f"{folder}/{number:03d}.{kind}" for folder, kind in kinds.items() for number in range(15)]
    assert sorted(name for split in splits for name in split) == sorted(expected)
    assert all(split == sorted(split) for split in splits)


def test_random_split_depends_on_seed_and_names_only(tmp_path):
    folder, copy = (fill(tmp_path / name, 20) for name in ("folder", "copy"))
    first, of_copy, other_seed = (
        names(AudioFolder(str(root), split_seed=seed), "val") for root, seed in ((folder, 0), (copy, 0), (folder, 1))
    )
    assert first == of_copy != other_seed
    before = set(names(AudioFolder(str(folder), val_ratio=0.5), "val"))
    (folder / "001.wav").unlink()
    after = set(names(AudioFolder(str(folder), val_ratio=0.5), "val"))
    assert len(before - after) <= 1  # the other recordings keep their split


def test_validation_split_is_used_for_testing_without_test_ratio(tmp_path):
    data = AudioFolder(str(fill(tmp_path, 10)), val_ratio=0.3)
    assert names(data, "test") == names(data, "val")
    assert len(names(data, "train")) == 7


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val", "test"), (3, 2, 1)),
        (("train", "validation"), (3, 2, 2)),
        (("training", "test"), (3, 2, 2)),
    ],
    ids=str,
)
def test_subfolders_named_after_splits_are_the_splits(tmp_path, folders, sizes):
    for folder, count in zip(folders, (3, 2, 1), strict=False):
        fill(tmp_path / folder / "deeper", count)
    data = AudioFolder(str(tmp_path))
    assert tuple(len(names(data, split)) for split in ("train", "val", "test")) == sizes
    assert names(data, "train")[0] == "deeper/000.wav"
    assert data.notes["split"] == f"by folders: {tmp_path / folders[0]} and {tmp_path / folders[1]}"


def test_train_subfolder_alone_is_no_split(tmp_path):
    fill(tmp_path / "train", 10)
    data = AudioFolder(str(tmp_path))
    assert len(names(data, "train")) == 9
    assert names(data, "val")[0].startswith("train/")
    assert data.notes["split"] == f"at random with split_seed 0, because {tmp_path} has no folders train and val"


@pytest.mark.parametrize(("kind", "sample_rate"), [("wav", 16000), ("flac", 44100), ("ogg", 22050), ("mp3", 48000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_crops_have_one_shape_for_any_format_sampling_rate_and_channels(tmp_path, kind, sample_rate, channels):
    data = AudioFolder(
        str(fill(tmp_path, 4, kind, sample_rate, channels)), seconds=0.1, batch_size=2, channels=channels
    )
    data.setup("fit")
    batch = data.to_coordinates(next(iter(data.train_dataloader())))
    assert batch.observation.signal.shape == (2, channels, 1600)
    assert batch.query.mask is None
    items = Addressed(data.train_set, data.augmentation, 0)
    for index in range(3):
        item = items[1, index]
        spectrum = torch.fft.rfft(item.values[0] * torch.hann_window(1600)).abs()
        number = int(item.name[:3])
        assert int(spectrum.argmax()) * 10 == pytest.approx(200 + 20 * number, abs=10)
        assert 0.4 < float(item.values.abs().max()) < 0.6


def test_channels_are_mixed_down_unless_two_are_requested(tmp_path):
    fill(tmp_path / "stereo", 2, channels=2)
    data = AudioFolder(str(tmp_path), seconds=0.1)
    data.setup("fit")
    assert data.val_set[0].values.shape == (1, 1600)
    fill(tmp_path / "mono", 5)
    stereo = AudioFolder(str(tmp_path / "mono"), channels=2)
    stereo.setup("fit")
    with pytest.raises(ValueError, match=r"wav has 1 channel\(s\), not 2: .*--data\.init_args\.channels 1"):
        stereo.val_set[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_ratio": 0.0}, "val_ratio is 0.0"),
        ({"val_ratio": 0.6, "test_ratio": 0.5}, "test_ratio 0.5"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        AudioFolder(**options)


def test_missing_or_empty_folder_raises(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere: set --data\.init_args\.root"):
        AudioFolder(str(tmp_path / "nowhere")).setup("fit")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="contains no audio files"):
        AudioFolder(str(tmp_path)).setup("fit")


def test_command_line_names_the_recording_that_a_worker_cannot_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "sound" / "train", 6)
    fill(tmp_path / "sound" / "val", 1)
    (tmp_path / "sound" / "train" / "003.wav").write_text("not audio")
    data = ["--data=datamodules.AudioFolder", "--data.root=sound", "--data.seconds=0.1", "--data.batch_size=3"]
    message = refused("fit", *tiny("ipc"), *data, "--data.num_workers=1", "--model.encoder.patch_size=200")
    assert "003.wav is not an audio file of a supported format: convert it to FLAC or WAV" in message
    assert "--data.init_args.on_bad_file skip" in message
