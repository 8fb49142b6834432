"""What data sets of scenes have in common: posed pictures as rays, and scenes in folders, of which a few views are read."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, PosedPictures, Samples, Views
from datamodules.cameras import orbit, pixel_rays
from datamodules.folders import Split, splits_of, tell_left_out
from datamodules.parallel import counting, in_order
from datamodules.randomness import generator_at
from datamodules.scenes import Scene, is_opaque, read_transforms, read_view

_NAMED = 5  # scenes that a message names
_WHITE = 255  # of all channels, where a ray meets nothing
_OBJECT = 1.8  # radius around the origin beyond which no object is looked for
_QUERIES_OF_FIRST = 25  # frames after the first, which published code renders

Protocol = Literal["draws", "halves", "first"]


class SceneModule(CoordinateDataModule):
    """Posed pictures of scenes as rays: a few views are looked at, others are to be rendered.

    Items are `PosedPictures` of equal size, support views first. A coordinate is a ray, origin and direction; in evaluation
    all rays of the query views are asked for. In training it is some of each, drawn for every instance, and a seventh number
    goes with every ray, drawn evenly from [0, 1): by it a renderer moves the samples along the ray.

    In the first epochs half of the training rays are drawn from the foreground, where the smallest channel is below white, the
    others from the whole picture. Where the foreground has fewer pixels they come several times; where there is none, all rays
    are drawn from the whole picture.

    Args:
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        size: Pixels along each side of the pictures.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range.
    """

    train_set: Dataset[Any]  # of posed pictures, or of what the augmentation makes such of
    val_set: Dataset[Any]
    test_set: Dataset[Any]
    augmentation: Callable[[Any, torch.Generator], Any] | None = None

    def __init__(
        self,
        views: int = 1,
        query_views: int = 1,
        size: int = 128,
        near: float = 2.0,
        far: float = 6.0,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if views < 1 or query_views < 1 or size < 1:
            raise ValueError(f"views is {views}, query_views {query_views}, size {size}: each is at least 1.")
        if not (0 <= near < far and math.isfinite(far)):
            raise ValueError(f"near is {near}, far {far}: depths with 0 <= near < far, in world units.")
        if rays_per_view < 1 or foreground_epochs < 0:
            raise ValueError(
                f"rays_per_view is {rays_per_view}, foreground_epochs {foreground_epochs}: at least 1 ray, epochs may be 0."
            )
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.views = views
        self.query_views = query_views
        self.size = size
        self.near = near
        self.far = far
        self.rays_per_view = rays_per_view
        self.foreground_epochs = foreground_epochs

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """``(views, 3, size, size)``, that of the support pictures."""
        return self.views, 3, self.size, self.size

    @property
    def coord_dim(self) -> int:
        """6: a ray is an origin and a direction."""
        return 6

    @property
    def value_dim(self) -> int:
        """3: the colour that a ray sees."""
        return 3

    def check_depths(self, name: str, poses: Tensor) -> None:
        """Refuse depths between which no camera of a scene could see an object around the origin.

        Args:
            name: Of the scene.
            poses: ``(F, 3, 4)`` of its cameras.

        Raises:
            ValueError: If an object of radius 1.8 would lie wholly before ``near`` or beyond ``far``, for all cameras.
        """
        distances = poses[:, :, 3].norm(dim=-1)
        unseen = (self.far < distances - _OBJECT) | (self.near > distances + _OBJECT)
        if bool(unseen.all()):
            least, most = float(distances.min()), float(distances.max())
            raise ValueError(
                f"The cameras of {name} are {least:.3g} to {most:.3g} from the origin, and depths from near {self.near:g} to "
                f"far {self.far:g} are rendered: no object around the origin would be seen. Set --data.init_args.near and "
                f"--data.init_args.far around these distances, such as {max(0.0, least - 1):.3g} and {most + 1:.3g}."
            )

    def random_items(self, count: int) -> PosedPictures:
        """Return collated pictures of random numbers, taken from around the origin.

        Args:
            count: Items.
        """
        total = self.views + self.query_views
        images = torch.randint(256, (count, total, 3, self.size, self.size), dtype=torch.uint8)
        poses = orbit(total, (self.near + self.far) / 2).expand(count, -1, -1, -1)
        names = [f"random-{index}" for index in range(count)]
        focals = torch.full((count, total, 2), float(self.size))
        return PosedPictures(images, poses, focals, names, torch.arange(count))  # type: ignore[arg-type]

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated `PosedPictures`.

        Args:
            batch: ``images (B, V + Q, 3, H, W)`` uint8, of which the first ``V`` are support views, ``poses``, ``focals``,
                names and seeds.
            training: Whether some rays of the query views are drawn, or all are taken.
            step: Addresses draws that a whole batch shares; there are none.

        Returns:
            Rays of the support views, ``(B, V * H * W, 6)``, and of the query views: ``(B, Q * H * W, 6)``, or in training
            ``(B, Q * rays_per_view, 7)``, with colours in [0, 1].
        """
        support, query = (_part(batch, part) for part in (slice(self.views), slice(self.views, None)))
        rays, values = _rays(query), _pixels(query.images)  # (B, Q, H W, 6), (B, Q, H W, 3)
        shape: tuple[int, ...] | None = (values.shape[1], *query.images.shape[-2:])
        if training:
            seeds = torch.as_tensor(batch.seed).tolist()
            chosen = self._drawn(query.images, seeds)[..., None]  # (B, Q, R, 1)
            rays, values, shape = rays.take_along_dim(chosen, 2), values.take_along_dim(chosen, 2), None
            rays = torch.cat((rays, _uniform(seeds, "jitter", rays.shape[1:3], rays.device)[..., None]), dim=-1)
        observed = Samples(_rays(support).flatten(1, 2), _in_unit(_pixels(support.images)).flatten(1, 2))
        return CoordinateBatch(
            Observation(Views(_in_unit(support.images), support.poses, support.focals), observed),
            Samples(rays.flatten(1, 2), _in_unit(values).flatten(1, 2)),
            shape,
            list(batch.name),
        )

    def _drawn(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return which pixels of views ``(B, Q, 3, H, W)`` are trained on, ``(B, Q, R)``."""
        pixels, device = images.shape[-2] * images.shape[-1], images.device
        places, count = (images.shape[1], pixels), min(self.rays_per_view, pixels)
        anywhere = _uniform(seeds, "rays", places, device).topk(count).indices  # without replacement
        epoch = self.trainer.current_epoch if self.trainer else 0
        if epoch >= self.foreground_epochs:
            return anywhere
        return torch.cat(
            (self._foreground(images, seeds, anywhere[..., : count // 2]), anywhere[..., count // 2 :]), -1
        )

    @staticmethod
    def _foreground(images: Tensor, seeds: Sequence[int], otherwise: Tensor) -> Tensor:
        """Return as many pixels of the foreground, drawn with replacement where it has fewer; of none, these."""
        places, device = (images.shape[1], images.shape[-2] * images.shape[-1]), images.device
        seen = images.amin(2).flatten(2) < _WHITE  # (B, Q, H W)
        count = seen.sum(-1, keepdim=True)
        order = _uniform(seeds, "foreground", places, device).masked_fill(~seen, -1).topk(otherwise.shape[-1]).indices
        again = (_uniform(seeds, "again", otherwise.shape[1:], device) * count).long()
        first = torch.arange(otherwise.shape[-1], device=device).expand_as(again)
        found = order.take_along_dim(torch.where(count < otherwise.shape[-1], again, first), -1)
        return torch.where(count == 0, otherwise, found)


def _part(batch: PosedPictures, part: slice) -> PosedPictures:
    """Return some views of all instances."""
    return batch._replace(images=batch.images[:, part], poses=batch.poses[:, part], focals=batch.focals[:, part])


def _rays(pictures: PosedPictures) -> Tensor:
    """Return the rays of all pixels, ``(B, V, H * W, 6)``."""
    return pixel_rays(pictures.poses, pictures.focals, pictures.images.shape[-2:])


def _pixels(images: Tensor) -> Tensor:
    """Return ``(B, V, H * W, 3)`` of ``(B, V, 3, H, W)``."""
    return images.flatten(3).mT


def _in_unit(levels: Tensor) -> Tensor:
    """Return uint8 as numbers in [0, 1]."""
    return levels.float().div_(255)


def _uniform(seeds: Sequence[int], purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return numbers in [0, 1), ``(B, *shape)``, those of every instance drawn from its own seed."""
    drawn = [torch.rand(*shape, generator=generator_at(seed, purpose, device=device), device=device) for seed in seeds]
    return torch.stack(drawn)


class SceneReferences(Dataset[Scene]):
    """Scenes that are not read: the augmentation of training reads a few views of each, which it draws.

    Args:
        scenes: The scenes.
        repeats: Times that each comes in an epoch.
    """

    def __init__(self, scenes: Sequence[Scene], repeats: int = 1) -> None:
        self.scenes = list(scenes)
        self.repeats = repeats

    def __len__(self) -> int:
        """Return the items of an epoch."""
        return len(self.scenes) * self.repeats

    def __getitem__(self, index: int) -> Scene:
        """Return scene ``index``, counted round and round."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in an epoch of {len(self)} items")  # which also ends iteration
        return self.scenes[index % len(self.scenes)]


class ViewDraw:
    """Reads distinct views of a scene, drawn from its first frames.

    Args:
        views: How many, support and query together.
        frames: Of the scene that are drawn from, from the first.
        read: Reads a picture as ``(3, H, W)`` uint8.
    """

    def __init__(self, views: int, frames: int, read: Callable[[Path], Tensor] = read_view) -> None:
        self.views = views
        self.frames = frames
        self.read = read

    def __call__(self, scene: Scene, generator: torch.Generator) -> PosedPictures:
        """Return the views, or raise a ``ValueError`` that names the picture which cannot be read."""
        order = torch.randperm(min(len(scene.pictures), self.frames), generator=generator)[: self.views]
        return posed(scene, order.tolist(), scene.name, self.read)


class EvaluationViews(Dataset[PosedPictures]):
    """Views of scenes for evaluation, the same in every run: each scene several times, with other views.

    Args:
        scenes: The scenes.
        frames: Returns which frames of a scene are read in which repetition, support first.
        repetitions: How often every scene comes.
        read: Reads a picture as ``(3, H, W)`` uint8.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        frames: Callable[[Scene, int], list[int]],
        repetitions: int = 1,
        read: Callable[[Path], Tensor] = read_view,
    ) -> None:
        self.scenes = list(scenes)
        self.frames = frames
        self.repetitions = repetitions
        self.read = read

    def __len__(self) -> int:
        """Return the number of scenes times that of repetitions."""
        return len(self.scenes) * self.repetitions

    def __getitem__(self, index: int) -> PosedPictures:
        """Return repetition ``index % repetitions`` of scene ``index // repetitions``."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in {len(self)} items")  # which also ends iteration
        scene, repetition = self.scenes[index // self.repetitions], index % self.repetitions
        name = scene.name if self.repetitions == 1 else f"{scene.name}.{repetition:03d}"
        return posed(scene, self.frames(scene, repetition), name, self.read)


def posed(scene: Scene, frames: Sequence[int], name: str, read: Callable[[Path], Tensor] = read_view) -> PosedPictures:
    """Return some frames of a scene, read.

    Args:
        scene: The scene.
        frames: Which of its pictures, in this order.
        name: Of the item.
        read: Reads a picture as ``(3, H, W)`` uint8.

    Raises:
        ValueError: If a picture cannot be read, or has another size than its header said; the message names it.
    """
    images = [read(scene.pictures[frame]) for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        if tuple(image.shape[1:]) != scene.shape:
            raise ValueError(
                f"{scene.pictures[frame]} has {image.shape[1]} x {image.shape[2]} pixels, when its scene was first read it had "
                f"{scene.shape[0]} x {scene.shape[1]}: take it from its source again."
            )
    return PosedPictures(torch.stack(images), scene.poses[list(frames)], scene.focals[list(frames)], name)


def drawn_frames(
    scene: Scene, repetition: int, *, views: int, query_views: int, train_frames: int, protocol: Protocol
) -> list[int]:
    """Return which frames of a scene are seen in a repetition, support first; a function of its name and these numbers.

    The query views do not depend on how many support views there are, and fewer support views are the first of more.

    Args:
        scene: The scene.
        repetition: Which draw, from 0.
        views: Support views.
        query_views: Query views.
        train_frames: Where ``halves`` are cut.
        protocol: As for `SceneSet`.
    """
    total = len(scene.pictures)
    if protocol == "first":
        return list(range(1 + _QUERIES_OF_FIRST))
    generator = generator_at("views", scene.name, repetition)
    if protocol == "draws":
        order = torch.randperm(total, generator=generator).tolist()
        return order[query_views : query_views + views] + order[:query_views]
    queries = train_frames + torch.randperm(total - train_frames, generator=generator)
    support = torch.randperm(train_frames, generator=generator)
    return support[:views].tolist() + queries[:query_views].tolist()


class SceneSet(SceneModule):
    """Scenes in folders, of which a few views are read at a time.

    A subclass says which folders a split has (`scenes`) and how one is read (`read`). All scenes are looked at during set-up:
    their cameras, the headers and the ends of their pictures. Training draws distinct support and query views among the first
    ``train_frames`` of a scene, anew in every epoch. Evaluation draws by the name of the scene and the repetition alone, so
    that numbers do not depend on seeds, processes or devices; instances are named ``SCENE.REPETITION``, or ``SCENE`` where
    there is one draw.

    Protocols of evaluation: ``draws`` takes support and query views from all frames (TransINR and IPC, 100 draws); ``halves``
    support views from the first ``train_frames``, query views from the others (LearnIt); ``first`` the first frame as support
    and the next 25 as query views, once per scene (nerf-meta).

    Args:
        root: Folder of the data.
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        size: Pixels along each side of the pictures; scenes of another size are broken.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        train_frames: Frames of a scene, from the first, that training draws from.
        repeats: Times that a scene comes in a training epoch.
        protocol: How evaluation takes views: ``draws``, ``halves`` or ``first``.
        draws: Times that a scene comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        on_bad_scene: What a broken scene does: ``raise`` stops with its name, ``skip`` leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    drop_alpha: ClassVar[bool] = False

    def __init__(
        self,
        root: str = "data",
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
        super().__init__(
            views,
            query_views,
            size,
            near,
            far,
            rays_per_view,
            foreground_epochs,
            batch_size,
            eval_batch_size,
            num_workers,
        )
        if min(train_frames, repeats, draws, val_draws) < 1:
            raise ValueError(
                f"train_frames is {train_frames}, repeats {repeats}, draws {draws}, val_draws {val_draws}: each is at least 1."
            )
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol is {protocol!r}: choose of {', '.join(get_args(Protocol))}.")
        if protocol == "first" and views != 1:
            raise ValueError(
                f"views is {views}, and protocol first has one support view: set views 1, or another protocol."
            )
        self.root = Path(root)
        self.train_frames = train_frames
        self.repeats = repeats
        self.protocol: Protocol = protocol
        self.draws = draws
        self.val_draws = val_draws
        self.on_bad_scene = on_bad_scene
        self.read_picture = partial(read_view, drop_alpha=self.drop_alpha)
        self.augmentation = ViewDraw(views + query_views, train_frames, self.read_picture)

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
            if not self.drop_alpha and is_opaque(scenes[0].pictures[0]):
                self.notes["background"] = (
                    f"pictures without transparency are taken as they are, on a white background or not ({scenes[0].name})"
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
            leave = "Mend them, or leave them out: --data.init_args.on_bad_scene skip."
            way_out = leave if scenes else f"Mend them. If scenes are missing, {self.how_to_get()}"
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
        return EvaluationViews(scenes, frames, repetitions, self.read_picture)

    def _check(self, scene: Scene, split: Split) -> None:
        """Refuse a scene whose pictures have another size, or that has not frames enough."""
        if scene.shape != (self.size, self.size):
            raise ValueError(
                f"The pictures of {scene.name} have {scene.shape[0]} x {scene.shape[1]} pixels, size is {self.size}: resize "
                "them, or say --data.init_args.size where they are square."
            )
        for frames, wanted, which in self._needed(len(scene.pictures), split):
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
            return [(total, 1 + _QUERIES_OF_FIRST, "frames")]
        first = min(total, self.train_frames)
        return [(first, self.views, "frames for support"), (total - first, self.query_views, "frames for queries")]
