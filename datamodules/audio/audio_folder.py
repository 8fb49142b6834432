"""A folder of audio files for training."""

from __future__ import annotations

from typing import Any

from datamodules.audio.base import RecordingSet
from datamodules.storage.audio import audio_files
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_of_split


class AudioFolder(RecordingSet):
    """The audio files of a folder and its subfolders: WAV, FLAC, OGG, MP3 and others, of any sampling rate and length.

    If the folder has a subfolder ``train`` beside ``val`` or ``test``, the subfolders are the splits; if ``val`` or ``test``
    is missing, the other serves as both. Otherwise validation and test recordings are drawn at random and the rest is for
    training; the split depends only on ``split_seed`` and the relative paths. Training takes a new random crop of every
    recording in every epoch, evaluation takes the first seconds.

    Args:
        root: The folder.
        val_ratio: Fraction of recordings for validation, in (0, 1), at least one recording; ignored if subfolders are splits.
        test_ratio: Fraction of recordings for testing; 0 tests on the validation recordings. Ignored if subfolders are splits.
        split_seed: Seed of the random split.
        kwargs: Arguments of `RecordingSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if recordings are missing or unreadable.
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
        """Return the recordings of a split in alphabetical order."""
        files, self.notes["split"] = files_of_split(self.root, split, audio_files, "audio files", self.random_split)
        return files
