"""Sample the signed distances of many meshes, each to its own file, on one or more processes; verify these files."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.randomness import seed_at
from datamodules.shapes.files import ENDING, read_facts, read_shape, write_shape
from datamodules.shapes.mesh_sampling import Quality, SamplingSettings, sample_solid, solid_of
from datamodules.storage.folders import NamedFile
from datamodules.storage.progress import counting

_VERSION = 1  # of the sampler: increase it if samples change for the same settings
_NUM_VERIFIED = 2000  # samples of a file whose distances are computed again
_TOLERANCE = 1e-5  # of these distances


class MeshOutcome(NamedTuple):
    """What happened to a mesh.

    Attributes:
        name: Name of the shape.
        result: ``sampled``, ``kept`` (sampled before), ``verified`` or ``failed``.
        quality: Properties of the mesh; None if it failed.
        reason: Why it failed.
    """

    name: str
    result: str
    quality: Quality | None = None
    reason: str = ""


class _Task(NamedTuple):
    """A mesh to sample or verify, and its file."""

    mesh: NamedFile
    path: Path
    settings: SamplingSettings
    seed: int


def sample_folder(
    meshes: Sequence[NamedFile],
    out: Path,
    settings: SamplingSettings,
    seed: int = 0,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> list[MeshOutcome]:
    """Sample meshes to ``out/NAME.safetensors``; valid files of the same mesh, settings and seed are kept.

    Args:
        meshes: The meshes.
        out: Output folder; created if missing.
        settings: How to sample.
        seed: Seed of the random numbers, which also depend on the name of a mesh.
        workers: Number of processes; with 1, the current process uses all processors for each mesh.
        overwrite: Whether to sample meshes again whose files are valid.

    Returns:
        The outcomes in the order of the meshes.

    Raises:
        ValueError: If ``out`` is a file, or ``workers`` is out of range.
        OSError: If a file cannot be written.
    """
    tasks = _tasks(meshes, out, settings, seed, workers)
    out.mkdir(parents=True, exist_ok=True)
    return _run(partial(_sample, overwrite=overwrite), tasks, workers, "sampling meshes")


def verify_folder(
    meshes: Sequence[NamedFile], out: Path, settings: SamplingSettings, seed: int = 0, *, workers: int = 1
) -> list[MeshOutcome]:
    """Read the file of every mesh, and compare the distances of some of its samples with those of the mesh.

    Args:
        meshes: The meshes that were sampled.
        out: Folder of the files.
        settings: Settings that the files must have.
        seed: Seed that the files must have.
        workers: Number of processes.

    Returns:
        The outcomes, ``verified`` or ``failed``, in the order of the meshes.

    Raises:
        ValueError: If ``out`` is a file, or ``workers`` is out of range.
    """
    return _run(_verify, _tasks(meshes, out, settings, seed, workers), workers, "verifying shapes")


def _tasks(meshes: Sequence[NamedFile], out: Path, settings: SamplingSettings, seed: int, workers: int) -> list[_Task]:
    """Return the tasks of a run after checking its arguments."""
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be at least 1.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, but OUT must be a folder: pass the meshes first and OUT last.")
    return [_Task(mesh, out / f"{mesh.name}{ENDING}", settings, seed) for mesh in meshes]


def _run(
    function: Callable[[_Task], MeshOutcome], tasks: Sequence[_Task], workers: int, label: str
) -> list[MeshOutcome]:
    """Return the outcomes of a function of tasks, in their order."""
    outcomes: dict[str, MeshOutcome] = {}
    with counting(label, len(tasks)) as show:
        for done, outcome in enumerate(_outcomes(function, tasks, workers), 1):
            outcomes[outcome.name] = outcome
            show(done)
    return [outcomes[task.mesh.name] for task in tasks]


def _outcomes(function: Callable[[_Task], MeshOutcome], tasks: Sequence[_Task], workers: int) -> Iterator[MeshOutcome]:
    """Yield the outcomes of tasks as they finish on several processes."""
    if min(workers, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    # On Linux, fork as data loaders do: a spawned process imports torch first, which takes seconds.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _use_one_thread)
    try:
        for future in as_completed([pool.submit(function, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "A sampling process was killed, perhaps because memory ran out: run the command again with fewer --workers; it "
            "resumes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    """Let libigl use one thread in this process; it reads the variable when it is first called."""
    os.environ["IGL_NUM_THREADS"] = "1"


def _sample(task: _Task, overwrite: bool) -> MeshOutcome:
    """Sample a mesh to its file, unless a valid file of it exists."""
    try:
        facts = _facts(task)
        if not overwrite and (quality := _quality_of(task.path, facts)) is not None:
            return MeshOutcome(task.mesh.name, "kept", quality)
        solid = solid_of(task.mesh.path, task.settings.on_open, task.settings.up)
        shape, quality = sample_solid(solid, task.settings, task.seed, task.mesh.name)
    except (ValueError, RuntimeError, MemoryError) as error:  # libigl raises RuntimeError
        return MeshOutcome(task.mesh.name, "failed", reason=_reason(task, error))
    write_shape(task.path, shape, facts | {"quality": quality._asdict()})
    return MeshOutcome(task.mesh.name, "sampled", quality)


def _facts(task: _Task) -> dict[str, Any]:
    """Return the facts that determine the samples of a mesh: settings, seed, and checksum of its file."""
    if not task.mesh.path.is_file():
        raise ValueError(f"There is no mesh {task.mesh.path}: pass another.")
    facts = {
        "version": _VERSION,
        "settings": asdict(task.settings),
        "seed": task.seed,
        "source": task.mesh.path.name,
        "source_crc32": zlib.crc32(task.mesh.path.read_bytes()),
    }
    return dict(json.loads(json.dumps(facts)))


def _quality_of(path: Path, facts: dict[str, Any]) -> Quality | None:
    """Return the quality in the file of a shape if the file is valid and has the given facts, else None."""
    try:
        stored = read_facts(path)
        if any(stored.get(name) != value for name, value in facts.items()):
            return None
        read_shape(path)
        return _quality(stored)
    except ValueError:
        return None


def _quality(facts: dict[str, Any]) -> Quality:
    """Return the quality in the facts of a shape."""
    try:
        quality = Quality(**facts["quality"])
        return quality._replace(notes=tuple(quality.notes))
    except (KeyError, TypeError) as error:
        raise ValueError(f"The quality is {facts.get('quality')!r}, not that of a sampled mesh.") from error


def _verify(task: _Task) -> MeshOutcome:
    """Compare the file of a mesh with the mesh."""
    try:
        expected, stored = _facts(task), read_facts(task.path)
        names = [name for name in expected if stored.get(name) != expected[name]]
        if names:
            raise ValueError(
                f"The shape file {task.path} has another {' and '.join(names)}, so that it is not of this mesh and these "
                "settings: sample it again."
            )
        shape = read_shape(task.path)
        solid = solid_of(task.mesh.path, task.settings.on_open, task.settings.up)
        rng = np.random.default_rng(seed_at("verify", task.mesh.name))
        chosen = rng.permutation(len(shape.samples))[:_NUM_VERIFIED]
        distances, _ = solid.signed_distance(shape.samples[chosen, :3])
        wrong = np.abs(distances - shape.samples[chosen, 3]) > _TOLERANCE
        if wrong.any():
            raise ValueError(
                f"The shape file {task.path} has {wrong.sum():,} wrong distances among {len(chosen):,}: delete it, and sample "
                "it again."
            )
        return MeshOutcome(task.mesh.name, "verified", _quality(stored))
    except (ValueError, RuntimeError, MemoryError) as error:
        return MeshOutcome(task.mesh.name, "failed", reason=_reason(task, error))


def _reason(task: _Task, error: Exception) -> str:
    """Return the message of an error on one line, with the name of the mesh or its file."""
    message = " ".join(str(error).split()) or type(error).__name__
    named = str(task.mesh.path) in message or str(task.path) in message
    message = message if named else f"The mesh {task.mesh.path} cannot be sampled: {message}"
    stale = task.path.exists() and str(task.path) not in message
    return f"{message} The file {task.path} of an earlier run remains." if stale else message
