"""Scenes in the table of W&B, read back from the files of an offline run."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from coordinates import pixel_rays
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from application.wandb_logger import BoundedWandbLogger, WandbSettings
from callbacks.tables import ValidationTable, sample_rows
from composers import Refinement, TransformerIPC
from composers.encoders import Transformer, ViewPatches
from composers.inference import TorchOptimizer
from composers.networks import CoordinateMLP
from composers.rendering import VolumeRenderer
from datamodules.batch import Observation, PosedImages, Samples
from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import Rays
from datamodules.scenes.rays import SceneModule
from modalities import PosedViews

SIZE, QUERIES, FOCAL, RADIUS = 8, 2, 9.0, 4.0


class Squares(SceneModule):
    """Three scenes of random pixels."""

    def __init__(self, views=1, query_views=QUERIES, batch_size=2):
        super().__init__(views, query_views, SIZE, rays_per_view=4, batch_size=batch_size)

    def setup(self, stage):
        self.train_set = self.val_set = self.test_set = [self.item(index) for index in range(3)]

    def item(self, index):
        views = self.views + self.query_views
        values = np.random.default_rng(index).integers(0, 256, (views, 3, SIZE, SIZE), dtype=np.uint8)
        intrinsics = centred_intrinsics(torch.full((views, 2), FOCAL), (SIZE, SIZE))
        return PosedImages(torch.from_numpy(values), _poses(views), intrinsics, f"squares{index}")


def _poses(views):
    """Return the cameras of a scene."""
    return orbit(views, RADIUS, 20.0)


def _composer(steps=2, views=1, samples=6):
    """Return a tiny untrained IPC of views with random biases."""
    torch.manual_seed(0)
    network = CoordinateMLP(3, 4, hidden_dim=8, num_layers=3, output_offset=0.0)
    for bias in network.biases.values():
        torch.nn.init.normal_(bias, std=0.3)
    refinement = Refinement(
        steps, TorchOptimizer(lambda latents: torch.optim.Adam(latents, lr=0.05)), report=(), stages=()
    )
    return TransformerIPC(
        network,
        ViewPatches((views, 3, SIZE, SIZE), patch_size=4),
        Transformer(embed_dim=12, num_blocks=1, num_heads=3),
        renderer=VolumeRenderer(2.0, 6.0, samples_per_ray=samples),
        refinement=refinement,
    ).eval()


def _batch(data):
    """Return all scenes of a data module as one batch."""
    data.setup("validate")
    return data.to_coordinates(data.collate([data.val_set[index] for index in range(3)]))


def _rows(composer, batch, *args, **options):
    with torch.no_grad():
        return sample_rows(composer, batch, PosedViews(), Rays(2.0, 6.0), *args, **options)


def _levels(values, views):
    """Return values ``(V H W, 3)`` in [0, 1] as views side by side ``(H, V W, 3)`` in [0, 255], by loops."""
    image = np.zeros((SIZE, views * SIZE, 3))
    for view in range(views):
        for row in range(SIZE):
            for column in range(SIZE):
                image[row, view * SIZE + column] = values[(view * SIZE + row) * SIZE + column].clamp(0, 1) * 255
    return image


def _psnr(actual, expected):
    """Return the mean PSNR of the views of a scene."""
    errors = (actual - expected).double().square().unflatten(0, (QUERIES, -1)).mean((1, 2))
    return float((-10 * errors.log10()).mean())


def _render(composer, batch, index, steps):
    """Return the rendered query of one scene ``(Q H W, 3)`` after refinement steps, and its modulations."""
    views = type(batch.observation.signal)(*(part[index : index + 1] for part in batch.observation.signal))
    with torch.no_grad():
        latents = composer.encode(Observation(views))
    coords, values = batch.observation.samples[:2]
    samples = Samples(coords[index : index + 1], values[index : index + 1])
    latents = composer.refine(latents, samples, composer.refinement.with_steps(steps))[steps] if steps else latents
    with torch.no_grad():
        modulations = composer.compose(latents)
        return composer.render(modulations, batch.query.coords[index : index + 1])[0], modulations


def _frames(video):
    """Return the frames of a GIF ``(F, H, W, 3)``."""
    with Image.open(io.BytesIO(video)) as gif:
        frames = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            frames.append(np.asarray(gif.convert("RGB")))
        return np.stack(frames)


def test_rows_show_support_query_prediction_and_refinement():
    composer, batch = _composer(), _batch(Squares())
    rows = _rows(composer, batch)
    columns = ["name", "support", "query", "prediction", "refined", "PSNR", "refined PSNR"]
    assert [list(row) for row in rows] == [columns] * 3
    assert [row["name"] for row in rows] == batch.names == ["squares0", "squares1", "squares2"]
    for index, row in enumerate(rows):
        support = batch.observation.signal.images[index, 0].flatten(1).mT
        assert np.abs(np.asarray(row["support"]) - _levels(support, 1)).max() < 0.51
        assert np.abs(np.asarray(row["query"]) - _levels(batch.query.values[index], QUERIES)).max() < 0.51
        for steps, column, number in ((0, "prediction", "PSNR"), (2, "refined", "refined PSNR")):
            values, _ = _render(composer, batch, index, steps)
            assert np.abs(np.asarray(row[column]) - _levels(values, QUERIES)).max() < 0.51
            assert row[number] == pytest.approx(_psnr(values, batch.query.values[index]), abs=1e-3)


def test_turntable_video_shows_the_refinement():
    composer, batch = _composer(), _batch(Squares())
    videos = [row["orbit"].gif for row in _rows(composer, batch, 1, frames=3)]
    for index, video in enumerate(videos):
        _, modulations = _render(composer, batch, index, 1)
        rays = pixel_rays(orbit(3, RADIUS, 30.0), torch.full((2,), FOCAL), (SIZE, SIZE))
        with torch.no_grad():
            expected = [composer.render(modulations, view[None])[0].clamp(0, 1) * 255 for view in rays]
        actual = _frames(video)
        assert actual.shape == (3, SIZE, SIZE, 3)
        assert np.abs(actual - torch.stack(expected).unflatten(1, (SIZE, SIZE)).numpy()).max() < 1
    assert len(set(videos)) == 3


def test_turntable_video_shows_the_prediction_without_refinement():
    composer, batch = _composer(steps=0), _batch(Squares())
    [row, *_] = _rows(composer, batch, frames=2)
    assert list(row) == ["name", "support", "query", "prediction", "orbit", "PSNR"]
    assert list(_rows(composer, batch)[0]) == ["name", "support", "query", "prediction", "PSNR"]


def test_rows_show_at_most_four_views():
    data = Squares(views=5, query_views=6)
    batch = _batch(data)
    [row, *_] = _rows(_composer(steps=0, views=5), batch)
    assert row["support"].size == row["query"].size == row["prediction"].size == (4 * SIZE, SIZE)
    support = batch.observation.signal.images[0, :4].movedim(1, -1).flatten(0, 2)
    assert np.abs(np.asarray(row["support"]) - _levels(support, 4)).max() < 0.51


def test_training_rays_have_metrics_only():
    data = Squares()
    data.setup("fit")
    batch = data.to_coordinates(data.collate([data.train_set[0], data.train_set[1]]), training=True)
    assert batch.shape is None
    rows = _rows(_composer(steps=0), batch)
    assert [list(row) for row in rows] == [["name", "PSNR"]] * 2


@pytest.fixture
def _no_account(tmp_path, monkeypatch):
    """Run in an empty folder without a W&B account and without network access."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_account")
