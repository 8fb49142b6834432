"""The sheet of views: which objects stand in it, what stands in a row, and the films beside."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from callbacks.view_sheet import ViewSheet
from objects import Balls, Scenes, scene_batch
from PIL import Image

from composers.rendering import LightFieldRenderer
from datamodules import SamplePhotos

NAMES = ["chair.000", "chair.001", "chair.002", "table/b.000", "mug.v2"]


def _tested(tmp_path, batches, composer=None, trainer=None, **options):
    """Run a sheet as a test would, and return it and the last evaluation."""
    composer, sheet = composer or Balls(steps=2), ViewSheet(**{"frames": 3} | options)
    trainer = trainer or SimpleNamespace(
        datamodule=Scenes(), log_dir=tmp_path / "run", default_root_dir="no", is_global_zero=True
    )
    sheet.on_test_start(trainer, composer)
    for index, batch in enumerate(batches):
        with torch.no_grad():
            evaluation = composer._evaluate(batch, "test")
        sheet.on_test_batch_end(trainer, composer, evaluation, batch, index)
    sheet.on_test_epoch_end(trainer, composer)
    return sheet, evaluation


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_objects_differ(tmp_path, capsys):
    radii = torch.linspace(0.5, 0.9, 5).tolist()
    batches = [
        scene_batch(radii[:2], names=NAMES[:2]),
        scene_batch(radii[2:4], names=NAMES[2:4]),
        scene_batch(radii[4:], names=NAMES[4:]),
    ]
    sheet, _ = _tested(tmp_path, batches)
    assert list(sheet.rows) == ["chair", "table/b", "mug.v2"]
    assert [row[0][0] for row in sheet.rows.values()] == ["chair", "table/b", "mug.v2"]
    films = ["orbits/chair.gif", "orbits/mug.v2.gif", "orbits/table/b.gif"]
    assert _files(tmp_path / "run") == [*films, "views.png"]
    truth = np.asarray(sheet.rows["table/b"][1][1].resize((16, 16), 0)) / 255.0
    assert np.abs(truth - batches[1].query.values[1].view(2, 16, 16, 3)[1].numpy()).max() < 0.003
    told = capsys.readouterr().out
    assert "views.png; films: " in told
    few, _ = _tested(tmp_path / "few", batches, num_objects=2, frames=0)
    assert list(few.rows) == ["chair", "table/b"]
    assert _files(tmp_path / "few") == ["run/views.png"]


def test_a_row_shows_the_middle_view(tmp_path):
    batch = scene_batch((0.8,), views=2, queries=3, names=["a-name-that-is-much-too-long.000"])
    sheet, evaluation = _tested(tmp_path, [batch], folder="films")
    [row] = sheet.rows.values()
    true, values = batch.query.values[0].view(3, -1, 3)[1], {step: evaluation["values"][step] for step in (0, 2)}
    psnr = {
        step: -10 * (found[0].view(3, -1, 3)[1] - true).square().mean().log10().item() for step, found in values.items()
    }
    assert psnr[2] > psnr[0] + 0.5
    labels = ["a-name-that-is-...", "", "truth", f"predicted {psnr[0]:.1f} dB", f"2 steps {psnr[2]:.1f} dB", "depth"]
    assert [label for label, _ in row] == labels
    assert {image.size for _, image in row} == {(128, 128)}
    refined = np.asarray(row[4][1].resize((16, 16), 0)) / 255.0
    assert np.abs(refined - values[2][0].view(3, 16, 16, 3)[1].clamp(0, 1).numpy()).max() < 0.003
    depth = np.asarray(row[5][1])
    assert (depth[0] == 255).all()
    assert (depth[64, 64] < 255).any()
    with Image.open(tmp_path / "run" / "views.png") as page:
        assert page.size == (6 * 136 + 8, 128 + 8 + 18 + 8)
    with Image.open(tmp_path / "run" / "films" / "a-name-that-is-much-too-long.gif") as film:
        assert (film.n_frames, film.size) == (3, (32, 16))


def test_without_refinement_and_depth(tmp_path):
    composer = Balls(LightFieldRenderer())
    batch = scene_batch((0.8,))
    sheet, _ = _tested(tmp_path, [batch], composer)
    [row] = sheet.rows.values()
    assert [label.split()[0] for label, _ in row] == ["ball", "truth", "predicted"]
    with Image.open(tmp_path / "run" / "orbits" / "ball.gif") as film:
        assert film.size == (16, 16)


def test_other_processes_write_nothing(tmp_path):
    trainer = SimpleNamespace(datamodule=Scenes(), log_dir=tmp_path / "run", is_global_zero=False)
    sheet, _ = _tested(tmp_path, [scene_batch()], trainer=trainer)
    assert not sheet.rows
    assert _files(tmp_path) == []


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_objects is 0, frames 24"):
        ViewSheet(num_objects=0)
    with pytest.raises(ValueError, match="frames -1"):
        ViewSheet(frames=-1)
    with pytest.raises(
        ValueError, match="ViewSheet draws scenes, and these signals have 2 axes: leave the callback out"
    ):
        ViewSheet().on_test_start(SimpleNamespace(datamodule=SamplePhotos(size=16)), None)
