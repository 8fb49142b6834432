"""Spectrograms: their numbers, the way up they are drawn, the sheet of a test, and sound in the table of W&B."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from callbacks.spectrogram_sheet import SpectrogramSheet
from hums import Hums, build_ipc
from PIL import Image
from wandb_records import make_logger, no_account, read_records

from callbacks.tables import log_table, sample_rows
from composers import Refinement
from datamodules import SamplePhotos
from datamodules.batch import CoordinateBatch, Observation, Samples
from modalities.spectrogram import Panel, draw, figure_picture, levels, pieces_of_sound


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _tone(hertz, rate=8000, seconds=0.5, amplitude=0.5):
    """Return a sine ``(1, n)``."""
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(round(rate * seconds)) / rate).unsqueeze(0)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_sine_has_its_level_at_its_frequency(rate):
    found = levels(_tone(1000, rate), rate)
    middle = found.decibels[:, found.decibels.shape[1] // 2]
    assert int(middle.argmax()) * found.step == pytest.approx(1000, abs=found.step / 2)
    assert float(middle.max()) == pytest.approx(20 * math.log10(0.5), abs=0.1)
    assert found.decibels.shape[0] == round(0.032 * rate) // 2 + 1
    assert float(middle[: round(800 / found.step)].max()) < -60


def test_a_click_is_where_it_was():
    values = torch.zeros(2, 8000)
    values[:, 1920] = 1
    found = levels(values, 8000)
    assert int(found.decibels.amax(0).argmax()) * found.hop == pytest.approx(0.24)
    assert float(found.decibels.min()) == pytest.approx(-100)
    assert found.decibels.shape[1] == 251


def test_channels_are_mixed_and_long_clips_are_thinned():
    tone = _tone(1000)
    both = torch.cat([tone, torch.zeros_like(tone)])
    assert float(levels(both, 8000).decibels.max()) == pytest.approx(float(levels(tone / 2, 8000).decibels.max()))
    long = levels(torch.zeros(1, 8000 * 60), 8000)
    assert 1900 < long.decibels.shape[1] <= 2001
    assert long.decibels.shape[1] * long.hop == pytest.approx(60, abs=0.1)
    assert levels(torch.zeros(1, 1), 8000).decibels.shape[1] == 1


def _pixels(axes, image):
    """Return the pixels of an image within its axes, top row first, as brightness."""
    height = image.height
    box = axes.get_window_extent()
    part = image.crop((round(box.x0) + 2, height - round(box.y1) + 2, round(box.x1) - 2, height - round(box.y0) - 2))
    return np.asarray(part).astype(float).sum(-1)


def test_low_frequencies_are_below_and_time_runs_to_the_right():
    low, later = _tone(500), _tone(3000)
    later[:, :2000] = 0  # the second half only
    figure = draw([[Panel("low", low, 8000)], [Panel("later", later, 8000)]])
    image = figure_picture(figure)
    first, second, _ = figure.axes
    rows = _pixels(first, image).mean(1)
    assert rows.argmax() / len(rows) == pytest.approx(1 - 500 / 4000, abs=0.03)
    pixels = _pixels(second, image)
    assert pixels.mean(1).argmax() / len(pixels) == pytest.approx(1 - 3000 / 4000, abs=0.03)
    assert pixels[:, : pixels.shape[1] // 3].max() < 0.5 * pixels[:, -pixels.shape[1] // 3 :].max()


def test_panels_have_one_scale():
    panels = [Panel("loud", _tone(500, amplitude=1), 8000), Panel("quiet", _tone(500, 16000, 0.25, 0.1), 16000)]
    figure = draw([panels])
    one, other, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (one, other)] == ["loud", "quiet"]
    assert (one.get_xlabel(), one.get_ylabel(), bar.get_ylabel()) == ("seconds", "kHz", "dB")
    for axes in (one, other):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 0.5), (0, 8))
        low, high = axes.images[0].get_clim()
        assert (low, high) == pytest.approx((high - 80, 0), abs=0.5)
    assert other.images[0].get_array().max() == pytest.approx(-20, abs=0.5)
    assert one.images[0].get_extent()[3] == pytest.approx(4, abs=0.02)


def test_padding_is_no_sound():
    values = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    first, second = pieces_of_sound(values, mask)
    assert torch.equal(first, values[0].T)
    assert torch.equal(second, values[1, :4].T)
    assert [piece.shape for piece in pieces_of_sound(values, None)] == [(1, 6), (1, 6)]


def _tested(tmp_path, steps, **options):
    """Return the folder of a test with a sheet, and what it made of the only batch."""
    composer, data, sheet = (
        build_ipc(signal_shape=(1, 200), steps=steps),
        Hums(batch_size=2),
        SpectrogramSheet(**options),
    )
    data.setup("test")
    [batch] = [data.to_coordinates(raw) for raw in data.test_dataloader()]
    with torch.no_grad():
        evaluation = composer._evaluate(batch, "test")
    trainer = SimpleNamespace(datamodule=data, log_dir=tmp_path, default_root_dir="no", is_global_zero=True)
    sheet.on_test_start(trainer, composer)
    for _ in range(2):  # of which the second is one too many
        sheet.on_test_batch_end(trainer, composer, evaluation, batch, 0)
    sheet.on_test_epoch_end(trainer, composer)
    return evaluation, batch, sheet


@pytest.mark.parametrize(
    ("steps", "kinds"), [(2, ["original", "predicted", "refined"]), (0, ["original", "predicted"])]
)
def test_the_sheet_of_a_test(tmp_path, capsys, steps, kinds):
    evaluation, batch, sheet = _tested(tmp_path, steps, num_clips=2)
    names = {f"hum{index}.{kind}.wav" for index in range(2) for kind in kinds}
    assert {path.name for path in (tmp_path / "clips").iterdir()} == names
    values = {"original": batch.query.values, "predicted": evaluation["values"][0]}
    values["refined"] = evaluation["values"][steps]
    for index, length in ((0, 200), (1, 150)):
        for kind in kinds:
            seen, rate = soundfile.read(tmp_path / "clips" / f"hum{index}.{kind}.wav", always_2d=True)
            assert (rate, seen.shape) == (400, (length, 1))
            wanted = values[kind][index, :length].clamp(-1, 1).numpy()
            assert np.abs(seen - wanted).max() <= 0.5 / 2**15 + 1e-6
    assert [[panel.label.split()[0] for panel in row] for row in sheet.rows] == [
        [f"hum{index}", "predicted", *(["2"] if steps else [])] for index in range(2)
    ]
    error = (evaluation["values"][0][1, :150] - batch.query.values[1, :150]).square().mean()
    assert sheet.rows[1][1].label == f"predicted {-10 * error.log10().item():.1f} dB"
    with Image.open(tmp_path / "spectrograms.png") as image:
        assert image.size == (80 + 420 * len(kinds), 480)
    assert "Spectrograms: " in capsys.readouterr().out


def test_the_sheet_has_as_many_rows_as_asked(tmp_path):
    _, _, sheet = _tested(tmp_path, 0, num_clips=1, filename="other.png", folder="sound")
    assert len(sheet.rows) == 1
    assert sorted(path.name for path in (tmp_path / "sound").iterdir()) == ["hum0.original.wav", "hum0.predicted.wav"]
    assert (tmp_path / "other.png").is_file()
    with pytest.raises(ValueError, match="num_clips is 0"):
        SpectrogramSheet(num_clips=0)
    with pytest.raises(ValueError, match="these signals have 2 axes: leave the callback out"):
        SpectrogramSheet().on_test_start(SimpleNamespace(datamodule=SamplePhotos(size=16)), None)


def _rows_of_sound():
    """Return the rows of the table for two clips, and their batch."""
    data = Hums(batch_size=2)
    data.setup("validate")
    [batch] = [data.to_coordinates(raw) for raw in data.val_dataloader()]
    composer = build_ipc(signal_shape=(1, 200))
    with torch.no_grad():
        return sample_rows(composer, batch, None, data.coord_range), batch, composer


def test_the_table_has_sound():
    found, batch, composer = _rows_of_sound()
    columns = ["name", "input", "reconstruction", "spectrograms", "PSNR", "refined PSNR"]
    assert [list(row) for row in found] == [columns] * 2
    with torch.no_grad():
        predicted = composer(batch.observation, batch.query.coords)
    for index, length in ((0, 200), (1, 150)):
        row = found[index]
        assert (row["input"].rate, row["reconstruction"].rate) == (400, 400)
        assert torch.equal(row["input"].values, batch.query.values[index, :length].T)
        assert torch.allclose(row["reconstruction"].values, predicted[index, :length].T, atol=1e-6)
        assert row["spectrograms"].size == (500, 480)
        error = (predicted[index, :length] - batch.query.values[index, :length]).square().mean()
        assert row["PSNR"] == pytest.approx(-10 * error.log10().item(), abs=1e-4)


def test_other_signals_of_one_axis_without_shape_have_numbers_only():
    composer = build_ipc(signal_shape=(1, 200))
    composer.refinement = Refinement(steps=0)
    samples = Samples(torch.rand(7, 1), torch.rand(1, 7, 1))
    batch = CoordinateBatch(Observation(torch.rand(1, 1, 200)), samples, None, ["a"])
    with torch.no_grad():
        assert [list(row) for row in sample_rows(composer, batch)] == [["name", "PSNR"]]


def test_wandb_gets_what_can_be_heard(tmp_path_factory):
    found, _, _ = _rows_of_sound()
    with no_account(tmp_path_factory.mktemp("home")):
        logger = make_logger(mode="offline")
        log_table(SimpleNamespace(loggers=[logger]), "val/samples", found, 3)
        logger.finalize("success")
        folder = Path("runs/unnamed/version_0")
        [artifact] = [record.artifact for record in read_records(folder) if record.HasField("artifact")]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    sounds = [soundfile.read(path, always_2d=True) for name, path in files.items() if name.endswith(".wav")]
    pictures = [name for name in files if name.endswith(".png")]
    assert (len(sounds), len(pictures)) == (4, 2)
    wanted = [row[column].values.clamp(-1, 1) for row in found for column in ("input", "reconstruction")]
    for values in wanted:
        assert any(
            rate == 400 and seen.shape == values.T.shape and np.abs(seen - values.T.numpy()).max() < 1e-4
            for seen, rate in sounds
        )
