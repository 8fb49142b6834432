"""Recorded prompts bundled with the software: audio for a first run, for tests and documentation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.audio.base import AudioModule, RandomPiece, padded
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
    """Return one of the recordings of speech as ``(1, n)`` float32 in [-1, 1].

    Args:
        name: Of its file, without the ending.
        sample_rate: Samples a second; 16,000 in the file.

    Example:
        >>> read_prompt("ast_en_spy-misdn").shape
        torch.Size([1, 27158])
    """
    values, original = read_recording(SPEECH / f"{name}.flac")
    return resampled(values, original, sample_rate)


class SampleSpeech(AudioModule):
    """Recorded prompts of two speakers, English and French, a minute together: no download.

    Training sees pieces at random places of 18 recordings. Held out, for validation and test, are six others, four English and
    two French, each as the pieces that follow one another from its start, as many as fit, such as ``ast_en_agent-pass-0``.
    Recordings that are shorter than a piece, none at one second, are followed by zeros, which count nowhere.

    The recordings are those of Asterisk's core sounds by Allison Smith and June Wallack, CC BY-SA 3.0; credits and conditions
    are in ``samples/speech/LICENSES.md``. They are for trying things out: too few to stand for LibriSpeech.

    Args:
        crops_per_epoch: Training pieces of an epoch.
        kwargs: Arguments of `AudioModule`.

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
            recordings = [(name, read_prompt(name, self.sample_rate)) for name in TRAINING_RECORDINGS]
            self.train_set = InMemory([Signal(values, name) for name, values in recordings], self.crops_per_epoch)
        self.val_set = self.test_set = InMemory([item for name in HELD_OUT_RECORDINGS for item in self._held_out(name)])

    def _held_out(self, name: str) -> list[Signal]:
        """Return the pieces of a recording that fit, one at least."""
        recording = read_prompt(name, self.sample_rate)
        count = max(1, recording.shape[1] // self.samples)
        pieces = [padded(piece, self.samples) for piece in recording.split(self.samples, dim=1)[:count]]
        return [Signal(values, f"{name}-{number}", length=length) for number, (values, length) in enumerate(pieces)]
