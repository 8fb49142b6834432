"""Anybody's sound: splits by folders or drawn, every kind of file, and the program's refusals."""

import numpy as np
import pytest
import soundfile
import torch
from program import refused, tiny

from datamodules import AudioFolder
from datamodules.loading import Addressed


def fill(folder, count, kind="wav", rate=16000, channels=1, seconds=0.2):
    """Write tones, each of its own pitch."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        time = np.arange(round(rate * seconds))[:, None] / rate
        tone = 0.5 * np.sin(2 * np.pi * (200 + 20 * number + 100 * np.arange(channels)) * time)
        soundfile.write(folder / f"{number:03d}.{kind}", tone, rate)
    return folder


def names(data, split):
    """Return the names of a split."""
    return [file.name for file in data.files(split)]


def test_a_folder_is_split_by_a_draw_that_has_exact_parts(tmp_path):
    fill(tmp_path / "a", 15, "flac")
    fill(tmp_path / "b", 15)
    data = AudioFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.1)
    splits = [names(data, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [21, 6, 3]
    kinds = {"a": "flac", "b": "wav"}
    everything = [f"{folder}/{number:03d}.{kind}" for folder, kind in kinds.items() for number in range(15)]
    assert sorted(name for split in splits for name in split) == sorted(everything)
    assert all(split == sorted(split) for split in splits)


def test_the_draw_depends_on_the_seed_and_the_names_alone(tmp_path):
    here, there = (fill(tmp_path / name, 20) for name in ("here", "there"))
    first, again, other = (
        names(AudioFolder(str(folder), split_seed=seed), "val") for folder, seed in ((here, 0), (there, 0), (here, 1))
    )
    assert first == again != other
    before = set(names(AudioFolder(str(here), val_ratio=0.5), "val"))
    (here / "001.wav").unlink()
    after = set(names(AudioFolder(str(here), val_ratio=0.5), "val"))
    assert len(before - after) <= 1  # the others stay where they are


def test_without_a_ratio_for_the_test_validation_serves(tmp_path):
    data = AudioFolder(str(fill(tmp_path, 10)), val_ratio=0.3)
    assert names(data, "test") == names(data, "val")
    assert len(names(data, "train")) == 7


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train", "val", "test"), (3, 2, 1)),
        (("train", "validation"), (3, 2, 2)),
        (("training", "test"), (3, 2, 2)),
    ],
    ids=str,
)
def test_folders_named_after_splits_are_the_splits(tmp_path, folders, found):
    for folder, count in zip(folders, (3, 2, 1), strict=False):
        fill(tmp_path / folder / "deeper", count)
    data = AudioFolder(str(tmp_path))
    assert tuple(len(names(data, split)) for split in ("train", "val", "test")) == found
    assert names(data, "train")[0] == "deeper/000.wav"
    assert data.notes["split"] == f"by folders: {tmp_path / folders[0]} and {tmp_path / folders[1]}"


def test_a_folder_train_alone_is_no_split(tmp_path):
    fill(tmp_path / "train", 10)
    data = AudioFolder(str(tmp_path))
    assert len(names(data, "train")) == 9
    assert names(data, "val")[0].startswith("train/")
    assert data.notes["split"] == f"at random with split_seed 0, because {tmp_path} has no folders train and val"


@pytest.mark.parametrize(("kind", "rate"), [("wav", 16000), ("flac", 44100), ("ogg", 22050), ("mp3", 48000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_kind_rate_and_number_of_channels_becomes_pieces_of_one_shape(tmp_path, kind, rate, channels):
    data = AudioFolder(str(fill(tmp_path, 4, kind, rate, channels)), seconds=0.1, batch_size=2, channels=channels)
    data.setup("fit")
    batch = data.to_coordinates(next(iter(data.train_dataloader())))
    assert batch.observation.signal.shape == (2, channels, 1600)
    assert batch.query.mask is None
    items = Addressed(data.train_set, data.augmentation, 0)
    for index in range(3):
        item = items[1, index]
        strength = torch.fft.rfft(item.values[0] * torch.hann_window(1600)).abs()
        number = int(item.name[:3])
        assert int(strength.argmax()) * 10 == pytest.approx(200 + 20 * number, abs=10)
        assert 0.4 < float(item.values.abs().max()) < 0.6


def test_channels_are_mixed_down_unless_two_are_wanted(tmp_path):
    fill(tmp_path / "pairs", 2, channels=2)
    data = AudioFolder(str(tmp_path), seconds=0.1)
    data.setup("fit")
    assert data.val_set[0].values.shape == (1, 1600)
    fill(tmp_path / "single", 5)
    wanted = AudioFolder(str(tmp_path / "single"), channels=2)
    wanted.setup("fit")
    with pytest.raises(ValueError, match=r"wav has 1 channel\(s\), not 2: .*--data\.init_args\.channels 1"):
        wanted.val_set[0]


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
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AudioFolder(**options)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere: set --data\.init_args\.root"):
        AudioFolder(str(tmp_path / "nowhere")).setup("fit")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="contains no sound"):
        AudioFolder(str(tmp_path)).setup("fit")


def test_the_program_names_a_recording_that_a_worker_cannot_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "sound" / "train", 6)
    fill(tmp_path / "sound" / "val", 1)
    (tmp_path / "sound" / "train" / "003.wav").write_text("no sound")
    data = ["--data=datamodules.AudioFolder", "--data.root=sound", "--data.seconds=0.1", "--data.batch_size=3"]
    message = refused("fit", *tiny("ipc"), *data, "--data.num_workers=1", "--model.tokenizer.patch_size=200")
    assert "003.wav is no sound of a kind that can be read: convert it to FLAC or WAV" in message
    assert "--data.init_args.on_bad_file skip" in message
