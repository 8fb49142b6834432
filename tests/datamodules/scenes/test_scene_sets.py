"""Data sets of scenes: view selection, rays in training and evaluation, broken scenes, and `tools.check`."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coordinates import pixel_rays
from PIL import Image
from scene_folders import cameras, describe, save_image, write_scene

from datamodules.batch import PosedImages
from datamodules.loading import Addressed
from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import drawn_frames
from datamodules.storage import views
from datamodules.storage.transforms import read_transforms
from datamodules.storage.views import Scene
from tools.check.__main__ import main

FRAMES = 30
SIZE = 8


class Scenes(SceneSet):
    """All subfolders of a folder, in every split."""

    def scenes(self, split):
        return sorted(path for path in self.root.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a folder of three scenes, which tests must not change."""
    root = tmp_path_factory.mktemp("scenes")
    for name in ("a", "b", "c"):
        write_scene(root / name, FRAMES, SIZE)
    return root


@pytest.fixture
def folder(tmp_path):
    """Return a folder of two scenes."""
    for name in ("a", "b"):
        write_scene(tmp_path / "scenes" / name, 4, SIZE)
    return tmp_path / "scenes"


def ready(folder, stage="fit", **arguments):
    """Return a data module of a folder after set-up."""
    data = Scenes(**{"root": str(folder), "size": SIZE, "batch_size": 2, "rays_per_view": 20} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def frames_of(item):
    """Return the frame indices of an item of a generated scene, from the red channel of the central square."""
    return [int(image[0, SIZE // 2, SIZE // 2]) - 10 for image in item.images]


def trained_on(data, epoch=0, seed=0):
    """Return the training items of an epoch."""
    items = Addressed(data.train_set, data.augmentation, seed)
    return [items[epoch, index] for index in range(len(data.train_set))]


def collated(data, items):
    return data.collate(items)


def _naive_ray(pose, focal, column, row):
    """Return the ray of a pixel, computed in Python."""
    inside = ((column + 0.5 - SIZE / 2) / focal, -(row + 0.5 - SIZE / 2) / focal, -1.0)
    return [*pose[:, 3].tolist(), *(sum(float(pose[i, j]) * inside[j] for j in range(3)) for i in range(3))]


def test_evaluation_has_all_rays_and_their_colours(shared):
    data = ready(shared, views=2, query_views=3, eval_batch_size=2)
    assert (data.signal_shape, data.spec.domain.coord_dim, data.spec.value_dim) == ((2, 3, SIZE, SIZE), 6, 3)
    raw = next(iter(data.val_dataloader()))
    batch = data.to_coordinates(raw)
    signal, samples, _ = batch.observation
    assert batch.shape == (3, SIZE, SIZE)
    assert batch.names == ["a", "b"]
    assert batch.query.coords.shape == (2, 3 * SIZE * SIZE, 6)
    assert samples.coords.shape == (2, 2 * SIZE * SIZE, 6)
    assert signal.images.shape == (2, 2, 3, SIZE, SIZE)
    assert signal.images.dtype == torch.float32
    assert torch.equal(signal.images, raw.images[:, :2] / 255)
    assert torch.equal(signal.poses, raw.poses[:, :2])
    assert torch.equal(signal.intrinsics, raw.intrinsics[:, :2])
    focal = SIZE / 2 / math.tan(0.4)
    for part, first, count in ((samples, 0, 2), (batch.query, 2, 3)):
        coords = part.coords.view(2, count, SIZE, SIZE, 6)
        values = part.values.view(2, count, SIZE, SIZE, 3)
        for instance, view, row, column in ((0, 0, 0, 0), (1, count - 1, 3, 6), (0, 1, 7, 2), (1, 0, 4, 4)):
            expected = _naive_ray(raw.poses[instance, first + view], focal, column, row)
            assert coords[instance, view, row, column].tolist() == pytest.approx(expected, abs=1e-5)
            pixel = raw.images[instance, first + view, :, row, column]
            assert torch.equal(values[instance, view, row, column], pixel / 255)


def test_poses_match_images(shared):
    data = ready(shared, views=3, query_views=4)
    for item in [*trained_on(data), *data.val_set]:
        chosen = frames_of(item)
        torch.testing.assert_close(item.poses, cameras(FRAMES).float()[chosen])
        assert len(set(chosen)) == 7


def _pixel_indices(batch, raw, views):
    """Return the pixel index ``(B, Q, R)`` of every training ray, and check the colours of the rays."""
    support = len(raw.images[0]) - views
    count = batch.query.coords.shape[1] // views
    full = PosedImages(raw.images[:, support:], raw.poses[:, support:], raw.intrinsics[:, support:], raw.name, raw.seed)
    rays = pixel_rays(full.poses, full.intrinsics, (SIZE, SIZE))  # (B, Q, H W, 6)
    coords = batch.query.coords[..., :6].view(len(rays), views, count, 6)
    distance = (coords[:, :, :, None] - rays[:, :, None]).abs().sum(-1)
    assert distance.amin(-1).max() == 0
    indices = distance.argmin(-1)
    pixels = full.images.flatten(3).mT.take_along_dim(indices[..., None], 2) / 255
    assert torch.equal(pixels.flatten(1, 2), batch.query.values)
    return indices


def test_training_has_distinct_rays_of_every_query_view_with_jitter(shared):
    data = ready(shared, views=1, query_views=2, batch_size=3, foreground_epochs=0)
    raw = next(iter(data.train_dataloader()))
    batch = data.to_coordinates(raw, training=True, step=3)
    assert batch.query.coords.shape == (3, 2 * 20, 7)
    assert batch.query.values.shape == (3, 2 * 20, 3)
    assert batch.shape is None
    indices = _pixel_indices(batch, raw, 2)
    for row in indices.flatten(0, 1).tolist():
        assert len(set(row)) == 20  # no duplicates
    draws = batch.query.coords[..., 6]
    assert 0 <= draws.min() < 0.1 < 0.9 < draws.max() < 1
    assert len(draws.unique()) == draws.numel()


def test_rays_depend_on_the_seed_of_the_instance_only(shared):
    data = ready(shared, batch_size=3)
    items = trained_on(data)
    together = data.to_coordinates(collated(data, items), training=True, step=0)
    torch.manual_seed(5)
    for index, item in enumerate(items):
        alone = data.to_coordinates(collated(data, [item]), training=True, step=9)
        assert torch.equal(alone.query.coords[0], together.query.coords[index])
        assert torch.equal(alone.query.values[0], together.query.values[index])
    twin = data.to_coordinates(collated(data, [items[0], items[0]._replace(seed=1)]), training=True)
    assert not torch.equal(twin.query.coords[0], twin.query.coords[1])


def test_rays_are_uniform(shared):
    data = ready(shared, foreground_epochs=0)
    item = trained_on(data)[0]
    many = collated(data, [item._replace(seed=seed) for seed in range(400)])
    indices = _pixel_indices(data.to_coordinates(many, training=True), many, 1)
    counts = indices.flatten().bincount(minlength=SIZE * SIZE)
    expected = 400 * 20 / 64  # mean of a binomial distribution with standard deviation 9.3
    assert (counts - expected).abs().max() < 45


def _painted(count, seeds):
    """Return collated items with one support view and one query view, of which ``count`` pixels are not white."""
    images = torch.full((len(seeds), 2, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    images[:, 1, 1].flatten(1)[:, 30 : 30 + count] = 254  # one level below white, in one channel
    poses = cameras(2).float().expand(len(seeds), 2, 3, 4)
    return PosedImages(images, poses, torch.full((len(seeds), 2, 4), 9.0), ["x"] * len(seeds), torch.tensor(seeds))


@pytest.mark.parametrize("count", [0, 1, 3, 10, 25, 64])
def test_half_of_the_rays_are_foreground_in_the_first_epochs(shared, count):
    data = ready(shared)
    raw = _painted(count, list(range(50)))
    indices = _pixel_indices(data.to_coordinates(raw, training=True), raw, 1)[:, 0]  # (50, 20)
    inside = (indices >= 30) & (indices < 30 + count) if count < 64 else torch.ones_like(indices, dtype=torch.bool)
    if count == 0:
        assert all(len(set(row)) == 20 for row in indices.tolist())
        return
    assert inside[:, :10].all()
    for row in indices[:, :10].tolist():
        assert len(set(row)) == 10 if count >= 10 else len(set(row)) <= count
    if 1 < count < 64:
        assert set(indices[:, :10].flatten().tolist()) == set(range(30, 30 + min(count, 34)))
    share = float(inside[:, 10:].float().mean())
    assert abs(share - min(count, 34 if count < 64 else 64) / 64) < 0.08  # five standard deviations


def test_foreground_rays_end_after_foreground_epochs(shared):
    data = ready(shared, foreground_epochs=2)
    raw = _painted(1, list(range(40)))
    hits = []
    for epoch in range(4):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        indices = _pixel_indices(data.to_coordinates(raw, training=True), raw, 1)
        hits.append(int((indices == 30).sum()))
    assert min(hits[:2]) >= 400
    assert max(hits[2:]) < 40


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_a_share_of_the_rays_is_drawn_near_the_object_in_all_epochs(shared, margin):
    data = ready(shared, foreground_epochs=1, object_rays=0.6, object_margin=margin)
    raw = _painted(1, list(range(60)))  # pixel 30: row 3, column 6
    near = {
        SIZE * row + column
        for row in range(SIZE)
        for column in range(SIZE)
        if max(abs(row - 3), abs(column - 6)) <= margin
    }
    for epoch in range(3):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        indices = _pixel_indices(data.to_coordinates(raw, training=True), raw, 1)[:, 0]
        assert indices.shape == (60, 20)
        assert set(indices[:, :12].flatten().tolist()) == near
        assert set(indices[:, 12:16].flatten().tolist()) == {30} if epoch == 0 else True  # half of the others
        assert len(indices[:, 16:].unique()) > 50


def test_rays_of_empty_views_are_drawn_from_the_whole_image(shared):
    data = ready(shared, object_rays=1.0)
    raw = _painted(0, [0, 1])
    for row in _pixel_indices(data.to_coordinates(raw, training=True), raw, 1)[:, 0].tolist():
        assert len(set(row)) == 20


def test_views_with_fewer_pixels_use_all_rays(shared):
    data = ready(shared, rays_per_view=1000, foreground_epochs=0)
    batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    assert batch.query.coords.shape == (2, SIZE * SIZE, 7)


def test_a_single_ray_is_drawn_from_the_whole_image(shared):
    data = ready(shared, rays_per_view=1)
    raw = _painted(1, list(range(40)))
    assert _pixel_indices(data.to_coordinates(raw, training=True), raw, 1).unique().numel() > 20


def test_training_views_depend_on_epoch_and_seed_and_are_among_the_first_frames(shared):
    data = ready(shared, views=2, query_views=2, train_frames=7)
    draws = {tuple(frames_of(item)) for epoch in range(60) for item in trained_on(data, epoch)}
    assert {frame for frames in draws for frame in frames} == set(range(7))
    assert all(len(set(frames)) == 4 for frames in draws)
    assert len(draws) > 150  # of 840
    first, repeated, other = (trained_on(data, 3, seed) for seed in (0, 0, 1))
    assert [frames_of(item) for item in first] == [frames_of(item) for item in repeated]
    assert [frames_of(item) for item in first] != [frames_of(item) for item in other]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_do_not_depend_on_loader_processes(shared, workers):
    data = ready(shared, num_workers=workers, batch_size=3)
    batch = next(iter(data.train_dataloader()))
    expected = {item.name: item for item in trained_on(data)}
    assert sorted(batch.name) == ["a", "b", "c"]
    for name, images in zip(batch.name, batch.images, strict=True):
        assert torch.equal(images, expected[name].images)


def test_only_drawn_views_are_read(shared, monkeypatch):
    paths = []
    original = views.read_view
    monkeypatch.setattr(views, "read_view", lambda path, drop_alpha: paths.append(path) or original(path))
    data = ready(shared, views=2, query_views=3)
    assert paths == []
    for item in [*trained_on(data), *data.val_set]:
        assert [int(path.stem[2:]) for path in paths[:5]] == frames_of(item)
        del paths[:5]
    assert paths == []


def test_scenes_are_repeated_in_training(shared):
    data = ready(shared, repeats=3)
    assert sorted(item.name for item in trained_on(data)) == [*"aaabbbccc"]
    assert len({tuple(frames_of(item)) for item in trained_on(data) if item.name == "a"}) > 1
    assert len(data.val_set) == 3


def test_evaluation_views_depend_on_name_and_repetition_only(shared, monkeypatch):
    data = ready(shared, "test", draws=12, views=2)
    names = [item.name for item in data.test_set]
    assert names == [f"{scene}.{repetition:03d}" for scene in "abc" for repetition in range(12)]
    chosen = {item.name: frames_of(item) for item in data.test_set}
    assert all(len(set(frames)) == 3 for frames in chosen.values())
    assert len({tuple(frames) for frames in chosen.values()}) > 30
    assert max(frame for frames in chosen.values() for frame in frames) >= 25
    monkeypatch.setenv("PL_GLOBAL_SEED", "99")
    torch.manual_seed(1)
    fewer = ready(shared, "test", draws=5, views=2, num_workers=1, eval_batch_size=4)
    images = {name: image for batch in fewer.test_dataloader() for name, image in zip(batch[3], batch[0], strict=True)}
    assert len(images) == 15
    for name, image in images.items():
        assert [int(view[0, 4, 4]) - 10 for view in image] == chosen[name]


def test_query_views_do_not_depend_on_the_number_of_support_views(shared):
    chosen = [[frames_of(item) for item in ready(shared, views=views, query_views=2).val_set] for views in (1, 2, 5)]
    for views_1, views_2, views_5 in zip(*chosen, strict=True):
        assert views_1[1:] == views_2[2:] == views_5[5:]
        assert views_1[:1] == views_2[:1] == views_5[:1]
        assert views_2[:2] == views_5[:2]


def test_halves_draws_support_from_the_first_frames_and_queries_from_the_others(shared):
    data = ready(shared, "test", protocol="halves", draws=40, views=3, query_views=2, train_frames=25)
    chosen = [frames_of(item) for item in data.test_set]
    assert {frame for frames in chosen for frame in frames[:3]} == set(range(25))
    assert {frame for frames in chosen for frame in frames[3:]} == set(range(25, FRAMES))
    assert all(len(set(frames)) == 5 for frames in chosen)


def test_first_uses_one_support_and_25_query_frames(shared):
    data = ready(shared, "test", protocol="first", draws=7)
    assert [(item.name, frames_of(item)) for item in data.test_set] == [(name, list(range(26))) for name in "abc"]
    batch = data.to_coordinates(collated(data, [data.test_set[0]]))
    assert batch.shape == (25, SIZE, SIZE)
    assert batch.query.coords.shape == (1, 25 * SIZE * SIZE, 6)


@pytest.mark.parametrize("views", [1, 3])
def test_all_views_are_compared_with_the_support_views_of_draws(shared, views):
    options = {"draws": 4, "views": views, "query_views": 2}
    drawn, complete = (ready(shared, "test", protocol=protocol, **options) for protocol in ("draws", "all"))
    assert len(drawn.test_set) == len(complete.test_set) == 12
    for item, every in zip(drawn.test_set, complete.test_set, strict=True):
        support = frames_of(item)[:views]
        assert every.name == item.name
        assert frames_of(every) == support + [frame for frame in range(FRAMES) if frame not in support]
    batch = complete.to_coordinates(collated(complete, [complete.test_set[0], complete.test_set[5]]))
    assert batch.shape == (FRAMES - views, SIZE, SIZE)


def test_batches_of_all_views_need_equally_many(folder):
    write_scene(folder / "c", 7, SIZE)
    message = r"b has 4 frames and c 7, but .* needs equally many: set --data.init_args.eval_batch_size to 1, or"
    with pytest.raises(ValueError, match=message):
        ready(folder, "test", protocol="all", eval_batch_size=2)
    data = ready(folder, "test", protocol="all", eval_batch_size=1, draws=1)
    assert [len(item.images) for item in data.test_set] == [4, 4, 7]


def test_evaluation_views_are_uniform():
    scene = Scene("x", tuple(map(str, range(10))), torch.zeros(10, 3, 4), torch.ones(10, 4), (8, 8))
    common = {"views": 1, "query_views": 1, "train_frames": 5, "protocol": "draws"}
    chosen = torch.tensor([drawn_frames(scene, repetition, **common) for repetition in range(2000)])
    counts = torch.stack([column.bincount(minlength=10) for column in chosen.T])
    assert (counts - 200).abs().max() < 70  # five standard deviations of 13.4
    other = [drawn_frames(scene._replace(name="y"), repetition, **common) for repetition in range(20)]
    assert other != chosen[:20].tolist()


def test_broken_scenes_are_skipped_and_reported(folder, capsys):
    write_scene(folder / "c", 4, SIZE)
    (folder / "a" / "r_2.png").write_text("no image")
    data = ready(folder)
    assert [item.name for item in data.val_set] == ["b", "c"]
    assert list(data.skipped) == [str(folder / "a")]
    assert "r_2.png is not an image" in data.skipped[str(folder / "a")]
    assert f"Skipped 1 unreadable scenes ({folder / 'a'})" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"1 of 3 scenes of the split train cannot be used:\n  .*r_2\.png is not an image"
    ) as error:
        ready(folder, on_bad_scene="raise")
    assert str(error.value).endswith("skip them with --data.init_args.on_bad_scene skip.")


def test_data_sets_of_broken_scenes_are_refused(folder):
    for number in range(7):
        (folder / f"{number}").mkdir()
    for name in "ab":
        (folder / name / "transforms.json").write_text("{}")
    with pytest.raises(ValueError, match="9 of 9 scenes of the split train cannot be used:\n") as error:
        ready(folder)
    assert len(str(error.value).splitlines()) == 8
    assert "and 4 more\nFix them. If scenes are missing, pass another folder" in str(error.value)


def test_folders_without_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Scenes has no scenes of the split train in .*: pass another folder"):
        ready(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 64}, "The images of a have 8 x 8 pixels, but size is 64: resize them"),
        ({"views": 3, "query_views": 2}, "a has 4 frames for training, but 5 are needed: lower views"),
        ({"views": 2, "query_views": 2, "train_frames": 3}, "a has 3 frames for training, but 4 are needed"),
    ],
)
def test_errors_of_unsuitable_scenes_state_both_numbers(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ready(folder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": 3, "query_views": 2}, "a has 4 frames, but 5 are needed"),
        ({"protocol": "first"}, "a has 4 frames, but 26 are needed"),
        ({"protocol": "halves"}, "a has 0 frames for queries, but 1 are needed"),
        ({"protocol": "halves", "train_frames": 2, "views": 3}, "a has 2 frames for support, but 3 are needed"),
        ({"protocol": "halves", "train_frames": 3, "query_views": 2}, "a has 1 frames for queries, but 2 are needed"),
    ],
)
def test_scenes_with_too_few_frames_for_a_protocol_are_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ready(folder, "test", **arguments)


@pytest.mark.parametrize(
    ("near", "far", "visible"), [(2, 6, True), (0.5, 2.3, True), (5.7, 9, True), (0.1, 2.1, False), (6, 9, False)]
)
def test_depths_must_include_the_object(folder, near, far, visible):
    if visible:
        assert len(ready(folder, near=near, far=far).train_set) == 2
        return
    message = rf"The cameras of a are 4 to 4 from the origin, so no object .* is visible between near {near} and far {far}: set"
    with pytest.raises(ValueError, match=message):
        ready(folder, near=near, far=far)


def test_images_that_cannot_be_decoded_raise_when_they_are_read(folder):
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 4), np.uint8)
    for path in (folder / "a").glob("*.png"):
        Image.fromarray(noise).save(path)
        content = bytearray(path.read_bytes())
        content[60:120] = bytes(60)  # header and end stay intact
        path.write_bytes(content)
    data = ready(folder)
    for read in (lambda: trained_on(data), lambda: data.val_set[0]):
        with pytest.raises(ValueError, match=r"a/r_\d\.png is corrupt or truncated"):
            read()


