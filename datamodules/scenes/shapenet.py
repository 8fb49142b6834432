"""Objects of ShapeNet as rendered for learned initializations: chairs, cars and lamps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import Protocol
from datamodules.storage.folders import Split

ORIGIN = "https://drive.google.com/drive/folders/1lRfg-Ov1dd3ldke9Gv9dyzGGTxiFOhIs"
Category = Literal["chairs", "cars", "lamps"]


class ShapeNet(SceneSet):
    """Chairs, cars or lamps of ShapeNet (Chang et al., 2015), as Learned Init (Tancik et al., CVPR 2021) has them rendered.

    Published are training on the first 25 of the 50 frames of an object, 1 to 5 support views and one query view, near 2 and
    far 6; in an epoch cars come twice, lamps three times. How evaluation takes views differs between publications, see
    ``protocol``. The objects are under the terms of ShapeNet.

    The lists of the splits, ``chair_splits.json``, ``car_splits.json`` and ``lamp_splits.json``, are looked for in ``root``,
    the objects in ``chairs``, ``cars`` and ``lamps`` beside them, or in 03001627, 02958343 and 03636649, as the archives have
    them: a folder per object, with ``transforms.json`` and PNG of 128 x 128 pixels, whose transparency becomes white.

    Args:
        category: ``chairs``, ``cars`` or ``lamps``.
        root: Folder of the lists and the categories.
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        size: Pixels along each side of the pictures; scenes of another size are broken.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        train_frames: Frames of an object, from the first, that training draws from.
        repeats: Times that an object comes in a training epoch.
        protocol: How evaluation takes views: ``draws`` from all frames, as TransINR and IPC do; ``halves``, support from the
            first ``train_frames`` and queries from the others, as LearnIt; ``first``, the first as support and the next 25 as
            queries, once per object, as nerf-meta.
        draws: Times that an object comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        on_bad_scene: What a broken object does, or one that is listed and not there: ``raise`` stops with its name, ``skip``
            leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range; at set-up, if objects are missing or broken.
    """

    folders: ClassVar[Mapping[Category, tuple[str, str]]] = {
        "chairs": ("chairs", "03001627"),
        "cars": ("cars", "02958343"),
        "lamps": ("lamps", "03636649"),
    }

    def __init__(
        self,
        category: Category = "chairs",
        root: str = "data/shapenet",
        views: int = 1,
        query_views: int = 1,
        size: int = 128,
        near: float = 2.0,
        far: float = 6.0,
        train_frames: int = 25,
        repeats: int = 1,
        protocol: Protocol = "draws",
        draws: int = 100,
        val_draws: int = 1,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        on_bad_scene: Literal["raise", "skip"] = "skip",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if category not in self.folders:
            raise ValueError(f"category is {category!r}: choose of {', '.join(self.folders)}.")
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
            on_bad_scene,
            batch_size,
            eval_batch_size,
            num_workers,
        )
        self.category: Category = category

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the objects that the list of a split names, in its order, whether they are there or not."""
        path = self._list
        if not path.is_file():
            raise ValueError(f"There is no {path}, which lists the {self.category} of every split: {self.how_to_get()}")
        places = [self.root / name for name in self.folders[self.category]]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise ValueError(
                f"There are no {self.category}: neither {places[0]} nor {places[1]} is a folder. {self._get()}"
            )
        return [folder / name for name in _named(path, split)]

    def how_to_get(self) -> str:
        """Return where the objects come from, and where they go."""
        text = self._get()
        return text[0].lower() + text[1:]

    @property
    def _list(self) -> Path:
        """The file that lists the objects of every split."""
        return self.root / f"{self.category.removesuffix('s')}_splits.json"

    def _get(self) -> str:
        """Return the same as a sentence."""
        name, synset = self.folders[self.category]
        return (
            f"Fetch it by hand, for a folder of Google Drive cannot be fetched by this program: from {ORIGIN} take "
            f"{self._list.name} to {self._list}, and unpack the archive of {name} to {self.root / name} or "
            f"{self.root / synset}, so that each object is a folder with transforms.json in it. Or name the folder that holds "
            "them: --data.init_args.root."
        )


def _named(path: Path, split: Split) -> list[str]:
    """Return the objects that a list names for a split, each once."""
    try:
        lists = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): take it from {ORIGIN} again.") from error
    names = lists.get(split) if isinstance(lists, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _plain(name) for name in names):
        raise ValueError(f"{path} has no list {split} of names of folders: take it from {ORIGIN} again.")
    return list(dict.fromkeys(names))


def _plain(name: str) -> bool:
    """Return whether a name can be that of a folder."""
    return name not in ("", "..") and Path(name).name == name
