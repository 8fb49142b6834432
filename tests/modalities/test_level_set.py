"""Level sets against closed forms and dense marching cubes: position, closure, orientation, and what is evaluated."""

import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from datamodules.domain import Volume
from modalities.level_set import Lattice, NoSurfaceError, level_set, level_sets


def sphere(radius=0.5, centre=(0.0, 0.0, 0.0)):
    return lambda coords: (coords - torch.tensor(centre)).norm(dim=-1) - radius


def box(half, centre=(0.0, 0.0, 0.0)):
    """Return the exact distance to a box."""

    def distance(coords):
        beyond = (coords - torch.tensor(centre)).abs() - torch.tensor(half)
        return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)

    return distance


def torus(major, minor):
    """Return the exact distance to a torus around y."""
    return lambda coords: torch.hypot(coords[:, [0, 2]].norm(dim=-1) - major, coords[:, 1]) - minor


def _noise(lattice, seed=0):
    """Return a function with random values at grid points, and 1 elsewhere."""
    size = lattice.resolution
    grid = torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed))

    def values(coords):
        places = (coords + lattice.bound) / lattice.step - 0.5
        nearest = places.round().long()
        known = ((places - nearest).abs() < 1e-3).all(1)
        return torch.where(known, grid[tuple(nearest.clamp(0, size - 1).mT)], 0.0)

    return values, grid


def _solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def _dense(function, resolution, bound=1.0):
    """Return the vertices and faces of marching cubes on the complete grid, closed by a layer outside of the cube."""
    values = function(Volume(bound).coords((resolution,) * 3)).view((resolution,) * 3).numpy()
    padded = np.pad(values, 1, mode="edge")
    for axis in range(3):
        for end in (0, -1):
            layer = (*[slice(None)] * axis, end)
            padded[layer] = np.abs(padded[layer])
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="descent")
    return (vertices - 0.5) * (2 * bound / resolution) - bound, faces


def _matched(mesh, vertices, faces, tolerance):
    """Assert that a mesh consists of the same vertices and oriented triangles as another, in any order."""
    assert (len(mesh.vertices), len(mesh.faces)) == (len(vertices), len(faces))

    distances, nearest = cKDTree(mesh.vertices).query(vertices)
    assert distances.max() < tolerance
    assert len(set(nearest)) == len(vertices)
    renumbered = nearest[faces]  # the same vertices in the numbers of the mesh

    def turned(triangles):
        first = triangles.argmin(1)[:, None]
        return {tuple(row) for row in np.take_along_axis(triangles, (first + np.arange(3)) % 3, 1).tolist()}

    assert turned(renumbered) == turned(mesh.faces.astype(np.int64))


@pytest.mark.parametrize("resolution", [31, 64])
@pytest.mark.parametrize(
    ("function", "volume", "holes", "tolerance"),
    [
        (sphere(0.6, (0.11, -0.07, 0.05)), 4 / 3 * math.pi * 0.6**3, 0, 0.05),
        (torus(0.6, 0.2), 2 * math.pi**2 * 0.6 * 0.2**2, 1, 0.2),
        (box((0.4, 0.3, 0.55), (0.2, -0.3, 0.15)), 8 * 0.4 * 0.3 * 0.55, 0, 0.4),
    ],
    ids=["sphere", "torus", "box"],
)
def test_level_sets_of_solids_are_their_surfaces(function, volume, holes, tolerance, resolution):
    mesh = level_set(function, resolution=resolution)
    step = 2 / resolution
    distances = function(torch.from_numpy(mesh.vertices)).abs()
    assert distances.max() < tolerance * step  # a shift of half a cell would exceed it
    solid = _solid(mesh)
    assert mesh.is_watertight
    assert solid.euler_number == 2 - 2 * holes
    assert solid.volume == pytest.approx(volume, rel=3 * step)  # negative if faces pointed inwards
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.int32)


def test_a_box_lies_where_it_should_along_every_axis():
    """Faces of a box are flat, so their positions are exact; a shear or a shift along one axis is not."""
    half, centre = np.array([0.31, 0.22, 0.47]), np.array([0.3, -0.2, 0.1])
    mesh = level_set(box(half.tolist(), centre.tolist()), resolution=50, brick=7)
    for axis in range(3):
        low, high = mesh.vertices[:, axis].min(), mesh.vertices[:, axis].max()
        assert (low, high) == pytest.approx((centre[axis] - half[axis], centre[axis] + half[axis]), abs=1e-5)
        for end in (low, high):
            face = mesh.vertices[np.abs(mesh.vertices[:, axis] - end) < 1e-4]
            others = [other for other in range(3) if other != axis]
            middle = (face[:, others].min(0) + face[:, others].max(0)) / 2
            assert middle == pytest.approx(centre[others], abs=0.021)


