"""Copies of training views, the identity test and the table of views, against loops over images."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scene_folders import write_scene

from callbacks.identity import IdentityTest
from callbacks.nearest_view import NearestTrainingView
from callbacks.view_table import ViewTable
from datamodules import SceneFolder
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.scenes import copying
from datamodules.scenes.copying import NotSharedError, copied_items, view_errors
from datamodules.scenes.draws import posed
from modalities.view_metrics import ViewPSNR, ViewSSIM, WhiteView

SIZE, FRAMES = 12, 5
SPLITS = {"train": ["a", "b", "c", "d", "e"], "val": ["f"], "test": ["p", "q", "r"]}


def _paint(folder, seed):
    """Replace the images of a scene by random opaque pixels."""
    generator = np.random.default_rng(seed)
    for path in sorted(folder.glob("*.png")):
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write scenes with equal cameras and random images."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, (split, name) in enumerate((split, name) for split, names in SPLITS.items() for name in names):
        _paint(write_scene(folder / split / name, FRAMES, SIZE), seed)
    return folder


def _data(root, **options):
    data = SceneFolder(str(root), **{"size": SIZE, "train_frames": FRAMES, "draws": 3, "query_views": 2} | options)
    data.setup("fit")
    data.setup("test")
    return data


def _image(scene, frame):
    """Return an image in [0, 1] as float64."""
    return np.asarray(Image.open(scene.images[frame]).convert("RGB")) / 255


def _psnr(first, second):
    return -10 * math.log10(((first - second) ** 2).mean())


@pytest.mark.parametrize(("views", "chunk"), [(1, 200e6), (2, 1.0)])
def test_copies_are_those_of_an_exhaustive_search(root, monkeypatch, views, chunk):
    monkeypatch.setattr(copying, "_IMAGE_BYTES", chunk)
    data = _data(root, views=views)
    training = data.train_set.scenes
    rows = copied_items(training, data.test_set, views)
    assert [row.name for row in rows] == [f"{name}.{draw:03d}" for name in "pqr" for draw in range(3)]
    for index, row in enumerate(rows):
        scene, draw = data.test_set.scenes[index // 3], index % 3
        frames = data.test_set.frames(scene, draw)
        support, query = frames[:views], frames[views:]
        distances = [
            np.mean([((_image(other, frame) - _image(scene, frame)) ** 2).mean() for frame in support])
            for other in training
        ]
        copies = [np.mean([_psnr(_image(other, frame), _image(scene, frame)) for frame in query]) for other in training]
        nearest = int(np.argmin(distances))
        assert row.nearest == training[nearest].name
        assert row.copied == pytest.approx(copies[nearest], abs=1e-4)
        assert row.best == pytest.approx(max(copies), abs=1e-4)
        assert row.white == pytest.approx(np.mean([_psnr(1.0, _image(scene, frame)) for frame in query]), abs=1e-4)


def test_errors_of_equal_images_are_zero():
    images = torch.randint(256, (2, 3, 3, 7, 9), dtype=torch.uint8)
    errors = view_errors(images, images.flip(0))
    assert errors[0, 1].tolist() == errors[1, 0].tolist() == [0, 0, 0]
    expected = (images[0].double() / 255 - images[1].double() / 255).square().mean((1, 2, 3))
    assert errors[0, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_frames_of_training_objects_are_found_by_their_cameras(root):
    data = _data(root, views=1)
    order = [3, 0, 4, 2, 1]
    shuffled = [
        scene._replace(
            images=tuple(scene.images[frame] for frame in order),
            poses=scene.poses[order],
            intrinsics=scene.intrinsics[order],
        )
        for scene in data.train_set.scenes
    ]
    assert copied_items(shuffled, data.test_set, 1) == copied_items(data.train_set.scenes, data.test_set, 1)


def test_objects_with_other_cameras_are_named(root):
    data = _data(root)
    training = list(data.train_set.scenes)
    training[3] = training[3]._replace(poses=training[3].poses + 1e-2)
    with pytest.raises(NotSharedError, match="a and d have different cameras"):
        copied_items(training, data.test_set, 1)
    fewer = [scene._replace(poses=scene.poses[:4], intrinsics=scene.intrinsics[:4]) for scene in data.train_set.scenes]
    with pytest.raises(NotSharedError, match="a has no view from the camera of frame 4 of p"):
        copied_items(fewer, data.test_set, 1)
    zoomed = [scene._replace(intrinsics=scene.intrinsics * 1.1) for scene in data.train_set.scenes]
    with pytest.raises(NotSharedError, match="a has no view from the camera of frame 0 of p"):
        copied_items(zoomed, data.test_set, 1)


class _Logger:
    def __init__(self):
        self.metrics = {}

    def log_metrics(self, metrics, step):
        self.metrics |= metrics


def _trainer(data, tmp_path):
    return SimpleNamespace(
        datamodule=data,
        log_dir=tmp_path / "run",
        default_root_dir="no",
        is_global_zero=True,
        loggers=[_Logger()],
        global_step=3,
    )


def _copy(data, trainer, items=None):
    """Run a test of the first items whose training views are copied; of all if None."""
    callback = NearestTrainingView()
    callback.setup(trainer, None, "test")
    callback.on_test_epoch_start(trainer, None)
    for index in range(len(data.test_set) if items is None else items):
        callback.on_test_batch_end(trainer, None, {}, _batch(data, index), index)
    callback.on_test_end(trainer, None)


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_copies_are_logged_and_written(root, tmp_path, capsys):
    data = _data(root)
    del data.train_set  # as in a test, which sets up no training set
    trainer = _trainer(data, tmp_path)
    _copy(data, trainer)
    rows = _rows(tmp_path / "run" / "test_copied.csv")
    assert len(rows) == 9
    [logger] = trainer.loggers
    for key, column in (("test/copied_psnr", "psnr copied"), ("test/best_copied_psnr", "psnr best")):
        assert logger.metrics[key] == pytest.approx(np.mean([float(row[column]) for row in rows]), abs=1e-3)
    printed = capsys.readouterr().out
    assert f"nearest training object: {logger.metrics['test/copied_psnr']:.2f} dB" in printed


def test_only_tested_items_are_copied(root, tmp_path, monkeypatch):
    """As with ``limit_test_batches``; images of other objects are not read."""
    data = _data(root)
    expected = copied_items(data.train_set.scenes, data.test_set, 1)
    assert copied_items(data.train_set.scenes, data.test_set, 1, {"p.001", "r.002"}) == [expected[1], expected[8]]
    assert copied_items(data.train_set.scenes, data.test_set, 1, ()) == []
    read = []
    monkeypatch.setattr(copying, "posed", lambda scene, *options: read.append(scene.name) or posed(scene, *options))
    trainer = _trainer(data, tmp_path)
    _copy(data, trainer, items=2)
    assert [row["name"] for row in _rows(tmp_path / "run" / "test_copied.csv")] == ["p.000", "p.001"]
    assert sorted(read) == ["a", "b", "c", "d", "e", "p"]
    mean = np.mean([row.copied for row in expected[:2]])
    assert trainer.loggers[0].metrics["test/copied_psnr"] == pytest.approx(mean)


def test_objects_with_other_cameras_are_left_out_with_one_line(tmp_path, capsys):
    for split, names in SPLITS.items():
        for number, name in enumerate(names):
            write_scene(tmp_path / "scenes" / split / name, FRAMES, SIZE, radius=4 + 0.1 * number)
    data = _data(tmp_path / "scenes")
    trainer = _trainer(data, tmp_path)
    _copy(data, trainer)
    assert capsys.readouterr().out == "No copies of training views: p and q have different cameras.\n"
    test = IdentityTest()
    test.on_test_epoch_start(trainer, None)
    assert capsys.readouterr().out == "No identity test: p and q have different cameras.\n"
    test.on_test_batch_end(trainer, None, {}, None, 0)
    test.on_test_epoch_end(trainer, None)
    assert trainer.loggers[0].metrics == {}


def _batch(data, index):
    """Return the test item as a batch, and its frames."""
    item = data.test_set[index]
    values = item.images[data.views :].movedim(1, -1).flatten(0, 2)[None].float() / 255
    shape = (len(item.images) - data.views, SIZE, SIZE)
    query = Samples(torch.zeros(values.shape[1], 6), values)
    return CoordinateBatch(Observation(), query, shape, [item.name])


def _run(callback, data, trainer, predict, module=None, items=None):
    """Run a test whose prediction for item ``index`` and step is ``predict(index, step, truth)``, of the first items or all."""
    callback.on_test_epoch_start(trainer, module)
    for index in range(len(data.test_set) if items is None else items):
        batch = _batch(data, index)
        values = {step: predict(index, step, batch.query.values) for step in (0, 5)}
        callback.on_test_batch_end(trainer, module, {"values": values}, batch, index)
    callback.on_test_epoch_end(trainer, module)


def test_identity_counts_objects_that_are_nearest_to_themselves(root, tmp_path, capsys):
    """The first draw of q is predicted as p, which the other draws outweigh; all draws of r are predicted as p."""
    data = _data(root, draws=3)
    trainer = _trainer(data, tmp_path)
    p, q, r = data.test_set.scenes

    def predict(index, step, truth):
        scene, draw = data.test_set.scenes[index // 3], index % 3
        if step == 0 and (scene is r or (scene is q and draw == 0)):
            frames = data.test_set.frames(scene, draw)[1:]
            images = np.stack([_image(p, frame) for frame in frames])
            return 0.9 * torch.from_numpy(images).float().view(1, -1, 3) + 0.1 * truth
        return truth + 0.1

    _run(IdentityTest(), data, trainer, predict)
    printed = capsys.readouterr().out
    assert "predicted: identity 2 of 3: r is nearest to p\n" in printed
    assert "refined: identity 3 of 3\n" in printed
    assert trainer.loggers[0].metrics == pytest.approx({"test/identity": 2 / 3, "test/identity_refined": 1})
    rows = _rows(tmp_path / "run" / "test_identity.csv")
    assert [(row["name"], row["views"], row["nearest"]) for row in rows[:3]] == [
        ("p", "predicted", "p"),
        ("q", "predicted", "q"),
        ("r", "predicted", "p"),
    ]
    errors = []
    for draw in range(3):
        for frame in data.test_set.frames(r, draw)[1:]:
            predicted = 0.9 * _image(p, frame) + 0.1 * _image(r, frame)
            errors.append(((predicted - _image(q, frame)) ** 2).mean())
    assert float(rows[2]["mse to q"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(rows[3]["mse to p"]) == pytest.approx(0.01, rel=1e-4)


def test_identity_of_few_objects(root, tmp_path, capsys):
    data = _data(root)
    trainer = _trainer(data, tmp_path)
    _run(IdentityTest(max_objects=2), data, trainer, lambda index, step, truth: truth)
    assert "predicted: identity 2 of 2\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="max_objects is 1; it must be at least 2"):
        IdentityTest(max_objects=1)


def test_tested_objects_are_compared_with_all_objects(root, tmp_path, capsys):
    """Only p is tested, as with ``limit_test_batches``, and predicted as r."""
    data = _data(root, draws=1)
    trainer = _trainer(data, tmp_path)
    p, _, r = data.test_set.scenes

    def predict(index, step, truth):
        images = np.stack([_image(p if step else r, frame) for frame in data.test_set.frames(p, 0)[1:]])
        return torch.from_numpy(images).float().view(1, -1, 3)

    _run(IdentityTest(), data, trainer, predict, items=1)
    printed = capsys.readouterr().out
    assert "predicted: identity 0 of 1 among 3 objects: p is nearest to r\n" in printed
    assert "refined: identity 1 of 1 among 3 objects\n" in printed
    assert trainer.loggers[0].metrics == {"test/identity": 0, "test/identity_refined": 1}
    first, refined = _rows(tmp_path / "run" / "test_identity.csv")
    assert (first["name"], first["nearest"], refined["nearest"]) == ("p", "r", "p")
    assert float(first["mse to r"]) < 1e-10 < float(first["mse to q"])


@pytest.mark.parametrize("callback", [IdentityTest(), NearestTrainingView()])
def test_other_data_are_refused_before_a_test(callback):
    trainer = SimpleNamespace(datamodule=None)
    callback.setup(trainer, None, "fit")
    name = type(callback).__name__
    with pytest.raises(
        ValueError, match=f"{name} compares views of scenes, and the data is NoneType: remove the callb"
    ):
        callback.setup(trainer, None, "test")


def test_table_has_a_row_per_view(root, tmp_path, monkeypatch):
    data = _data(root, protocol="all", draws=1)
    trainer = _trainer(data, tmp_path)
    metrics = {"psnr": ViewPSNR(), "ssim": ViewSSIM(), "white": WhiteView()}
    monkeypatch.setattr("callbacks.view_table.metrics_of", lambda module: metrics)
    noise = torch.randn(1, (FRAMES - 1) * SIZE**2, 3, generator=torch.Generator().manual_seed(0))
    _run(ViewTable(), data, trainer, lambda index, step, truth: truth + (0.2 if step else 0.3) * noise)
    rows = _rows(tmp_path / "run" / "test_views.csv")
    assert list(rows[0]) == ["name", "frame", "steps", "psnr", "ssim", "white"]
    assert len(rows) == 3 * 2 * (FRAMES - 1)
    for row in rows:
        scene = next(scene for scene in data.test_set.scenes if scene.name == row["name"])
        frames = data.test_set.frames(scene, 0)[1:]
        view = frames.index(int(row["frame"]))
        truth = _image(scene, int(row["frame"]))
        assert float(row["white"]) == pytest.approx(_psnr(1.0, truth), abs=1e-3)
        error = (0.2 if row["steps"] == "5" else 0.3) * noise.view(FRAMES - 1, SIZE, SIZE, 3)[view].double().numpy()
        assert float(row["psnr"]) == pytest.approx(_psnr(truth + error, truth), abs=1e-3)
