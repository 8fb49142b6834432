"""Audio: reading, encoding, decoding at any sampling rate, writing, drawing and metrics."""

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
from composers.codes import (
    MEASURED,
    Axis,
    InstanceCode,
    decode_at,
    encoded,
    fingerprint,
    steps_taken,
    takes_any_size,
)
from composers.construction import stated_domain
from composers.inference.refinement import Refinement
from composers.metrics import PSNR, InstanceMetric, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Observation, Samples
from datamodules.code_size import CodeSize
from datamodules.domain import Domain, Grid
from datamodules.spec import Headline, LinearPatch, Modality
from datamodules.storage.audio import read_recording
from datamodules.storage.files import written_whole
from datamodules.storage.recordings import (
    MAX_SECONDS,
    cut_recording,
    prepare_recording,
    recording_tiles,
    samples_in_tile,
)
from datamodules.tiles import Box, split
from modalities.decoding import values_at
from modalities.drawing import Waveform
from modalities.spectrogram import draw, figure_image, save_figure
from modalities.writing import Prediction, Row, Writer

_PANEL, _COMPACT = (4.2, 2.2), (2.4, 1.8)  # width and height of a spectrogram in hundreds of pixels
_MAX_WAV_SIZE = 2**32 - 64  # bytes of samples, which the header counts in 32 bits


def encode(
    composer: Composer,
    source: str | Path | Tensor,
    sample_rate: int = 16000,
    *,
    max_seconds: float = MAX_SECONDS,
    refinement: Refinement | None = None,
    batch_size: int = 16,
) -> InstanceCode:
    """Encode a recording: predict its latents, then refine them.

    Args:
        composer: A model of audio: of any length, which encodes the recording in one pass, or of one length, for which a
            longer recording is cut into overlapping tiles.
        source: An audio file, which is resampled and mixed for the model; or ``(C, n)`` in [-1, 1] at ``sample_rate``.
        sample_rate: Samples per second of the signals that the model was trained with.
        max_seconds: Seconds above which a recording is split into blended tiles for a model of any length.
        refinement: Steps and learning rate; those of the model if None, ``Refinement(steps=0)`` for the prediction alone.
        batch_size: Number of tiles encoded at a time; a model of any length takes one.

    Raises:
        ValueError: If the recording cannot be read, or the model is not a model of audio.

    Example:
        ``code = encode(composer, "speech.wav")``
    """
    channels, length = _stated_shape(composer)
    if isinstance(source, Tensor):
        values, facts, name = source, source_facts(sample_rate, source.shape[-1]), ""
    else:
        recording = prepare_recording(source, channels, sample_rate)
        values, name = recording.values, Path(source).stem
        facts = source_facts(recording.original_sample_rate, recording.original_samples)
    if values.dim() != 2 or len(values) != channels or not values.shape[1]:
        raise ValueError(
            f"The recording has shape {tuple(values.shape)}; this model takes ({channels}, n) with n at least 1."
        )
    steps, domain = refinement or composer.refinement, _domain(composer, length, sample_rate)
    if length == -1:
        longest, patches = round(max_seconds * sample_rate), composer.network.patches
        boxes, batch_size = split((values.shape[1],), longest, patches.size if patches else (1,)), 1
    else:
        boxes = recording_tiles(values.shape[1], length)
    batches = (boxes[start : start + batch_size] for start in range(0, len(boxes), batch_size))
    latents = encoded(composer, (_observation(values, batch, domain, composer.device) for batch in batches), steps)
    latents = {key: latent.cpu() for key, latent in latents.items()}
    facts |= steps_taken(composer, steps.steps)
    [(start, stop)] = boxes[0]
    code = InstanceCode(
        latents,
        boxes,
        (values.shape[1],),
        fingerprint(composer),
        name,
        facts,
        domain=domain,
        layout=composer.layout(Observation(torch.empty(1, channels, stop - start))),
        sample_rate=sample_rate,
    )
    return replace(code, facts=facts | Audio().size_of_code(code).facts())


