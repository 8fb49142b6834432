"""Tables of quantised codes: offsets, steps and distributions of the latents of a model, learned from training codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from composers.codes.entropy import (
    SHAPES,
    TOTAL,
    Distribution,
    IndexDecoder,
    IndexEncoder,
    coarse,
    learned_row,
    standard_row,
)
from composers.codes.quantization import BITS, Indices, LatentShape, Quantizer, check_bits
from composers.codes.sensitivity import Sensitivities
from composers.latents import Latents
from datamodules.storage.files import written_whole

_KIND, _VERSION = "code table", "1"
_MOST_LEVELS = 1 << 20  # of a channel
_MAX_VALUES = 1 << 28  # of the training codes that a table is learned from: 1 GB


class LatentCoder(NamedTuple):
    """Quantiser and distributions of a latent.

    Attributes:
        quantizer: Offsets and steps.
        rows: A distribution per channel; a single one for all channels if the latent has one number per channel and tile.
    """

    quantizer: Quantizer
    rows: Sequence[Distribution]

    @property
    def latent(self) -> LatentShape:
        """The latent."""
        return self.quantizer.latent

    def least_bits(self, numbers: int) -> float:
        """Return the bits that so many numbers take at least: those of the most frequent symbol of every distribution."""
        return sum(row.least_bits for row in self.rows) * numbers / len(self.rows)

    def encode(self, indices: Indices, encoder: IndexEncoder) -> None:
        """Append the indices ``(C, N)`` of latents to a stream."""
        for row, numbers in zip(self.rows, self._by_row(indices), strict=True):
            encoder.encode(numbers, row)

    def decode(self, repeats: int, decoder: IndexDecoder) -> Indices:
        """Return the next indices ``(C, N)`` of a stream, with ``N = repeats``.

        Raises:
            ValueError: If the stream does not hold them.
        """
        channels = self.latent.channels
        count = channels * repeats // len(self.rows)
        return np.stack([decoder.decode(count, row) for row in self.rows]).reshape(channels, repeats)

    def outside(self, indices: Indices) -> int:
        """Return how many indices are outside of the range of their distribution."""
        rows = zip(self.rows, self._by_row(indices), strict=True)
        return sum(int(np.isin(row.symbols(numbers), (0, row.levels + 1)).sum()) for row, numbers in rows)

    def symbols(self, indices: Indices) -> list[Indices]:
        """Return the indices of every row."""
        return list(self._by_row(indices))

    def _by_row(self, indices: Indices) -> Indices:
        """Return indices ``(C, N)`` as rows ``(R, C * N / R)``."""
        return indices.reshape(len(self.rows), -1)

    @classmethod
    def learned(
        cls,
        latent: LatentShape,
        values: np.ndarray[Any, np.dtype[np.float32]],
        bits: int,
        sensitivity: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> Self:
        """Learn the coder of a latent from the numbers ``(C, N)`` of training codes.

        A latent with one number per channel and tile has a scale per channel, and one distribution of all scaled numbers.
        """
        quantizer = Quantizer.fit(latent, values, bits, sensitivity=sensitivity)
        offset, step = (part.astype(np.float64)[:, None] for part in (quantizer.offset, quantizer.step))
        indices = np.rint((values - offset) / step).astype(np.int64)
        integer, levels = latent.is_integer(), quantizer.levels
        if not latent.repeats and not integer.any():
            return cls(quantizer, [learned_row(indices.reshape(-1), int(levels[0]), False)])
        rows = [learned_row(*row) for row in zip(indices, levels.tolist(), integer.tolist(), strict=True)]
        return cls(quantizer, rows)

    @classmethod
    def standard(cls, quantizer: Quantizer, shapes: str | None = None, indices: Indices | None = None) -> Self:
        """Return the coder of a quantiser with standard distributions, which a file can state in a byte each.

        Args:
            quantizer: The quantiser.
            shapes: A digit per scale, the position in `SHAPES`; None to choose those that code ``indices`` with the fewest
                bits.
            indices: ``(C, N)``.
        """
        scales, integer = len(quantizer.step), quantizer.latent.is_integer()
        rows = []
        for scale, levels in enumerate(quantizer.levels.tolist()):
            if integer[scale * quantizer.latent.channels // scales]:
                rows.append(standard_row("uniform", levels))
            elif shapes is not None:
                rows.append(standard_row(SHAPES[int(shapes[scale])], levels))
            else:
                assert indices is not None, "either the distributions or the indices are stated"
                numbers = indices.reshape(scales, -1)[scale]
                rows.append(min((standard_row(shape, levels) for shape in SHAPES), key=lambda row: row.cost(numbers)))
        return cls(quantizer, rows)

    def shapes(self) -> str:
        """Return the digits of standard distributions, as `standard` reads them; 0 for integers."""
        digits = []
        for row, levels in zip(self.rows, self.quantizer.levels.tolist(), strict=True):
            matches = [index for index, shape in enumerate(SHAPES) if standard_row(shape, levels) is row]
            digits.append(str(matches[0] if matches else 0))
        return "".join(digits)


@dataclass(frozen=True)
class CodeTable:
    """Quantisers and distributions of all latents of a model, learned from training codes.

    Args:
        model: `fingerprint` of the model.
        bits: Bits per number.
        coders: Coders by name of the latent; none for constant latents.
        latents: All latents by name, in sorted order.
        tiles: Number of training codes, counting tiles.
    """

    model: str
    bits: int
    coders: Mapping[str, LatentCoder]
    latents: Mapping[str, LatentShape]
    tiles: int = 0

    @classmethod
    def learn(
        cls,
        model: str,
        latents: Mapping[str, LatentShape],
        codes: Iterable[Latents],
        bits: int,
        sensitivity: Sensitivities | None = None,
    ) -> Self:
        """Learn a table.

        Args:
            model: `fingerprint` of the model.
            latents: Its latents by name, in sorted order, as `latent_shapes` returns them.
            codes: Latents ``(T, ...)`` of training signals.
            bits: Bits per number, one of `BITS`; the average over channels if their ``sensitivity`` is stated.
            sensitivity: That of the channels of latents by name, as `sensitivities` returns it, to distribute bits by.

        Raises:
            ValueError: If there are no codes, a number is not finite, or ``bits`` is none of `BITS`.
        """
        check_bits(bits)
        parts: dict[str, list[np.ndarray[Any, Any]]] = {
            name: [] for name, latent in latents.items() if not latent.constant
        }
        tiles = values = 0
        for code in codes:
            for name, rows in parts.items():
                rows.append(latents[name].to_channels(code[name].detach().cpu().float().numpy()))
                values += rows[-1].size
            tiles += len(next(iter(code.values())))
            if values >= _MAX_VALUES:
                break
        if not tiles:
            raise ValueError("there are no training codes to learn a table from")
        coders = {}
        for name, rows in parts.items():
            numbers = np.concatenate(rows, axis=1)
            if not np.isfinite(numbers).all():
                raise ValueError(f"{name} of the training codes holds numbers that are not finite: encode them again.")
            coders[name] = LatentCoder.learned(latents[name], numbers, bits, (sensitivity or {}).get(name))
        return cls(model, bits, coders, dict(latents), tiles)

    @cached_property
    def digest(self) -> str:
        """Hash of the table as 16 hexadecimal digits, which compressed codes name."""
        digest = hashlib.sha256(json.dumps(self._metadata(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def filename(self) -> str:
        """Name of the copy of the table beside compressed codes."""
        return f"table.{self.digest}.safetensors"

    def _metadata(self) -> dict[str, str]:
        latents = {name: latent._asdict() for name, latent in self.latents.items()}
        numbers = {"bits": str(self.bits), "tiles": str(self.tiles), "latents": json.dumps(latents)}
        return {"kind": _KIND, "version": _VERSION, "model": self.model} | numbers

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, (quantizer, rows) in self.coders.items():
            arrays = quantizer._asdict() | {
                "frequencies": np.concatenate([row.frequencies for row in rows]),
                "lengths": np.array([len(row.frequencies) for row in rows], np.int32),
            }
            for part in ("offset", "step", "levels", "frequencies", "lengths"):
                tensors[f"{name}/{part}"] = torch.from_numpy(arrays[part])
        return tensors

    def save(self, path: str | Path) -> None:
        """Write the table as safetensors, atomically."""
        with written_whole(Path(path)) as part:
            part.write_bytes(save(self._tensors(), self._metadata()))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a table from a file.

        Raises:
            ValueError: If the file is missing, damaged, or no table that this version reads.
        """
        fix = "learn it again with `python -m tools.codes table`"
        if not Path(path).is_file():
            raise ValueError(f"The table {path} does not exist: {fix}, or pass another file.")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, TypeError) as error:
            raise ValueError(f"{path} is damaged or not a table of codes: {fix}.") from error
        if metadata.get("kind") != _KIND:
            raise ValueError(
                f"{path} holds tensors, but not a table of codes: pass a file of `python -m tools.codes table`."
            )
        if metadata.get("version") != _VERSION:
            raise ValueError(
                f"{path} is a table of version {metadata.get('version')}; this software reads version {_VERSION}: update it."
            )
        try:
            return cls._from_file(metadata, tensors)
        except (
            AssertionError,
            AttributeError,
            IndexError,
            KeyError,
            MemoryError,
            OverflowError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(f"{path} does not describe its table completely ({error!r}): {fix}.") from error

    @classmethod
    def _from_file(cls, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Return the table of the content of a file; raise an error if it is inconsistent."""
        bits, coders = int(metadata["bits"]), {}
        if bits not in BITS:
            raise ValueError(f"bits is {bits}")
        latents = {
            name: LatentShape(tuple(latent["shape"]), latent["integers"], latent["constant"])
            for name, latent in json.loads(metadata["latents"]).items()
        }
        for name, latent in latents.items():
            if latent.constant:
                continue
            offset, step, levels = (tensors[f"{name}/{part}"] for part in ("offset", "step", "levels"))
            frequencies, lengths = tensors[f"{name}/frequencies"], tensors[f"{name}/lengths"]
            quantizer, integer = Quantizer(latent, offset, step, levels), latent.is_integer()
            rows = [
                Distribution(part, coarse(int(levels[index]), bool(integer[index]))[1])
                for index, part in enumerate(np.split(frequencies, np.cumsum(lengths)[:-1]))
            ]
            coders[name] = LatentCoder(quantizer, rows)
            check_coder(coders[name])
        return cls(metadata["model"], bits, coders, latents, int(metadata["tiles"]))

    def check(self, model: str, bits: int | None, name: str | Path = "The table") -> None:
        """Check that the table was learned for a model and a number of bits.

        Args:
            model: `fingerprint` of the model.
            bits: Bits per number; any if None.
            name: Name of the table for messages.

        Raises:
            ValueError: If it was learned for another model or other bits.
        """
        fix = f"learn one with `python -m tools.codes table --checkpoint CHECKPOINT --bits {bits or self.bits}`"
        if self.model != model:
            raise ValueError(f"{name} was learned for the model {self.model}, not for {model}: {fix}.")
        if bits is not None and self.bits != bits:
            raise ValueError(f"{name} was learned for {self.bits} bits, but --bits is {bits}: {fix}.")


def check_coder(coder: LatentCoder) -> None:
    """Check that the arrays of a coder fit each other.

    Raises:
        ValueError: If they do not.
    """
    (latent, offset, step, levels), rows = coder.quantizer, coder.rows
    integer = latent.is_integer()
    fits = len(offset) == len(step) == len(levels) > 0 and latent.channels % len(step) == 0
    fits = fits and offset.dtype == step.dtype == np.float32 and levels.dtype == np.int64
    fits = fits and offset.shape == step.shape == levels.shape == (len(step),)
    fits = fits and bool(levels.min() >= 1 and levels.max() <= _MOST_LEVELS)
    fits = fits and bool(np.isfinite(offset).all() and np.isfinite(step).all() and (step > 0).all())
    fits = fits and (len(rows) == len(step) or len(rows) == 1) and (not integer.any() or len(step) == latent.channels)
    if not fits:
        raise ValueError("its scales do not fit its latents")
    for index, row in enumerate(rows):
        symbols, fine = coarse(int(levels[index]), bool(integer[index * latent.channels // len(rows)]))
        sums = row.frequencies.sum(dtype=np.int64) == TOTAL and row.frequencies.min(initial=1) > 0
        if row.frequencies.dtype != np.int32 or not sums or (row.levels, row.fine) != (symbols, fine):
            raise ValueError("its frequencies do not fit its latents")
