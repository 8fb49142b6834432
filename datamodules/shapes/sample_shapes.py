"""Procedural shapes for training and bundled meshes held out: a first run, tests and documentation without a download."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.randomness import seed_at
from datamodules.shapes.families import VERSION, Family, generate
from datamodules.shapes.files import ENDING, normalisation_of, problem_of, read_facts, read_shape, write_shape
from datamodules.shapes.mesh_sampling import SamplingSettings
from datamodules.shapes.parts import Solid
from datamodules.shapes.samples import StoredShape
from datamodules.shapes.sampling_run import sample_folder
from datamodules.shapes.shape_set import ShapeSet
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.meshes import mesh_files
from datamodules.storage.parallel import processors
from datamodules.storage.progress import counting
from datamodules.storage.sample_meshes import CHAIRS, LAMPS, MESHES

_HELD_OUT = {"chairs": CHAIRS, "lamps": LAMPS}  # families with bundled meshes
_NUM_HELD_OUT = {"val": 8, "test": 32}  # procedural shapes held out of families without bundled meshes


class SampleShapes(ShapeSet):
    """Procedurally generated shapes for training, and bundled meshes for validation and test.

    `families` describes the generators. A training shape is a function of ``shape_seed`` and its number, so that a larger
    ``train_shapes`` adds shapes. Of the bundled chairs, 2 are for validation and 16 for the test; of the lamps, 1 and 3. These
    families train on generated shapes only. Tables, cars and unions, of which there are no bundled meshes, are
    tested on generated shapes that training does not see. Shapes are y up and normalised; samples and surface points are
    generated on first use and kept in the folder ``sample_shapes`` in ``root`` (400 kB per shape).

    The meshes are CC0 1.0; ``samples/meshes/LICENSES.md`` lists the authors.

    Args:
        family: ``chairs``, ``tables``, ``lamps``, ``cars`` or ``unions`` of primitives.
        train_shapes: Number of training shapes.
        shape_seed: Seed of the training shapes.
        samples: Number of distance samples per shape, half of them uniform and half near the surface.
        surface: Number of points on the surface of each training shape; held-out shapes have five times as many, and four times
            as many samples.
        kwargs: Arguments of `ShapeSet`.

    Raises:
        ValueError: If an argument is out of range, or the folder cannot be written.
    """

    def __init__(
        self,
        family: Family = "chairs",
        train_shapes: int = 1024,
        shape_seed: int = 0,
        samples: int = 16384,
        surface: int = 5000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if family not in get_args(Family):
            raise ValueError(f"family is {family!r}: choose one of {', '.join(get_args(Family))}.")
        if train_shapes < 1 or samples < 4 or surface < 1:
            raise ValueError(
                f"train_shapes is {train_shapes}, samples {samples}, surface {surface}: they must be at least 1, 4 and 1."
            )
        self.family = family
        self.train_shapes = train_shapes
        self.shape_seed = shape_seed
        self.uniform = 0.5
        self.settings = SamplingSettings(samples, uniform=0.5, surface=surface, max_doubt=1.0)
        self.held_out_settings = SamplingSettings(4 * samples, uniform=0.5, surface=5 * surface, max_doubt=1.0)

    @property
    def folder(self) -> Path:
        """Folder of the shapes; its name has the numbers of samples and surface points and the version of the generator."""
        return self.root / "sample_shapes" / f"{self.settings.samples}-{self.settings.surface}-v{VERSION}"

    @property
    def num_instances(self) -> int:
        """Number of training shapes."""
        return self.train_shapes

    def prepare_data(self) -> None:
        """Generate and sample the missing shapes, on one process of every machine.

        Raises:
            ValueError: If the folder cannot be written, or a bundled mesh cannot be sampled.
        """
        try:
            for split in get_args(Split):
                if split != "train" and self.family in _HELD_OUT:
                    self._sample_meshes(split)
                else:
                    self._generate(split)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written: {error.strerror}. Pass a writable folder with --data.init_args.root."
            ) from error

    def files(self, split: Split) -> list[NamedFile]:
        """Return the files of a split; they exist after `prepare_data`."""
        if split != "train" and self.family in _HELD_OUT:
            names = [mesh.name for mesh in self._meshes(split)]
            return [NamedFile(name, self.folder / "meshes" / f"{name}{ENDING}") for name in names]
        count = self.train_shapes if split == "train" else _NUM_HELD_OUT[split]
        names = [f"{self.family}-{split}-{number:05}" for number in range(count)]
        folder = self.folder / f"{self.family}-{self.shape_seed}"
        return [NamedFile(name, folder / f"{name}{ENDING}") for name in names]

    def read(self, file: NamedFile) -> StoredShape:
        """Read a shape."""
        return read_shape(file.path)

    def problem(self, file: NamedFile) -> str | None:
        """Return why the header of a file is not that of a shape."""
        return problem_of(file.path)

    def normalisation(self, file: NamedFile) -> tuple[tuple[float, float, float], float]:
        """Return the offset and the scale in a file."""
        return normalisation_of(file.path)

    def surface_points(self, shape: StoredShape, count: int) -> NDArray[np.float32]:
        """Return new points on the surface of a generated shape and their normals ``(count, 6)``; stored ones of a mesh."""
        file = self.file_of(shape.name)
        address = read_facts(file.path).get("address") if file is not None else None
        if address is None:
            return super().surface_points(shape, count)
        parts = generate(self.family, *address).surface(count, np.random.default_rng(seed_at("surface", shape.name)))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def how_to_get(self) -> str:
        """Return how to get missing shapes, as the end of an error message."""
        return f"remove {self.folder}, and call prepare_data() or start the program again to generate them."

    def _meshes(self, split: Split) -> list[NamedFile]:
        """Return the bundled meshes of a split: those of training and test of `SampleObjects` are all tested here."""
        splits = _HELD_OUT[self.family]
        names = set(splits["val"] if split == "val" else splits["train"] + splits["test"])
        return [mesh for mesh in mesh_files([MESHES]) if mesh.name in names]

    def _sample_meshes(self, split: Split) -> None:
        """Sample the bundled meshes of a split."""
        outcomes = sample_folder(
            self._meshes(split), self.folder / "meshes", self.held_out_settings, workers=processors()
        )
        if failed := [outcome for outcome in outcomes if outcome.result == "failed"]:
            raise ValueError(f"The bundled mesh {failed[0].name} cannot be sampled: {failed[0].reason}")

    def _generate(self, split: Split) -> None:
        """Generate the shapes of a split whose files are missing or invalid, on all processors."""
        missing = [(number, file) for number, file in enumerate(self.files(split)) if self.problem(file) is not None]
        if not missing:
            return
        missing[0][1].path.parent.mkdir(parents=True, exist_ok=True)
        settings = self.settings if split == "train" else self.held_out_settings
        write = partial(_write, family=self.family, address=(self.shape_seed, split), settings=settings)
        with counting(f"generating {self.family}", len(missing)) as show:
            for done, _ in enumerate(_on_all_processors(write, missing), 1):
                show(done)


def sample_parts(solid: Solid, settings: SamplingSettings, seed: int, name: str) -> StoredShape:
    """Return samples and surface points of a solid of parts, like those of a mesh; see `mesh_sampling.sample_solid`.

    Args:
        solid: Normalised solid.
        settings: Numbers of samples, and how far those near the surface are moved.
        seed: Seed of the random numbers.
        name: Name of the shape.
    """
    rng = np.random.default_rng(seed_at("shape", seed, name))
    num_uniform = round(settings.uniform * settings.samples)
    num_near = settings.samples - num_uniform
    positions, normals = solid.surface(settings.surface, rng)
    near = positions[rng.integers(len(positions), size=num_near)]
    deviations = np.resize(settings.std, num_near)[:, None]
    points = np.concatenate(
        (2 * rng.random((num_uniform, 3)) - 1, near + deviations * rng.standard_normal((num_near, 3)))
    )
    points = points.astype(np.float32)
    samples = np.concatenate((points, solid.distance(points.astype(np.float64))[:, None]), axis=1)
    surface = np.concatenate((positions, normals), axis=1)
    return StoredShape(samples.astype(np.float32), surface.astype(np.float32), name, num_uniform)


def _write(
    task: tuple[int, NamedFile], family: Family, address: tuple[int | str, ...], settings: SamplingSettings
) -> None:
    """Generate, sample and write one shape."""
    number, file = task
    solid = generate(family, *address, number)
    facts = {"generator": VERSION, "family": family, "address": [*address, number], "parts": len(solid.parts)}
    write_shape(file.path, sample_parts(solid, settings, 0, file.name), json.loads(json.dumps(facts)))


def _on_all_processors(function: Any, tasks: Sequence[Any]) -> Any:
    """Yield the results of a function of tasks on as many processes as there are processors."""
    workers = min(processors(), len(tasks) // 16)  # a process for fewer shapes starts in vain
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(function, tasks, chunksize=8)