def render(composer: Composer, code: InstanceCode, sample_rate: int | None = None, max_memory: float = 500.0) -> Tensor:
    """Decode a code to audio ``(C, n)`` on the CPU at any sampling rate; values are not clipped.

    Sample 0 has the same time at every sampling rate, as in resampling: at twice the sampling rate, every other sample is the
    same.

    Args:
        composer: The model of the code.
        code: Code of a recording.
        sample_rate: Samples per second; those of the encoded recording if None.
        max_memory: Memory in MB for decoding, besides the model and the result.

    Raises:
        ValueError: If the code is of another model or not of audio, or the sampling rate is out of range.

    Example:
        ``save_wav(render(composer, code, 48000), 48000, Path("speech.wav"))``
    """
    if len(code.shape) != 1:
        raise ValueError(f"This code is of a signal of shape {code.shape}, not of audio.")
    sample_rate = recording_sample_rate(code) if sample_rate is None else sample_rate
    if sample_rate < 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be at least 1.")
    model_sample_rate = code_sample_rate(code)
    axis = Axis(
        _num_samples(code, sample_rate),
        Fraction(model_sample_rate, sample_rate),
        Fraction(sample_rate, 2 * model_sample_rate),
    )
    try:
        values = torch.empty(composer.network.value_dim, axis.number)
    except RuntimeError as error:
        raise ValueError(f"{axis.number:,} samples do not fit into memory: choose a lower sample_rate.") from error
    done = 0
    for band in decode_at(composer, code, [axis], max_memory):
        values[:, done : done + len(band)] = band.mT
        done += len(band)
    return values


def save_wav(values: Tensor, sample_rate: int, path: Path, bits: int = 16) -> None:
    """Write audio as an integer PCM WAV file, atomically.

    Args:
        values: ``(C, n)``, clipped to [-1, 1].
        sample_rate: Samples per second.
        path: The file.
        bits: Bits per sample, 16 or 24.

    Raises:
        ValueError: If the audio exceeds the size limit of WAV files, or ``bits`` is neither 16 nor 24.
    """
    import soundfile  # here, because images and scenes do not need it

    check_bits(bits)
    if values.numel() * bits // 8 > _MAX_WAV_SIZE:
        raise ValueError(f"{path} would exceed 4 GB, the size limit of WAV files: choose a lower sample_rate.")
    full = 2 ** (bits - 1)
    levels = (values.detach().cpu().double() * full).round().clamp(-full, full - 1).to(torch.int32)
    content = io.BytesIO()  # so that a full disk raises an OSError below, and not an error of libsndfile
    left_aligned = (levels << (32 - bits)).mT.contiguous().numpy()  # soundfile writes the upper bits
    soundfile.write(content, left_aligned, sample_rate, subtype=f"PCM_{bits}", format="WAV")
    with written_whole(path) as part:
        part.write_bytes(content.getvalue())  # no view: Python 3.12.1 crashes if it outlives a full disk


def check_bits(bits: int) -> None:
    """Raise a ``ValueError`` if ``bits`` per sample is neither 16 nor 24."""
    if bits not in (16, 24):
        raise ValueError(f"wav_bits is {bits}; it must be 16 or 24.")


def audio_psnr(prediction: Tensor, target: Tensor) -> float:
    """Return the PSNR in dB, at peak 1, of a prediction ``(C, n)`` clipped to [-1, 1] as in a WAV file.

    Example:
        >>> round(audio_psnr(torch.tensor([[3.0, 0.2]]), torch.tensor([[1.0, 0.0]])), 2)
        16.99
    """
    return psnr_of_mse((prediction.clamp(-1, 1) - target).double().square().mean()).item()


def code_sample_rate(code: InstanceCode) -> int:
    """Return the sampling rate of the signals that the model of a code takes.

    Earlier files do not state it; their models have one length, and a domain of two units per second.
    """
    if code.sample_rate is not None:
        return code.sample_rate
    [(start, stop)] = code.boxes[0]
    return domain_sample_rate(code.domain, stop - start)


