"""Anybody's sound in a folder, for training."""

from __future__ import annotations

from typing import Any

from datamodules.audio.base import RecordingSet
from datamodules.storage.audio import audio_files
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_of_split


class AudioFolder(RecordingSet):
    """The sound files of a folder and of the folders in it: WAV, FLAC, OGG, MP3 and others, of any rate and length.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, recordings are drawn for validation and test, and the rest is for training; the draw
    depends on ``split_seed`` and the paths below the folder alone. Training sees a random piece of every recording, anew in
    every epoch, evaluation its first seconds.

    Args:
        root: The folder.
        val_ratio: Part of the recordings for validation, in (0, 1), at least one recording; unless there are folders.
        test_ratio: The same for the test; validation recordings serve if 0.
        split_seed: Of that draw.
        kwargs: Arguments of `RecordingSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if recordings are missing or unreadable.
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
        """Return the recordings of a split, in alphabetical order."""
        files, self.notes["split"] = files_of_split(self.root, split, audio_files, "sound", self.random_split)
        return files
