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

from composers.codes.distribution import MAX_INERTIA, TOTAL, Distribution, coarse, learned_row, standard_rows
from composers.codes.entropy import IndexDecoder, IndexEncoder
from composers.codes.quantization import BITS, Indices, LatentShape, Quantizer, check_bits
from composers.codes.sensitivity import Sensitivities
from composers.latents import Latents
from datamodules.storage.files import written_whole

_KIND, _VERSION = "code table", "2"
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
        """Return the bits that so many numbers take at least."""
        return sum(row.least_bits(numbers // len(self.rows)) for row in self.rows)

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
        codes: Sequence[np.ndarray[Any, np.dtype[np.float32]]],
        bits: int,
        sensitivity: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> Self:
        """Learn the coder of a latent from the numbers ``(C, N)`` of every training code, counting tiles.

        A latent with one number per channel and tile has a scale per channel, and one distribution of all scaled numbers.
        """
        values = np.concatenate(codes, axis=1)
        quantizer = Quantizer.fit(latent, values, bits, sensitivity=sensitivity)
        offset, step = (part.astype(np.float64)[:, None] for part in (quantizer.offset, quantizer.step))
        indices = [np.rint((numbers - offset) / step).astype(np.int64) for numbers in codes]
        integer, levels = latent.is_integer(), quantizer.levels
        if not latent.repeats and not integer.any():
            return cls(quantizer, [learned_row([some.reshape(-1) for some in indices], int(levels[0]), False)])
        channels = zip(zip(*indices, strict=True), levels.tolist(), integer.tolist(), strict=True)
        return cls(quantizer, [learned_row(*channel) for channel in channels])

    @classmethod
    def standard(cls, quantizer: Quantizer, shapes: str | None = None, indices: Indices | None = None) -> Self:
        """Return the coder of a quantiser with standard distributions, which a file can state in a byte each.

        Args:
            quantizer: The quantiser.
            shapes: A hexadecimal digit per scale, the position in `standard_rows`; None to choose those that code
                ``indices`` with the fewest bits.
            indices: ``(C, N)``.
        """
        rows = []
        for scale, candidates in enumerate(_standard_rows(quantizer)):
            if shapes is not None:
                rows.append(candidates[int(shapes[scale], 16)])
            else:
                assert indices is not None, "either the distributions or the indices are stated"
                numbers = indices.reshape(len(quantizer.step), -1)[scale]
                rows.append(min(candidates, key=lambda row: row.cost(numbers)))
        return cls(quantizer, rows)

    def shapes(self) -> str:
        """Return the digits of standard distributions, as `standard` reads them."""
        digits = []
        for row, candidates in zip(self.rows, _standard_rows(self.quantizer), strict=True):
            digits += [f"{index:x}" for index, candidate in enumerate(candidates) if candidate is row]
        return "".join(digits)


def _standard_rows(quantizer: Quantizer) -> list[list[Distribution]]:
    """Return the standard distributions to choose from, for every scale of a quantiser."""
    each = quantizer.latent.channels // len(quantizer.step)
    integer = quantizer.latent.is_integer()[::each]
    return [standard_rows(*scale) for scale in zip(quantizer.levels.tolist(), integer.tolist(), strict=True)]


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
            for name, numbers in parts.items():
                for tile in code[name].detach().cpu().float().numpy():
                    numbers.append(latents[name].to_channels(tile[None]))
                    values += numbers[-1].size
            tiles += len(next(iter(code.values())))
            if values >= _MAX_VALUES:
                break
        if not tiles:
            raise ValueError("there are no training codes to learn a table from")
        coders = {}
        for name, numbers in parts.items():
            if not all(np.isfinite(tile).all() for tile in numbers):
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
                "inertia": np.array([row.inertia for row in rows], np.int32),
            }
            for part in ("offset", "step", "levels", "frequencies", "lengths", "inertia"):
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
                f"{path} is a table of version {metadata.get('version')}; this software reads version {_VERSION}: {fix}."
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
            inertia, integer = tensors[f"{name}/inertia"], latent.is_integer()
            quantizer, parts = Quantizer(latent, offset, step, levels), np.split(frequencies, np.cumsum(lengths)[:-1])
            if inertia.shape != lengths.shape or inertia.dtype != np.int32:
                raise ValueError("its inertias do not fit its latents")
            rows = [
                Distribution(part, coarse(int(levels[row]), bool(integer[row]))[1], int(inertia[row]), not integer[row])
                for row, part in enumerate(parts)
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
        if not 0 <= row.inertia <= MAX_INERTIA:
            raise ValueError(f"its inertia {row.inertia} is not from 0 to {MAX_INERTIA}")