def test_validation_logs_images_and_turntable_videos(tmp_path):
    composer, data = _composer(), Squares()
    local = CSVLogger(tmp_path, name="scenes", version="run")
    logger = BoundedWandbLogger(WandbSettings(mode="offline"), local, {}, "validate")
    table = ValidationTable(num_samples=2, refinement_steps=1, orbit_frames=3)
    trainer = Trainer(
        accelerator="cpu",
        logger=[local, logger],
        callbacks=[table],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.validate(composer, data, verbose=False)
    wandb.teardown()  # the process of W&B writes the last files at its end
    staged = [path.read_bytes() for path in Path(local.log_dir).glob("wandb/artifacts/staging/*")]
    [content] = {content for content in staged if content.startswith(b"{")}
    stored = json.loads(content)
    columns = ["name", "support", "query", "prediction", "refined", "orbit", "PSNR", "refined PSNR"]
    assert stored["columns"] == columns
    expected_rows = _rows(composer, _batch(data), 1, frames=3)[:2]
    for row, expected in zip(stored["data"], expected_rows, strict=True):
        cells = dict(zip(columns, row, strict=True))
        assert cells["name"] == expected["name"]
        for column in ("support", "query", "prediction", "refined"):
            assert cells[column]["_type"] == "image-file"
            assert (cells[column]["width"], cells[column]["height"]) == expected[column].size
        assert (cells["orbit"]["_type"], cells["orbit"]["path"][-4:]) == ("video-file", ".gif")
        assert cells["PSNR"] == pytest.approx(expected["PSNR"], abs=1e-4)
        assert cells["refined PSNR"] == pytest.approx(expected["refined PSNR"], abs=1e-3)
    assert {content for content in staged if content.startswith(b"GIF8")} == {row["orbit"].gif for row in expected_rows}


def test_negative_number_of_frames_raises():
    with pytest.raises(ValueError, match="orbit_frames is -1: it must be at least 0"):
        ValidationTable(orbit_frames=-1)
