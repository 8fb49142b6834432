"""Gallery of views: its rows and cells, and the turntable videos."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objects import Balls, Scenes, scene_batch
from PIL import Image

from callbacks.gallery import Gallery
from composers.rendering import LightFieldRenderer

NAMES = ["chair.000", "chair.001", "chair.002", "table/b.000", "mug.v2"]


def _run_test(tmp_path, batches, composer=None, trainer=None, **options):
    """Run a gallery as a test would; return it and the last evaluation."""
    composer, gallery = composer or Balls(steps=2), Gallery(**options)
    trainer = trainer or SimpleNamespace(
        datamodule=Scenes(), log_dir=tmp_path / "run", default_root_dir="no", is_global_zero=True
    )
    gallery.on_test_start(trainer, composer)
    for index, batch in enumerate(batches):
        with torch.no_grad():
            evaluation = composer._evaluate(batch, "test")
        gallery.on_test_batch_end(trainer, composer, evaluation, batch, index)
    gallery.on_test_epoch_end(trainer, composer)
    return gallery, evaluation


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_rows_show_different_objects(tmp_path, capsys):
    radii = torch.linspace(0.5, 0.9, 5).tolist()
    batches = [
        scene_batch(radii[:2], names=NAMES[:2]),
        scene_batch(radii[2:4], names=NAMES[2:4]),
        scene_batch(radii[4:], names=NAMES[4:]),
    ]
    gallery, _ = _run_test(tmp_path, batches)
    assert list(gallery.rows) == ["chair", "table/b", "mug.v2"]
    assert [row[0].label for row in gallery.rows.values()] == ["chair", "table/b", "mug.v2"]
    videos = ["gallery/chair.gif", "gallery/mug.v2.gif", "gallery/table/b.gif"]
    assert _files(tmp_path / "run") == ["gallery.png", *videos]
    original = gallery.rows["table/b"][1].values.view(16, 16, 3).numpy()
    assert np.abs(original - batches[1].query.values[1].view(2, 16, 16, 3)[1].numpy()).max() < 0.003
    assert "gallery.png; video and audio: " in capsys.readouterr().out
    few, _ = _run_test(tmp_path / "few", batches, num_instances=2)
    assert list(few.rows) == ["chair", "table/b"]
    assert _files(tmp_path / "few") == ["run/gallery.png", "run/gallery/chair.gif", "run/gallery/table/b.gif"]


def test_row_shows_the_middle_view(tmp_path):
    batch = scene_batch((0.8,), views=2, queries=3, names=["a-name-that-is-much-too-long.000"])
    gallery, evaluation = _run_test(tmp_path, [batch], filename="other.png")
    [row] = gallery.rows.values()
    true, values = batch.query.values[0].view(3, -1, 3)[1], {step: evaluation["values"][step] for step in (0, 2)}
    psnr = {
        step: -10 * (scene[0].view(3, -1, 3)[1] - true).square().mean().log10().item() for step, scene in values.items()
    }
    assert psnr[2] > psnr[0] + 0.5
    labels = [
        "a-name-that-is-much-too-long",
        "",
        "original",
        f"predicted {psnr[0]:.1f} dB",
        f"2 steps {psnr[2]:.1f} dB",
        "depth",
    ]
    assert [cell.label for cell in row] == labels
    refined = row[4].values.view(16, 16, 3).clamp(0, 1).numpy()
    assert np.abs(refined - values[2][0].view(3, 16, 16, 3)[1].clamp(0, 1).numpy()).max() < 0.003
    depth = row[5].values.view(16, 16, 3)
    assert (depth[0] == 1).all()
    assert (depth[8, 8] < 1).any()
    with Image.open(tmp_path / "run" / "other.png") as figure:
        assert figure.size == (6 * 136 + 8, 128 + 8 + 18 + 8)
    with Image.open(tmp_path / "run" / "other" / "a-name-that-is-much-too-long.gif") as video:
        assert (video.n_frames, video.size) == (24, (3 * 16, 15 + 16))  # true, rendered and depth below labels


def test_row_shows_all_support_views(tmp_path):
    """Three support views, the truth, the prediction, the refinement and the depth."""
    batch = scene_batch((0.8, 0.6), views=3, queries=2, names=["first.000", "second.000"])
    gallery, evaluation = _run_test(tmp_path, [batch])
    for index, (name, row) in enumerate(gallery.rows.items()):
        assert [cell.label.split(" ")[0] for cell in row] == [name, "", "", "original", "predicted", "2", "depth"]
        for view, cell in enumerate(row[:3]):
            image = cell.values.view(16, 16, 3).movedim(-1, 0)
            assert torch.equal(image, batch.observation.signal.images[index, view])
        middle = {3: batch.query.values[index], 4: evaluation["values"][0][index], 5: evaluation["values"][2][index]}
        for column, values in middle.items():
            assert torch.allclose(row[column].values, values.view(2, 256, 3)[1], atol=1e-6)
        assert (row[6].values < 1).any()
    with Image.open(tmp_path / "run" / "gallery.png") as figure:
        assert figure.size == (7 * 136 + 8, 2 * (128 + 8 + 18) + 8)


def test_row_without_refinement_and_depth(tmp_path):
    composer = Balls(LightFieldRenderer())
    batch = scene_batch((0.8,))
    gallery, _ = _run_test(tmp_path, [batch], composer)
    [row] = gallery.rows.values()
    assert [cell.label.split()[0] for cell in row] == ["ball", "original", "predicted"]
    with Image.open(tmp_path / "run" / "gallery" / "ball.gif") as video:
        assert video.size == (2 * 16, 15 + 16)


def test_only_the_first_process_writes_files(tmp_path):
    trainer = SimpleNamespace(datamodule=Scenes(), log_dir=tmp_path / "run", is_global_zero=False)
    gallery, _ = _run_test(tmp_path, [scene_batch()], trainer=trainer)
    assert not gallery.rows
    assert _files(tmp_path) == []


@pytest.mark.parametrize("changes", [{"num_instances": 0}, {"num_inner": 0}, {"max_memory": 0.0}], ids=str)
def test_arguments_out_of_range_raise(changes):
    with pytest.raises(ValueError, match="both must be at least 1; max_memory is"):
        Gallery(**changes)
