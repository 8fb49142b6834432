"""A checkpoint stores the coordinates of its training data, and data with other coordinates raise."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from program import NAME, SAVE_DIR, refused, run, tiny

from composers.checkpoint import check_data, stated_sample_rate
from datamodules import AudioFolder, CoordinateDataModule
from datamodules.audio.prediction import AudioFiles
from datamodules.domain import Grid
from datamodules.images.prediction import ImageFiles
from datamodules.spec import DataSpec, Modality


class Wide(CoordinateDataModule):
    """Images with coordinates from 0 to 2."""

    spec = DataSpec(Grid(((0.0, 2.0), (0.0, 2.0))), 3, (3, 8, 12), Modality())


def checkpoint(low, high, *signal_shape):
    """Return the content of an old checkpoint, which stores a range of coordinates instead of a domain."""
    return {"data": {"coord_range": [low, high], "signal_shape": list(signal_shape)}}


ONE_SECOND = checkpoint(-1.0, 1.0, 1, 16000)


def error_message(data, content):
    """Check that data raise with a message of one line, and return the message."""
    with pytest.raises(ValueError, match=r"^model\.ckpt was trained with coordinates from ") as caught:
        check_data(data, content, "model.ckpt")
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("model.ckpt was trained with ")


@pytest.mark.parametrize(
    ("sample_rate", "received"),
    [
        (8000, "coordinates from -2 to 2 (2 s at 8,000 Hz)"),
        (44100, "coordinates from -0.362812 to 0.362812 (0.362812 s at 44,100 Hz)"),
    ],
)
def test_recordings_with_another_sampling_rate_raise(sample_rate, received):
    assert error_message(AudioFiles("a.wav", (1, 16000), sample_rate), ONE_SECOND) == (
        f"coordinates from -1 to 1 (1 s at 16,000 Hz); this AudioFiles has {received}: use "
        "`--data.init_args.sample_rate 16000` and, for a data set, `--data.init_args.seconds 1` as in training, or use another "
        "checkpoint."
    )


def test_suggested_arguments_are_accepted():
    content = checkpoint(-1.5, 1.5, 2, 12000)
    data = AudioFolder("audio", seconds=3.0, sample_rate=4000, channels=2)
    assert data.signal_shape == (2, 12000)  # the sizes alone are equal
    message = error_message(data, content)
    assert "`--data.init_args.sample_rate 8000` and, for a data set, `--data.init_args.seconds 1.5`" in message
    assert "coordinates from -3 to 3 (3 s at 4,000 Hz)" in message
    check_data(AudioFolder("audio", seconds=1.5, sample_rate=8000, channels=2), content, "model.ckpt")
    check_data(AudioFiles("a.wav", (2, 12000), 8000), content, "model.ckpt")


@pytest.mark.parametrize(
    ("seconds", "sample_rate"), [(1.0, 16000), (3.0, 16000), (0.7, 44100), (0.1, 22050), (1 / 3, 11025)]
)
def test_sampling_rate_is_read_from_the_checkpoint(seconds, sample_rate):
    trained = AudioFolder("audio", seconds=seconds, sample_rate=sample_rate)
    content = {"data": trained.spec.facts()}
    assert stated_sample_rate(content) == sample_rate
    check_data(AudioFiles("a.wav", trained.signal_shape, stated_sample_rate(content)), content, "model.ckpt")
    error_message(AudioFiles("a.wav", trained.signal_shape, sample_rate + 1), content)


def test_images_with_other_coordinates_raise():
    content = checkpoint(-1.0, 1.0, 3, 8, 8)
    assert stated_sample_rate(content) is None
    check_data(ImageFiles(("a.png",), (3, 8, 8)), content, "model.ckpt")
    check_data(ImageFiles(("a.png",), (3, 16, 16)), content, "model.ckpt")  # sizes are checked elsewhere
    assert error_message(Wide(), content) == (
        "coordinates from -1 to 1; this Wide has coordinates from 0 to 2: use data with the coordinates of the training "
        "data, or use another checkpoint."
    )


@pytest.mark.parametrize("content", [{}, {"data": None}], ids=str)
def test_checkpoint_without_coordinates_is_accepted(content):
    check_data(AudioFiles("a.wav", (1, 16000), 8000), content, "old.ckpt")
    assert stated_sample_rate(content) is None


@pytest.mark.slow
def test_program_uses_the_sampling_rate_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("val", 1)):
        Path("audio", split).mkdir(parents=True)
        for number in range(count):
            soundfile.write(f"audio/{split}/{number}.wav", 0.3 * np.sin(np.arange(1600) * (number + 2) / 20), 1000)
    data = ["--data=datamodules.AudioFolder", "--data.root=audio", "--data.seconds=0.4", "--data.sample_rate=500"]
    small = ["--model.encoder.patch_size=50", "--trainer.max_steps=2", SAVE_DIR, "out", NAME, "a"]
    run("fit", *tiny("ipc"), *data, *small, "--data.batch_size=2")
    [path] = Path("out").rglob("last.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["data"] == {
        "domain": {"class_path": "datamodules.domain.Grid", "init_args": {"ranges": [[-0.4, 0.4]]}},
        "value_dim": 1,
        "signal_shape": [1, 200],
        "modality": content["data"]["modality"],
        "num_instances": 4,
        "sample_rate": 500,
        "scales": None,
        "normal_offset": None,
        "inside": None,
        "uniform": None,
    }
    recordings = ["--audio", "audio/val", "--output"]
    run("predict", "--ckpt_path", path, *recordings, "stated")
    run("predict", "--ckpt_path", path, *recordings, "given", "--data.sample_rate", 500)
    assert Path("stated/0.wav").read_bytes() == Path("given/0.wav").read_bytes()
    message = refused("predict", "--ckpt_path", path, *recordings, "wrong", "--data.sample_rate", 250)
    assert "0.4 s at 500 Hz" in message
    assert not Path("wrong").exists()
    torch.save({key: value for key, value in content.items() if key != "data"}, "old.ckpt")
    run("predict", "--ckpt_path", "old.ckpt", *recordings, "old", "--data.sample_rate", 250)
