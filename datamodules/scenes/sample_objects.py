"""Objects that come with the software, rendered here: scenes for a first run, for tests and documentation, no download."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

from datamodules.randomness import seed_at
from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import Protocol
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
    chairs; 2, 1 and 1 lamps. They are grey, under one light, z up, of radius 1.4.

    The meshes are of Blend Swap's CC0 library in Sweet Home 3D, CC0 1.0; authors are named in ``samples/meshes/LICENSES.md``.
    They are for trying things out: too few to stand for ShapeNet.

    Args:
        objects: Which of them: ``chairs``, ``lamps`` or ``all``.
        size: Pixels along each side of the pictures.
        frames: Pictures of an object.
        root: Folder of the data; pictures are put into its folder ``sample_objects``.
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        near: Depth at which rendering starts; objects begin at 2.6.
        far: Depth at which it ends; objects end at 5.4.
        train_frames: Frames of an object, from the first, that training draws from.
        repeats: Times that an object comes in a training epoch.
        protocol: How evaluation takes views: ``draws``, ``halves`` or ``first``.
        draws: Times that an object comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
        rays_per_view: Rays of every query view in a training step.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range, or the folder cannot be written.
    """

    def __init__(
        self,
        objects: Objects = "chairs",
        size: int = 64,
        frames: int = 50,
        root: str = "data",
        views: int = 1,
        query_views: int = 1,
        near: float = 2.0,
        far: float = 6.0,
        train_frames: int = 25,
        repeats: int = 16,
        protocol: Protocol = "draws",
        draws: int = 10,
        val_draws: int = 5,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if objects not in get_args(Objects):
            raise ValueError(f"objects is {objects!r}: choose of {', '.join(get_args(Objects))}.")
        super().__init__(
            root,
            views,
            query_views,
            size,
            near,
            far,
            train_frames,
            repeats,
            protocol,
            draws,
            val_draws,
            rays_per_view,
            foreground_epochs,
            on_bad_scene="raise",
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        if frames < 1:
            raise ValueError(f"frames is {frames}: an object has at least 1 picture.")
        self.objects = objects
        self.rendering = RenderSettings(views=frames, size=size, cameras="shared")

    @property
    def folder(self) -> Path:
        """Where the pictures are, a folder of their own for every size and number of frames."""
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
