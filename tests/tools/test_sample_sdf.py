"""Sampling meshes by command: output, resuming, verification, failures and user errors."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trimesh
from program import REPOSITORY
from safetensors import safe_open
from safetensors.numpy import save_file
from shape_files import write_meshes

from datamodules import ShapeFolder
from datamodules.shapes.files import read_facts, read_shape
from datamodules.shapes.mesh_sampling import SamplingSettings, sample_mesh
from tools.sample_sdf import main

OPTIONS = ["--samples=400", "--surface=100", "--workers=1"]
NAMES = ["0a1b", "box", "cone", "open"]


@pytest.fixture
def meshes(tmp_path):
    """Return a folder of four meshes."""
    return write_meshes(tmp_path / "meshes")


@pytest.fixture
def out(tmp_path):
    """Return the output folder."""
    return tmp_path / "out"


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _dates(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def _failed(capsys, *args):
    """Run a command that fails with status 1, and return its output and error messages."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    assert exit_info.value.code == 1
    return capsys.readouterr()


def _refused(*args):
    """Return the error message of an invalid command."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    assert str(exit_info.value.code).startswith("error: ")
    return str(exit_info.value.code)


def test_every_mesh_gets_a_file_that_the_data_set_reads(meshes, out, capsys):
    main([str(meshes), str(out), *OPTIONS, "--seed=5"])
    printed = capsys.readouterr().out
    assert sorted(_content(out)) == [f"{name}.safetensors" for name in NAMES]
    assert "1 of 4 meshes are not watertight:" in printed
    assert "open: " in printed
    assert "sampled" in printed
    expected = sample_mesh(meshes / "cone.stl", SamplingSettings(samples=400, surface=100), 5, "cone")
    actual = read_shape(out / "cone.safetensors")
    assert np.array_equal(actual.samples, expected.samples)
    assert np.array_equal(actual.surface, expected.surface)
    assert actual[2:] == expected[2:]
    facts = read_facts(out / "open.safetensors")
    assert (facts["source"], facts["seed"], facts["settings"]["samples"]) == ("open.glb", 5, 400)
    assert facts["quality"]["is_watertight"] is False
    data = ShapeFolder(str(out), val_ratio=0.25, context_points=20, query_points=20, batch_size=2)
    data.setup("fit")
    assert len(data.train_set) == 3


def test_valid_files_are_kept_and_others_redone(meshes, out, capsys):
    args = [str(meshes), str(out), *OPTIONS]
    main(args)
    content, dates = _content(out), _dates(out)
    (out / "box.safetensors").write_bytes(content["box.safetensors"][:-40])
    (out / "cone.safetensors").unlink()
    trimesh.creation.icosphere(subdivisions=1).export(meshes / "open.glb")  # another mesh of this name
    capsys.readouterr()
    main([*args, f"--csv={out.parent / 'table.csv'}"])
    with (out.parent / "table.csv").open(newline="") as file:
        outcomes = {row["name"]: row["outcome"] for row in csv.DictReader(file)}
    assert outcomes == {"0a1b": "kept", "box": "sampled", "cone": "sampled", "open": "sampled"}
    after = _content(out)
    assert {name for name in content if after[name] == content[name]} == set(content) - {"open.safetensors"}
    assert _dates(out)["0a1b.safetensors"] == dates["0a1b.safetensors"]
    main([*args[:2], "--samples=500", "--surface=100", "--workers=1"])  # other settings
    assert len(read_shape(out / "0a1b.safetensors").samples) == 500
    dates = _dates(out)
    main([*args[:2], "--samples=500", "--surface=100", "--workers=1", "--overwrite"])
    assert all(date > dates[name] for name, date in _dates(out).items())


def test_verification_finds_damaged_wrong_and_missing_files(meshes, out, capsys):
    args = [str(meshes), str(out), *OPTIONS]
    main(args)
    capsys.readouterr()
    main([*args, "--verify"])
    assert "verified" in capsys.readouterr().out
    before = _dates(out)
    (out / "0a1b.safetensors").write_bytes(b"damaged")
    (out / "open.safetensors").unlink()
    for name, change in (("box", lambda samples: samples * (1, 1, 1, 1.01)), ("cone", lambda samples: samples)):
        path = out / f"{name}.safetensors"
        with safe_open(path, "numpy") as file:
            metadata, surface = file.metadata(), file.get_tensor("surface")
            samples = change(file.get_tensor("samples")).astype(np.float32)
        save_file({"samples": samples, "surface": surface}, path, metadata)
    errors = _failed(capsys, *args, "--verify").err
    assert "3 of 4 meshes failed:" in errors
    assert "0a1b.safetensors cannot be read" in errors
    assert re.search(r"box.safetensors has \d+ wrong distances among 400", errors)
    assert "There is no shape file" in errors
    assert "cone" not in errors
    assert _dates(out)["0a1b.safetensors"] != before["0a1b.safetensors"]
    errors = _failed(capsys, *args, "--seed=1", "--verify").err
    assert "cone.safetensors has another seed" in errors


def test_unusable_meshes_are_named_and_the_others_sampled(meshes, out, capsys):
    (meshes / "nan.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n")
    (meshes / "cut.ply").write_bytes((meshes / "box.ply").read_bytes()[:150])
    output = _failed(capsys, meshes, out, *OPTIONS, "--on_open=refuse")
    assert sorted(_content(out)) == ["0a1b.safetensors", "box.safetensors", "cone.safetensors"]
    lines = output.err.strip().splitlines()
    assert lines[0] == "3 of 6 meshes failed:"
    assert len(lines) == 4
    for name in ("nan.obj", "cut.ply", "open.glb"):
        assert sum(name in line for line in lines[1:]) == 1
    assert "is not watertight" in output.err
    assert "sampled" in output.out


def test_doubtful_meshes_are_refused(meshes, out, capsys):
    sphere = trimesh.creation.icosphere(subdivisions=3)
    sphere.update_faces(sphere.triangles_center[:, 2] < 0.3)
    sphere.export(meshes / "bowl.ply")
    errors = _failed(capsys, meshes / "bowl.ply", out, *OPTIONS, "--max_doubt=0.001").err
    assert "bowl.ply has gaps that leave the sign of" in errors
    main([str(meshes / "bowl.ply"), str(out), *OPTIONS, "--max_doubt=1"])
    assert read_facts(out / "bowl.safetensors")["quality"]["doubt"] > 0.001


def test_a_stale_file_is_named_if_its_mesh_now_fails(meshes, out, capsys):
    main([str(meshes / "open.glb"), str(out), *OPTIONS])
    errors = _failed(capsys, meshes / "open.glb", out, *OPTIONS, "--on_open=refuse").err
    assert f"The file {out / 'open.safetensors'} of an earlier run remains." in errors


def test_user_errors_are_one_line(meshes, out, tmp_path):
    (tmp_path / "file").write_text("")
    for args, message in (
        ((meshes, tmp_path / "file"), "is a file, but OUT must be a folder"),
        ((tmp_path / "none", out), "There is no mesh or folder"),
        ((meshes, out, "--samples=1"), "samples is 1"),
        ((meshes, out, "--std", "0"), "std is"),
        ((meshes, out, "--workers=0"), "workers is 0"),
        ((tmp_path / "file", out), "has no supported mesh format"),
    ):
        error = _refused(*args)
        assert message in error
        assert "\n" not in error
    assert not out.exists()


@pytest.mark.slow
def test_the_samples_do_not_depend_on_processes(meshes, tmp_path):
    for workers in (1, 3):
        main([str(meshes), str(tmp_path / str(workers)), *OPTIONS[:2], f"--workers={workers}"])
    assert _content(tmp_path / "1") == _content(tmp_path / "3")


@pytest.mark.slow
def test_an_interrupted_run_leaves_only_complete_files_and_resumes(tmp_path):
    out, meshes = tmp_path / "out", tmp_path / "meshes"
    meshes.mkdir()
    for index in range(40):
        trimesh.creation.box((1, 1, 1 + index)).export(meshes / f"box{index:02}.ply")
    command = [sys.executable, "-m", "tools.sample_sdf", str(meshes), str(out), "--samples=60000", "--surface=100"]
    process = subprocess.Popen([*command, "--workers=2"], cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = list(out.glob("*.safetensors"))
    assert 3 <= len(done) < 40
    assert all(len(read_shape(path).samples) == 60000 for path in done)
    dates = {path.name: path.stat().st_mtime_ns for path in done}
    main([*command[3:], "--workers=2"])
    assert len(list(out.glob("*.safetensors"))) == 40
    assert [path for path in out.iterdir() if path.suffix != ".safetensors"] == []
    assert dates.items() <= _dates(out).items()
