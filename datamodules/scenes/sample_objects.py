"""Objects that come with the software, rendered here: scenes for a first run, for tests and documentation, no download."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.randomness import seed_at
from datamodules.scenes.base import SceneSet
from datamodules.scenes.rendering import RenderSettings, render_folder
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.meshes import mesh_files

MESHES = Path(__file__).resolve().parents[2] / "samples" / "meshes"
CHAIRS: dict[Split, tuple[str, ...]] = {
    "train": (
        "chair_antiqueChair",
        "chair_armchair2",
        "chair_chair",
        "chair_chairWithCushion",
        "chair_deckChair",
        "chair_designChair",
        "chair_foldingChair",
        "chair_modernArmchair",
        "chair_silla2",
        "chair_stool",
        "chair_stool2",
        "chair_thonet",
    ),
    "val": ("chair_osakaChair", "chair_winchesterArmchair"),
    "test": ("chair_armchair", "chair_chair2", "chair_plasticChair", "chair_sillaBlanca"),
}
LAMPS: dict[Split, tuple[str, ...]] = {
    "train": ("lamp_desklamp", "lamp_lamp2"),
    "val": ("lamp_outdoorLamp",),
    "test": ("lamp_wallLight",),
}

_SPLITS = {"chairs": CHAIRS, "lamps": LAMPS}
_FORMAT = 1  # of the rendering: another look gets another folder

Objects = Literal["chairs", "lamps", "all"]


class SampleObjects(SceneSet):
    """18 chairs and 4 lamps, which are rendered when they are first needed: no download.

    All objects are seen by the same cameras, drawn evenly from the sphere between 0 and 60 degrees above the ground at distance
    4, so that the same frame of two objects is the same pose. Objects of training, validation and test are apart: 12, 2 and 4
    chairs; 2, 1 and 1 lamps. They are grey, under one light, z up, of radius 1.4, so that they lie at depths
    from 2.6 to 5.4. Their images are written to the folder ``sample_objects`` of ``root``.

    The meshes are of Blend Swap's CC0 library in Sweet Home 3D, CC0 1.0; authors are named in ``samples/meshes/LICENSES.md``.
    They are for trying things out: too few to stand for ShapeNet.

    Args:
        objects: Which of them: ``chairs``, ``lamps`` or ``all``.
        size: Pixels along each side of the images.
        frames: Images of an object.
        repeats: Times that an object comes in a training epoch.
        draws: Times that an object comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
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
            raise ValueError(f"objects is {objects!r}: choose of {', '.join(get_args(Objects))}.")
        super().__init__(size=size, repeats=repeats, draws=draws, val_draws=val_draws, on_bad_scene="raise", **kwargs)
        if frames < 1:
            raise ValueError(f"frames is {frames}: an object has at least 1 image.")
        self.objects = objects
        self.rendering = RenderSettings(views=frames, size=size, cameras="shared")

    @property
    def folder(self) -> Path:
        """Where the images are, a folder of their own for every size and number of frames."""
        settings = self.rendering
        number = seed_at("sample objects", _FORMAT, repr(asdict(settings)))
        return self.root / "sample_objects" / f"{settings.size}px-{settings.views}frames-{number & 0xFFFFFFFF:08x}"

    def prepare_data(self) -> None:
        """Render the objects, on one process of every machine, unless they are there.

        Raises:
            ValueError: If the folder cannot be written.
        """
        meshes = mesh_files([MESHES])
        try:
            for category in self._categories():
                render_folder(_of(meshes, category), self.folder, category, self.rendering, splits=_SPLITS[category])
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written: {error.strerror}. Name a folder with room by --data.init_args.root."
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
        """Return how to get scenes that are missing."""
        return f"remove {self.folder} and call prepare_data(), which the program does, to render them anew."

    def _categories(self) -> list[str]:
        """Return the folders that the objects are in."""
        return list(_SPLITS) if self.objects == "all" else [self.objects]


def _of(meshes: list[NamedFile], category: str) -> list[NamedFile]:
    """Return the meshes of a category."""
    wanted = {name for names in _SPLITS[category].values() for name in names}
    return [mesh for mesh in meshes if mesh.name in wanted]
