"""Rate-distortion curves of compressed codes, linear codes and codecs: ``python -m benchmarks.rate_distortion``.

Held-out images or recordings are encoded by every checkpoint, compressed with 4, 6, 8 and 16 bits per number, and decoded. PCA
(images) or the KLT (audio) of patches, fitted on the same training items, goes through the same quantiser and entropy coder;
the number of components is swept. JPEG and WebP, or Opus, are swept over their quality. Compare several checkpoints on the
bundled photographs and speech with::

    python -m benchmarks.rate_distortion --checkpoints "[patch-wise IPC=photos_patch_ipc, IPC=photos_ipc]"
        --experiment configs/experiments/photos_patch_ipc.yaml --csv images.csv --figure images.png
    python -m benchmarks.rate_distortion --checkpoints "[patch-wise IPC=speech_patch_ipc, LA-INR=runs/a/checkpoints/last.ckpt]"
        --experiment configs/experiments/speech_patch_ipc.yaml --csv speech.csv --figure speech.png

``--whole true`` takes the complete bundled photographs or recordings instead of the crops of the experiment.

All rates are stated twice: of complete files (codes in float32 without their header), and without headers and side
information (for JPEG what precedes the scan, for WebP the containers and the frame header of 10 bytes, for Opus the pages of
Ogg). Tables of codes, models and components are shared by all files and are not counted. Distortion is the mean PSNR over
items of decoded values, clipped and rounded to 8 bits (images) or 16 bits (audio). Opus optimises perceived quality, not the
PSNR, and is aligned by the lag of the largest correlation.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import composers
from composers import Refinement
from composers.base import Composer
from composers.codes import (
    BITS,
    CodeTable,
    Example,
    InstanceCode,
    LatentShape,
    decode,
    fingerprint,
    latent_shapes,
    quantized,
    quantized_as,
    sensitivities,
    stored_size,
)
from composers.codes.entropy import empirical_entropy
from composers.latents import Layout
from composers.networks.patch_grid import grid_shape
from datamodules import data_sets
from datamodules.audio.sample_speech import HELD_OUT_RECORDINGS, read_prompt
from datamodules.base import CoordinateDataModule
from datamodules.configuration import instantiate, load_layers
from datamodules.domain import Grid
from datamodules.images.sample_photos import HELD_OUT_PHOTOGRAPHS, photograph
from datamodules.spec import LinearPatch
from datamodules.tiles import whole
from modalities import audio, images
from modalities.linear import LinearCode, from_patches, signals_of, to_patches, training_signals

EXPERIMENTS = Path(__file__).resolve().parents[1] / "configs" / "experiments"
_MAX_LAG = 2000  # samples between a recording and its decoded Opus
_FLOAT = ", float32"  # after the name of a method
_LINEAR, _CODECS = ("PCA", "KLT"), ("JPEG", "WebP", "Opus")
_WEBP_HEADER = 30  # bytes: RIFF, the chunk, and the frame header


@dataclass(frozen=True)
class RateSettings:
    """Measure rate and distortion of compressed codes, linear codes and codecs on held-out signals.

    Args:
        checkpoints: ``NAME=CHECKPOINT`` for every curve, paths or names of bundled weights.
        experiment: Config of an experiment, whose data module states training and held-out signals.
        whole: Whether to take the complete bundled photographs or recordings instead of the held-out items.
        items: Maximum number of held-out signals.
        training_items: Number of training items that tables are learned from.
        steps: Refinement steps of every code.
        file_scales: Whether to measure codes without a table as well, whose files state their scales.
        bits: Bits per number.
        components: Numbers per patch of the linear code.
        qualities: Qualities of JPEG and WebP.
        compression_levels: Levels of Opus, from 0 (highest bit rate) to 1.
        csv: CSV file to write; None writes none.
        figure: Figure to write; None writes none.

    Raises:
        ValueError: If an argument is out of range.
    """

    checkpoints: tuple[str, ...] = ("patch-wise IPC=photos_patch_ipc",)
    experiment: Path = EXPERIMENTS / "photos_patch_ipc.yaml"
    whole: bool = False
    items: int = 34
    training_items: int = 512
    steps: int = 0
    file_scales: bool = False
    bits: tuple[int, ...] = BITS
    components: tuple[int, ...] = (2, 4, 8, 16, 24, 48)
    qualities: tuple[int, ...] = (5, 10, 20, 35, 50, 70, 85, 95)
    compression_levels: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    csv: Path | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not all("=" in checkpoint for checkpoint in self.checkpoints):
            raise ValueError(f"checkpoints is {self.checkpoints}; each must be NAME=CHECKPOINT.")
        if min(self.items, self.training_items, *self.components) < 1 or self.steps < 0 or set(self.bits) - set(BITS):
            raise ValueError(
                f"items is {self.items}, training_items {self.training_items}, components {self.components}, steps "
                f"{self.steps}, bits {self.bits}; numbers must be positive, steps at least 0, and bits some of {BITS}."
            )


class Coded(NamedTuple):
    """A signal after a codec.

    Attributes:
        file_bytes: Size of the file.
        payload: Size without headers and side information.
        values: Decoded signal ``(C, *shape)``, in the range of the modality.
    """

    file_bytes: int
    payload: int
    values: Tensor


class RatePoint(NamedTuple):
    """A point of a curve.

    Attributes:
        method: Name of the curve.
        setting: Bits, components or quality.
        rate: Bits per pixel or kbit/s of complete files, over all signals.
        payload_rate: The same without headers and side information.
        psnr: Mean PSNR in dB.
        file_bytes: Mean size of a file.
        side_bytes: Mean size of its headers and side information.
    """

    method: str
    setting: str
    rate: float
    payload_rate: float
    psnr: float
    file_bytes: float
    side_bytes: float


Codec = Callable[[Tensor], Coded]
Symbols = dict[str, list[Any]]  # rows of symbols by latent


class Held(NamedTuple):
    """Held-out signals and what depends on their modality.

    Attributes:
        signals: ``(C, *shape)``, images in [0, 1] or recordings in [-1, 1].
        sample_rate: Samples per second of recordings; None for images.
        patch: Patches of the linear code.
    """

    signals: list[Tensor]
    sample_rate: int | None
    patch: LinearPatch

    @property
    def unit(self) -> str:
        """Unit of the rate."""
        return "bits per pixel" if self.sample_rate is None else "kbit/s"

    def rounded(self, values: Tensor) -> Tensor:
        """Return values as a file stores them: clipped, 8 bits for images, 16 bits for recordings."""
        if self.sample_rate is None:
            return (values.double().clamp(0, 1) * 255).round() / 255
        return (values.double() * 32768).round().clamp(-32768, 32767) / 32768

    def point(self, method: str, setting: str, codec: Codec) -> RatePoint:
        """Return the point of a codec over all signals."""
        coded = [codec(signal) for signal in self.signals]
        extent = sum(math.prod(signal.shape[1:]) for signal in self.signals)
        per_byte = 8 / extent if self.sample_rate is None else 8 * self.sample_rate / (1000 * extent)
        psnrs = []
        for signal, result in zip(self.signals, coded, strict=True):
            mse = (self.rounded(result.values) - signal.double()).square().mean().item()
            psnrs.append(-10 * math.log10(max(mse, 1e-12)))
        file_bytes = sum(result.file_bytes for result in coded)
        payload = sum(result.payload for result in coded)
        count = len(coded)
        return RatePoint(
            method,
            setting,
            per_byte * file_bytes,
            per_byte * payload,
            sum(psnrs) / count,
            file_bytes / count,
            (file_bytes - payload) / count,
        )


def build_data(experiment: Path) -> CoordinateDataModule:
    """Return the data module of an experiment, set up for training and test."""
    data_sets()
    config = load_layers(f"_base_: {experiment.resolve()}")
    data: CoordinateDataModule = instantiate(CoordinateDataModule, config["data"])  # type: ignore[type-abstract]
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def held_out(data: CoordinateDataModule, settings: RateSettings) -> Held:
    """Return the held-out signals of a data module, or the complete bundled ones."""
    spec = data.spec
    if spec.modality.linear is None:
        raise ValueError(f"{settings.experiment} is of {spec.modality.name}; rates are measured for images and audio.")
    signals: Iterable[Tensor]
    if not settings.whole:
        batches = (data.to_coordinates(batch) for batch in data.test_dataloader())
        signals = (signal for batch in batches for signal in signals_of(batch))
    elif spec.sample_rate is None:
        signals = (photograph(name) / 255 for name in HELD_OUT_PHOTOGRAPHS)
    else:
        signals = (read_prompt(name, spec.sample_rate) for name in HELD_OUT_RECORDINGS)
    chosen = [signal.float().cpu() for signal, _ in zip(signals, range(settings.items), strict=False)]
    return Held(chosen, spec.sample_rate, spec.modality.linear)


def training_examples(composer: Composer, data: CoordinateDataModule, count: int, steps: int = 0) -> Iterator[Example]:
    """Yield the latents of batches of training items, predicted and refined as the measured ones."""
    for batch in data.training_batches(count):
        with torch.no_grad():
            latents = composer.encode(batch.observation)
        layout = composer.layout(batch.observation)
        if steps and batch.observation.samples is not None:
            refinement = composer.refinement.with_steps(steps)
            latents = composer.refine(latents, batch.observation.samples, refinement, layout)[steps]
        yield Example(latents, layout, batch.query.coords)


def encode(composer: Composer, signal: Tensor, held: Held, steps: int) -> InstanceCode:
    """Return the code of a signal without facts, in tiles if the model takes signals of one size."""
    refinement = Refinement(0) if not steps else composer.refinement.with_steps(steps)
    if held.sample_rate is not None:
        code = audio.encode(composer, signal, held.sample_rate, refinement=refinement)
    else:
        pixels = (signal * 255).round().to(torch.uint8)
        shape = composer.start.signal_shape
        fits = shape is None or all(side in (-1, size) for side, size in zip(shape[1:], pixels.shape[1:], strict=True))
        code = images.encode(composer, pixels, tile=not fits, refinement=refinement)
    code.facts.clear()
    return code


def composer_points(
    name: str, path: str, data: CoordinateDataModule, held: Held, settings: RateSettings
) -> Iterator[RatePoint]:
    """Yield the points of a checkpoint, from the fewest bits to float32."""
    composer = composers.load(path)
    shapes = latent_shapes(composer.parametrization.latents)
    codes = {id(signal): encode(composer, signal, held, settings.steps) for signal in held.signals}
    training = list(training_examples(composer, data, settings.training_items, settings.steps))
    sensitivity = sensitivities(composer, training[:2])

    def codec(bits: int | None, table: CodeTable | None, coded_symbols: list[Symbols] | None = None) -> Codec:
        def coded(signal: Tensor) -> Coded:
            code = codes[id(signal)]
            size = (4 * code.numel, 4 * code.numel)
            if bits is not None:
                code = quantized(code, composer, bits, table)
                stored = stored_size(code)
                size = stored.total, stored.payload
                if coded_symbols is not None:
                    coded_symbols.append(_symbols(code))
            return Coded(*size, torch.cat(list(decode(composer, code))).movedim(-1, 0))

        return coded

    for bits in sorted(settings.bits):
        latents = (example.latents for example in training)
        table = CodeTable.learn(fingerprint(composer), shapes, latents, bits, sensitivity)
        coded_symbols: list[Symbols] = []
        point = held.point(name, f"{bits} bits", codec(bits, table, coded_symbols))
        payload = 8 * len(coded_symbols) * (point.file_bytes - point.side_bytes)
        excess, corrected = (100 * (payload / entropy - 1) for entropy in pooled_entropy(coded_symbols))
        print(
            f"{name}, {bits} bits: payload {excess:+.1f} % beside the empirical entropy of the symbols of all signals, "
            f"{corrected:+.1f} % with the correction of Miller and Madow."
        )
        yield point
        if settings.file_scales:
            yield held.point(f"{name}, scales in the file", f"{bits} bits", codec(bits, None))
    yield held.point(f"{name}{_FLOAT}", "32 bits", codec(None, None))


def _symbols(code: InstanceCode) -> Symbols:
    """Return the symbols of a quantised code by latent, a row per distribution."""
    parts = code.quantized
    assert parts is not None
    return {name: coder.symbols(parts.indices[name]) for name, coder in parts.coders.items()}


def pooled_entropy(codes: Sequence[Symbols]) -> tuple[float, float]:
    """Return the bits of the symbols of codes by the histograms of all codes together, one per row of every latent.

    The histogram of a single small code has fewer symbols than levels, so that its entropy says little. The second result has
    the correction of Miller and Madow for that: half a nat for every level that occurs, except for one.
    """
    pooled = {
        name: [np.concatenate(rows) for rows in zip(*(code[name] for code in codes), strict=True)] for name in codes[0]
    }
    entropy = sum(empirical_entropy(rows) for rows in pooled.values())
    occurring = sum(len(np.unique(row)) - 1 for rows in pooled.values() for row in rows)
    return entropy, entropy + occurring * math.log2(math.e) / 2


def linear_points(data: CoordinateDataModule, held: Held, settings: RateSettings) -> Iterator[RatePoint]:
    """Yield the points of linear codes with the same quantiser and entropy coder, for every number of bits a curve."""
    signals = training_signals(data)[: settings.training_items]
    complete = LinearCode.fit(signals, held.patch.shape, max(settings.components))
    training = [_projected(complete, signal)[None] for signal in signals]
    for bits in sorted(settings.bits):
        for number in settings.components:
            linear = complete._replace(components=complete.components[:, :number])
            latents = {"codes": LatentShape((*(-1,) * len(held.patch.shape), linear.components.shape[1]))}
            codes = [{"codes": code[..., :number]} for code in training]
            sensitivity = {"codes": np.ones(linear.components.shape[1])}
            table = CodeTable.learn(_LINEAR_MODEL, latents, codes, bits, sensitivity)

            def coded(signal: Tensor, linear: LinearCode = linear, table: CodeTable = table) -> Coded:
                code = quantized_as(_linear_code(linear, signal), table.latents, table.bits, table)
                stored, codes = stored_size(code), code.latents["codes"][0].double().flatten(0, -2)
                values = from_patches(codes @ linear.components.mT + linear.mean, linear.patch, signal.shape)
                return Coded(stored.total, stored.payload, values)

            yield held.point(f"{held.patch.method}, {bits} bits", f"{number} numbers", coded)


_LINEAR_MODEL = "0" * 16  # in place of a fingerprint


def _projected(linear: LinearCode, signal: Tensor) -> Tensor:
    """Return the linear code ``(*grid, K)`` of a signal."""
    codes = (to_patches(signal, linear.patch).double() - linear.mean) @ linear.components
    projected: Tensor = codes.unflatten(0, grid_shape(signal.shape[1:], linear.patch)).float()
    return projected


def _linear_code(linear: LinearCode, signal: Tensor) -> InstanceCode:
    """Return the linear code of a signal as an instance code."""
    shape = tuple(signal.shape[1:])
    layout = Layout(grid_shape(shape, linear.patch), shape)
    latents = {"codes": _projected(linear, signal)[None]}
    return InstanceCode(latents, [whole(shape)], shape, _LINEAR_MODEL, domain=Grid.unit(len(shape)), layout=layout)


def image_points(held: Held, settings: RateSettings) -> Iterator[RatePoint]:
    """Yield the points of JPEG and WebP."""
    for name, options in (("JPEG", {"optimize": True}), ("WebP", {"method": 6})):
        for quality in settings.qualities:

            def coded(signal: Tensor, name: str = name, options: Any = options, quality: int = quality) -> Coded:
                content = io.BytesIO()
                pixels = (signal * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
                Image.fromarray(pixels).save(content, format=name, quality=quality, **options)
                stored = content.getvalue()
                header = _jpeg_header(stored) if name == "JPEG" else _WEBP_HEADER
                with Image.open(content) as image:
                    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
                return Coded(len(stored), len(stored) - header, values)

            yield held.point(name, f"quality {quality}", coded)


def _jpeg_header(content: bytes) -> int:
    """Return the number of bytes that precede the entropy-coded scan."""
    start = content.index(b"\xff\xda")
    return start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")


def opus_points(held: Held, settings: RateSettings) -> Iterator[RatePoint]:
    """Yield the points of Opus."""
    assert held.sample_rate is not None
    sample_rate = held.sample_rate
    for level in settings.compression_levels:

        def coded(signal: Tensor, level: float = level) -> Coded:
            content = io.BytesIO()
            options: Any = {"format": "OGG", "subtype": "OPUS", "compression_level": level}
            soundfile.write(content, signal.mT.numpy(), sample_rate, **options)
            stored = content.getvalue()
            content.seek(0)
            decoded, _ = soundfile.read(content, dtype="float32", always_2d=True)
            return Coded(len(stored), _opus_payload(stored), _aligned(torch.from_numpy(decoded).mT, signal))

        yield held.point("Opus", f"level {level:g}", coded)


def _opus_payload(content: bytes) -> int:
    """Return the bytes of the audio packets of an Ogg file: the segments of all pages after the two of headers."""
    position, sizes = 0, []
    while position < len(content):
        count = content[position + 26]
        size = sum(content[position + 27 : position + 27 + count])
        sizes.append(size)
        position += 27 + count + size
    return sum(sizes[2:])


def _aligned(decoded: Tensor, signal: Tensor) -> Tensor:
    """Return a decoded recording, shifted by the lag of the largest correlation, with the length of the signal."""
    length = signal.shape[1]
    padded = torch.nn.functional.pad(decoded, (_MAX_LAG, _MAX_LAG + max(0, length - decoded.shape[1])))
    size = padded.shape[1] + length
    products = torch.fft.rfft(padded[0], size) * torch.fft.rfft(signal[0], size).conj()
    lag = int(torch.fft.irfft(products, size)[: 2 * _MAX_LAG + 1].argmax())
    aligned: Tensor = padded[:, lag : lag + length]
    return aligned


def draw(points: Sequence[RatePoint], unit: str, path: Path) -> None:
    """Draw PSNR against the rate of complete files, and without headers and side information.

    Linear codes are grey, darker with more bits, and codecs black; hollow markers are codes in float32.
    """
    from matplotlib.figure import Figure  # here, because it takes a while to import

    curves = defaultdict(list)
    for point in points:
        curves[point.method].append(point)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    styles = _styles(list(curves))
    for axes, title, rate in (
        (left, "complete files", "rate"),
        (right, "without headers and side information", "payload_rate"),
    ):
        for method, curve in curves.items():
            rates = [getattr(point, rate) for point in curve]
            axes.plot(rates, [point.psnr for point in curve], **styles[method])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=title, xlabel=unit)
        axes.grid(alpha=0.3)
    left.set_ylabel("mean PSNR [dB]")
    left.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the style of every curve; a code in float32 has the colour of its method and no entry in the legend."""
    models = [method for method in methods if not method.startswith(_LINEAR + _CODECS) and not method.endswith(_FLOAT)]
    linear = [method for method in methods if method.startswith(_LINEAR)]
    codecs = [method for method in methods if method.startswith(_CODECS)]
    styles: dict[str, dict[str, Any]] = {}
    for index, method in enumerate(models):
        styles[method] = {"color": f"C{index % 10}", "lw": 1.8, "marker": "o", "ms": 4, "label": method}
        styles[method + _FLOAT] = {"color": f"C{index % 10}", "lw": 0, "marker": "o", "ms": 5, "mfc": "none"}
    for index, method in enumerate(linear):
        grey = str(0.75 - 0.5 * index / max(1, len(linear) - 1))
        styles[method] = {"color": grey, "lw": 0.8, "ls": ":", "marker": ".", "ms": 4, "label": method}
    for method, line in zip(codecs, ("--", "-."), strict=False):
        styles[method] = {"color": "black", "lw": 1.2, "ls": line, "marker": ".", "ms": 4, "label": method}
    return styles


