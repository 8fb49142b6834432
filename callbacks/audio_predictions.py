"""What a prediction writes of clips: the sound that a model makes of them, its spectrogram, the instance code, and a table."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from callbacks.predictions import Part, Predictions, Row
from composers.base import Composer
from composers.codes import MEASURED, InstanceCode
from datamodules.base import CoordinateDataModule
from modalities.audio import check_bits, code_rate, own_facts, render, save_wav, sound_psnr
from modalities.spectrogram import Panel, draw, save_figure


class SoundPredictions(Predictions):
    """Writes what a model makes of every clip: its sound, spectrograms of the clip and of that, and its instance code.

    For a clip called NAME these are NAME.wav, NAME.png, NAME.safetensors and a row of predictions.csv: the PSNR of what was
    predicted and refined, on the samples that the model sees, of NAME.wav at the clip's own rate, and of silence there.

    Args:
        folder: Where to; made if it is missing. One that holds other things than earlier predictions is refused.
        rate: Samples a second of NAME.wav; those of the clip if None. Any will do: the model's function of time has none.
        bits: Of a sample of NAME.wav, 16 or 24.
        max_memory: MB that decoding may take above the model and the sound.

    Raises:
        ValueError: If a number is out of range.
    """

    axes = 1
    results = "Sound, spectrograms, codes"
    headings = ("clip", "seconds")
    numbers: ClassVar = {
        "psnr predicted": "predicted",
        "psnr refined": "refined",
        "psnr": "at own rate",
        "silence": "silence",
    }

    def __init__(
        self, folder: str = "predictions", rate: int | None = None, bits: int = 16, max_memory: float = 500.0
    ) -> None:
        super().__init__(folder)
        if rate is not None and rate < 1:
            raise ValueError(f"rate is {rate}; it must be at least 1.")
        check_bits(bits)
        self.rate = rate
        self.bits = bits
        self.max_memory = max_memory

    def write(self, data: CoordinateDataModule, composer: Composer, code: InstanceCode, part: Part) -> Row:
        """Write the sound, its spectrogram and the code of a clip."""
        true, rate = _original(data, code, part)
        code = replace(code, facts=code.facts | own_facts(rate, true.shape[1]))
        code.save(self.folder / f"{code.name}.safetensors")
        wanted = self.rate or rate
        heard = render(composer, code, wanted, self.max_memory)
        save_wav(heard, wanted, self.folder / f"{code.name}.wav", self.bits)
        seen = heard if wanted == rate else render(composer, code, rate, self.max_memory)
        psnr, silence = sound_psnr(seen, true), sound_psnr(torch.zeros_like(true), true)
        panels = [Panel("original", true, rate)], [Panel(f"reconstruction {psnr:.1f} dB", heard, wanted)]
        save_figure(draw(panels), self.folder / f"{code.name}.png")
        row = {"seconds": f"{true.shape[1] / rate:.3f}", "rate": str(rate), "tiles": str(len(code.boxes))}
        row |= {fact: text for fact, text in code.facts.items() if fact not in MEASURED}
        return row | {"psnr": f"{psnr:.3f}", "silence": f"{silence:.3f}"}

    def described(self, row: Row) -> tuple[str, ...]:
        """Return the seconds of a clip."""
        return (f"{float(row['seconds']):.2f}",)


def _original(data: CoordinateDataModule, code: InstanceCode, part: Part) -> tuple[Tensor, int]:
    """Return the clip itself ``(C, n)`` and its rate."""
    if part.values is not None:
        return part.values[:, : part.piece.shape[0]].cpu(), code_rate(code)
    values = data.original(code.name)
    assert values is not None, "a data module of pieces knows what they are pieces of"
    rates: dict[str, int] = getattr(data, "rates", {})
    return values, rates.get(code.name, code_rate(code))
