"""Procedural objects for training and bundled meshes held out, rendered on first use: experiments without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.randomness import seed_at
from datamodules.scenes.base import SceneSet
from datamodules.scenes.generated import GeneratedObject
from datamodules.scenes.rendering import MeshFile, RenderedObject, RenderSettings, render_objects
from datamodules.shapes.families import Family
from datamodules.storage.folders import Split
from datamodules.storage.meshes import mesh_files
from datamodules.storage.parallel import processors
from datamodules.storage.sample_meshes import CHAIRS, LAMPS, MESHES

_FAMILIES: tuple[Family, ...] = ("chairs", "tables", "lamps", "cars")
_BUNDLED: Mapping[Family, Mapping[Split, tuple[str, ...]]] = {"chairs": CHAIRS, "lamps": LAMPS}
_NUM_HELD_OUT: Mapping[Split, int] = {"val": 4, "test": 8}  # objects of families without bundled meshes
_FORMAT = 2  # version of the data set, part of the folder name

Objects = Literal["chairs", "tables", "lamps", "cars", "all"]


class SampleObjects(SceneSet):
    """Procedurally generated objects for training and bundled meshes for validation and test, rendered on first use.

    Training objects are chairs, tables, lamps or cars whose parts, proportions and colours are a function of ``object_seed``
    and their number, so that a larger ``count`` adds objects; ``all`` takes the families in turn. The bundled meshes are held
    out: 2 chairs and 1 lamp for validation, 4 chairs and 1 lamp for the test. The other 12 chairs and 2 lamps are not used,
    unless ``bundled_train`` adds them to training. Tables and cars, of which there are no bundled meshes, are validated and
    tested on 4 and 8 generated objects that are not in the training set.

    All objects are rendered with the same cameras, uniform on the sphere between 0 and 60 degrees of elevation at distance 4,
    so a frame index stands for the same pose in all objects. Objects are lit by one light, z up, chairs and cars facing -y, of
    radius 1.4; their depths are between 2.6 and 5.4. The bundled meshes have no colours and are grey; half of the generated
    objects, drawn at random, are painted in the same grey, so that colour does not separate training and test. Every
    object is a folder with ``transforms.json`` and PNG images below the folder ``sample_objects`` in ``root``.

    The meshes are from Blend Swap's CC0 library in Sweet Home 3D, CC0 1.0; ``samples/meshes/LICENSES.md`` lists the authors.

    Args:
        objects: ``chairs``, ``tables``, ``lamps``, ``cars`` or ``all``.
        size: Height and width of the images in pixels.
        frames: Number of images per object.
        count: Number of generated training objects, of all families together; 0 is allowed with ``bundled_train``.
        bundled_train: Whether to train also on the bundled meshes that are not held out: 12 chairs, 2 lamps.
        object_seed: Seed of the generated objects.
        repeats: Number of times that each object occurs in a training epoch.
        draws: Number of view draws per object in the test; always 1 with ``first``.
        val_draws: Number of view draws per object in validation; always 1 with ``first``.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If an argument is out of range, or the folder cannot be written.
    """

    def __init__(
        self,
        objects: Objects = "chairs",
        size: int = 64,
        frames: int = 50,
        count: int = 640,
        *,
        bundled_train: bool = False,
        object_seed: int = 0,
        repeats: int = 1,
        draws: int = 10,
        val_draws: int = 5,
        **kwargs: Any,
    ) -> None:
        if objects not in get_args(Objects):
            raise ValueError(f"objects is {objects!r}: choose one of {', '.join(get_args(Objects))}.")
        super().__init__(size=size, repeats=repeats, draws=draws, val_draws=val_draws, on_bad_scene="raise", **kwargs)
        if frames < 1:
            raise ValueError(f"frames is {frames}: it must be at least 1.")
        self.objects = objects
        self.count = count
        self.bundled_train = bundled_train
        self.object_seed = object_seed
        self.rendering = RenderSettings(views=frames, size=size, cameras="shared")
        bundled = bundled_train and any(family in _BUNDLED for family in self._families())
        if count < 0 or (count == 0 and not bundled):
            raise ValueError(
                f"count is {count}: it must be at least 1 generated object for training, or 0 with bundled_train true and "
                f"objects {', '.join(_BUNDLED)} or all, which trains on bundled meshes alone."
            )

    @property
    def folder(self) -> Path:
        """Folder of the images, a different one for every size, number of frames and seed of objects."""
        settings = self.rendering
        digest = seed_at("sample objects", _FORMAT, repr(asdict(settings)), self.object_seed) & 0xFFFFFFFF
        return self.root / "sample_objects" / f"{settings.size}px-{settings.views}frames-{digest:08x}"

    def prepare_data(self) -> None:
        """Render the missing objects on all processors, on one process of every machine.

        Raises:
            ValueError: If the folder cannot be written.
        """
        try:
            for family in self._families():
                splits = {split: self._objects(family, split) for split in get_args(Split)}
                names = {split: [item.name for item in members] for split, members in splits.items()}
                members = [item for members in splits.values() for item in members]
                render_objects(members, self.folder, family, self.rendering, processors(), splits=names)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written: {error.strerror}. Pass a writable folder with --data.init_args.root."
            ) from error

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the objects of a split."""
        folders = [
            self.folder / family / item.name for family in self._families() for item in self._objects(family, split)
        ]
        if not all(folder.is_dir() for folder in folders):
            raise ValueError(f"The objects are not rendered yet: {self.how_to_get()}")
        return folders

    def how_to_get(self) -> str:
        """Return how to get missing scenes, as the end of an error message."""
        return f"remove {self.folder}, and call prepare_data() or start the program again to render them."

    def _families(self) -> tuple[Family, ...]:
        """Return the families of the objects."""
        return _FAMILIES if self.objects == "all" else (self.objects,)

    def _objects(self, family: Family, split: Split) -> list[RenderedObject]:
        """Return the objects of a family in a split."""
        bundled = _BUNDLED.get(family)
        names = bundled[split] if bundled and (split != "train" or self.bundled_train) else ()
        objects: list[RenderedObject] = [MeshFile(*mesh) for mesh in mesh_files([MESHES]) if mesh.name in names]
        if split == "train":
            families = self._families()
            number = len(range(families.index(family), self.count, len(families)))
        else:
            number = 0 if bundled else _NUM_HELD_OUT[split]
        generated = [
            GeneratedObject(f"{family}-{split}-{index:05}", family, (self.object_seed, split, index))
            for index in range(number)
        ]
        return [*objects, *generated]