def test_images_that_changed_since_set_up_are_refused(folder):
    data = ready(folder)
    for path in (folder / "a").glob("*.png"):
        save_image(path, 0, size=16)
    with pytest.raises(ValueError, match=r"r_\d\.png has 16 x 16 pixels, but had 8 x 8 at set-up"):
        trained_on(data)


def test_images_without_transparency_are_noted(folder):
    assert "background" not in ready(folder).notes
    write_scene(folder / "a", 4, SIZE, mode="RGB")
    assert "images without transparency are used as they are" in ready(folder).notes["background"]


def test_random_items_have_the_shapes_of_batches(shared):
    data = ready(shared, views=2, query_views=3)
    batch = data.to_coordinates(data.random_items(4), training=True)
    assert batch.observation.signal.images.shape == (4, 2, 3, SIZE, SIZE)
    assert batch.query.coords.shape == (4, 3 * 20, 7)
    torch.testing.assert_close(data.random_items(1).poses[0, :, :, 3].norm(dim=-1), torch.full((5,), 4.0))


def test_batches_draw_the_number_of_support_views(shared):
    data = ready(shared, views=3, min_views=2)
    items = data.random_items(2)
    counts = [data.to_coordinates(items, training=True, step=step).observation for step in range(40)]
    assert {observation.signal.images.shape[1] for observation in counts} == {2, 3}
    for observation in counts:
        number = observation.signal.images.shape[1]
        assert torch.equal(observation.signal.images, items.images[:, :number].float() / 255)
        assert observation.samples.coords.shape[1] == number * SIZE * SIZE
    again = data.to_coordinates(items, training=True, step=7).observation
    assert again.signal.images.shape == counts[7].signal.images.shape
    assert data.to_coordinates(items).observation.signal.images.shape[1] == 3


