"""Bundled recordings of speech: audio for a first run, for tests and for the documentation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.audio.base import AudioModule, RandomAudioCrop, pad_to
from datamodules.batch import Signal
from datamodules.loading import InMemory
from datamodules.storage.audio import read_recording, resampled

SPEECH = Path(__file__).resolve().parents[2] / "samples" / "speech"
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
def read_prompt(name: str, sample_rate: int = 16000) -> Tensor:
    """Return a bundled recording as ``(1, n)`` float32 in [-1, 1].

    Args:
        name: Name of the file without its extension.
        sample_rate: Samples per second of the result; those of the file are 16,000.

    Example:
        >>> read_prompt("ast_en_spy-misdn").shape
        torch.Size([1, 27158])
    """
    recording = read_recording(SPEECH / f"{name}.flac")
    return resampled(recording.values, recording.sample_rate, sample_rate)


class SampleSpeech(AudioModule):
    """Bundled voice prompts by two speakers in English and French, a minute in total; nothing is downloaded.

    Training takes random crops of 18 recordings. Validation and test use six others, four in English and two in French, cut
    into consecutive crops from the start; an incomplete last crop is dropped. A crop has a name such
    as ``ast_en_agent-pass-0``. Recordings shorter than a crop (none at one second) are zero-padded, and the padding is masked.

    The recordings are from Asterisk's core sounds by Allison Smith and June Wallack, CC BY-SA 3.0; credits and conditions are
    in ``samples/speech/LICENSES.md``. They are too few to replace LibriSpeech in an evaluation.

    Args:
        crops_per_epoch: Number of training crops per epoch.
        kwargs: Arguments of `AudioModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, *, crops_per_epoch: int = 1024, **kwargs: Any) -> None:
        if crops_per_epoch < 1:
            raise ValueError(f"crops_per_epoch is {crops_per_epoch}; it must be at least 1.")
        super().__init__(channels=1, **kwargs)
        self.crops_per_epoch = crops_per_epoch
        self.augmentation = RandomAudioCrop(self.samples)

    def setup(self, stage: str) -> None:
        """Read the recordings."""
        if stage == "fit":
            recordings = [(name, read_prompt(name, self.sample_rate)) for name in TRAINING_RECORDINGS]
            self.train_set = InMemory([Signal(values, name) for name, values in recordings], self.crops_per_epoch)
        self.val_set = self.test_set = InMemory([item for name in HELD_OUT_RECORDINGS for item in self._held_out(name)])
        self.notes["held-out items"] = (
            f"these {len(self.test_set)} crops are from six recordings by two speakers, whose other recordings are the "
            "training data"
        )

    def _held_out(self, name: str) -> list[Signal]:
        """Return the consecutive crops of a recording, at least one."""
        recording = read_prompt(name, self.sample_rate)
        count = max(1, recording.shape[1] // self.samples)
        crops = [pad_to(crop, self.samples) for crop in recording.split(self.samples, dim=1)[:count]]
        return [Signal(values, f"{name}-{number}", length=length) for number, (values, length) in enumerate(crops)]
