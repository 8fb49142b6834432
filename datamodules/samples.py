"""Data that comes with the software: for a first run, for tests and documentation, without any download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import skimage.data
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.clip_sets import RandomPiece, SoundModule, padded
from datamodules.images import RandomCrop, resize_picture
from datamodules.sound import read_clip, resampled

TRAINING_PHOTOGRAPHS = (
    "chelsea",
    "rocket",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "stereo_motorcycle",
    "camera",
    "brick",
    "gravel",
    "grass",
    "coins",
    "moon",
)
HELD_OUT_PHOTOGRAPHS = ("astronaut", "coffee")

SPEECH = Path(__file__).resolve().parent.parent / "samples" / "speech"
TRAINING_CLIPS = (
    "ast_en_conf-invalid",
    "ast_en_conf-locked",
    "ast_en_conf-lockednow",
    "ast_en_confbridge-has-left",
    "ast_en_confbridge-removed",
    "ast_en_please-try-call-later",
    "ast_en_spy-misdn",
    "ast_en_vm-enter-num-to-call",
    "ast_en_vm-tempgreeting",
    "ast_en_vm-tomakecall",
    "ast_fr_conf-onlyone",
    "ast_fr_confbridge-participants",
    "ast_fr_confbridge-rest-talk-vol-out",
    "ast_fr_is-in-use",
    "ast_fr_queue-thereare",
    "ast_fr_spy-usbradio",
    "ast_fr_vm-mailboxfull",
    "ast_fr_vm-tooshort",
)
HELD_OUT_CLIPS = (
    "ast_en_agent-pass",
    "ast_en_queue-callswaiting",
    "ast_en_sorry-youre-having-problems",
    "ast_en_vm-undeleted",
    "ast_fr_confbridge-begin-glorious-c",
    "ast_fr_vm-toreply",
)


@cache
def photograph(name: str) -> Tensor:
    """Return one of scikit-image's photographs as ``(3, H, W)`` uint8; grey ones have three equal channels.

    Example:
        >>> photograph("astronaut").shape
        torch.Size([3, 512, 512])
    """
    loaded = getattr(skimage.data, name)()
    pixels = torch.from_numpy(loaded[0] if isinstance(loaded, tuple) else loaded)
    return pixels.expand(3, *pixels.shape) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


@cache
def recording(name: str, rate: int = 16000) -> Tensor:
    """Return one of the recordings of speech as ``(1, n)`` float32 in [-1, 1].

    Args:
        name: Of its file, without the ending.
        rate: Samples a second; 16,000 in the file.

    Example:
        >>> recording("ast_en_spy-misdn").shape
        torch.Size([1, 27158])
    """
    values, original = read_clip(SPEECH / f"{name}.flac")
    return resampled(values, original, rate)


class InMemory(Dataset[Signal]):
    """Signals in memory, repeated until an epoch has ``length`` items.

    Args:
        items: The signals.
        length: Items of an epoch; the number of signals if None.
    """

    def __init__(self, items: Sequence[Signal], length: int | None = None) -> None:
        self.items = list(items)
        self.length = length or len(self.items)

    def __len__(self) -> int:
        """Return the items of an epoch."""
        return self.length

    def __getitem__(self, index: int) -> Signal:
        """Return signal ``index``, counted round and round."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in an epoch of {self.length} items")  # which also ends iteration
        return self.items[index % len(self.items)]


class Photographs(InMemory):
    """Pictures in memory, repeated until an epoch has ``length`` items.

    Args:
        pictures: The pictures by name.
        length: Items of an epoch; the number of pictures if None.
    """

    def __init__(self, pictures: Sequence[tuple[str, Tensor]], length: int | None = None) -> None:
        super().__init__([Signal(pixels, name) for name, pixels in pictures], length)
        self.pictures = list(pictures)


