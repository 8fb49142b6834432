"""What data sets of scenes in folders have in common: all are looked at before training, of which a few views are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
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
from datamodules.storage.folders import Split, splits_of, tell_left_out
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene, is_opaque, read_transforms, read_view

_NAMED = 5  # scenes that a message names


class SceneSet(SceneModule):
    """Scenes in folders, of which a few views are read at a time.

    A subclass says which folders a split has (`scenes`) and how one is read (`read`). All scenes are looked at during set-up:
    their cameras, the headers and the ends of their images. Training draws distinct support and query views among the first
    ``train_frames`` of a scene, anew in every epoch. Evaluation draws by the name of the scene and the repetition alone, so
    that numbers do not depend on seeds, processes or devices; instances are named ``SCENE.REPETITION``, or ``SCENE`` where
    there is one draw.

    Args:
        root: Folder of the data.
        train_frames: Frames of a scene, from the first, that training draws from.
        repeats: Times that a scene comes in a training epoch.
        protocol: How evaluation takes views: ``draws`` from all frames, as TransINR and IPC do; ``halves``, support from the
            first ``train_frames`` and queries from the others, as LearnIt; ``first``, the first as support and the next 25 as
            queries, once per scene, as nerf-meta.
        draws: Times that a scene comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
        on_bad_scene: What a scene does that is broken, missing or of another ``size``: ``raise`` stops with its name,
            ``skip`` leaves it out and reports it.
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
                f"train_frames is {train_frames}, repeats {repeats}, draws {draws}, val_draws {val_draws}: each is at least 1."
            )
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol is {protocol!r}: choose of {', '.join(get_args(Protocol))}.")
        if protocol == "first" and self.views != 1:
            raise ValueError(
                f"views is {self.views}, and protocol first has one support view: set views 1, or another protocol."
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
        """Return the folders of the scenes of a split, in an order that is always the same.

        Raises:
            ValueError: If their folder is missing, with the way to get it.
        """

    def read(self, folder: Path) -> Scene:
        """Return a scene, or raise a ``ValueError`` that says what is wrong with it."""
        return read_transforms(folder)

    def how_to_get(self) -> str:
        """Return how to get scenes that are missing."""
        return "name another folder with --data.init_args.root."

    def setup(self, stage: str) -> None:
        """Fill the splits of a stage.

        Raises:
            ValueError: If there are no scenes, if some or all are broken, or if nothing would be seen between near and far.
        """
        for split in splits_of(stage):
            scenes = self._usable(split)
            setattr(self, f"{split}_set", self._items(split, scenes))
            if not self.drop_alpha and is_opaque(scenes[0].images[0]):
                self.notes["background"] = (
                    f"images without transparency are taken as they are, on a white background or not ({scenes[0].name})"
                )
        if self.skipped:
            tell_left_out(self.skipped, "scenes")

    def readable(self, split: Split) -> tuple[list[Scene], dict[str, str]]:
        """Return the scenes of a split that can be used, and why the others cannot, by folder.

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
        with counting("reading scenes", len(folders)) as show:
            for done, (folder, found) in enumerate(zip(folders, in_order(self._tried(split), folders), strict=True), 1):
                if isinstance(found, Scene):
                    scenes.append(found)
                else:
                    broken[str(folder)] = found
                show(done)
        return scenes, broken

    def _tried(self, split: Split) -> Callable[[Path], Scene | str]:
        """Return what reads a scene of a split, or says why it is of no use."""

        def tried(folder: Path) -> Scene | str:
            try:
                scene = self.read(folder)
                self._check(scene, split)
            except ValueError as error:
                return str(error)
            return scene

        return tried

    def _usable(self, split: Split) -> list[Scene]:
        """Return the scenes of a split without those that are skipped."""
        scenes, broken = self.readable(split)
        if broken and (self.on_bad_scene == "raise" or not scenes):
            named = "".join(f"\n  {reason}" for reason in list(broken.values())[:_NAMED])
            more = f"\n  and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
            leave = "Fix them, or leave them out: --data.init_args.on_bad_scene skip."
            way_out = leave if scenes else f"Fix them. If scenes are missing, {self.how_to_get()}"
            raise ValueError(
                f"{len(broken):,} of {len(scenes) + len(broken):,} scenes of the split {split} cannot be used:{named}{more}\n"
                f"{way_out}"
            )
        for scene in scenes:
            self.check_depths(scene.name, scene.poses)
        self.skipped |= broken
        return scenes

    def _items(self, split: Split, scenes: Sequence[Scene]) -> Dataset[Any]:
        """Return the items of a split."""
        if split == "train":
            return SceneReferences(scenes, self.repeats)
        frames = partial(
            drawn_frames,
            views=self.views,
            query_views=self.query_views,
            train_frames=self.train_frames,
            protocol=self.protocol,
        )
        repetitions = 1 if self.protocol == "first" else self.draws if split == "test" else self.val_draws
        return EvaluationViews(scenes, frames, repetitions, self.read_image)

    def _check(self, scene: Scene, split: Split) -> None:
        """Refuse a scene whose images have another size, or that has not frames enough."""
        if scene.shape != (self.size, self.size):
            raise ValueError(
                f"The images of {scene.name} have {scene.shape[0]} x {scene.shape[1]} pixels, size is {self.size}: resize "
                "them, or say --data.init_args.size where they are square."
            )
        for frames, wanted, which in self._needed(len(scene.images), split):
            if frames < wanted:
                raise ValueError(
                    f"{scene.name} has {frames} {which}, {wanted} are needed: lower views, query_views or train_frames, or "
                    "choose another protocol."
                )

    def _needed(self, total: int, split: Split) -> list[tuple[int, int, str]]:
        """Return, of a scene of so many frames, which there are and how many are needed of them."""
        if split == "train":
            return [(min(total, self.train_frames), self.views + self.query_views, "frames for training")]
        if self.protocol == "draws":
            return [(total, self.views + self.query_views, "frames")]
        if self.protocol == "first":
            return [(total, 1 + QUERIES_OF_FIRST, "frames")]
        first = min(total, self.train_frames)
        return [(first, self.views, "frames for support"), (total - first, self.query_views, "frames for queries")]
