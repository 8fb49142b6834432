"""Bundled recordings of speech: audio for a first run, for tests and for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.audio.base import AudioModule, RandomAudioCrop, pad_to
from datamodules.batch import Signal
from datamodules.loading import InMemory
from datamodules.storage.audio import read_recording, resampled

SPEECH = Path(__file__).resolve().parents[2] / "samples" / "speech"
MORE_SPEECH = SPEECH.with_name("speech_more")
SPEAKERS = {  # by the start of a name
    "ast_en_": "English by Allison Smith",
    "ast_fr_": "Canadian French by June Wallack",
}
TRAINING_RECORDINGS = (
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
HELD_OUT_RECORDINGS = (
    "ast_en_agent-pass",
    "ast_en_queue-callswaiting",
    "ast_en_sorry-youre-having-problems",
    "ast_en_vm-undeleted",
    "ast_fr_confbridge-begin-glorious-c",
    "ast_fr_vm-toreply",
)


@cache
def read_prompt(name: str, sample_rate: int = 16000, folder: Path = SPEECH) -> Tensor:
    """Return a bundled recording as ``(1, n)`` float32 in [-1, 1].

    Args:
        name: Name of the file without its extension.
        sample_rate: Samples per second of the result; those of the file are 16,000.
        folder: Folder of the file.

    Example:
        >>> read_prompt("ast_en_spy-misdn").shape
        torch.Size([1, 27158])
    """
    recording = read_recording(folder / f"{name}.flac")
    return resampled(recording.values, recording.sample_rate, sample_rate)


class SampleSpeech(AudioModule):
    """Bundled voice prompts by two speakers in English and French, a minute or nine; nothing is downloaded.

    Training takes random crops of 18 recordings or, with ``extended``, of 169, and as many crops of each. Validation and test
    use six others, four in English and two in French, cut into consecutive crops from the start; an incomplete last crop is
    dropped. A crop has a name such as ``ast_en_agent-pass-0``. Recordings shorter than a crop (none at one second) are
    zero-padded, and the padding is masked.

    The recordings are from Asterisk's core sounds by Allison Smith and June Wallack, CC BY-SA 3.0; credits and conditions are
    in ``samples/speech/LICENSES.md`` and ``samples/speech_more/LICENSES.md``. They are too few to replace LibriSpeech in an
    evaluation.

    Args:
        crops_per_epoch: Number of training crops per epoch; at most as many recordings are used.
        extended: Whether to train also on the 151 recordings of ``samples/speech_more``, 8.1 minutes by the same speakers.
            Validation and test do not change.
        kwargs: Arguments of `AudioModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, *, crops_per_epoch: int = 1024, extended: bool = False, **kwargs: Any) -> None:
        if crops_per_epoch < 1:
            raise ValueError(f"crops_per_epoch is {crops_per_epoch}; it must be at least 1.")
        super().__init__(channels=1, **kwargs)
        self.crops_per_epoch = crops_per_epoch
        self.extended = extended

    def setup(self, stage: str) -> None:
        """Read the recordings."""
        if stage == "fit":
            recordings = self._training_recordings()[: self.crops_per_epoch]
            self.train_set = InMemory(recordings, self.crops_per_epoch)
            self.augmentation = self._training_crop(RandomAudioCrop(self.samples), recordings)
            self.notes["training audio"] = self._amount(recordings, "recordings")
        held_out = [item for name in HELD_OUT_RECORDINGS for item in self._held_out(name)]
        self.val_set = self.test_set = InMemory(held_out)
        self.notes["held-out audio"] = self._amount(held_out, f"crops of {len(HELD_OUT_RECORDINGS)} recordings")
        self.notes["held-out items"] = (
            f"these {len(held_out)} crops are from six recordings by two speakers, whose other recordings are the training data"
        )

    def _training_recordings(self) -> list[Signal]:
        """Return the complete recordings for training."""
        files = [(SPEECH, name) for name in TRAINING_RECORDINGS]
        if self.extended:
            files += [(MORE_SPEECH, name) for name in sorted(path.stem for path in MORE_SPEECH.glob("*.flac"))]
        return [Signal(read_prompt(name, self.sample_rate, folder), name) for folder, name in files]

    def _amount(self, items: Sequence[Signal], kind: str) -> str:
        """Return the total duration of recordings or crops, and their number, in all and by speaker."""
        samples = sum(item.values.shape[1] if item.length < 0 else item.length for item in items)
        counts = {speaker: sum(item.name.startswith(start) for item in items) for start, speaker in SPEAKERS.items()}
        by_speaker = ", ".join(f"{count} {speaker}" for speaker, count in counts.items())
        return f"{samples / self.sample_rate:.1f} s, {len(items)} {kind}: {by_speaker}"

    def _held_out(self, name: str) -> list[Signal]:
        """Return the consecutive crops of a recording, at least one."""
        recording = read_prompt(name, self.sample_rate)
        count = max(1, recording.shape[1] // self.samples)
        crops = [pad_to(crop, self.samples) for crop in recording.split(self.samples, dim=1)[:count]]
        return [Signal(values, f"{name}-{number}", length=length) for number, (values, length) in enumerate(crops)]