@pytest.mark.parametrize("brick", [2, 5, 8, 16])
@pytest.mark.parametrize("resolution", [9, 32, 33])
def test_bricks_make_the_mesh_of_the_dense_grid(resolution, brick):
    function = box((0.42, 0.31, 0.2), (0.13, 0.05, -0.21))
    mesh = level_set(function, resolution=resolution, brick=brick)
    _matched(mesh, *_dense(function, resolution), tolerance=3e-4 * 2 / resolution)
    blob = sphere(0.37, (0.3, 0.2, -0.1))
    _matched(
        level_set(blob, resolution=resolution, brick=brick), *_dense(blob, resolution), tolerance=1e-3 / resolution
    )


@pytest.mark.parametrize("seed", range(5))
def test_meshes_of_noise_are_closed(seed):
    """Ambiguous faces of cells are divided in the same way on both sides of a brick."""
    lattice = Lattice(resolution=19, brick=4, margin=math.inf)
    function, grid = _noise(lattice, seed)
    [mesh] = level_sets(lambda coords: function(coords[0])[None], 1, lattice)
    assert mesh.is_watertight
    assert _solid(mesh).volume > 0.3
    crossings = sum(int(((grid < 0).diff(dim=axis)).sum()) for axis in range(3))
    sides = sum(int((grid.movedim(axis, 0)[[0, -1]] < 0).sum()) for axis in range(3))
    edges = mesh.vertices / lattice.step + lattice.resolution / 2 - 0.5
    on_edges = ((np.abs(edges - edges.round()) < 2e-5).sum(1) >= 2).sum()
    assert on_edges == pytest.approx(
        crossings + sides, rel=0.01
    )  # one vertex for every edge of the grid with a crossing


def test_every_grid_point_is_evaluated_once():
    calls = []

    def function(coords):
        calls.append(coords)
        return torus(0.6, 0.15)(coords)

    level_set(function, resolution=128)
    coords = torch.cat(calls)
    assert len(torch.unique(coords, dim=0)) == len(coords)
    assert len(coords) < 0.3 * 128**3
    assert max(map(len, calls)) <= 1 << 16
    calls.clear()
    small = level_set(function, resolution=64, chunk=1000)
    assert max(map(len, calls)) <= 1000
    assert np.array_equal(small.vertices, level_set(torus(0.6, 0.15), resolution=64).vertices)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_missed_of_exact_distances(seed):
    """Also spheres smaller than a brick, wherever they are; without a grid point inside, nothing can be found."""
    generator = np.random.default_rng(seed)
    radius = generator.uniform(0.04, 0.1)  # of bricks with an edge of 0.25
    centre = generator.uniform(-0.85, 0.85, 3)
    mesh = level_set(sphere(radius, centre.astype(np.float32).tolist()), resolution=64, margin=1.0)
    assert np.abs(np.linalg.norm(mesh.vertices - centre, axis=1) - radius).max() < 0.2 * 2 / 64
    assert (mesh.is_watertight, _solid(mesh).body_count) == (True, 1)


def test_thin_plates_are_complete():
    mesh = level_set(box((0.7, 0.02, 0.6), (0.0, 0.011, 0.0)), resolution=100)
    assert mesh.is_watertight
    assert _solid(mesh).volume == pytest.approx(8 * 0.7 * 0.02 * 0.6, rel=0.05)
    assert mesh.extents == pytest.approx([1.4, 0.04, 1.2], abs=1e-3)


@pytest.mark.parametrize("factor", [0.02, 40.0])
def test_surfaces_are_found_in_any_unit(factor):
    bent = torus(0.6, 0.1)
    mesh = level_set(lambda coords: factor * bent(coords), resolution=64)
    expected = level_set(bent, resolution=64)
    assert np.array_equal(mesh.faces, expected.faces)
    assert np.abs(mesh.vertices - expected.vertices).max() < 1e-4


def test_a_surface_is_followed_where_the_margin_misses_it():
    """A rod of which only the thick end is visible at the centres of bricks."""
    end, rod = sphere(0.3, (-0.5, 0.01, 0.02)), box((0.7, 0.03, 0.03), (0.2, 0.01, 0.02))

    def function(coords):
        distances = torch.minimum(end(coords), rod(coords))
        return torch.where(coords[:, 0] > -0.2, 20 * distances, distances)  # far from exact at the rod

    calls = []

    def counted(coords):
        calls.append(len(coords))
        return function(coords)

    mesh = level_set(counted, resolution=128, brick=16, margin=0.01)
    assert mesh.vertices[:, 0].max() == pytest.approx(0.9, abs=0.01)
    assert mesh.is_watertight
    assert sum(calls) < 0.2 * 128**3
    assert np.array_equal(mesh.faces, level_set(function, resolution=128, brick=16, margin=math.inf).faces)


