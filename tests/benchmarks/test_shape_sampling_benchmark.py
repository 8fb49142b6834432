"""The benchmark of sampling shapes."""

import pytest
import trimesh

from benchmarks import shape_sampling as benchmark


def test_generated_meshes_have_the_requested_number_of_faces(tmp_path):
    files = benchmark.generate(benchmark.ShapeSamplingSettings(faces=10000), tmp_path)
    torus = trimesh.load_mesh(files[0].path)
    assert 10000 <= len(torus.faces) < 11000
    assert torus.is_watertight
    assert len(files) == 5


def test_benchmark_writes_a_row_per_mesh(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "processors", lambda: 1)  # processes are started in a slow test of the tool
    mesh, table = tmp_path / "box.ply", tmp_path / "table.csv"
    trimesh.creation.box().export(mesh)
    options = [f"--meshes=[{mesh}]", "--samples=200", "--surface=50", "--repeats=1", f"--csv={table}"]
    for _ in range(2):
        benchmark.main(options)
    assert "200 samples and 50 surface points per mesh" in capsys.readouterr().out
    heading, *rows = table.read_text().splitlines()
    assert heading == 'samples,mesh,faces,watertight,"seconds, min",max,"CPU seconds, min"'
    assert [row.split(",")[:4] for row in rows[:1]] == [["200", "box", "12", "yes"]]
    assert len(rows) == 4
    assert all(float(number) >= 0 for number in rows[0].split(",")[4:])  # seconds, rounded


def test_invalid_settings_and_meshes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="samples 1"):
        benchmark.ShapeSamplingSettings(samples=1)
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(SystemExit, match=r"error: The mesh .*flat.obj has only degenerate triangles"):
        benchmark.main([f"--meshes=[{tmp_path / 'flat.obj'}]", "--samples=20", "--repeats=1"])
