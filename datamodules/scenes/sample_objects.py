"""Bundled meshes, rendered locally without a download: scenes for a first run, for tests and documentation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.randomness import seed_at
from datamodules.scenes.base import SceneSet
from datamodules.scenes.rendering import RenderSettings, render_folder
from datamodules.storage.folders import Split
from datamodules.storage.meshes import mesh_files
from datamodules.storage.sample_meshes import CHAIRS, LAMPS, MESHES

_SPLITS = {"chairs": CHAIRS, "lamps": LAMPS}
_FORMAT = 1  # version of the rendering, part of the folder name

Objects = Literal["chairs", "lamps", "all"]


class SampleObjects(SceneSet):
    """18 bundled chairs and 4 bundled lamps, rendered on first use.

    All objects are rendered with the same cameras, uniform on the sphere between 0 and 60 degrees of elevation at distance 4,
    so a frame index stands for the same pose in all objects. Training, validation and test have different objects: 12, 2 and 4
    chairs; 2, 1 and 1 lamps. Objects are grey, lit by one light, z up, with radius 1.4, so their depths are between 2.6 and
    5.4. The images are written to the folder ``sample_objects`` in ``root``.

    The meshes are from Blend Swap's CC0 library in Sweet Home 3D, CC0 1.0; ``samples/meshes/LICENSES.md`` lists the authors.
    They are meant for first experiments, and are too few to replace ShapeNet.

    Args:
        objects: ``chairs``, ``lamps`` or ``all``.
        size: Height and width of the images in pixels.
        frames: Number of images per object.
        repeats: Number of times that each object occurs in a training epoch.
        draws: Number of view draws per object in the test; always 1 with ``first``.
        val_draws: Number of view draws per object in validation; always 1 with ``first``.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If a number is out of range, or the folder cannot be written.
    """

    def __init__(
        self,
        objects: Objects = "chairs",
        size: int = 64,
        frames: int = 50,
        *,
        repeats: int = 16,
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
        self.rendering = RenderSettings(views=frames, size=size, cameras="shared")

    @property
    def folder(self) -> Path:
        """Folder of the images, a different one for every size and number of frames."""
        settings = self.rendering
        digest = seed_at("sample objects", _FORMAT, repr(asdict(settings))) & 0xFFFFFFFF
        return self.root / "sample_objects" / f"{settings.size}px-{settings.views}frames-{digest:08x}"

    def prepare_data(self) -> None:
        """Render the missing objects, on one process of every machine.

        Raises:
            ValueError: If the folder cannot be written.
        """
        files = mesh_files([MESHES])
        try:
            for category in self._categories():
                splits = _SPLITS[category]
                names = {name for split in splits.values() for name in split}
                meshes = [mesh for mesh in files if mesh.name in names]
                render_folder(meshes, self.folder, category, self.rendering, splits=splits)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written: {error.strerror}. Pass a writable folder with --data.init_args.root."
            ) from error

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the objects of a split."""
        folders = [
            self.folder / category / name for category in self._categories() for name in _SPLITS[category][split]
        ]
        if not all(folder.is_dir() for folder in folders):
            raise ValueError(f"The objects are not rendered yet: {self.how_to_get()}")
        return folders

    def how_to_get(self) -> str:
        """Return how to get missing scenes, as the end of an error message."""
        return f"remove {self.folder}, and call prepare_data() or start the program again to render them."

    def _categories(self) -> list[str]:
        """Return the names of the category folders."""
        return list(_SPLITS) if self.objects == "all" else [self.objects]
