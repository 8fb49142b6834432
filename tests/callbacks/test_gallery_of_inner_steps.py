"""Figure of inner steps: its rows and cells, and what is logged of inner loops to W&B."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from coordinates import grid
from flat_images import FlatData, FlatImages
from inner_loops import inner_loop
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import Precision
from PIL import Image

from callbacks.gallery import Gallery, inner_rows
from callbacks.gradient_norms import LearnedStepSizes, mean_factors
from callbacks.tables import ValidationTable
from composers import Functa, MetaIPC, Refinement
from composers.inference import DifferentiableSGD
from composers.networks import CoordinateMLP, TensorSpec
from composers.rendering import VolumeRenderer
from datamodules.batch import CoordinateBatch, Observation, PosedImages, Samples
from datamodules.cameras import orbit
from datamodules.configuration import load_layers
from datamodules.domain import Grid
from datamodules.scenes.rays import SceneModule
from datamodules.spec import DataSpec, Modality
from modalities import Audio

CONFIGS = Path(__file__).parents[2] / "configs"
META = ("functa", "learned_init", "learned_init_siren", "meta_ipc")
REPORT = (0, 1, 2, 5)
LR = 0.1


class _Recorder(CSVLogger):
    """Logger that supports tables, and keeps what is logged."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tables, self.scalars = [], {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.scalars.setdefault(name, {})[step] = float(value)

    def log_table(self, key, columns, data, step):
        self.tables.append((key, [dict(zip(columns, row, strict=True)) for row in data], step))


def _meta(network, **settings):
    """Return a tiny MetaIPC with two inner steps in training, and a report beyond them."""
    common = {name: settings.pop(name) for name in ("renderer", "refinement", "optimizer") if name in settings}
    return MetaIPC(network, inner_loop(**{"steps": 2, "lr": LR, "report": REPORT} | settings), **common).eval()


