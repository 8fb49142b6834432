"""Metrics of shapes against naive loops in float64, closed forms, and their conventions for failures."""

import gc
import math

import numpy as np
import pytest
import torch
import trimesh

import modalities.shape_metrics as shape_metrics
from composers.rendering import PointRenderer, Reconstruction
from datamodules.batch import Samples
from modalities.level_set import Lattice, NoSurfaceError, level_set
from modalities.shape_metrics import (
    Chamfer,
    ChamferSquared,
    FScore,
    MeanAbsoluteDistance,
    NormalConsistency,
    VolumeIoU,
    meshes_of,
    proximity,
    sampling_floor,
)
from modalities.triangle_mesh import SurfacePoints, TriangleMesh, sample_surface

SURFACE = {"resolution": 48, "points": 400}
METRICS = {
    "chamfer": Chamfer(**SURFACE),
    "squared": ChamferSquared(**SURFACE),
    "fscore": FScore(0.05, **SURFACE),
    "normals": NormalConsistency(**SURFACE),
}


def spheres(*radii, calls=None):
    """Return the field of spheres around the origin."""

    def field(coords):
        if calls is not None:
            calls.append(coords.shape)
        return (coords.norm(dim=-1, keepdim=True) - torch.tensor(radii).view(-1, 1, 1)).expand(len(radii), -1, 1)

    return field


