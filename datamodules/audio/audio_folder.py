"""Anybody's sound in a folder, for training."""

from __future__ import annotations

from typing import Literal

from datamodules.audio.base import ClipSet
from datamodules.storage.audio import sound_files
from datamodules.storage.folders import NamedFile, Split, files_of_split


class AudioFolder(ClipSet):
    """The sound files of a folder and of the folders in it: WAV, FLAC, OGG, MP3 and others, of any rate and length.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, clips are drawn for validation and test, and the rest is for training; the draw depends
    on ``split_seed`` and the paths below the folder alone. Training sees a random piece of every clip, anew in every epoch,
    evaluation its first seconds.

    Args:
        root: The folder.
        seconds: Of a piece; clips that are shorter are followed by zeros, which count nowhere.
        rate: Samples a second; clips of other rates are resampled.
        channels: 1 mixes all channels of a clip down by their mean; 2 takes clips of two channels only.
        val_ratio: Part of the clips for validation, in (0, 1), at least one clip; unless there are folders.
        test_ratio: The same for the test; validation clips serve if 0.
        split_seed: Of that draw.
        on_bad_file: What an unreadable clip does: ``raise`` stops with its name when it is met, ``skip`` reads all first,
            leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.
        coordinate_noise: In training, moves coordinates uniformly within their cell: ``per_instance``, ``shared`` or ``none``.
        coordinate_subset: In training, coordinates per step: a ratio below 1, a count, or all if None.

    Raises:
        ValueError: If a number is out of range; at set-up, if clips are missing or unreadable.
    """

    def __init__(
        self,
        root: str = "data/sound",
        seconds: float = 1.0,
        rate: int = 16000,
        channels: Literal[1, 2] = 1,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        on_bad_file: Literal["raise", "skip"] = "raise",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        coordinate_noise: Literal["none", "per_instance", "shared"] = "none",
        coordinate_subset: int | float | None = None,
    ) -> None:
        if not (0 < val_ratio < 1 and 0 <= test_ratio < 1 and val_ratio + test_ratio < 1):
            raise ValueError(
                f"val_ratio is {val_ratio}, test_ratio {test_ratio}: parts of the clips, whose sum leaves some for training."
            )
        super().__init__(
            seconds,
            rate,
            channels,
            root,
            on_bad_file=on_bad_file,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            coordinate_noise=coordinate_noise,
            coordinate_subset=coordinate_subset,
        )
        self.val_ratio = val_ratio
        self.test_ratio = test_ratio
        self.split_seed = split_seed

    def files(self, split: Split) -> list[NamedFile]:
        """Return the clips of a split, in alphabetical order."""
        ratios = {"val_ratio": self.val_ratio, "test_ratio": self.test_ratio}
        files, self.notes["split"] = files_of_split(
            self.root, split, sound_files, "sound", **ratios, seed=self.split_seed
        )
        return files