def domain_sample_rate(domain: Domain, samples: int) -> int:
    """Return the samples per second of audio with ``samples`` samples in a domain; a second is two units, as published.

    Raises:
        ValueError: If the domain is not a grid of one axis.

    Example:
        >>> domain_sample_rate(Grid(((-3.0, 3.0),)), 48000)
        16000
    """
    if not isinstance(domain, Grid) or len(domain.ranges) != 1:
        raise ValueError(f"{domain} is not a domain of audio, which is a grid of one axis.")
    [(low, high)] = domain.ranges
    return round(2 * samples / (high - low))


def recording_sample_rate(code: InstanceCode) -> int:
    """Return the sampling rate of the encoded recording; that of the model if unknown."""
    stated = str(code.facts.get("sample_rate", code_sample_rate(code)))
    if not stated.isdecimal() or not 0 < int(stated) < 1 << 31:
        raise ValueError(
            f"{code.name or 'The code'} states the sampling rate {stated[:20]} of its recording: encode the recording again."
        )
    return int(stated)


def source_facts(sample_rate: int, samples: int) -> dict[str, str]:
    """Return the facts of a code about a recording before it was resampled for a model."""
    return {"sample_rate": str(sample_rate), "samples": str(samples)}


def input_shape(composer: Composer) -> tuple[int, int]:
    """Return the channels and samples of the signals that a model takes; for a meta-learned model, those of its training.

    Raises:
        ValueError: If the model does not state them, takes signals of any length, or other signals.
    """
    channels, length = _stated_shape(composer)
    if length < 1:
        raise ValueError(f"This model takes signals of shape {(channels, length)}, not audio of a known length.")
    return channels, length


def _stated_shape(composer: Composer) -> tuple[int, int]:
    """Return the channels and samples of the signals that a model takes, -1 for any length; raise a `ValueError` if unknown."""
    shape = composer.start.signal_shape
    if shape is None:
        raise ValueError(
            f"This {type(composer).__name__} does not state the shape of its signals: its start has no signal_shape."
        )
    if len(shape) != 2 or shape[0] < 1 or (shape[1] < 1 and not takes_any_size(composer)):
        raise ValueError(f"This model takes signals of shape {shape}, not audio of a known length.")
    return shape[0], shape[1]


def _domain(composer: Composer, length: int, sample_rate: int) -> Domain:
    """Return the domain of a tile: of training for a model of any length, else two units per second."""
    if length == -1:
        return stated_domain(composer)
    return Grid(((-length / sample_rate, length / sample_rate),))


def _observation(values: Tensor, boxes: list[Box], domain: Domain, device: torch.device) -> Observation:
    """Return tiles of a recording ``(C, n)`` as the observation of a model, with their padding masked."""
    signal = torch.stack([cut_recording(values, box) for box in boxes]).to(device)  # (B, C, length)
    lengths = torch.tensor([[samples_in_tile(box, values.shape[1])] for box in boxes], device=device)
    mask = torch.arange(signal.shape[-1], device=device) < lengths
    samples = Samples(domain.coords(signal.shape[2:], device=device), signal.mT, None if bool(mask.all()) else mask)
    return Observation(signal, samples)


def _num_samples(code: InstanceCode, sample_rate: int) -> int:
    """Return the number of samples of a recording at a sampling rate."""
    original = recording_sample_rate(code)
    samples = int(code.facts.get("samples", code.shape[0]))
    return samples if sample_rate == original else max(1, round(Fraction(samples * sample_rate, original)))