def main(args: list[str] | None = None) -> list[RatePoint]:
    """Run the benchmark, print a table, and write the CSV file and the figure."""
    settings = auto_cli(RateSettings, args=args)
    data = build_data(settings.experiment)
    held, points = held_out(data, settings), list[RatePoint]()
    for checkpoint in settings.checkpoints:
        name, _, path = checkpoint.partition("=")
        points += composer_points(name, path, data, held, settings)
    points += linear_points(data, held, settings)
    points += image_points(held, settings) if held.sample_rate is None else opus_points(held, settings)
    table = Table(title=f"{len(held.signals)} held-out signals of {settings.experiment.stem}", title_justify="left")
    for heading in ("method", "setting", held.unit, "without side", "PSNR [dB]", "bytes", "side bytes"):
        table.add_column(heading, justify="left" if heading in ("method", "setting") else "right")
    for point in points:
        numbers = (f"{point.rate:.3f}", f"{point.payload_rate:.3f}", f"{point.psnr:.2f}", f"{point.file_bytes:,.0f}")
        table.add_row(point.method, point.setting, *numbers, f"{point.side_bytes:,.0f}")
    Console(width=140).print(table)
    if settings.csv is not None:
        settings.csv.parent.mkdir(parents=True, exist_ok=True)
        with settings.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*RatePoint._fields, "unit"])
            writer.writeheader()
            writer.writerows({**point._asdict(), "unit": held.unit} for point in points)
    if settings.figure is not None:
        draw(points, held.unit, settings.figure)
    return points


if __name__ == "__main__":
    main()
