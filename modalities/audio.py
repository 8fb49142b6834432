"""Audio: read, encoded, decoded at any sampling rate, written, drawn and measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.codes import MEASURED, Axis, InstanceCode, decode_at, encoded, fingerprint, steps_taken
from composers.inference.refinement import Refinement
from composers.metrics import PSNR, InstanceMetric, psnr_of_mse
from composers.networks import Modulations
from datamodules.batch import Cell, Instance, Observation, Samples
from datamodules.domain import Domain, Grid
from datamodules.spec import Headline, Modality
from datamodules.storage.audio import read_recording
from datamodules.storage.files import written_whole
from datamodules.storage.recordings import cut_recording, measured, read_seen, recording_tiles
from datamodules.tiles import Box
from modalities.decoding import values_at
from modalities.drawing import Waveform
from modalities.spectrogram import draw, figure_image, save_figure
from modalities.writing import Prediction, Row, Writer

_PANEL, _COMPACT = (4.2, 2.2), (2.4, 1.8)  # hundreds of pixels of a spectrogram in a figure
_LARGEST_WAV = 2**32 - 64  # bytes of samples; its header counts them in 32 bits


def encode(
    composer: Composer,
    source: str | Path | Tensor,
    rate: int = 16000,
    *,
    refinement: Refinement | None = None,
    batch_size: int = 16,
) -> InstanceCode:
    """Return the code of a recording: predicted, then refined, in overlapping tiles if it is longer than the model's signals.

    Args:
        composer: A model of audio.
        source: A file of audio, resampled and mixed as the model needs it; or ``(C, n)`` in [-1, 1] at ``rate``.
        rate: Samples per second of the signals that the model was trained with.
        refinement: Steps and rate; the model's own if None, ``Refinement(steps=0)`` for the prediction alone.
        batch_size: Tiles at a time.

    Raises:
        ValueError: If the recording cannot be read, or the model takes no sound.

    Example:
        ``code = encode(composer, "speech.wav")``
    """
    channels, length = input_shape(composer)
    if isinstance(source, Tensor):
        values, facts, name = source, own_facts(rate, source.shape[-1]), ""
    else:
        seen = read_seen(source, channels, rate)
        values, facts, name = seen.values, own_facts(seen.rate, seen.samples), Path(source).stem
    if values.dim() != 2 or len(values) != channels or not values.shape[1]:
        raise ValueError(
            f"The recording has shape {tuple(values.shape)}: this model takes ({channels}, n), n at least 1."
        )
    steps, domain = refinement or composer.refinement, Grid(((-length / rate, length / rate),))
    places = recording_tiles(values.shape[1], length)
    parts = (places[start : start + batch_size] for start in range(0, len(places), batch_size))
    latents = encoded(composer, (_observation(values, some, domain, composer.device) for some in parts), steps)
    latents = {key: latent.cpu() for key, latent in latents.items()}
    facts |= steps_taken(composer, steps.steps)
    layout = composer.layout(Observation(torch.empty(1, channels, length)))
    shape = (values.shape[1],)
    return InstanceCode(latents, places, shape, fingerprint(composer), name, facts, domain=domain, layout=layout)


def render(composer: Composer, code: InstanceCode, rate: int | None = None, max_memory: float = 500.0) -> Tensor:
    """Return the sound of a code at any rate, ``(C, n)`` on the CPU, unclipped.

    Sample 0 stands at the same time at every rate, as resampling has it: of twice the rate, every other sample is the same.

    Args:
        composer: The model of the code.
        code: Of a recording.
        rate: Samples per second; those of the recording that was encoded if None.
        max_memory: MB that decoding may take above the model and the sound.

    Raises:
        ValueError: If the code is of another model or no sound, or the rate is out of range.

    Example:
        ``save_wav(render(composer, code, 48000), 48000, Path("speech.wav"))``
    """
    if len(code.shape) != 1:
        raise ValueError(f"This code stands for a signal of shape {code.shape}, not for sound.")
    wanted = own_rate(code) if rate is None else rate
    if wanted < 1:
        raise ValueError(f"rate is {wanted}; it must be at least 1.")
    seen = code_rate(code)
    axis = Axis(_count(code, wanted), Fraction(seen, wanted), Fraction(wanted, 2 * seen))
    try:
        values = torch.empty(composer.network.value_dim, axis.number)
    except RuntimeError as error:
        raise ValueError(f"{axis.number:,} samples do not fit into memory: ask for a lower rate.") from error
    done = 0
    for band in decode_at(composer, code, [axis], max_memory):
        values[:, done : done + len(band)] = band.mT
        done += len(band)
    return values


def save_wav(values: Tensor, rate: int, path: Path, bits: int = 16) -> None:
    """Write audio as an integer PCM WAV file, whole or not at all.

    Args:
        values: ``(C, n)``, clipped to [-1, 1].
        rate: Samples per second.
        path: The file.
        bits: Bits per sample, 16 or 24.

    Raises:
        ValueError: If the audio is longer than a WAV file can be, or ``bits`` is another number.
    """
    import soundfile  # here, because images and scenes do not need it

    check_bits(bits)
    if values.numel() * bits // 8 > _LARGEST_WAV:
        raise ValueError(f"{path} would be longer than a WAV can be, 4 GB: ask for a lower rate.")
    full = 2 ** (bits - 1)
    levels = (values.detach().cpu().double() * full).round().clamp(-full, full - 1).to(torch.int32)
    content = io.BytesIO()  # a full disk is an OSError of the write below, not an error of libsndfile
    left_aligned = (levels << (32 - bits)).mT.contiguous().numpy()  # soundfile keeps the upper bits
    soundfile.write(content, left_aligned, rate, subtype=f"PCM_{bits}", format="WAV")
    with written_whole(path) as part:
        part.write_bytes(content.getbuffer())


def check_bits(bits: int) -> None:
    """Refuse bits of a sample that no WAV is written with."""
    if bits not in (16, 24):
        raise ValueError(f"bits is {bits}; a WAV is written with 16 or 24.")


def audio_psnr(seen: Tensor, true: Tensor) -> float:
    """Return the PSNR in dB, peak 1, of audio ``(C, n)`` as a WAV has it, clipped to [-1, 1].

    Example:
        >>> round(audio_psnr(torch.tensor([[3.0, 0.2]]), torch.tensor([[1.0, 0.0]])), 2)
        16.99
    """
    return psnr_of_mse((seen.clamp(-1, 1) - true).double().square().mean()).item()


def code_rate(code: InstanceCode) -> int:
    """Return the rate of the signals that the model of a code sees."""
    [(start, stop)] = code.boxes[0]
    return sample_rate(code.domain, stop - start)


def sample_rate(domain: Domain, samples: int) -> int:
    """Return the samples per second of audio with so many samples in a domain: two units are a second, as published.

    Raises:
        ValueError: If it is no interval of time.

    Example:
        >>> sample_rate(Grid(((-3.0, 3.0),)), 48000)
        16000
    """
    if not isinstance(domain, Grid) or len(domain.ranges) != 1:
        raise ValueError(f"{domain} is no interval of time: audio lies on a grid of one axis.")
    [(low, high)] = domain.ranges
    return round(2 * samples / (high - low))


def own_rate(code: InstanceCode) -> int:
    """Return the rate of the recording that was encoded; where it is not known, that of the model."""
    return int(code.facts.get("rate", code_rate(code)))


def own_facts(rate: int, samples: int) -> dict[str, str]:
    """Return what a code notes of a recording as it was before it got the rate of a model."""
    return {"rate": str(rate), "samples": str(samples)}


def input_shape(composer: Composer) -> tuple[int, int]:
    """Return the channels and samples of the signals that a model takes; of a meta-learned model, those of its training.

    Raises:
        ValueError: If it takes something else, or does not say.
    """
    found = composer.start.signal_shape
    if found is None:
        raise ValueError(
            f"This {type(composer).__name__} does not say which sound it takes: its start states no signal_shape."
        )
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"This model takes signals of shape {found}, not sound of a known length.")
    return found[0], found[1]


def _observation(values: Tensor, places: list[Box], domain: Domain, device: torch.device) -> Observation:
    """Return tiles of a recording ``(C, n)`` as a model sees them, with their padding masked."""
    signal = torch.stack([cut_recording(values, box) for box in places]).to(device)  # (B, C, length)
    lengths = torch.tensor([[measured(box, values.shape[1])] for box in places], device=device)
    mask = torch.arange(signal.shape[-1], device=device) < lengths
    samples = Samples(domain.coords(signal.shape[2:], device=device), signal.mT, None if bool(mask.all()) else mask)
    return Observation(signal, samples)


def _count(code: InstanceCode, rate: int) -> int:
    """Return how many samples a recording has at a rate."""
    own = own_rate(code)
    samples = int(code.facts.get("samples", code.shape[0]))
    return samples if rate == own else max(1, round(Fraction(samples * rate, own)))


@dataclass(frozen=True)
class AudioWriter(Writer):
    """Writes what a model makes of audio: its reconstruction, spectrograms of both, and its instance code.

    For a file called NAME these are NAME.wav, NAME.png, NAME.safetensors and a row of the table: the PSNR of what was predicted
    and refined, on the samples that the model sees, of NAME.wav at the file's own sampling rate, and of silence there.

    Args:
        rate: Samples per second of the reconstruction; those of the file if None. Any is possible: the model's function of
            time has none.
        bits: Of a sample of NAME.wav, 16 or 24.
        max_memory: MB that decoding may take above the model and the result.

    Raises:
        ValueError: If a number is out of range.
    """

    rate: int | None = None
    bits: int = 16
    max_memory: float = 500.0

    results: ClassVar[str] = "Audio, spectrograms, codes"
    size_heading: ClassVar[str] = "seconds"
    numbers: ClassVar[Mapping[str, str]] = {
        "psnr predicted": "predicted",
        "psnr refined": "refined",
        "psnr": "at own rate",
        "silence": "silence",
    }

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        if self.rate is not None and self.rate < 1:
            raise ValueError(f"rate is {self.rate}; it must be at least 1.")
        check_bits(self.bits)

    def write(self, reconstruction: Prediction, path: Path) -> Row:
        """Write the reconstruction, the spectrograms and the code of a file of audio."""
        composer, (true, rate) = reconstruction.composer, _original(reconstruction)
        code = replace(reconstruction.code, facts=reconstruction.code.facts | own_facts(rate, true.shape[1]))
        code.save(f"{path}.safetensors")
        output_rate = self.rate or rate
        output = render(composer, code, output_rate, self.max_memory)
        save_wav(output, output_rate, Path(f"{path}.wav"), self.bits)
        compared = output if output_rate == rate else render(composer, code, rate, self.max_memory)
        psnr, silence = audio_psnr(compared, true), audio_psnr(torch.zeros_like(true), true)
        label = f"reconstruction {psnr:.1f} dB"
        save_figure(
            draw([[Waveform("original", true, rate)], [Waveform(label, output, output_rate)]]), Path(f"{path}.png")
        )
        row = {"seconds": f"{true.shape[1] / rate:.3f}", "rate": str(rate), "tiles": str(len(code.boxes))}
        row |= {fact: text for fact, text in code.facts.items() if fact not in MEASURED}
        return row | {"psnr": f"{psnr:.3f}", "silence": f"{silence:.3f}"}

    def size_of(self, row: Row) -> str:
        """Return the seconds of audio."""
        return f"{float(row['seconds']):.2f}"

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the audio of codes as `Writer.decode` says."""
        rate = self.rate or own_rate(codes[0])
        decoded = [render(composer, code, rate, self.max_memory) for code in codes]
        length = f"{decoded[0].shape[1] / rate:.2f} s at {rate:,} Hz"
        if len(codes) == 1:
            path = path or Path(f"{stem}.{rate}.wav")
            save_wav(decoded[0], rate, path, self.bits)
            return path, length
        assert path is not None, "frames go into a folder"
        for frame, values in enumerate(decoded):
            save_wav(values, rate, path / f"{frame:03d}.wav", self.bits)
        return path, length


