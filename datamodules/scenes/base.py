"""Base class of the data sets of scenes in folders: all scenes are checked during set-up, a few views are read per item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch.utils.data import Dataset

from datamodules.scenes.draws import (
    QUERIES_OF_FIRST,
    EvaluationViews,
    Protocol,
    SceneReferences,
    ViewDraw,
    drawn_frames,
)
from datamodules.scenes.rays import SceneModule
from datamodules.storage.folders import Split, report_skipped, splits_of
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene, is_opaque, read_transforms, read_view

_MAX_LISTED = 5  # scenes listed in an error message


class SceneSet(SceneModule):
    """Scenes in folders, from which a few views are read at a time.

    A subclass defines the folders of each split (`scenes`) and how to read a folder (`read`). Set-up checks all scenes: their
    cameras, and the headers and ends of their image files. Training draws distinct support and query views from the first
    ``train_frames`` frames of a scene, with a new draw in every epoch. Evaluation draws depend only on the name of the scene
    and the repetition, so metrics do not depend on seeds, processes or devices. Instances are named ``SCENE.REPETITION``, or
    ``SCENE`` if there is a single draw.

    Args:
        root: Folder of the data.
        train_frames: Number of leading frames of a scene that training draws from.
        repeats: Number of times that each scene occurs in a training epoch.
        protocol: How evaluation selects views. ``draws``: all from all frames, as in TransINR and IPC. ``halves``: support from
            the first ``train_frames`` frames and queries from the others, as in LearnIt. ``first``: the first frame as support
            and the next 25 as queries, once per scene, as in nerf-meta. ``all``: the support views of ``draws``, and all other
            frames as queries; scenes with different numbers of frames need an ``eval_batch_size`` of 1.
        draws: Number of view draws per scene in the test; always 1 with ``first``.
        val_draws: Number of view draws per scene in validation; always 1 with ``first``.
        on_bad_scene: What to do with a scene that is broken, missing or of another ``size``: ``raise`` an error, or ``skip``
            and report it.
        kwargs: Arguments of `SceneModule`.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    drop_alpha: ClassVar[bool] = False

    def __init__(
        self,
        root: str = "data",
        *,
        train_frames: int = 25,
        repeats: int = 1,
        protocol: Protocol = "draws",
        draws: int = 100,
        val_draws: int = 1,
        on_bad_scene: Literal["raise", "skip"] = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(train_frames, repeats, draws, val_draws) < 1:
            raise ValueError(
                f"train_frames is {train_frames}, repeats {repeats}, draws {draws}, val_draws {val_draws}: each must be at "
                "least 1."
            )
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol is {protocol!r}: choose one of {', '.join(get_args(Protocol))}.")
        if protocol == "first" and self.views != 1:
            raise ValueError(
                f"views is {self.views}, but protocol first has one support view: set views to 1, or choose another protocol."
            )
        self.root = Path(root)
        self.train_frames = train_frames
        self.repeats = repeats
        self.protocol: Protocol = protocol
        self.draws = draws
        self.val_draws = val_draws
        self.on_bad_scene = on_bad_scene
        self.read_image = partial(read_view, drop_alpha=self.drop_alpha)
        self.augmentation = ViewDraw(self.views + self.query_views, train_frames, self.read_image)

    @abstractmethod
    def scenes(self, split: Split) -> list[Path]:
        """Return the scene folders of a split in a fixed order.

        Raises:
            ValueError: If the data is missing; the message says how to get it.
        """

    def read(self, folder: Path) -> Scene:
        """Return the scene in a folder.

        Raises:
            ValueError: If the scene is broken.
        """
        return read_transforms(folder)

    def how_to_get(self) -> str:
        """Return how to get missing scenes, as the end of an error message."""
        return "pass another folder with --data.init_args.root."

    def setup(self, stage: str) -> None:
        """Create the data sets of the splits that a stage needs.

        Raises:
            ValueError: If there are no scenes, if all are broken, if some are broken and ``on_bad_scene`` is ``raise``, or if
                no camera of a scene can see an object between ``near`` and ``far``.
        """
        for split in splits_of(stage):
            scenes = self._usable(split)
            setattr(self, f"{split}_set", self._items(split, scenes))
            if not self.drop_alpha and is_opaque(scenes[0].images[0]):
                self.notes["background"] = (
                    f"images without transparency are used as they are, whatever their background ({scenes[0].name})"
                )
        if self.skipped:
            report_skipped(self.skipped, "scenes")

    def readable(self, split: Split) -> tuple[list[Scene], dict[str, str]]:
        """Return the usable scenes of a split, and the reasons why the others are not usable, by folder.

        Raises:
            ValueError: If there are no scenes at all.
        """
        folders = self.scenes(split)
        if not folders:
            raise ValueError(
                f"{type(self).__name__} has no scenes of the split {split} in {self.root}: {self.how_to_get()}"
            )
        scenes: list[Scene] = []
        broken: dict[str, str] = {}
        results = in_order(partial(self._scene_or_reason, split=split), folders)
        with counting("reading scenes", len(folders)) as show:
            for done, (folder, result) in enumerate(zip(folders, results, strict=True), 1):
                if isinstance(result, Scene):
                    scenes.append(result)
                else:
                    broken[str(folder)] = result
                show(done)
        return scenes, broken

    def _scene_or_reason(self, folder: Path, split: Split) -> Scene | str:
        """Return the scene in a folder, or the reason why it cannot be used in a split."""
        try:
            scene = self.read(folder)
            self._check(scene, split)
        except ValueError as error:
            return str(error)
        return scene

    def _usable(self, split: Split) -> list[Scene]:
        """Return the scenes of a split without those that are skipped."""
        scenes, broken = self.readable(split)
        if broken and (self.on_bad_scene == "raise" or not scenes):
            reasons = "".join(f"\n  {reason}" for reason in list(broken.values())[:_MAX_LISTED])
            more = f"\n  and {len(broken) - _MAX_LISTED:,} more" if len(broken) > _MAX_LISTED else ""
            fix = "Fix them, or skip them with --data.init_args.on_bad_scene skip."
            if not scenes:
                fix = f"Fix them. If scenes are missing, {self.how_to_get()}"
            raise ValueError(
                f"{len(broken):,} of {len(scenes) + len(broken):,} scenes of the split {split} cannot be used:{reasons}{more}\n"
                f"{fix}"
            )
        for scene in scenes:
            self.check_depths(scene.name, scene.poses)
        self.skipped |= broken
        return scenes

    def _items(self, split: Split, scenes: Sequence[Scene]) -> Dataset[Any]:
        """Return the data set of a split."""
        if split == "train":
            return SceneReferences(scenes, self.repeats)
        frames = partial(
            drawn_frames,
            views=self.views,
            query_views=self.query_views,
            train_frames=self.train_frames,
            protocol=self.protocol,
        )
        if self.protocol == "all" and self.eval_batch_size > 1:
            self._check_equal_counts(scenes)
        repetitions = 1 if self.protocol == "first" else self.draws if split == "test" else self.val_draws
        return EvaluationViews(scenes, frames, repetitions, self.read_image)

    def _check(self, scene: Scene, split: Split) -> None:
        """Raise a ``ValueError`` if the images of a scene have the wrong size, or if it has too few frames."""
        if scene.shape != (self.size, self.size):
            raise ValueError(
                f"The images of {scene.name} have {scene.shape[0]} x {scene.shape[1]} pixels, but size is {self.size}: resize "
                "them, or set --data.init_args.size if they are square."
            )
        for available, required, kind in self._frame_counts(len(scene.images), split):
            if available < required:
                raise ValueError(
                    f"{scene.name} has {available} {kind}, but {required} are needed: lower views, query_views or "
                    "train_frames, or choose another protocol."
                )

    def _check_equal_counts(self, scenes: Sequence[Scene]) -> None:
        """Raise a ``ValueError`` if scenes have different numbers of frames, since a batch needs equally many queries."""
        counts = {len(scene.images): scene.name for scene in scenes}
        if len(counts) > 1:
            (least, first), *_, (most, second) = sorted(counts.items())
            raise ValueError(
                f"{first} has {least} frames and {second} {most}, but protocol all renders all frames of a scene, and a batch "
                "needs equally many: set --data.init_args.eval_batch_size to 1, or choose another protocol."
            )

    def _frame_counts(self, total: int, split: Split) -> list[tuple[int, int, str]]:
        """Return the available and the required number of frames of each kind, for a scene with ``total`` frames."""
        if split == "train":
            return [(min(total, self.train_frames), self.views + self.query_views, "frames for training")]
        if self.protocol in ("draws", "all"):
            return [(total, self.views + self.query_views, "frames")]
        if self.protocol == "first":
            return [(total, 1 + QUERIES_OF_FIRST, "frames")]
        first = min(total, self.train_frames)
        return [(first, self.views, "frames for support"), (total - first, self.query_views, "frames for queries")]
