"""Small valid files of every format that the program reads, and the public functions that read them."""

import contextlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import torch
import trimesh
from PIL import Image
from scene_folders import write_colmap, write_scene, write_srn
from shape_files import ball

from composers import construction
from composers.codes import InstanceCode, fingerprint, quantized, read_code
from datamodules.batch import Observation
from datamodules.configuration import load_config, load_layers
from datamodules.domain import Grid
from datamodules.shapes.deep_sdf import names_in_split
from datamodules.shapes.files import read_shape, write_shape
from datamodules.storage.archives import extract
from datamodules.storage.audio import read_recording, recording_facts
from datamodules.storage.colmap import read_colmap
from datamodules.storage.images import read_image, read_layers
from datamodules.storage.meshes import read_mesh
from datamodules.storage.points import read_points
from datamodules.storage.srn import read_srn
from datamodules.storage.transforms import read_transforms
from datamodules.storage.views import common_header

TINY = Path(__file__).resolve().parent.parent / "configs"
_IMAGES = ("png", "jpg", "tif", "webp", "bmp", "gif", "jp2", "ppm", "qoi", "tga", "avif")
_SOUNDS = ("wav", "flac", "ogg", "mp3", "aiff", "au")
_MESHES = ("obj", "ply", "stl", "glb")


def write_seeds(folder):
    """Write a valid file of every kind, ``KIND/...``, and return the path of the file to damage by kind."""
    folder = Path(folder)
    paths = {}
    for name, write in (
        ("image", _write_images),
        ("sound", _write_sounds),
        ("mesh", _write_meshes),
        ("points", _write_points),
        ("scene", _write_scenes),
        ("model", _write_models),
        ("archive", _write_archives),
        ("config", _write_configs),
    ):
        (folder / name).mkdir(parents=True)
        paths |= write(folder / name)
    return paths


def _write_images(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.init()
    paths = {}
    for ending in _IMAGES:
        if Image.EXTENSION[f".{ending}"] not in Image.SAVE:
            continue
        paths[ending] = folder / f"a.{ending}"
        Image.fromarray(pixels).save(paths[ending])
    for name, options in {"lzw.tif": {"compression": "tiff_lzw"}, "jpeg.tif": {"compression": "jpeg"}}.items():
        paths[name] = folder / name
        Image.fromarray(pixels).save(paths[name], **options)
    for name, image in {
        "palette.png": Image.fromarray(pixels).convert("P"),
        "alpha.png": Image.fromarray(pixels).convert("RGBA"),
        "levels.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
    }.items():
        paths[name] = folder / name
        image.save(paths[name])
    return paths


def _write_sounds(folder):
    values = 0.1 * np.random.default_rng(0).standard_normal((4000, 2))
    paths = {ending: folder / f"a.{ending}" for ending in _SOUNDS}
    for path in paths.values():
        soundfile.write(path, values, 16000)
    return paths


def _write_meshes(folder):
    mesh = trimesh.creation.box()
    paths = {ending: folder / f"a.{ending}" for ending in _MESHES}
    for path in paths.values():
        mesh.export(path)
    mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (8, 4), dtype=np.uint8)
    paths["ascii.ply"] = folder / "ascii.ply"
    mesh.export(paths["ascii.ply"], encoding="ascii")
    paths["ascii.stl"] = folder / "ascii.stl"
    mesh.export(paths["ascii.stl"], file_type="stl_ascii")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    mesh.visual = trimesh.visual.TextureVisuals(uv=mesh.vertices[:, :2], image=Image.fromarray(pixels))
    paths["texture.glb"] = folder / "texture.glb"
    mesh.export(paths["texture.glb"])
    return paths


def _write_points(folder):
    points = np.random.default_rng(0).standard_normal((12, 3))
    paths = {f"cloud.{ending}": folder / f"cloud.{ending}" for ending in ("xyz", "csv", "npy", "npz", "ply")}
    np.savetxt(paths["cloud.xyz"], points)
    np.savetxt(paths["cloud.csv"], points, delimiter=",", header="x,y,z", comments="")
    np.save(paths["cloud.npy"], points)
    np.savez(paths["cloud.npz"], points=points, normals=points / np.linalg.norm(points, axis=1, keepdims=True))
    trimesh.PointCloud(points).export(paths["cloud.ply"])
    paths["depth.npz"], paths["depth.json"], paths["depth.png"] = (
        folder / "depth.npz",
        folder / "depth.json",
        folder / "depth.png",
    )
    depth = 2 + np.random.default_rng(0).random((6, 8))
    np.savez(paths["depth.npz"], depth=depth, focal=8.0, pose=np.eye(4)[:3])
    Image.fromarray((1000 * depth).astype(np.uint16)).save(paths["depth.png"])
    paths["depth.json"].write_text(json.dumps({"focal": [8.0, 8.0], "pose": np.eye(4).tolist()}))
    return paths