class Audio(Modality):
    """Audio: samples in time, of any number of channels in [-1, 1]; two units of the domain are a second."""

    name = "audio"
    noun = "file"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.audio.prediction.AudioFiles"
    writer = AudioWriter
    decoding = ("rate",)

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, the PSNR of silence and over it, SI-SDR and log-spectral distance."""
        from modalities import audio_metrics  # here, because its libraries take a second to import

        return {
            "psnr": PSNR(),
            "silence": audio_metrics.Silence(),
            "over_silence": audio_metrics.OverSilence(),
            "si_sdr": audio_metrics.SISDR(),
            "lsd": audio_metrics.LogSpectralDistance(),
        }

    def read(self, path: str | Path) -> tuple[Tensor, dict[str, Any]]:
        """Return the samples of a file, ``(C, n)`` float32 in [-1, 1], and its sampling rate as ``rate``.

        Raises:
            ValueError: If it cannot be read; the message names it.
        """
        recording = read_recording(path)
        return recording.values, {"rate": recording.rate}

    def input_shape(self, composer: Composer) -> tuple[int, ...]:
        """Return the channels and samples of the signals that a model takes."""
        return input_shape(composer)

    def shown(self, instance: Instance) -> Instance:
        """Return the instance without its padding, in a domain that ends where it does."""
        mask, domain = instance.query.mask, instance.domain
        if mask is None or bool(mask.all()):
            return instance
        [samples], length = instance.shape, int(mask.sum())
        assert isinstance(domain, Grid)
        [(low, high)] = domain.ranges
        measured_domain = Grid(((low, low + (high - low) * length / samples),))
        coords, values = (None if part is None else part[:length] for part in instance.query[:2])
        assert coords is not None
        reconstructions = {step: values[:length] for step, values in instance.values.items()}
        return instance._replace(
            query=Samples(coords, values), shape=(length,), domain=measured_domain, values=reconstructions
        )

    def medium(self, cell: Cell) -> Waveform:
        """Return a cell as audio that can be heard."""
        values = cell.values.nan_to_num(0, 1, 0)
        return Waveform(cell.label, values.mT, sample_rate(cell.domain, cell.shape[0]))

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return the spectrogram of values ``(n, C)`` that last a second."""
        return figure_image(draw([[Waveform("", values.mT, shape[0])]]))

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return spectrograms of one scale in rows and columns."""
        return figure_image(
            draw([[self.medium(cell) for cell in row] for row in rows], *(_COMPACT if compact else _PANEL))
        )

    def save_media(
        self, composer: Composer, modulations: Modulations, instance: Instance, stem: Path, max_memory: float = 500.0
    ) -> bool:
        """Write the original and its reconstructions: STEM.original.wav, STEM.predicted.wav and STEM.refined.wav."""
        shown = self.shown(instance)
        rate = sample_rate(shown.domain, shown.shape[0])
        parts = {"original": shown.query.values} | {
            "refined" if step else "predicted": values for step, values in shown.values.items()
        }
        for kind, values in parts.items():
            if values is not None:
                save_wav(values.mT, rate, Path(f"{stem}.{kind}.wav"))
        return True

    def values_at(
        self, composer: Composer, modulations: Modulations, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return values ``(n, C)`` of one instance at ``coords (n, 1)``, on the CPU."""
        return values_at(composer, modulations, coords, max_memory)

    def media(self, instance: Instance) -> dict[str, Any]:
        """Return the audio and its prediction, to be heard, and spectrograms of both."""
        shown = self.shown(instance)
        assert shown.query.values is not None
        pair = {"input": shown.query.values, "reconstruction": shown.values[0]}
        waveforms = {label: self.medium(Cell(label, part, shown.shape, shown.domain)) for label, part in pair.items()}
        spectrograms = figure_image(draw([[waveform] for waveform in waveforms.values()], width=_PANEL[0]))
        return {**waveforms, "spectrograms": spectrograms}

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code stands for samples in time."""
        return len(code.shape) == 1


def _original(reconstruction: Prediction) -> tuple[Tensor, int]:
    """Return the audio itself ``(C, n)`` and its sampling rate."""
    code, instance = reconstruction.code, reconstruction.instance
    if reconstruction.original is not None:
        return reconstruction.original, reconstruction.source.get("rate", code_rate(code))
    assert instance is not None, "a data module of tiles knows what they are tiles of"
    assert instance.query.values is not None
    return instance.query.values[: code.shape[0]].mT, code_rate(code)