class SamplePhotos(CoordinateDataModule):
    """The photographs of scikit-image (BSD-3; pictures in the public domain, CC0 or as named there): no download.

    Training sees random crops, at several scales, of twelve photographs. Held out, for validation and test, are ``astronaut``
    and ``coffee``: each whole (squeezed to a square) and as 16 fixed crops, the central squares of a 4 x 4 grid.

    Args:
        size: Pixels along each side of a picture.
        crops_per_epoch: Training crops of an epoch.
        scales: Short sides of the photographs that are cropped, in multiples of ``size``, at least 1.
        shuffle_colors: In training, whether colour channels change places at random: more colours than twelve pictures have.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        size: int = 64,
        crops_per_epoch: int = 1024,
        scales: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 4.0),
        shuffle_colors: bool = False,
        **kwargs: Any,
    ) -> None:
        if size < 1 or crops_per_epoch < 1 or not scales or min(scales) < 1:
            raise ValueError(
                f"size is {size}, crops_per_epoch {crops_per_epoch}, scales {list(scales)}: "
                "sizes and counts are at least 1, and so are scales, of which there is at least one."
            )
        super().__init__(**kwargs)
        self.size = size
        self.crops_per_epoch = crops_per_epoch
        self.scales = tuple(scales)
        self.augmentation = RandomCrop(size, shuffle_colors=shuffle_colors)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """``(3, size, size)``."""
        return 3, self.size, self.size

    def setup(self, stage: str) -> None:
        """Prepare the pictures, a second of work."""
        if stage == "fit":
            scaled = [
                (name, _scaled(photograph(name), round(self.size * scale)))
                for scale in self.scales
                for name in TRAINING_PHOTOGRAPHS
            ]
            self.train_set = Photographs(scaled, self.crops_per_epoch)
        self.val_set = self.test_set = Photographs(
            [item for name in HELD_OUT_PHOTOGRAPHS for item in self._held_out(name)]
        )

    def _held_out(self, name: str) -> list[tuple[str, Tensor]]:
        """Return a photograph whole and as 16 fixed crops."""
        picture = photograph(name)
        height, width = picture.shape[1] // 4, picture.shape[2] // 4
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        crops = [
            (f"{name}-{row}{column}", picture[:, row * height + top :, column * width + left :][:, :side, :side])
            for row in range(4)
            for column in range(4)
        ]
        return [(crop, resize_picture(pixels, self.size, self.size)) for crop, pixels in [(name, picture), *crops]]


def _scaled(picture: Tensor, short_side: int) -> Tensor:
    """Return a picture whose shorter side has ``short_side`` pixels."""
    height, width = picture.shape[1:]
    factor = short_side / min(height, width)
    return resize_picture(picture, round(height * factor), round(width * factor))


class SampleSpeech(SoundModule):
    """Recorded prompts of two speakers, English and French, a minute together: no download.

    Training sees pieces at random places of 18 clips. Held out, for validation and test, are six others, four English and two
    French, each as the pieces that follow one another from its start, as many as fit, such as ``ast_en_agent-pass-0``. Clips
    that are shorter than a piece, none at one second, are followed by zeros, which count nowhere.

    The recordings are those of Asterisk's core sounds by Allison Smith and June Wallack, CC BY-SA 3.0; credits and conditions
    are in ``samples/speech/LICENSES.md``. They are for trying things out: too few to stand for LibriSpeech.

    Args:
        crops_per_epoch: Training pieces of an epoch.
        kwargs: Arguments of `SoundModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, crops_per_epoch: int = 1024, **kwargs: Any) -> None:
        if crops_per_epoch < 1:
            raise ValueError(f"crops_per_epoch is {crops_per_epoch}; an epoch has at least 1 piece.")
        super().__init__(channels=1, **kwargs)
        self.crops_per_epoch = crops_per_epoch
        self.augmentation = RandomPiece(self.samples)

    def setup(self, stage: str) -> None:
        """Read the recordings."""
        if stage == "fit":
            clips = [(name, recording(name, self.rate)) for name in TRAINING_CLIPS]
            self.train_set = InMemory([Signal(values, name) for name, values in clips], self.crops_per_epoch)
        self.val_set = self.test_set = InMemory([item for name in HELD_OUT_CLIPS for item in self._held_out(name)])

    def _held_out(self, name: str) -> list[Signal]:
        """Return the pieces of a clip that fit, one at least."""
        clip = recording(name, self.rate)
        count = max(1, clip.shape[1] // self.samples)
        pieces = [padded(piece, self.samples) for piece in clip.split(self.samples, dim=1)[:count]]
        return [Signal(values, f"{name}-{number}", length=length) for number, (values, length) in enumerate(pieces)]