def test_training_batches_use_the_coordinates_of_evaluation(shared):
    batches = list(ready(shared, eval_batch_size=2).training_batches(3))
    assert [batch.query.coords.shape for batch in batches] == [(2, SIZE * SIZE, 6), (1, SIZE * SIZE, 6)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"views": 0},
        {"query_views": 0},
        {"size": 0},
        {"near": -1.0},
        {"near": 6.0},
        {"far": float("inf")},
        {"near": float("nan")},
        {"rays_per_view": 0},
        {"foreground_epochs": -1},
        {"views": 2, "min_views": 3},
        {"min_views": 0},
        {"object_rays": -0.1},
        {"object_rays": 1.5},
        {"object_margin": -1},
        {"train_frames": 0},
        {"repeats": 0},
        {"draws": 0},
        {"val_draws": 0},
        {"batch_size": 0},
        {"protocol": "rest"},
        {"protocol": "first", "views": 2},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(arguments):
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=f"{name} (is )?{value!r}") as error:
        Scenes(**arguments)
    assert "\n" not in str(error.value)


def _checked(capsys, *args):
    """Return the exit status and the output of `tools.check`."""
    capsys.readouterr()
    status = 0
    try:
        main(["--data", "test_scene_sets.Scenes", f"--data.init_args.size={SIZE}", *args])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_check_counts_scenes_and_reports_broken_ones(folder, tmp_path, capsys):
    root = f"--data.init_args.root={folder}"
    status, printed = _checked(capsys, root)
    assert status == 0
    assert printed.splitlines() == [
        f"Scenes in {folder}",
        "train: 2 scenes, all readable",
        "val, test: 2 scenes, all readable",
        "sizes: 8 x 8 pixels",
        "lenses: focal length 9.4609 pixels, no distortion",
        "principal points: at the centre of the images",
        "convention: opengl, in which the cameras look at a common point",
    ]
    describe(folder / "a", camera_angle_x=40)
    path = folder / "b" / "r_3.png"
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 4), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(60) + content[120:])
    status, printed = _checked(capsys, root, "--decode=false")
    assert status == 1
    assert "train: 2 scenes, 1 unreadable\nval, test: 2 scenes, 1 unreadable\nUnreadable: 2\n" in printed
    assert "frame 0: camera_angle_x, the horizontal field of view, is 40" in printed
    assert "r_3.png" not in printed
    status, printed = _checked(capsys, root, f"--csv={tmp_path / 'all.csv'}")
    assert status == 1
    assert "train: 2 scenes, 2 unreadable" in printed
    assert f"  {path} is corrupt or truncated" in printed
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines[0] == "split,path,problem,scenes,detail"
    assert [line.split(",")[0] for line in lines[1:]] == ["train", "train", '"val', '"val']
    assert f"train,{folder / 'b'},unreadable,1," in lines[2]


def test_check_fails_without_scenes(tmp_path, capsys):
    status, printed = _checked(capsys, f"--data.init_args.root={tmp_path}")
    assert status == 1
    assert printed.startswith("error: Scenes has no scenes of the split train in ")


def test_scenes_may_differ_in_the_number_of_frames(folder):
    write_scene(folder / "long", 9, SIZE)
    data = ready(folder)
    assert {len(read_transforms(path).images) for path in data.scenes("train")} == {4, 9}
    assert next(iter(data.train_dataloader())).images.shape == (2, 2, 3, SIZE, SIZE)
