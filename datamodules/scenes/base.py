"""Base class of the data sets of scenes in folders: all scenes are checked during set-up, a few views are read per item."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch.utils.data import Dataset

from datamodules.scenes.draws import (
    QUERIES_OF_FIRST,
    EvaluationViews,
    Protocol,
    SceneReferences,
    ViewDraw,
    drawn_frames,
    held_out_frames,
    training_frames,
)
from datamodules.scenes.rays import SceneModule
from datamodules.storage.folders import Split, report_skipped, splits_of
from datamodules.storage.layouts import read_scene
from datamodules.storage.parallel import in_order
from datamodules.storage.poses import Convention, likely_convention, look_away
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene, background_note

_MAX_LISTED = 5  # scenes listed in an error message


class SceneSet(SceneModule):
    """Scenes in folders, from which a few views are read at a time.

    A subclass defines the folders of each split (`scenes`) and how to read a folder (`read`). Set-up checks all scenes: their
    cameras, and the headers and ends of their image files. Training draws distinct support and query views from the first
    ``train_frames`` frames of a scene, with a new draw in every epoch. Evaluation draws depend only on the name of the scene
    and the repetition, so metrics do not depend on seeds, processes or devices. Instances are named ``SCENE.REPETITION``, or
    ``SCENE`` if there is a single draw.

    If a scene states splits of its frames (``transforms_train.json``, ``transforms_val.json``, ``transforms_test.json``),
    training draws from all its training frames, and with every protocol the support views of the evaluation are training
    frames and the query views are frames of the split; ``first`` then takes the first 25 of these.

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
        convention: Convention of the poses; that of the layout if None. ``opengl``, as in ``transforms.json``: camera to world
            with the axes right, up, backwards. ``opencv``: camera to world with the axes right, down, forwards. ``opengl_w2c``
            and ``opencv_w2c``: world to camera with these axes; the latter is that of COLMAP.
        scale: Factor of the positions of cameras, for scenes in other units.
        on_bad_scene: What to do with a scene that is broken, missing or of another ``size``: ``raise`` an error, or ``skip``
            and report it.
        kwargs: Arguments of `SceneModule`.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        train_frames: int = 25,
        repeats: int = 1,
        protocol: Protocol = "draws",
        draws: int = 100,
        val_draws: int = 1,
        convention: Convention | None = None,
        scale: float = 1.0,
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
        check_scale(scale)
        self.root = Path(root)
        self.train_frames = train_frames
        self.repeats = repeats
        self.protocol: Protocol = protocol
        self.draws = draws
        self.val_draws = val_draws
        self.on_bad_scene = on_bad_scene
        self.convention: Convention | None = convention
        self.scale = scale
        self.augmentation = ViewDraw(self.views + self.query_views, train_frames)

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
        return read_scene(folder, self.convention, self.scale)

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
            self.notes |= notes_on(scenes)
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
            split=split,
        )
        if self.protocol == "all" and self.eval_batch_size > 1:
            self._check_equal_counts(scenes, split)
        repetitions = 1 if self.protocol == "first" else self.draws if split == "test" else self.val_draws
        return EvaluationViews(scenes, frames, repetitions)

    def _check(self, scene: Scene, split: Split) -> None:
        """Raise a ``ValueError`` if the images of a scene have the wrong size, or if it has too few frames."""
        if scene.shape != (self.size, self.size):
            raise ValueError(
                f"The images of {scene.name} have {scene.shape[0]} x {scene.shape[1]} pixels, but size is {self.size}: resize "
                "them, or set --data.init_args.size if they are square."
            )
        for available, required, kind in self._frame_counts(scene, split):
            if available < required:
                raise ValueError(
                    f"{scene.name} has {available} {kind}, but {required} are needed: lower views, query_views or "
                    "train_frames, or choose another protocol."
                )

    def _check_equal_counts(self, scenes: Sequence[Scene], split: Split) -> None:
        """Raise a ``ValueError`` if scenes have different numbers of frames, since a batch needs equally many queries."""
        counts = {len(scene.splits[split]) if scene.splits else len(scene.images): scene.name for scene in scenes}
        if len(counts) > 1:
            (least, first), *_, (most, second) = sorted(counts.items())
            raise ValueError(
                f"{first} has {least} frames and {second} {most}, but protocol all renders all frames of a scene, and a batch "
                "needs equally many: set --data.init_args.eval_batch_size to 1, or choose another protocol."
            )

    def _frame_counts(self, scene: Scene, split: Split) -> list[tuple[int, int, str]]:
        """Return the available and the required number of frames of each kind in a scene."""
        total, training = len(scene.images), len(training_frames(scene, self.train_frames))
        held_out = len(held_out_frames(scene, self.train_frames, split))
        queries = QUERIES_OF_FIRST if self.protocol == "first" else self.query_views
        if split == "train":
            return [(training, self.views + self.query_views, "frames for training")]
        if self.protocol == "halves" or scene.splits:
            return [(training, self.views, "frames for support"), (held_out, queries, "frames for queries")]
        return [(total, self.views + queries, "frames")]


def check_scale(scale: float) -> None:
    """Raise a ``ValueError`` if a factor of positions is not positive and finite."""
    if not 0 < scale < math.inf:
        raise ValueError(
            f"scale is {scale}; it must be a positive factor of the positions, such as 0.001 for scenes in millimetres."
        )


def notes_on(scenes: Sequence[Scene]) -> dict[str, str]:
    """Return notes for the user on scenes: their backgrounds, their cameras, and what is unusual about their files."""
    kinds: dict[str, list[tuple[str, str]]] = {}  # by kind: name of the scene, text
    for scene in scenes:
        notes = [("background", background_note(scene)), ("cameras", cameras_note(scene)), *scene.notes]
        for kind, text in notes:
            if text:
                kinds.setdefault(kind, []).append((scene.name, text))
    notes_of_all = {}
    for kind, entries in kinds.items():
        name, text = entries[0]
        others = f" and {len(entries) - 1:,} more scene(s)" if len(entries) > 1 else ""
        notes_of_all[kind] = f"{text} ({name}{others})"
    return notes_of_all


def cameras_note(scene: Scene, option: str = "--data.init_args.convention") -> str:
    """Return a note if all cameras of a scene look away from the point nearest to their axes; else an empty string.

    Args:
        scene: The scene.
        option: Name of the option that sets the convention.
    """
    if not look_away(scene.poses):
        return ""
    likely = likely_convention(scene.poses, scene.convention)
    fix = f"the poses seem to be {likely}, so set {option} {likely}" if likely else f"set {option} to that of the poses"
    return f"read as {scene.convention}, all cameras look away from the point where their axes meet: {fix}"
