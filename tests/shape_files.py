"""Folders of small shapes, in the layouts that data sets read, for tests."""

import json

import numpy as np
import trimesh

from datamodules.shapes.files import write_shape
from datamodules.shapes.samples import StoredShape


def ball(name, count=300, radius=0.6, seed=0):
    """Return samples of a ball, with exact distances and normals."""
    generator = np.random.default_rng([seed, *name.encode()])
    points = generator.uniform(-1, 1, (count, 3))
    samples = np.concatenate((points, np.linalg.norm(points, axis=1, keepdims=True) - radius), axis=1)
    normals = generator.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    surface = np.concatenate((radius * normals, normals), axis=1)
    return StoredShape(samples.astype(np.float32), surface.astype(np.float32), name, count // 2, (1.0, 2.0, 3.0), 0.5)


def write_balls(root, names):
    """Write a file per ball, in our layout."""
    for name in names:
        write_shape(root / f"{name}.safetensors", ball(name))


def write_deep_sdf(root, splits, normals=False):
    """Write balls in the layout of DeepSDF; ``splits`` are names by split, of set ``Set`` and class ``balls``."""
    for split, names in splits.items():
        (root / f"{split}.json").write_text(json.dumps({"Set": {"balls": list(names)}}))
        for name in names:
            shape = ball(name)
            outside = shape.samples[:, 3] >= 0
            files = {
                kind: root / kind / "Set" / "balls" / name
                for kind in ("SdfSamples", "SurfaceSamples", "NormalizationParameters")
            }
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(files["SdfSamples"].with_suffix(".npz"), pos=shape.samples[outside], neg=shape.samples[~outside])
            np.savez(
                files["NormalizationParameters"].with_suffix(".npz"),
                offset=np.array(shape.offset),
                scale=np.array(shape.scale),
            )
            points = shape.surface[:, :3] / shape.scale - np.array(shape.offset)  # in units of the mesh
            write_cloud(files["SurfaceSamples"].with_suffix(".ply"), points, shape.surface[:, 3:] if normals else None)


def write_cloud(path, points, normals=None):
    """Write points and normals as an ASCII PLY file."""
    columns = points if normals is None else np.concatenate((points, normals), axis=1)
    names = ("x", "y", "z", "nx", "ny", "nz")[: columns.shape[1]]
    properties = "".join(f"property float {name}\n" for name in names)
    rows = "".join(" ".join(map(repr, row)) + "\n" for row in columns.astype(float).tolist())
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{properties}end_header\n{rows}")


def write_meshes(root):
    """Write four small meshes: a box, a cone, an open sphere, and a folder with a cylinder as in ShapeNetCore."""
    (root / "0a1b" / "models").mkdir(parents=True)
    trimesh.creation.box((1, 2, 3)).export(root / "box.ply")
    trimesh.creation.cone(1, 2).export(root / "cone.stl")
    trimesh.creation.cylinder(1, 3).export(root / "0a1b" / "models" / "model_normalized.obj")
    sphere = trimesh.creation.icosphere(subdivisions=3)
    sphere.update_faces(np.arange(len(sphere.faces)) > 60)
    sphere.export(root / "open.glb")
    return root
