"""Gallery of audio with its WAV files, and audio in the table of W&B."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hums import Hums, build_ipc
from PIL import Image
from wandb_records import make_logger, no_account, read_records

from callbacks.gallery import Gallery
from callbacks.tables import log_table, sample_rows
from composers import Refinement
from datamodules.batch import CoordinateBatch, Observation, Samples, instance_of
from datamodules.domain import Grid
from modalities import Audio


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_shown_part_of_a_recording_has_no_padding():
    values, domain = torch.arange(12.0).view(2, 6, 1), Grid(((-0.75, 0.75),))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    samples = Samples(domain.coords((6,)), values, mask)
    batch = CoordinateBatch(Observation(None, samples), samples, (6,), ["a", "b"])
    first, second = (Audio().shown(instance_of(batch, index, domain, {0: values})) for index in range(2))
    assert torch.equal(first.query.values, values[0])
    assert torch.equal(second.query.values, values[1, :4])
    assert torch.equal(second.values[0], values[1, :4])
    assert (second.shape, second.domain) == ((4,), Grid(((-0.75, 0.25),)))
    assert torch.allclose(second.domain.coords((4,)), second.query.coords)


def _run_test(tmp_path, steps, **options):
    """Run a gallery on one batch as a test would; return the evaluation, the batch and the gallery."""
    composer, data, gallery = (
        build_ipc(signal_shape=(1, 200), steps=steps),
        Hums(batch_size=2),
        Gallery(**({"linear": False} | options)),
    )
    data.setup("test")
    [batch] = [data.to_coordinates(raw) for raw in data.test_dataloader()]
    with torch.no_grad():
        evaluation = composer._evaluate(batch, "test")
    trainer = SimpleNamespace(datamodule=data, log_dir=tmp_path, default_root_dir="no", is_global_zero=True)
    gallery.on_test_start(trainer, composer)
    for _ in range(2):  # instances of the second batch have a row already
        gallery.on_test_batch_end(trainer, composer, evaluation, batch, 0)
    gallery.on_test_epoch_end(trainer, composer)
    return evaluation, batch, gallery


@pytest.mark.parametrize(
    ("steps", "kinds"), [(2, ["original", "predicted", "refined"]), (0, ["original", "predicted"])]
)
def test_gallery_draws_spectrograms_and_writes_wav_files(tmp_path, capsys, steps, kinds):
    evaluation, batch, gallery = _run_test(tmp_path, steps)
    names = {f"hum{index}.{kind}.wav" for index in range(2) for kind in kinds}
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == names
    values = {"original": batch.query.values, "predicted": evaluation["values"][0]}
    values["refined"] = evaluation["values"][steps]
    for index, length in ((0, 200), (1, 150)):
        for kind in kinds:
            actual, rate = soundfile.read(tmp_path / "gallery" / f"hum{index}.{kind}.wav", always_2d=True)
            assert (rate, actual.shape) == (400, (length, 1))
            expected = values[kind][index, :length].clamp(-1, 1).numpy()
            assert np.abs(actual - expected).max() <= 0.5 / 2**15 + 1e-6
    assert [[cell.label.split()[0] for cell in row] for row in gallery.rows.values()] == [
        [f"hum{index}", "predicted", *(["2"] if steps else [])] for index in range(2)
    ]
    error = (evaluation["values"][0][1, :150] - batch.query.values[1, :150]).square().mean()
    assert gallery.rows["hum1"][1].label == f"predicted {-10 * error.log10().item():.1f} dB"
    with Image.open(tmp_path / "gallery.png") as image:
        assert image.size == (80 + 420 * len(kinds), 480)
    assert "Gallery: " in capsys.readouterr().out


def test_gallery_has_at_most_num_instances_rows(tmp_path):
    _, _, gallery = _run_test(tmp_path, 0, num_instances=1, filename="other.png")
    assert len(gallery.rows) == 1
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["hum0.original.wav", "hum0.predicted.wav"]
    assert (tmp_path / "other.png").is_file()


def _rows_of_audio():
    """Return the rows of the table for two recordings, their batch and the model."""
    data = Hums(batch_size=2)
    data.setup("validate")
    [batch] = [data.to_coordinates(raw) for raw in data.val_dataloader()]
    composer = build_ipc(signal_shape=(1, 200))
    with torch.no_grad():
        return sample_rows(composer, batch, data.modality, data.domain), batch, composer


def test_table_has_audio_and_spectrograms():
    rows, batch, composer = _rows_of_audio()
    columns = ["name", "input", "reconstruction", "spectrograms", "PSNR", "refined PSNR"]
    assert [list(row) for row in rows] == [columns] * 2
    with torch.no_grad():
        predicted = composer(batch.observation, batch.query.coords)
    for index, length in ((0, 200), (1, 150)):
        row = rows[index]
        assert (row["input"].sample_rate, row["reconstruction"].sample_rate) == (400, 400)
        assert torch.equal(row["input"].values, batch.query.values[index, :length].T)
        assert torch.allclose(row["reconstruction"].values, predicted[index, :length].T, atol=1e-6)
        assert row["spectrograms"].size == (500, 480)
        error = (predicted[index, :length] - batch.query.values[index, :length]).square().mean()
        assert row["PSNR"] == pytest.approx(-10 * error.log10().item(), abs=1e-4)


def test_table_of_samples_without_a_shape_has_metrics_only():
    composer = build_ipc(signal_shape=(1, 200))
    composer.refinement = Refinement(steps=0)
    samples = Samples(torch.rand(7, 1), torch.rand(1, 7, 1))
    batch = CoordinateBatch(Observation(torch.rand(1, 1, 200)), samples, None, ["a"])
    with torch.no_grad():
        assert [list(row) for row in sample_rows(composer, batch, Audio(), Grid.unit(1))] == [["name", "PSNR"]]


def test_table_logs_audio_to_wandb(tmp_path_factory):
    rows, _, _ = _rows_of_audio()
    with no_account(tmp_path_factory.mktemp("home")):
        logger = make_logger(mode="offline")
        log_table(SimpleNamespace(loggers=[logger]), "val/samples", rows, 3)
        logger.finalize("success")
        folder = Path("runs/unnamed/version_0")
        [artifact] = [record.artifact for record in read_records(folder) if record.HasField("artifact")]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    recordings = [soundfile.read(path, always_2d=True) for name, path in files.items() if name.endswith(".wav")]
    images = [name for name in files if name.endswith(".png")]
    assert (len(recordings), len(images)) == (4, 2)
    for expected in (row[column].values.clamp(-1, 1).T for row in rows for column in ("input", "reconstruction")):
        assert any(
            rate == 400 and actual.shape == expected.shape and np.abs(actual - expected.numpy()).max() < 1e-4
            for actual, rate in recordings
        )


def test_gallery_shows_linear_codes_of_the_size_of_the_code(tmp_path):
    evaluation, batch, gallery = _run_test(tmp_path, 0, linear=True)
    numbers = sum(latent[0].numel() for latent in evaluation["latents"][0].values())
    for index, (row, length) in enumerate(zip(gallery.rows.values(), (200, 150), strict=True)):
        if numbers >= length:
            assert [cell.label.split()[0] for cell in row] == [f"hum{index}", "predicted"]
            continue
        assert [cell.label.split()[0] for cell in row] == [f"hum{index}", "predicted", "KLT"]
        true, values = batch.query.values[index, :length], row[2].values[:length]
        error = (values - true).square().mean().clamp(min=1e-12)
        assert row[2].label == f"KLT {-10 * error.log10().item():.1f} dB"
    assert any(len(row) == 3 for row in gallery.rows.values())