def _trainer(folder, *callbacks, logger=False, **options):
    return Trainer(
        accelerator="cpu",
        logger=logger,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def _naive(composer, values, steps):
    """Return the reconstruction of one signal ``(N, C)`` after inner steps, by plain gradient descent."""
    coords = grid((8, 12))
    patterns, basis = (
        composer.start.latents["patterns_1"].detach()[None],
        composer.parametrization.bases["1"].detach(),
    )
    for _ in range(steps):
        leaf = patterns.clone().requires_grad_()
        loss = (composer.network.bind({"weight.1": leaf @ basis})(coords)[0] - values).square().mean()
        loss.backward()
        patterns = patterns - LR * float((patterns**2).sum()) * leaf.grad
    return composer.network.bind({"weight.1": patterns @ basis})(coords)[0].detach()


def _psnr(actual, expected):
    return -10 * math.log10((actual - expected).square().mean().item())


def test_figure_shows_the_first_images_after_every_reported_step(make_network, tmp_path, capsys):
    composer, gallery = _meta(make_network()), Gallery(num_inner=2)
    _trainer(tmp_path, gallery).test(composer, datamodule=FlatData(eval_batch_size=3), verbose=False)
    assert "Inner steps: " in capsys.readouterr().out
    images = FlatImages(5, seed=2)
    assert [row.name for row in gallery.inner_rows] == ["set 2 image 0", "set 2 image 1"]
    with Image.open(tmp_path / "inner_steps.png") as figure:
        pixels = np.asarray(figure.convert("RGB"))
    assert pixels.shape == (2 * (112 + 26) + 8, 5 * (168 + 8) + 8, 3)
    for position, row in enumerate(gallery.inner_rows):
        original = images[position].values.flatten(1).mT
        cells = [original, *(_naive(composer, original, step) for step in REPORT)]
        numbers = [_psnr(values, original) for values in cells[1:]]
        notes = ["0 steps, start", "1 step", "2 steps, trained", "5 steps"]
        labels = [f"{note} {psnr:.1f} dB" for note, psnr in zip(notes, numbers, strict=True)]
        assert [cell.label for cell in row.cells] == [row.name, *labels]
        assert row.numbers[1:] == pytest.approx(numbers, abs=1e-3)
        for column, values in enumerate(cells):
            x, y = 8 + column * 176, 8 + position * 138 + 18
            actual = pixels[y : y + 112 : 14, x : x + 168 : 14]  # every pixel is drawn as 14 x 14 pixels
            expected = (values.clamp(0, 1) * 255).view(8, 12, 3).numpy()
            assert np.abs(actual - expected).max() < 0.52
        assert numbers[2] > numbers[0]


def test_models_without_a_reported_inner_loop_have_no_figure(make_ipc, make_network, tmp_path, capsys):
    for composer in (make_ipc(), _meta(make_network(), report=())):
        _trainer(tmp_path, Gallery()).test(composer, datamodule=FlatData(), verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.png"]
    assert "Inner steps" not in capsys.readouterr().out


def _batch(shape, channels=3, mask=None, number=2):
    """Return random signals as a batch."""
    values = torch.rand(number, math.prod(shape), channels)
    samples = Samples(grid(shape), values, mask)
    return CoordinateBatch(Observation(None, samples), samples, shape, [f"signal {index}" for index in range(number)])


def test_rows_are_at_most_those_of_the_batch(make_network):
    composer, batch = _meta(make_network()), _batch((8, 12), number=3)
    assert [row.name for row in inner_rows(composer, batch, FlatData(), 7)] == ["signal 0", "signal 1", "signal 2"]
    [single] = inner_rows(composer, batch, FlatData(), 1)
    first = inner_rows(composer, batch, FlatData(), 3)[0]
    assert single.numbers[1:] == pytest.approx(first.numbers[1:], abs=1e-4)


def test_chunked_rendering_gives_the_same_cells(make_network):
    composer, batch = _meta(make_network()), _batch((8, 12))
    small = 16 * 8 * 7 / 1e6  # memory for seven coordinates of a network with hidden dimension 8
    data = FlatData()
    chunked, unchunked = (inner_rows(composer, batch, data, 2, memory) for memory in (small, 500.0))
    for actual_row, expected_row in zip(chunked, unchunked, strict=True):
        for actual, expected in zip(actual_row.cells, expected_row.cells, strict=True):
            torch.testing.assert_close(actual.values, expected.values)


def test_steps_of_training_and_test_are_marked(make_network):
    [row] = inner_rows(_meta(make_network(), test_steps=5), _batch((8, 12)), FlatData(), 1)
    notes = [cell.label.split(" ")[2] for cell in row.cells[1:]]
    assert [notes[0], notes[2], notes[3]] == ["start", "trained", "tested"]


class _AudioData(FlatData):
    """Recordings of 25 ms."""

    modality = Audio()
    spec = DataSpec(Grid(((-0.025, 0.025),)), 1, (1, 400), modality)


def _run_gallery(tmp_path, composer, batch, data, gallery=None):
    """Run a gallery on one batch as a test would; return it and its figure."""
    gallery = gallery or Gallery()
    trainer = SimpleNamespace(
        datamodule=data, log_dir=tmp_path, is_global_zero=True, precision_plugin=Precision(), loggers=[]
    )
    gallery.on_test_start(trainer, composer)
    gallery.rows = {
        str(row): [] for row in range(gallery.num_instances)
    }  # enough rows, so that the first figure is not drawn
    gallery.on_test_batch_end(trainer, composer, None, batch, 0)
    rows = gallery.inner_rows
    gallery.on_test_batch_end(trainer, composer, None, batch, 1)
    assert gallery.inner_rows is rows  # later batches add no rows
    gallery.rows = {}
    gallery.on_test_epoch_end(trainer, composer)
    path = tmp_path / "inner_steps.png"
    return gallery, Image.open(path).convert("RGB") if path.exists() else None


def test_labels_of_diverged_reconstructions(make_network, tmp_path):
    composer = _meta(make_network(), lr=1e30)
    gallery, figure = _run_gallery(tmp_path, composer, _batch((8, 12)), FlatData(), Gallery(num_inner=1))
    labels = [cell.label for cell in gallery.inner_rows[0].cells]
    assert labels[3:] == ["2 steps, trained, diverged", "5 steps, diverged"]
    assert figure.size == (5 * 176 + 8, 112 + 26 + 8)


def test_audio_is_drawn_as_spectrograms_without_padding(tmp_path):
    network = CoordinateMLP(1, 1, hidden_dim=8, num_layers=3, output_offset=0.0)
    lengths = torch.tensor([400, 250])
    batch = _batch((400,), 1, mask=torch.arange(400) < lengths[:, None])
    gallery, figure = _run_gallery(tmp_path, _meta(network), batch, _AudioData())
    assert [[len(cell.values) for cell in row.cells] for row in gallery.inner_rows] == [[400] * 5, [250] * 5]
    assert figure.size == (5 * 240 + 80, 2 * 180 + 40)
    expected = batch.query.values[1, :250]
    for cell, number in list(zip(gallery.inner_rows[1].cells, gallery.inner_rows[1].numbers, strict=True))[1:]:
        assert number == pytest.approx(_psnr(cell.values, expected), abs=1e-3)


class _Squares(SceneModule):
    """Two objects of random pixels, the first with two items."""

    def __init__(self):
        super().__init__(1, 3, 8, rays_per_view=4, batch_size=3)

    def setup(self, stage):
        self.train_set = self.val_set = self.test_set = [self.item(name) for name in ("a.000", "a.001", "b.000")]

    def item(self, name):
        pixels = np.random.default_rng(ord(name[0])).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
        intrinsics = torch.tensor([[9.0, 9.0, 4.0, 4.0]] * 4)
        return PosedImages(torch.from_numpy(pixels), orbit(4, 4.0, 20.0), intrinsics, name)


def test_rows_of_scenes_show_the_middle_view_of_different_objects(tmp_path):
    data = _Squares()
    data.setup("test")
    batch = data.to_coordinates(data.collate(data.test_set))
    network = CoordinateMLP(3, 4, hidden_dim=8, num_layers=3, output_offset=0.0)
    composer = _meta(network, renderer=VolumeRenderer(2.0, 6.0, samples_per_ray=6))
    gallery, figure = _run_gallery(tmp_path, composer, batch, data)
    assert figure.size == (5 * 168 + 8, 2 * (160 + 26) + 8)
    assert [row.name for row in gallery.inner_rows] == ["a", "b"]
    steps = dict(composer.trajectory(batch.observation, REPORT))
    for index, row in zip((0, 2), gallery.inner_rows, strict=True):
        true = batch.query.values[index].view(3, 64, 3)[1]
        assert torch.equal(row.cells[0].values, true)
        for step, cell, number in list(zip(row.steps, row.cells, row.numbers, strict=True))[1:]:
            with torch.no_grad():
                values = composer.render(composer.compose(steps[step]), batch.query.coords)[index]
            view = values.view(3, 64, 3)[1]
            torch.testing.assert_close(cell.values, view, atol=1e-4, rtol=0)
            assert number == pytest.approx(_psnr(view, true), abs=1e-2)


class _Volumes(FlatData):
    """Signals with three axes, without a modality."""

    spec = DataSpec(Grid.unit(3), 1, (1, 2, 3, 4), Modality())


def test_data_without_a_modality_have_no_figure(tmp_path, capsys):
    network = CoordinateMLP(3, 1, hidden_dim=8, num_layers=3)
    gallery, figure = _run_gallery(tmp_path, _meta(network), _batch((2, 3, 4), 1), _Volumes())
    assert (gallery.inner_rows, figure) == ([], None)
    assert capsys.readouterr().out == ""


def test_figure_is_logged_as_a_table(make_network, tmp_path):
    logger, gallery = _Recorder(tmp_path), Gallery(num_inner=2)
    _trainer(tmp_path, gallery, logger=logger).test(
        _meta(make_network()), datamodule=FlatData(eval_batch_size=5), verbose=False
    )
    [(key, rows, step)] = logger.tables
    assert (key, step) == ("test/inner_steps", 0)
    steps = ["0 inner steps", "1 inner step", "2 inner steps", "5 inner steps"]
    assert [list(row) for row in rows] == [["name", "original", *steps, *(f"PSNR@{step}" for step in REPORT)]] * 2
    for row, inner_row in zip(rows, gallery.inner_rows, strict=True):
        assert row["name"] == inner_row.name
        assert all(isinstance(row[column], wandb.Image) for column in ("original", *steps))
        assert [row[f"PSNR@{step}"] for step in REPORT] == inner_row.numbers[1:]


def test_validation_logs_adapted_samples_and_learned_step_sizes(make_network, tmp_path):
    composer = _meta(
        make_network(),
        learned_lr=["step"],
        refinement=Refinement(1, stages=()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=10.0),
    ).train()
    data = FlatData(batch_size=9, eval_batch_size=2)
    data.setup("fit")
    data.val_set, data.setup = data.test_set, lambda stage: None
    logger = _Recorder(tmp_path)
    callbacks = ValidationTable(num_samples=3), LearnedStepSizes()
    _trainer(tmp_path, *callbacks, logger=logger, max_epochs=1, log_every_n_steps=1).fit(composer, datamodule=data)
    [(key, rows, step)] = logger.tables
    assert (key, step) == ("val/samples", 0)
    assert list(rows[0]) == ["name", "input", "reconstruction", "error x 5", "PSNR", "refined PSNR"]
    factors = composer.inner.rule.factors["patterns_1"].flatten().tolist()
    names = [f"inner_lr_factor/patterns_1/step_{step}" for step in (1, 2)]
    assert [logger.scalars[name] for name in names] == [{0: pytest.approx(factor)} for factor in factors]
    assert factors != [1.0, 1.0]
    for row, image in zip(rows, FlatImages(3, seed=2), strict=False):
        signal = image.values[None]
        samples = Samples(grid((8, 12)), signal.flatten(2).mT)
        with torch.no_grad():
            values = composer.eval()(Observation(None, samples), samples.coords)
        assert row["PSNR"] == pytest.approx(_psnr(values, samples.values), abs=1e-3)


def test_mean_factors_per_latent_and_step(make_network):
    rule = DifferentiableSGD(learned_lr=["step", "parameter"])
    rule.connect({"a": TensorSpec((2,), torch.zeros), "b.1": TensorSpec((1, 2), torch.zeros)}, steps=2)
    with torch.no_grad():
        rule.factors["a"].copy_(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
    expected = {"a/step_1": 2.0, "a/step_2": 0.75, "b_1/step_1": 1.0, "b_1/step_2": 1.0}
    assert mean_factors(rule) == {f"inner_lr_factor/{name}": mean for name, mean in expected.items()}
    shared = Functa(
        make_network(modulates="shifts", modulated_layers="hidden", normalize_weights=False),
        inner_loop(steps=3, learned_lr=["parameter"]),
    )
    assert mean_factors(shared.inner.rule) == {"inner_lr_factor/latent": 1.0}
    assert mean_factors(DifferentiableSGD()) == {}


@pytest.mark.parametrize("name", META)
def test_configs_of_meta_learned_models_log_learned_step_sizes(name, monkeypatch):
    monkeypatch.chdir(CONFIGS / "experiments")
    merged = load_layers(f"_base_: [../composers/{name}.yaml, ../data/sample_photos.yaml]")
    classes = [callback["class_path"] for callback in merged["trainer"]["callbacks+"]]
    assert classes == ["callbacks.gradient_norms.LearnedStepSizes"]