def _write_scenes(folder):
    return {
        "transforms.json": write_scene(folder / "transforms") / "transforms.json",
        "view.png": write_scene(folder / "views") / "r_1.png",
        "cameras.txt": write_colmap(folder / "colmap") / "sparse/0/cameras.txt",
        "images.txt": write_colmap(folder / "colmap") / "sparse/0/images.txt",
        "pose.txt": write_srn(folder / "srn") / "pose/000001.txt",
        "intrinsics.txt": write_srn(folder / "srn2") / "intrinsics.txt",
    }


def _write_models(folder):
    composer = construction.build(_model())
    paths = {
        name: folder / name for name in ("a.ckpt", "code.safetensors", "code.inr", "shape.safetensors", "split.json")
    }
    construction.save(composer, paths["a.ckpt"])
    with torch.no_grad():
        observation = Observation(torch.rand(1, 3, 16, 16))
        latents, layout = composer.encode(observation), composer.layout(observation)
    code = InstanceCode(
        latents, [((0, 16), (0, 16))], (16, 16), fingerprint(composer), "a", domain=Grid.unit(2), layout=layout
    )
    code.save(paths["code.safetensors"])
    write_shape(paths["shape.safetensors"], ball("a", 20))
    paths["split.json"].write_text(json.dumps({"ShapeNetV2": {"02691156": ["1a2b", "3c4d"]}}))
    quantized(code, composer, 6).save(paths["code.inr"])
    return paths


def _model():
    """Return the config of a tiny model of images of 16 x 16 pixels."""
    with contextlib.chdir(TINY):
        config = load_layers(Path("tiny_ipc.yaml").read_text())["model"]
    config["init_args"]["network"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["encoder"]["init_args"]["signal_shape"] = [3, 16, 16]
    return config


def _write_archives(folder):
    paths = {name: folder / name for name in ("a.tar", "a.tar.gz", "a.zip")}
    content = {"photos/a.txt": b"text" * 30, "photos/b.txt": b"more" * 30, "c.txt": b""}
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(paths[name], mode) as archive:
            for member, data in content.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(paths["a.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    return paths


def _write_configs(folder):
    paths = {"plain.yaml": folder / "plain.yaml", "base.yaml": folder / "base.yaml"}
    text = "trainer: &t\n  max_epochs: 1\n  callbacks: [{class_path: a.B, init_args: {c: 1.0}}]\nmodel: {x: [1, 2], <<: *t}\n"
    paths["plain.yaml"].write_text(text)
    (folder / "top.yaml").write_text("_base_: [plain2.yaml, base.yaml]\ntrainer: {max_epochs: 2, callbacks+: [a]}\n")
    (folder / "plain2.yaml").write_text(text)
    paths["base.yaml"].write_text("_base_: plain2.yaml\ntrainer: {callbacks+: [b]}\n")
    return paths


def read(kind, path):
    """Read a file as the program does."""
    _READERS[kind](path)


def _read_image(path):
    read_image(path)
    read_layers(path)


def _read_sound(path):
    facts = recording_facts(path)
    read_recording(path)
    read_recording(path, facts.frames // 2, facts.frames // 4)


def _read_scene(reader, above):
    def read_frames(path):
        scene = reader(path.parents[above])
        for frame in range(len(scene.images)):
            scene.read(frame)

    return read_frames


def _read_view(path):
    common_header([path])
    _read_scene(read_transforms, 0)(path)


def _read_archive(path):
    extract(path, path.with_name("unpacked"))


_READERS = {
    **dict.fromkeys((*_IMAGES, "lzw.tif", "jpeg.tif", "palette.png", "alpha.png", "levels.png"), _read_image),
    **dict.fromkeys(_SOUNDS, _read_sound),
    **dict.fromkeys((*_MESHES, "ascii.ply", "ascii.stl", "texture.glb"), read_mesh),
    **dict.fromkeys([f"cloud.{ending}" for ending in ("xyz", "csv", "npy", "npz", "ply")], read_points),
    **dict.fromkeys(("depth.npz", "depth.png"), read_points),
    "depth.json": lambda path: read_points(path.with_suffix(".png")),
    "transforms.json": _read_scene(read_transforms, 0),
    "view.png": _read_view,
    "cameras.txt": _read_scene(read_colmap, 2),
    "images.txt": _read_scene(read_colmap, 2),
    "pose.txt": _read_scene(read_srn, 1),
    "intrinsics.txt": _read_scene(read_srn, 0),
    "a.ckpt": construction.load,
    "code.safetensors": read_code,
    "code.inr": read_code,
    "shape.safetensors": read_shape,
    "split.json": names_in_split,
    **dict.fromkeys(("a.tar", "a.tar.gz", "a.zip"), _read_archive),
    "plain.yaml": load_config,
    "base.yaml": lambda path: load_config(path.with_name("top.yaml")),
}
