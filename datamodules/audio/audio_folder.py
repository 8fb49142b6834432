"""Anybody's sound in a folder, for training."""

from __future__ import annotations

from typing import Any

from datamodules.audio.base import ClipSet
from datamodules.storage.audio import sound_files
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_of_split


class AudioFolder(ClipSet):
    """The sound files of a folder and of the folders in it: WAV, FLAC, OGG, MP3 and others, of any rate and length.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, clips are drawn for validation and test, and the rest is for training; the draw depends
    on ``split_seed`` and the paths below the folder alone. Training sees a random piece of every clip, anew in every epoch,
    evaluation its first seconds.

    Args:
        root: The folder.
        val_ratio: Part of the clips for validation, in (0, 1), at least one clip; unless there are folders.
        test_ratio: The same for the test; validation clips serve if 0.
        split_seed: Of that draw.
        kwargs: Arguments of `ClipSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if clips are missing or unreadable.
    """

    def __init__(
        self,
        root: str = "data/sound",
        *,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, cropping="whole", partial=False, **kwargs)
        self.random_split = RandomSplit(val_ratio, test_ratio, split_seed)

    def files(self, split: Split) -> list[NamedFile]:
        """Return the clips of a split, in alphabetical order."""
        files, self.notes["split"] = files_of_split(self.root, split, sound_files, "sound", self.random_split)
        return files