@dataclass(frozen=True)
class AudioWriter(Writer):
    """Write the reconstruction of a recording, spectrograms of the recording and the reconstruction, and the instance code.

    The outputs for a file NAME are NAME.wav, NAME.png, NAME.safetensors and a row of the table. The row holds the PSNR of the
    predicted and the refined reconstruction at the sampling rate of the model, that of the code decoded at the sampling rate
    of the file, and that of silence.

    Args:
        sample_rate: Samples per second of the reconstruction; those of the file if None. Any is possible, because the
            model is a function of continuous time.
        wav_bits: Bits per sample of NAME.wav, 16 or 24.
        max_memory: Memory in MB for decoding, besides the model and the result.

    Raises:
        ValueError: If an argument is out of range.
    """

    sample_rate: int | None = None
    wav_bits: int = 16
    max_memory: float = 500.0

    results: ClassVar[str] = "Audio, spectrograms, codes"
    size_heading: ClassVar[str] = "seconds"
    numbers: ClassVar[Mapping[str, str]] = {"psnr": "decoded", "silence": "silence"}

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.sample_rate is not None and self.sample_rate < 1:
            raise ValueError(f"sample_rate is {self.sample_rate}; it must be at least 1.")
        check_bits(self.wav_bits)

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the prediction, the spectrograms and the code of a recording."""
        composer, (original, sample_rate) = prediction.composer, _original(prediction)
        code = replace(prediction.code, facts=prediction.code.facts | source_facts(sample_rate, original.shape[1]))
        code.save(f"{path}{code.suffix}")
        output_sample_rate = self.sample_rate or sample_rate
        output = render(composer, code, output_sample_rate, self.max_memory)
        save_wav(output, output_sample_rate, Path(f"{path}.wav"), self.wav_bits)
        compared = output if output_sample_rate == sample_rate else render(composer, code, sample_rate, self.max_memory)
        psnr, silence = audio_psnr(compared, original), audio_psnr(torch.zeros_like(original), original)
        label = f"prediction {psnr:.1f} dB"
        save_figure(
            draw([[Waveform("original", original, sample_rate)], [Waveform(label, output, output_sample_rate)]]),
            Path(f"{path}.png"),
        )
        row = {
            "seconds": f"{original.shape[1] / sample_rate:.3f}",
            "sample_rate": str(sample_rate),
            "tiles": str(len(code.boxes)),
        }
        row |= {fact: text for fact, text in code.facts.items() if fact not in MEASURED}
        return row | {"psnr": f"{psnr:.3f}", "silence": f"{silence:.3f}"}

    def size_of(self, row: Row) -> str:
        """Return the length in seconds."""
        return f"{float(row['seconds']):.2f}"

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the audio of codes, as described in `Writer.decode`."""
        sample_rate = self.sample_rate or recording_sample_rate(codes[0])
        decoded = [render(composer, code, sample_rate, self.max_memory) for code in codes]
        length = f"{decoded[0].shape[1] / sample_rate:.2f} s at {sample_rate:,} Hz"
        if len(codes) == 1:
            path = path or Path(f"{stem}.{sample_rate}.wav")
            save_wav(decoded[0], sample_rate, path, self.wav_bits)
            return path, length
        assert path is not None, "several frames are written into a folder"
        for frame, values in enumerate(decoded):
            save_wav(values, sample_rate, path / f"{frame:03d}.wav", self.wav_bits)
        return path, length