def _target(radii, surface=300, volume=200, normals=True, seed=0):
    """Return samples in the volume, then points on spheres, in the order of an evaluation query."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(len(radii), surface, 3, generator=generator), dim=-1)
    radius = torch.tensor(radii).view(-1, 1, 1)
    points = torch.rand(len(radii), volume, 3, generator=generator) * 2 - 1
    coords = torch.cat((points, radius * directions), dim=1)
    values = torch.cat((points.norm(dim=-1, keepdim=True) - radius, torch.zeros(len(radii), surface, 1)), dim=1)
    known = torch.cat((torch.zeros_like(points), directions), dim=1)
    return Samples(coords, values, normals=known if normals else None)


def _reconstruction(field, target):
    return PointRenderer().reconstruct(field, target.coords)


def _naive(predicted, true, threshold):
    """Return Chamfer-L1 in %, the sum of squares x 1000, the F-score and the normal consistency by loops."""
    edge = max(true.points[:, axis].max() - true.points[:, axis].min() for axis in range(3))
    nearest = []
    for first, second in ((predicted, true), (true, predicted)):
        pairs = []
        for point, normal in zip(first.points, first.normals, strict=True):
            distances = [math.dist(point, other) for other in second.points]
            index = distances.index(min(distances))
            pairs.append((distances[index], abs(float(normal @ second.normals[index]))))
        nearest.append(pairs)
    mean = [sum(distance for distance, _ in pairs) / len(pairs) for pairs in nearest]
    squares = [sum(distance**2 for distance, _ in pairs) / len(pairs) for pairs in nearest]
    within = [sum(distance / edge <= threshold for distance, _ in pairs) / len(pairs) for pairs in nearest]
    cosines = [sum(cosine for _, cosine in pairs) / len(pairs) for pairs in nearest]
    harmonic = 0 if not sum(within) else 2 * within[0] * within[1] / sum(within)
    return 100 * sum(mean) / 2 / edge, 1000 * sum(squares), harmonic, sum(cosines) / 2


def test_surface_metrics_follow_their_definitions():
    target = _target((0.5, 0.4))
    reconstruction = _reconstruction(spheres(0.55, 0.4), target)
    actual = {name: metric.measure(reconstruction, target, None) for name, metric in METRICS.items()}
    for index, radius in enumerate((0.55, 0.4)):
        mesh = level_set(lambda coords, radius=radius: coords.norm(dim=-1) - radius, resolution=48)
        true = SurfacePoints(target.coords[index, 200:].double().numpy(), target.normals[index, 200:].double().numpy())
        expected = _naive(sample_surface(mesh, 400), true, 0.05)
        assert [actual[name][index].item() for name in METRICS] == pytest.approx(expected, rel=1e-6)
    assert actual["chamfer"][0] > actual["chamfer"][1]
    assert actual["fscore"][0] < actual["fscore"][1]


def test_scale_is_the_longest_edge_of_the_true_surface():
    """Doubling both surfaces changes no relative number, and multiplies the sum of squares by four."""
    settings = {"resolution": 128, "points": 3000}
    metrics = Chamfer(**settings), FScore(0.06, **settings), ChamferSquared(**settings)
    first, second = (
        [metric.measure(_reconstruction(spheres(radius), target), target, None).item() for metric in metrics]
        for radius, target in ((0.22, _target((0.2,))), (0.44, _target((0.4,))))
    )
    assert second[0] == pytest.approx(first[0], rel=0.02)
    assert second[1] == pytest.approx(first[1], abs=0.05)
    assert second[2] == pytest.approx(4 * first[2], rel=0.02)


def test_volume_metrics_ignore_surface_points_and_padding():
    target = _target((0.5, 0.7))
    mask = torch.ones(2, 500, dtype=torch.bool)
    mask[1, 50:200] = False
    target = target._replace(mask=mask)
    reconstruction = _reconstruction(spheres(0.6, 0.6), target)
    reconstruction.values[:, 200:] = 7.0  # at the surface points
    reconstruction.values[1, 50:200] = -7.0  # of padding
    iou, distance = (
        metric.measure(reconstruction, target, None).tolist() for metric in (VolumeIoU(), MeanAbsoluteDistance())
    )
    for index, count in enumerate((200, 50)):
        both = either = total = 0
        for sample in range(count):
            predicted, true = float(reconstruction.values[index, sample]), float(target.values[index, sample])
            both += predicted < 0 and true < 0
            either += predicted < 0 or true < 0
            total += abs(predicted - true)
        assert iou[index] == pytest.approx(both / either)
        assert distance[index] == pytest.approx(100 * total / count, rel=1e-5)
    assert distance == pytest.approx([10, 10], rel=1e-4)


def test_masked_surface_points_do_not_count():
    target = _target((0.5,))
    far = target.coords.clone()
    far[:, 400:] += 5
    mask = torch.arange(500)[None] < 400
    expected = _target((0.5,))
    masked = Samples(far, target.values, mask, target.normals)
    kept = Samples(expected.coords[:, :400], expected.values[:, :400], None, expected.normals[:, :400])
    for metric in METRICS.values():
        actual = metric.measure(_reconstruction(spheres(0.5), masked), masked, None)
        assert torch.equal(actual, metric.measure(_reconstruction(spheres(0.5), kept), kept, None))


def test_normals_may_be_flipped_or_partly_unknown():
    target = _target((0.5,))
    metric = METRICS["normals"]
    expected = metric.measure(_reconstruction(spheres(0.5), target), target, None).item()
    assert expected > 0.98
    flipped = target._replace(normals=-target.normals)
    assert metric.measure(_reconstruction(spheres(0.5), flipped), flipped, None).item() == pytest.approx(expected)
    partly = target.normals.clone()
    partly[:, 300:] = 0
    partly = target._replace(normals=partly)
    actual = metric.measure(_reconstruction(spheres(0.5), partly), partly, None).item()
    assert actual == pytest.approx(expected, abs=0.02)


def test_a_missing_surface_counts_as_far_away():
    """One of three predictions has no surface, and one is not finite; both have the numbers of the worst case."""

    def field(coords):
        return spheres(0.5, 0.5, 0.5)(coords) + torch.tensor([0.0, 2.0, math.nan]).view(3, 1, 1)

    target = _target((0.5, 0.4, 0.3))
    reconstruction = _reconstruction(field, target)
    numbers = {name: metric.measure(reconstruction, target, None).tolist() for name, metric in METRICS.items()}
    edges = np.ptp(target.coords[:, 200:].numpy(), axis=1).max(1)
    assert numbers["chamfer"][1:] == pytest.approx([100 * math.sqrt(3)] * 2)
    assert numbers["squared"][1:] == pytest.approx((2000 * 3 * edges[1:] ** 2).tolist())
    assert numbers["fscore"][1:] == numbers["normals"][1:] == [0, 0]
    assert (numbers["chamfer"][0] < 6, numbers["fscore"][0] > 0.5, numbers["normals"][0] > 0.9) == (True, True, True)
    assert VolumeIoU().measure(reconstruction, target, None).tolist()[1:] == [0, 0]
    distances = MeanAbsoluteDistance().measure(reconstruction, target, None).tolist()
    assert distances[2] == math.inf
    assert all(map(math.isfinite, distances[:2]))


def test_metrics_are_nan_only_where_they_are_undefined():
    target = _target((0.5,), normals=False)
    reconstruction = _reconstruction(spheres(0.5), target)
    undefined = {name: metric.measure(reconstruction, target, None).isnan().item() for name, metric in METRICS.items()}
    assert undefined == {"chamfer": False, "squared": False, "fscore": False, "normals": True}
    volume = Samples(target.coords[:, :200], target.values[:, :200])
    calls = []
    reconstruction = _reconstruction(spheres(0.5, calls=calls), volume)
    evaluated = len(calls)
    assert all(metric.measure(reconstruction, volume, None).isnan().all() for metric in METRICS.values())
    assert len(calls) == evaluated  # no level set is extracted in vain
    surface = Samples(target.coords[:, 200:], target.values[:, 200:])
    assert VolumeIoU().measure(_reconstruction(spheres(0.5), surface), surface, None).isnan().all()
    assert MeanAbsoluteDistance().measure(_reconstruction(spheres(0.5), surface), surface, None).isnan().all()
    outside = Samples(torch.ones(1, 4, 3), torch.ones(1, 4, 1))
    assert VolumeIoU().measure(Reconstruction.of_values(torch.ones(1, 4, 1)), outside, None).isnan().all()
    assert VolumeIoU().measure(Reconstruction.of_values(-torch.ones(1, 4, 1)), outside, None).tolist() == [0]
    same = SurfacePoints(np.ones((5, 3)), np.zeros((5, 3)))
    assert proximity(same, same) is None


def test_metrics_share_the_level_set_of_a_reconstruction():
    calls = []
    target = _target((0.5, 0.3))
    reconstruction = _reconstruction(spheres(0.5, 0.3, calls=calls), target)
    METRICS["chamfer"].measure(reconstruction, target, None)
    evaluated = len(calls)
    assert evaluated > 1
    assert all(len(shape) == 3 and shape[0] == 2 for shape in calls[1:])  # both instances, each at its points
    values = [metric.measure(reconstruction, target, None) for metric in METRICS.values()]
    assert len(calls) == evaluated
    other = _target((0.5, 0.3), seed=1)
    changed = METRICS["chamfer"].measure(reconstruction, other, None)
    assert len(calls) == evaluated
    assert not torch.equal(changed, values[0])
    Chamfer(resolution=32, points=400).measure(reconstruction, target, None)
    assert len(calls) > evaluated
    before = len(shape_metrics._meshes), len(shape_metrics._proximities)
    del reconstruction
    gc.collect()
    assert (len(shape_metrics._meshes), len(shape_metrics._proximities)) == (before[0] - 1, before[1] - 1)


def test_instances_have_the_meshes_that_they_have_alone():
    target = _target((0.5, 0.3))
    lattice = Lattice(resolution=40)
    meshes = meshes_of(_reconstruction(spheres(0.5, 5.0), target), lattice)
    expected = level_set(lambda coords: coords.norm(dim=-1) - 0.5, resolution=40)
    assert np.array_equal(meshes[0].vertices, expected.vertices)
    assert np.allclose(meshes[1].extents, 2)  # fills the cube
    assert isinstance(
        meshes_of(_reconstruction(spheres(-1.0), target._replace(coords=target.coords[:1])), lattice)[0], NoSurfaceError
    )


def test_samples_of_a_mesh_are_uniform_and_depend_on_the_seed_only():
    solid = trimesh.creation.box((1.2, 0.6, 0.2))
    mesh = TriangleMesh(solid.vertices.astype(np.float32), solid.faces.astype(np.int32))
    points, normals = sample_surface(mesh, 20000, seed=3)
    again = sample_surface(mesh, 20000, seed=3)
    assert np.array_equal(points, again.points)
    assert not np.array_equal(points, sample_surface(mesh, 20000, seed=4).points)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones(20000))
    areas = np.array([0.3 * 0.1, 0.6 * 0.1, 0.6 * 0.3])
    facing = np.abs(normals).argmax(1)
    assert np.bincount(facing) / 20000 == pytest.approx(areas / areas.sum(), abs=0.01)
    top = points[(facing == 2) & (points[:, 2] > 0)]
    assert (top[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs((np.abs(points) - [0.6, 0.3, 0.1]).max(1)).max() < 1e-6


def test_the_floor_is_that_of_two_samples_and_falls_with_their_size():
    mesh = level_set(lambda coords: coords.norm(dim=-1) - 0.5, resolution=64)
    floor, fine = sampling_floor(mesh, 2000, 2000), sampling_floor(mesh, 8000, 8000)
    spacing = 0.5 / math.sqrt(
        2000 / math.pi
    )  # mean distance of a point to the nearest of a uniform sample of this density
    assert floor["chamfer"] == pytest.approx(100 * spacing, rel=0.05)
    assert fine["chamfer"] == pytest.approx(floor["chamfer"] / 2, rel=0.05)
    assert fine["chamfer_squared"] == pytest.approx(floor["chamfer_squared"] / 4, rel=0.1)
    assert (fine["fscore"] > floor["fscore"], fine["normal_consistency"] > 0.99) == (True, True)


def test_notes_state_points_resolution_and_seed():
    assert Chamfer().note == "Surfaces: 30,000 points, seed 0, on the level set 0 at a resolution of 128."
    assert FScore(0.02, 64, 1000, 5).heading == "F-score at 2%"
    assert FScore(0.02, 64, 1000, 5).note.startswith("Surfaces: 1,000 points, seed 5")
    assert not Chamfer.in_training


@pytest.mark.parametrize("make", [lambda: Chamfer(points=0), lambda: Chamfer(resolution=1), lambda: FScore(0)])
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_truncated_distances_are_compared_up_to_the_limit():
    target = Samples(torch.zeros(3, 3), torch.tensor([[[0.5], [0.03], [-0.4]]]))
    reconstruction = Reconstruction.of_values(torch.tensor([[[0.12], [0.05], [-0.04]]]))
    errors = [0.0, 0.02, 0.06]  # at a limit of 0.1
    truncated = MeanAbsoluteDistance(limit=0.1).measure(reconstruction, target, None)
    assert truncated.tolist() == pytest.approx([100 * sum(errors) / 3])
    assert MeanAbsoluteDistance().measure(reconstruction, target, None).tolist() == pytest.approx([100 * 0.76 / 3])
    broken = reconstruction._replace(values=torch.tensor([[[math.inf], [0.05], [-0.04]]]))
    assert MeanAbsoluteDistance(limit=0.1).measure(broken, target, None).tolist() == [math.inf]
    with pytest.raises(ValueError, match=r"limit is 0\.0; it must be a positive distance, or null"):
        MeanAbsoluteDistance(limit=0.0)
