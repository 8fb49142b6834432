"""LibriSpeech: a thousand hours of read English speech in seven subsets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from datamodules.audio.base import RecordingSet
from datamodules.storage.archives import extract
from datamodules.storage.download import Source, download
from datamodules.storage.folders import NamedFile, Split

Subset = Literal[
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
]

_DIGESTS = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
_SIZES = {"test-clean": 346_663_984}  # bytes, where known


class LibriSpeech(RecordingSet):
    """Crops of the utterances of LibriSpeech (Panayotov et al., ICASSP 2015; CC BY 4.0), 16 kHz, mono.

    The published protocol trains on the 28,539 utterances of ``train-clean-100`` and evaluates on the first seconds of the
    2,620 utterances of ``test-clean``. Training takes a new random crop of every utterance in every epoch. Some utterances are
    shorter than 3 seconds; they are zero-padded, and the padding is masked unless ``cropping`` is ``released``.

    The folder of a subset is the first of these in ``root`` that holds folders of speakers:
    ``librispeech/SUBSET/LibriSpeech/SUBSET``, where downloads are extracted, ``librispeech/LibriSpeech/SUBSET``,
    ``librispeech/SUBSET``, ``LibriSpeech/SUBSET``, ``LibriSpeech/original/LibriSpeech/SUBSET`` and ``SUBSET``. It holds
    ``SPEAKER/CHAPTER/*.flac``.

    Args:
        download: Whether to download the archives of the subsets into ``root``, 6.3 GB for ``train-clean-100``. An archive that
            is already there is extracted in any case.
        train_subset: Subset for training.
        val_subset: Subset for validation.
        test_subset: Subset for testing.
        kwargs: Arguments of `RecordingSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if utterances are missing or unreadable.
        ConnectionError: If an archive cannot be downloaded.
    """

    published: ClassVar[Mapping[str, int]] = {"train-clean-100": 28_539, "test-clean": 2_620}
    sources: ClassVar[Mapping[str, Source]] = {
        subset: Source(
            f"https://www.openslr.org/resources/12/{subset}.tar.gz",
            f"{subset}.tar.gz",
            f"sha256:{_DIGESTS[subset]}",
            _SIZES.get(subset),
        )
        for subset in get_args(Subset)
    }

    def __init__(
        self,
        *,
        download: bool = True,
        train_subset: Subset = "train-clean-100",
        val_subset: Subset = "test-clean",
        test_subset: Subset = "test-clean",
        **kwargs: Any,
    ) -> None:
        super().__init__(channels=1, **kwargs)
        self.download = download
        self.subsets: Mapping[Split, Subset] = {"train": train_subset, "val": val_subset, "test": test_subset}
        for subset in self.subsets.values():
            if subset not in self.sources:
                raise ValueError(f"LibriSpeech has no subset {subset}: choose one of {', '.join(self.sources)}.")

    def fetch(self, splits: Sequence[Split]) -> None:
        """Download and extract the archives of the splits whose utterances are missing."""
        for subset in dict.fromkeys(self.subsets[split] for split in splits):
            source = self.sources[subset]
            archive = self.root / source.filename
            if self._folder(subset) is None and (self.download or archive.exists()):
                extract(download(source, self.root), self.root / "librispeech" / subset)

    def files(self, split: Split) -> list[NamedFile]:
        """Return the utterances of a split, named and sorted by id: speaker, chapter and number."""
        subset = self.subsets[split]
        folder = self._folder(subset)
        if folder is None:
            raise ValueError(
                f"LibriSpeech {subset} is missing in {self.root}: none of {', '.join(map(str, self._candidates(subset)))} "
                f"holds folders of speakers. Download it with --data.init_args.download true.\n{self._manual_download(subset)}"
            )
        paths = [path for path in folder.glob("*/*/*.flac") if not path.name.startswith(".")]
        return sorted(NamedFile(path.stem, path) for path in paths)

    def count(self, split: Split) -> int | None:
        """Return the published number of utterances of a split; None if unknown."""
        return self.published.get(self.subsets[split])

    def _candidates(self, subset: Subset) -> list[Path]:
        """Return the possible folders of a subset, in order of precedence."""
        return [
            self.root / "librispeech" / subset / "LibriSpeech" / subset,
            self.root / "librispeech" / "LibriSpeech" / subset,
            self.root / "librispeech" / subset,
            self.root / "LibriSpeech" / subset,
            self.root / "LibriSpeech" / "original" / "LibriSpeech" / subset,
            self.root / subset,
        ]

    def _folder(self, subset: Subset) -> Path | None:
        """Return the folder of a subset, the first that holds folders of speakers; None if there is none."""
        return next((path for path in self._candidates(subset) if path.is_dir() and _holds_speakers(path)), None)

    def _fix(self, split: Split) -> str:
        """Return the instruction that follows the message on missing utterances."""
        subset = self.subsets[split]
        return f"move {self._folder(subset)} away to download it again. {self._manual_download(subset)}"

    def _manual_download(self, subset: Subset) -> str:
        """Return instructions for downloading an archive by hand."""
        source = self.sources[subset]
        return (
            f"Or download {source.url} ({source.checksum}) to {self.root / source.filename}; it is extracted into "
            f"{self.root / 'librispeech' / subset}, which must not exist."
        )


def _holds_speakers(folder: Path) -> bool:
    """Return whether a folder holds a folder whose name is a number."""
    with os.scandir(folder) as entries:
        return any(entry.name.isdecimal() and entry.is_dir() for entry in entries)