class Audio(Modality):
    """Audio: samples in time, with any number of channels, in [-1, 1]; a second is two units of the domain."""

    name = "audio"
    noun = "file"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.audio.prediction.AudioFiles"
    reading = ("max_seconds",)
    writer = AudioWriter
    decoding = ("sample_rate",)
    weights = "speech_patch_ipc"
    interpolation = "sinc"
    linear = LinearPatch("KLT", (200,), "samples")

    def code_size(self, numbers: int, shape: Sequence[int], sample_rate: int | None = None) -> CodeSize:
        """Return the size of an instance code, with its kbit/s if the sampling rate is known."""
        if sample_rate is None:
            return CodeSize(numbers)
        return CodeSize(numbers, 1000 * shape[0] / sample_rate, "kbit/s")

    def size_of_code(self, code: InstanceCode) -> CodeSize:
        """Return the size of a code, of all tiles together."""
        return self.code_size(code.numel, code.shape, code_sample_rate(code))

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, the PSNR of silence, the gain over silence, SI-SDR, log-spectral distance, STOI and PESQ."""
        from modalities import audio_metrics  # here, because torchmetrics takes a second to import

        return {
            "psnr": PSNR(),
            "silence": audio_metrics.Silence(),
            "over_silence": audio_metrics.OverSilence(),
            "si_sdr": audio_metrics.SISDR(),
            "lsd": audio_metrics.LogSpectralDistance(),
            "stoi": audio_metrics.STOI(),
            "pesq": audio_metrics.PESQ(),
        }

    def read(self, path: str | Path) -> tuple[Tensor, dict[str, Any]]:
        """Return the samples of a file, ``(C, n)`` float32 in [-1, 1], and its sampling rate as ``sample_rate``.

        Raises:
            ValueError: If the file cannot be read; the message names it.
        """
        recording = read_recording(path)
        return recording.values, {"sample_rate": recording.sample_rate}

    def input_shape(self, composer: Composer) -> tuple[int, ...]:
        """Return the channels and samples of the signals that a model takes, -1 for any length."""
        return _stated_shape(composer)

    def shown(self, instance: Instance) -> Instance:
        """Return the instance without its padding, with the domain shortened accordingly."""
        mask, domain = instance.query.mask, instance.domain
        if mask is None or bool(mask.all()):
            return instance
        [samples], length = instance.shape, int(mask.sum())
        assert isinstance(domain, Grid)
        [(low, high)] = domain.ranges
        shortened = Grid(((low, low + (high - low) * length / samples),))
        coords, values = (None if part is None else part[:length] for part in instance.query[:2])
        assert coords is not None
        reconstructions = {step: values[:length] for step, values in instance.values.items()}
        return instance._replace(
            query=Samples(coords, values), shape=(length,), domain=shortened, values=reconstructions
        )

    def medium(self, cell: Cell) -> Waveform:
        """Return a cell as a playable waveform, with NaN replaced by silence."""
        values = cell.values.nan_to_num(0, 1, 0)
        return Waveform(cell.label, values.mT, domain_sample_rate(cell.domain, cell.shape[0]))

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return the spectrogram of values ``(n, C)`` of one second."""
        return figure_image(draw([[Waveform("", values.mT, shape[0])]]))

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return a grid of spectrograms with a common colour scale."""
        return figure_image(
            draw([[self.medium(cell) for cell in row] for row in rows], *(_COMPACT if compact else _PANEL))
        )

    def save_media(
        self,
        composer: Composer,
        reconstruction: Reconstruction,
        instance: Instance,
        stem: Path,
        max_memory: float = 500.0,
    ) -> bool:
        """Write STEM.original.wav, STEM.predicted.wav and STEM.refined.wav."""
        shown = self.shown(instance)
        sample_rate = domain_sample_rate(shown.domain, shown.shape[0])
        parts = {"original": shown.query.values} | {
            "refined" if step else "predicted": values for step, values in shown.values.items()
        }
        for kind, values in parts.items():
            if values is not None:
                save_wav(values.mT, sample_rate, Path(f"{stem}.{kind}.wav"))
        return True

    def values_at(
        self, composer: Composer, reconstruction: Reconstruction, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return the values ``(n, C)`` of one instance at ``coords (n, 1)``, on the CPU."""
        return values_at(composer, reconstruction, coords, max_memory)

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return the recording and its prediction as playable waveforms, and the spectrograms of both."""
        shown = self.shown(instance)
        assert shown.query.values is not None
        pair = {"input": shown.query.values, "reconstruction": shown.values[0]}
        waveforms = {label: self.medium(Cell(label, part, shown.shape, shown.domain)) for label, part in pair.items()}
        spectrograms = figure_image(draw([[waveform] for waveform in waveforms.values()], width=_PANEL[0]))
        return {**waveforms, "spectrograms": spectrograms}

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code is of audio."""
        return len(code.shape) == 1


def _original(prediction: Prediction) -> tuple[Tensor, int]:
    """Return the original recording ``(C, n)`` and its sampling rate."""
    code, instance = prediction.code, prediction.instance
    if prediction.original is not None:
        return prediction.original, prediction.source.get("sample_rate", code_sample_rate(code))
    assert instance is not None, "a data module that cuts tiles must provide the original"
    assert instance.query.values is not None
    return instance.query.values[: code.shape[0]].mT, code_sample_rate(code)