def test_solids_are_closed_at_the_sides_of_the_cube():
    mesh = level_set(sphere(0.6, (0.8, 0.9, -0.7)), resolution=40)
    assert mesh.is_watertight
    assert mesh.vertices.max() == pytest.approx(1.0)
    assert mesh.vertices.min() == pytest.approx(-1.0)
    filled = level_set(lambda coords: coords.norm(dim=-1) - 10, resolution=20)
    assert filled.is_watertight
    assert _solid(filled).volume == pytest.approx(8, rel=0.01)
    assert filled.extents == pytest.approx([2, 2, 2])


def test_level_and_bound_are_those_asked_for():
    mesh = level_set(lambda coords: coords.norm(dim=-1), bound=1.5, resolution=60, level=1.2)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 1.2).max() < 2e-3


def test_values_of_exactly_the_level_make_closed_meshes():
    """Sides of a box on grid points, and a field that is 0 in its whole surroundings."""
    lattice = Lattice(resolution=16)
    place = float(lattice.axis[12])
    mesh = level_set(box((place,) * 3), resolution=16)
    assert mesh.is_watertight
    assert mesh.extents == pytest.approx([2 * place] * 3, abs=1e-3)
    flat = level_set(lambda coords: sphere(0.4)(coords).clamp(max=0), resolution=32)
    assert flat.is_watertight
    assert np.abs(np.linalg.norm(flat.vertices, axis=1) - 0.4).max() < 2 / 32


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.1, 0.2])
def test_truncated_distances_give_the_complete_mesh_from_a_part_of_the_grid(limit):
    true, evaluated = box((0.5, 0.02, 0.3)), []

    def truncated(coords):
        evaluated.append(len(coords))
        noise = 0.05 * limit * torch.sin(40 * coords).sum(-1)  # of a learned plateau
        return true(coords).clamp(-limit, limit) + torch.where(true(coords).abs() < limit, 0, noise)

    mesh = level_set(truncated, resolution=128)
    count = sum(evaluated)
    complete = level_set(truncated, resolution=128, margin=math.inf)
    assert np.array_equal(mesh.vertices, complete.vertices)
    assert np.array_equal(mesh.faces, complete.faces)
    assert count < 0.25 * 128**3 < sum(evaluated) - count


def test_several_functions_are_evaluated_together():
    functions = [
        sphere(0.3),
        lambda coords: coords.norm(dim=-1) + 1,
        box((0.5, 0.2, 0.1)),
        lambda coords: coords[:, 0] * math.nan,
    ]

    def evaluate(coords):
        return torch.stack([function(points) for function, points in zip(functions, coords, strict=True)])

    first, none, second, broken = level_sets(evaluate, 4, Lattice(resolution=40))
    for mesh, function in ((first, functions[0]), (second, functions[2])):
        alone = level_set(function, resolution=40)
        assert np.array_equal(mesh.vertices, alone.vertices)
        assert np.array_equal(mesh.faces, alone.faces)
    assert isinstance(none, NoSurfaceError)
    assert "not finite at 1,000 of 1,000 points" in str(broken)


def test_missing_surfaces_name_the_range_of_values():
    with pytest.raises(NoSurfaceError, match=r"no surface of level 0 .* values are 0\.\d+ to 2\.\d+: choose a level"):
        level_set(lambda coords: coords.norm(dim=-1) + 0.5, resolution=32)
    with pytest.raises(NoSurfaceError, match="not finite at"):
        level_set(lambda coords: torch.where(coords[:, 0] > 0.8, math.inf, coords[:, 0]), resolution=32)


@pytest.mark.parametrize(
    "options",
    [{"resolution": 1}, {"brick": 1}, {"bound": 0.0}, {"bound": math.inf}, {"margin": 0.0}, {"level": math.nan}],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} "):
        level_set(sphere(), **options)


@pytest.mark.slow
def test_memory_at_a_resolution_of_512_is_below_1_gb():
    import tracemalloc

    tracemalloc.start()
    try:
        mesh = level_set(torus(0.7, 0.25), resolution=512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mesh.is_watertight
    assert peak < 1e9
