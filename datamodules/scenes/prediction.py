"""Anybody's scenes: folders of posed images, a few of which are looked at, for prediction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.batch import PosedImages
from datamodules.domain import Rays
from datamodules.images.prediction import WholeImages, unique_names
from datamodules.scenes.draws import posed
from datamodules.scenes.rays import SceneModule
from datamodules.spec import DataSpec
from datamodules.storage.folders import files_below
from datamodules.storage.images import resize_image
from datamodules.storage.views import Scene, is_opaque, read_srn, read_transforms, read_view

_OF_SRN = "intrinsics.txt"
_READERS = {"transforms.json": read_transforms, _OF_SRN: read_srn}  # by the file that makes a folder a scene
_SPREAD = 4  # frames that are rendered and compared where none are named


class ChosenViews(NamedTuple):
    """Frames of a scene that can be read.

    Attributes:
        name: Of its results: the path below the folder that was given.
        scene: The scene.
        frames: Which of its frames are taken, support first.
        drop_alpha: Whether colours are taken as they are, whatever their transparency.
    """

    name: str
    scene: Scene
    frames: list[int]
    drop_alpha: bool

    def read(self) -> PosedImages:
        """Return the frames, or raise a ``ValueError`` that names the image which cannot be read."""
        return posed(self.scene, self.frames, self.name, partial(read_view, drop_alpha=self.drop_alpha))


class SceneBatches(Dataset[PosedImages]):
    """Chosen frames of scenes in the size of the model, scene after scene; those of a batch have as many.

    Args:
        chosen: The scenes, and which frames of each.
        shape: Rows and columns of the images that the model sees.
        batch_size: Scenes in a batch, at most.
    """

    def __init__(self, chosen: Sequence[ChosenViews], shape: tuple[int, int], batch_size: int) -> None:
        self.shape = shape
        alike = [list(some) for _, some in itertools.groupby(chosen, key=lambda one: len(one.frames))]
        self.batches = [some[start : start + batch_size] for some in alike for start in range(0, len(some), batch_size)]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __getitem__(self, index: int) -> PosedImages:
        """Return batch ``index``, read, resized and collated."""
        batch: PosedImages = default_collate([resized(one.read(), self.shape) for one in self.batches[index]])
        return batch


class SceneFiles(SceneModule):
    """Anybody's scenes, for ``cli.py predict --views``: some frames are looked at, others are rendered and compared.

    A scene is a folder with ``transforms.json``, or one of scene representation networks with ``intrinsics.txt``; of any other
    folder all scenes below it are taken, but not hidden ones nor those in folders of earlier predictions. Images of another
    size than the model's are resized, their focal lengths with them. Where a scene has no frames but those that are looked at,
    these are compared. A scene that cannot be used is skipped with the reason, unless it is the only one.

    Args:
        views: Folders.
        support: Frames that are looked at, in the order of the scene, from 0: as many as the model takes.
        query: Frames that are rendered and compared, or ``rest`` for all that are not looked at; up to 4 of these, evenly
            spread, if None.
        signal_shape: ``(V, 3, H, W)`` of the model; under the command line the checkpoint states it.
        near: Depth at which the model begins to look; under the command line the checkpoint states it. Together with ``far``
            it serves to find scenes of another scale.
        far: Depth at which it ends.
        eval_batch_size: Scenes per device and step.
        num_workers: Processes that load; 0 loads in the main process.
        on_bad_scene: What a scene that cannot be used does: ``skip`` leaves it out and says so, ``raise`` stops.

    Attributes:
        chosen: The scenes that can be used, and their frames, after set-up.

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
        on_bad_scene: Literal["skip", "raise"] = "skip",
    ) -> None:
        named = [*support, *(query or () if query != "rest" else ())]
        if not support or min(named) < 0:
            raise ValueError(
                f"support is {list(support)}, query {query}: name at least one frame to look at; they count from 0."
            )
        if (near is None) != (far is None):
            raise ValueError(f"near is {near}, far {far}: give both, or leave both to the checkpoint.")
        super().__init__(
            views=len(support),
            near=0.0 if near is None else near,
            far=1.0 if far is None else far,
            rays_per_view=1,
            batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        if near is None:
            self.near = self.far = math.nan  # nobody knows, and a model without depths need not
        self.paths = [views] if isinstance(views, str) else list(views)
        self.support = list(support)
        self.query = query if query is None or query == "rest" else list(query)
        self._signal_shape = tuple(signal_shape or ())
        self.on_bad_scene = on_bad_scene
        self.chosen: list[ChosenViews] = []

    @property
    def spec(self) -> DataSpec:
        """Rays of views of the size of the model's, between its depths where they are known."""
        shape = self._signal_shape
        if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise ValueError(
                f"signal_shape is {list(shape)}: scenes go to a model of posed views, [views, 3, rows, columns]. "
                "Name a checkpoint of such a model with --ckpt_path."
            )
        if shape[0] != len(self.support):
            raise ValueError(
                f"The model looks at {shape[0]} view(s), and support names {len(self.support)} frame(s), "
                f"{self.support}: name {shape[0]} with --support."
            )
        known = not math.isnan(self.near)
        domain = Rays(self.near if known else None, self.far if known else None)
        return DataSpec(domain, 3, shape, self.modality)

    def setup(self, stage: str) -> None:
        """Look at every scene, and read the frames that are wanted.

        Raises:
            ValueError: If none can be used, or ``stage`` is not predict.
        """
        if stage != "predict":
            raise ValueError(f"SceneFiles serves prediction, not {stage}: choose another data module.")
        each: dict[Path, tuple[Path, Path]] = {}
        for folder, place in (item for given in self.paths for item in scene_folders(Path(given))):
            each.setdefault(folder.absolute(), (folder, place))  # named twice, taken once
        found = list(each.values())
        self.chosen, self.skipped, self.notes = [], {}, {}
        for (folder, place), name in zip(found, unique_names(found), strict=True):
            try:
                self._look(folder, name, renamed=name != place.as_posix())
            except ValueError as error:
                if self.on_bad_scene == "raise":
                    raise
                self.skipped[str(folder)] = str(error)
        if not self.chosen:
            raise ValueError(self._none_of_use())

    def check_depths(self, name: str, poses: Tensor) -> None:
        """Refuse a scene of another scale than the model's: one around whose origin it does not look.

        Args:
            name: Of the scene.
            poses: ``(F, 3, 4)`` of its cameras.

        Raises:
            ValueError: With the distances of its cameras and the depths of the model.
        """
        try:
            super().check_depths(name, poses)
        except ValueError as error:
            distances = poses[:, :, 3].norm(dim=-1)
            raise ValueError(
                f"The cameras of {name} are {float(distances.min()):.3g} to {float(distances.max()):.3g} from the origin, and "
                f"the model looks at depths from {self.near:g} to {self.far:g}, where nothing around the origin is: scale the "
                "positions in its poses."
            ) from error

    def predict_dataloader(self) -> DataLoader[PosedImages]:
        """Return the loader of scenes, in order; a batch has scenes of as many views."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = SceneBatches(self.chosen, self._seen, self.eval_batch_size)
        if len(batches) < world_size:
            raise ValueError(f"{len(batches)} batch(es) of scenes for {world_size} devices: lower --trainer.devices.")
        return DataLoader(
            batches,
            batch_size=None,  # they are batches already
            sampler=WholeImages([1] * len(batches), rank, world_size),
            num_workers=self.num_workers,
        )

    def _none_of_use(self) -> str:
        """Return why there is nothing to predict from."""
        reasons = list(self.skipped.values())
        if len(reasons) == 1:
            return reasons[0]
        if reasons:
            return f"None of {len(reasons)} scenes can be used:" + "".join(f"\n  {reason}" for reason in reasons)
        return (
            f"No scene to predict from in {', '.join(self.paths) or 'nothing'}: name folders with {' or '.join(_READERS)} in "
            "them, or folders of such folders, with --views."
        )

    @property
    def _seen(self) -> tuple[int, int]:
        """Rows and columns of the images that the model sees."""
        *_, height, width = self.spec.signal_shape
        return height, width

    def _look(self, folder: Path, name: str, renamed: bool) -> None:
        """Read a scene and note what is known of it."""
        scene = read_scene(folder)
        self.check_depths(str(folder), scene.poses)
        compared = frames_compared(len(scene.images), self.support, self.query)
        frames = [*self.support, *(compared or self.support)]
        chosen = ChosenViews(name, scene, frames, drop_alpha=_kind_of(folder) == _OF_SRN)
        if (last := max(chosen.frames)) >= len(scene.images):
            raise ValueError(
                f"{folder} has {len(scene.images)} frame(s), and frame {last} is asked for: they count from 0; name others "
                "with --support and --data.query."
            )
        chosen.read()  # what cannot be decoded is found before anything is predicted
        self.chosen.append(chosen)
        notes = self._notes(chosen, alone=not compared)
        self.notes[name] = "; ".join([*notes, *([f"from {folder}"] if renamed else [])])

    def _notes(self, chosen: ChosenViews, alone: bool) -> list[str]:
        """Return what had to be decided of a scene, ``alone`` if it has no frames but those that are looked at."""
        found, seen = (f"{rows} x {columns}" for rows, columns in (chosen.scene.shape, self._seen))
        notes = [] if found == seen else [f"{found} made {seen}"]
        if not chosen.drop_alpha and is_opaque(chosen.scene.images[0]):
            notes.append("background taken as it is")
        return [*notes, "no other frames: compared with what was looked at"] if alone else notes


def scene_folders(path: Path) -> list[tuple[Path, Path]]:
    """Return the folders of scenes at a path and, for each, its place below the folder that was named.

    Args:
        path: A scene, whose place is its name, or a folder with scenes below it, taken in alphabetical order; not hidden ones,
            nor those in folders of earlier predictions.

    Raises:
        ValueError: If there is no such folder.
    """
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}: name folders of scenes with --views.")
    if any((path / name).is_file() for name in _READERS):
        return [(path, Path(path.absolute().name))]
    below = files_below(path, {Path(name).suffix for name in _READERS})
    folders = dict.fromkeys(file.parent for file, _ in below if file.name in _READERS)
    return [(folder, folder.relative_to(path)) for folder in folders]


def read_scene(folder: Path) -> Scene:
    """Return the scene in a folder, or raise a ``ValueError`` that says what is wrong with it."""
    return _READERS[_kind_of(folder)](folder)


def frames_compared(
    total: int, support: Sequence[int], query: Sequence[int] | Literal["rest"] | None = None
) -> list[int]:
    """Return which frames of a scene are rendered and compared.

    Args:
        total: Frames of the scene.
        support: Those that are looked at.
        query: As for `SceneFiles`.

    Example:
        >>> frames_compared(10, [0], "rest"), frames_compared(10, [0]), frames_compared(3, [1]), frames_compared(1, [0])
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 4, 6, 8], [0, 2], [])
    """
    if query is not None and query != "rest":
        return list(query)
    rest = [frame for frame in range(total) if frame not in support]
    count = len(rest) if query == "rest" else min(_SPREAD, len(rest))
    return [rest[(2 * place + 1) * len(rest) // (2 * count)] for place in range(count)]


def resized(item: PosedImages, shape: tuple[int, int]) -> PosedImages:
    """Return posed images in another size, seen by the same cameras.

    Args:
        item: ``images (V, 3, h, w)`` uint8, poses and focals.
        shape: Wanted rows and columns.
    """
    height, width = item.images.shape[-2:]
    if (height, width) == shape:
        return item
    factors = item.focals.new_tensor((shape[1] / width, shape[0] / height))  # along columns, along rows
    images = torch.stack([resize_image(image, *shape) for image in item.images])
    return item._replace(images=images, focals=item.focals * factors)


def _kind_of(folder: Path) -> str:
    """Return the name of the file that makes a folder a scene."""
    return next(name for name in _READERS if (folder / name).is_file())
