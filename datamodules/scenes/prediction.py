"""Folders of posed images for prediction: a few frames are observed, others are rendered and compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.batch import PosedImages
from datamodules.domain import Rays
from datamodules.images.prediction import WholeImages, unique_names
from datamodules.scenes.base import cameras_note, check_scale
from datamodules.scenes.draws import posed
from datamodules.scenes.rays import MILLIMETRE, SceneModule
from datamodules.spec import DataSpec
from datamodules.storage.folders import files_below
from datamodules.storage.layouts import SCENE_FILES, is_scene, read_scene, scene_of_file
from datamodules.storage.poses import Convention
from datamodules.storage.views import Scene, background_note

_DEFAULT_QUERIES = 4  # query frames if none are specified
_MAX_VIEWS = 100  # shown beside a turntable video


class ChosenViews(NamedTuple):
    """Selected frames of a readable scene.

    Attributes:
        name: Name of the results: the path below the folder that the user passed.
        scene: The scene.
        frames: Indices of the selected frames, support first.
    """

    name: str
    scene: Scene
    frames: list[int]

    def read(self, shape: tuple[int, int] | None = None) -> PosedImages:
        """Return the selected frames.

        Args:
            shape: Rows and columns to which images are resized, each as soon as it is read, so that a single large image is in
                memory at a time; their size if None.

        Raises:
            ValueError: If an image cannot be read; the message names it.
        """
        return posed(self.scene, self.frames, self.name, shape)


class SceneViews(NamedTuple):
    """Views of a scene for figures.

    Attributes:
        images: ``(V, 3, H, W)`` uint8, of the size of the model's images.
        poses: ``(V, 3, 4)``.
        frames: Indices of the frames in the scene.
        observed: Indices of the frames that the model observed.
    """

    images: Tensor
    poses: Tensor
    frames: Sequence[int]
    observed: Sequence[int]


class SceneBatches(Dataset[PosedImages]):
    """Batches of consecutive scenes with equally many selected frames, resized to the model's image size.

    Args:
        chosen: The scenes and their selected frames.
        shape: Rows and columns of the model's images.
        batch_size: Maximum number of scenes per batch.
    """

    def __init__(self, chosen: Sequence[ChosenViews], shape: tuple[int, int], batch_size: int) -> None:
        self.shape = shape
        groups = [list(group) for _, group in itertools.groupby(chosen, key=lambda scene: len(scene.frames))]
        self.batches = [
            group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __getitem__(self, index: int) -> PosedImages:
        """Read, resize and collate batch ``index``."""
        batch: PosedImages = default_collate([scene.read(self.shape) for scene in self.batches[index]])
        return batch


class SceneFiles(SceneModule):
    """Scenes in folders, for ``cli.py predict --views``: some frames are observed, others are rendered and compared.

    A scene is a folder with ``transforms.json`` or with ``transforms_train.json`` beside files of other splits, with
    ``intrinsics.txt`` in the layout of scene representation networks, or with a COLMAP model as text.
    Any other folder is searched for scenes, except for hidden folders and the results of earlier predictions. Images whose
    size differs from the model's are resized, and their intrinsics are scaled. If a scene has only support frames,
    these are compared. Scenes that cannot be used are skipped and reported, unless there is only one.

    Args:
        views: Folders of scenes.
        support: Indices of the observed frames, from 0; as many as the model takes.
        query: Indices of the frames to render and compare, or ``rest`` for all frames that are not observed. If None, up to 4
            of these, evenly spaced.
        signal_shape: ``(V, 3, H, W)`` of the model; the command line reads it from the checkpoint.
        near: Depth at which the model starts rendering; the command line reads it from the checkpoint. Together with ``far``,
            it is used to detect scenes of another scale.
        far: Depth at which the model stops rendering.
        eval_batch_size: Number of scenes per device and step.
        num_workers: Number of loader processes; 0 loads in the main process.
        convention: Convention of the poses; that of the layout if None. ``opengl``, as in ``transforms.json``: camera to world
            with the axes right, up, backwards. ``opencv``: camera to world with the axes right, down, forwards. ``opengl_w2c``
            and ``opencv_w2c``: world to camera with these axes; the latter is that of COLMAP.
        scale: Factor of the positions of cameras, for scenes in other units.
        on_bad_scene: What to do with a scene that cannot be used: ``skip`` and report it, or ``raise`` an error.

    Attributes:
        chosen: The usable scenes and their selected frames, after set-up.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        views: Sequence[str] = (),
        support: Sequence[int] = (0,),
        query: Sequence[int] | Literal["rest"] | None = None,
        signal_shape: Sequence[int] | None = None,
        near: float | None = None,
        far: float | None = None,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        convention: Convention | None = None,
        scale: float = 1.0,
        on_bad_scene: Literal["skip", "raise"] = "skip",
    ) -> None:
        indices = [*support, *(query or () if query != "rest" else ())]
        if not support or min(indices) < 0:
            raise ValueError(
                f"support is {list(support)}, query {query}: support needs at least one frame, and frames count from 0."
            )
        if (near is None) != (far is None):
            raise ValueError(f"near is {near}, far {far}: pass both or neither.")
        check_scale(scale)
        super().__init__(
            views=len(support),
            near=0.0 if near is None else near,
            far=1.0 if far is None else far,
            rays_per_view=1,
            batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        if near is None:
            self.near = self.far = math.nan  # unknown; models without depths need neither
        self.paths = [views] if isinstance(views, str) else list(views)
        self.support = list(support)
        self.query = query if query is None or query == "rest" else list(query)
        self._signal_shape = tuple(signal_shape or ())
        self.convention: Convention | None = convention
        self.scale = scale
        self.on_bad_scene = on_bad_scene
        self.chosen: list[ChosenViews] = []

    @property
    def spec(self) -> DataSpec:
        """Rays of views of the model's size, between the model's depths if they are known."""
        shape = self._signal_shape
        if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise ValueError(
                f"signal_shape is {list(shape)}, but scenes need a model of posed views, [views, 3, rows, columns]: pass a "
                "checkpoint of such a model with --ckpt_path."
            )
        if shape[0] != len(self.support):
            raise ValueError(
                f"The model takes {shape[0]} support view(s), but support has {len(self.support)} frame(s), "
                f"{self.support}: pass {shape[0]} with --support."
            )
        known = not math.isnan(self.near)
        domain = Rays(self.near if known else None, self.far if known else None)
        return DataSpec(domain, 3, shape, self.modality)

    def setup(self, stage: str) -> None:
        """Find and check all scenes, and select their frames.

        Raises:
            ValueError: If no scene can be used, or ``stage`` is not ``predict``.
        """
        if stage != "predict":
            raise ValueError(f"SceneFiles supports only predict, not {stage}: choose another data module.")
        unique: dict[Path, tuple[Path, Path]] = {}
        for folder, relative in (item for path in self.paths for item in scene_folders(Path(path))):
            unique.setdefault(folder.absolute(), (folder, relative))
        folders = list(unique.values())
        self.chosen, self.skipped, self.notes = [], {}, {}
        for (folder, relative), name in zip(folders, unique_names(folders), strict=True):
            try:
                self._add(folder, name, renamed=name != relative.as_posix())
            except ValueError as error:
                if self.on_bad_scene == "raise":
                    raise
                self.skipped[str(folder)] = str(error)
        if self.chosen:
            return
        reasons = list(self.skipped.values())
        if len(reasons) == 1:
            raise ValueError(reasons[0])
        if reasons:
            raise ValueError(
                f"None of {len(reasons)} scenes can be used:" + "".join(f"\n  {reason}" for reason in reasons)
            )
        raise ValueError(
            f"There are no scenes in {', '.join(self.paths) or 'an empty list of folders'}: pass folders that contain "
            f"{', '.join(SCENE_FILES[:-1])}, or folders of such folders, with --views."
        )

    def check_depths(self, name: str, poses: Tensor) -> None:
        """Raise an error if the scene has another scale than the model's, so that no camera sees the origin.

        Args:
            name: Name of the scene.
            poses: ``(F, 3, 4)``, its cameras.

        Raises:
            ValueError: If no camera can see an object around the origin within the depths of the model.
        """
        try:
            super().check_depths(name, poses)
        except ValueError as error:
            distances = poses[:, :, 3].norm(dim=-1)
            scale = self.suggested_scale(poses)
            value = f" {scale:g}" if scale != 1 else ""
            units = ", because the scene seems to be in millimetres" if scale == MILLIMETRE else ""
            raise ValueError(
                f"The cameras of {name} are {float(distances.min()):,.5g} to {float(distances.max()):,.5g} from the origin, "
                f"and the model renders depths from {self.near:g} to {self.far:g}, which exclude the origin: scale the "
                f"positions with --data.scale{value}{units}."
            ) from error

    def predict_dataloader(self) -> DataLoader[PosedImages]:
        """Return a loader of the scenes in order; scenes of a batch have equally many views."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = SceneBatches(self.chosen, self._image_shape, self.eval_batch_size)
        if len(batches) < world_size:
            raise ValueError(f"{len(batches)} batch(es) of scenes for {world_size} devices: lower --trainer.devices.")
        return DataLoader(
            batches,
            batch_size=None,  # items are batches already
            sampler=WholeImages([1] * len(batches), rank, world_size),
            num_workers=self.num_workers,
        )

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the views of a scene as ``views``, a `SceneViews`; nothing if an image cannot be read."""
        chosen = next(chosen for chosen in self.chosen if chosen.name == name)
        total = len(chosen.scene.images)
        count = min(total, _MAX_VIEWS)
        frames = sorted({*self.support, *(index * total // count for index in range(count))})
        try:
            item = chosen._replace(frames=frames).read(self._image_shape)
        except ValueError:  # of a frame that is neither observed nor compared
            return {}
        return {"views": SceneViews(item.images, item.poses, frames, self.support)}

    @property
    def _image_shape(self) -> tuple[int, int]:
        """Rows and columns of the model's images."""
        *_, height, width = self.spec.signal_shape
        return height, width

    def _add(self, folder: Path, name: str, renamed: bool) -> None:
        """Check the scene in a folder, and add it with its notes."""
        scene = read_scene(folder, self.convention, self.scale)
        self.check_depths(str(folder), scene.poses)
        compared = frames_compared(len(scene.images), self.support, self.query)
        frames = [*self.support, *(compared or self.support)]
        chosen = ChosenViews(name, scene, frames)
        if (last := max(frames)) >= len(scene.images):
            raise ValueError(
                f"{folder} has {len(scene.images)} frame(s), so there is no frame {last}: frames count from 0; choose others "
                "with --support and --data.query."
            )
        for frame in dict.fromkeys(frames):
            scene.read(frame)  # report images that cannot be decoded before any prediction
        self.chosen.append(chosen)
        notes = []
        if scene.shape != self._image_shape:
            notes.append("resized from {} x {} to {} x {}".format(*scene.shape, *self._image_shape))
        if scene.num_opaque == len(scene.images):
            notes.append("no transparency: background used as it is")
        elif scene.num_opaque:
            notes.append(background_note(scene))
        notes += filter(None, [cameras_note(scene, "--convention"), *(text for _, text in scene.notes)])
        if not compared:
            notes.append("no other frames: compared with the support frames")
        if renamed:
            notes.append(f"from {folder}")
        self.notes[name] = "; ".join(notes)


def scene_folders(path: Path) -> list[tuple[Path, Path]]:
    """Return the scene folders at a path, each with its path relative to it.

    Args:
        path: A scene folder, whose relative path is its name, or a folder that is searched for scenes in alphabetical order,
            except for hidden folders and the results of earlier predictions.

    Raises:
        ValueError: If there is no such folder.
    """
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}: pass folders of scenes with --views.")
    if is_scene(path):
        return [(path, Path(path.absolute().name))]
    below = files_below(path, {Path(name).suffix for name in SCENE_FILES})
    folders = dict.fromkeys(scene_of_file(file) for file, _ in below if file.name in SCENE_FILES)
    outermost = [folder for folder in folders if not any(parent in folders for parent in folder.parents)]
    return [(folder, folder.relative_to(path)) for folder in outermost]


def frames_compared(
    total: int, support: Sequence[int], query: Sequence[int] | Literal["rest"] | None = None
) -> list[int]:
    """Return the indices of the frames of a scene that are rendered and compared.

    Args:
        total: Number of frames in the scene.
        support: Indices of the observed frames.
        query: As in `SceneFiles`.

    Example:
        >>> frames_compared(10, [0], "rest"), frames_compared(10, [0]), frames_compared(3, [1]), frames_compared(1, [0])
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 4, 6, 8], [0, 2], [])
    """
    if query is not None and query != "rest":
        return list(query)
    rest = [frame for frame in range(total) if frame not in support]
    count = len(rest) if query == "rest" else min(_DEFAULT_QUERIES, len(rest))
    return [rest[(2 * index + 1) * len(rest) // (2 * count)] for index in range(count)]
