"""Compressed code files: quantised latents in a stream of a range coder, ending in ``.inr``.

The file consists of, in this order, integers being little-endian:

==========  ===========================================================================================================
4 bytes     magic number: byte 8a (hexadecimal), then INR
1 byte      version
1 byte      bits per number
1 byte      1 if a table states the quantisers and distributions, 0 if the file does
8 bytes     fingerprint of the model
8 bytes     hash of the table, or zeros
4 bytes     length of the header
...         header: JSON of shape, boxes, domain, layout, name and facts, deflated with a preset dictionary
...         without a table, for every channel: step (upper 16 bits of a float32) and first index (variable length)
...         constant latents, float32
...         stream of `composers.codes.entropy`, words of 32 bits
4 bytes     CRC-32 of everything before, so that every damaged byte is detected
==========  ===========================================================================================================
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from composers.base import Composer
from composers.codes.code import InstanceCode
from composers.codes.entropy import IndexDecoder, IndexEncoder
from composers.codes.header import MAX_SAMPLES, Header, check_latents
from composers.codes.quantization import BITS, Indices, LatentShape, Quantizer, check_bits, latent_shapes
from composers.codes.table import CodeTable, LatentCoder, check_coder
from composers.latents import Latents
from datamodules.storage.files import written_whole
from datamodules.storage.text import printable
from datamodules.tiles import whole

SUFFIX = ".inr"
MAGIC = b"\x8aINR"
_VERSION = 2
_START = struct.Struct("<4sBBB8s8sI")
_CHECKSUM = struct.Struct("<I")
_MAX_HEADER = 1 << 20  # bytes of JSON
_FREE_NUMBERS = 1 << 24  # that any file may state; decoding them takes 0.6 GB
_MAX_NUMBERS = 1 << 28  # of a code; its latents take 1 GiB
_LARGEST = 1 << 62  # size of a latent
_NUMBERS_PER_BYTE = 1 << 8  # in addition, so that a file of a few bytes cannot ask for gigabytes
_DICTIONARY = (  # common content of headers, the most common last; never change it without a new version
    b'"aspherical": false"ranges": [[0.0, 1.0], "near": "far": , "bound": 1.0}"cameras": "constant": true, "integers": 1'
    b'"inner steps": "si_sdr predicted": "si_sdr refined": "iou predicted": "iou refined": "signal": "scene", "camera": "'
    b'"signal": "shape", "up": "y""scale": "offset": "share": "samples": "sample_rate": "16000""latents": {"patterns.1": [['
    b'"datamodules.domain.Volume""datamodules.domain.Rays""datamodules.domain.CellGrid""codes": [[-1, -1, 24], 1, false, "0'
    b'"boxes": [[["init_args": {"ranges": [[-1.0, 1.0], [-1.0, 1.0]]}"domain": {"class_path": "datamodules.domain.Grid", '
    b'"layout": {"grid": [8, 8], "extent": [64, 64]}"refinement steps": "0", "psnr predicted": "psnr refined": "'
    b'{"shape": [, "name": "", "facts": {}, '
)


@dataclass(frozen=True)
class QuantizedLatents:
    """Indices of the latents of a code, with the coders that state what they mean.

    Args:
        bits: Bits per number.
        coders: Coders by name of the latent; none for constant latents.
        latents: All latents by name, in sorted order.
        indices: ``(C, N)`` of every latent that is not constant.
        table: The table of the coders; None if they are those of the code alone.
    """

    bits: int
    coders: Mapping[str, LatentCoder]
    latents: Mapping[str, LatentShape]
    indices: Mapping[str, Indices]
    table: CodeTable | None = None

    @cached_property
    def stream(self) -> bytes:
        """The entropy-coded indices."""
        encoder = IndexEncoder()
        for name, coder in self.coders.items():
            coder.encode(self.indices[name], encoder)
        return encoder.content()

    @property
    def scales(self) -> bytes:
        """Quantisers as bytes; empty with a table, which states them."""
        return b"" if self.table else b"".join(_packed_scales(coder.quantizer) for coder in self.coders.values())

    @property
    def outside(self) -> float:
        """Share of the numbers that lie outside the range of their distribution; they are coded with an escape."""
        numbers = sum(indices.size for indices in self.indices.values())
        return sum(coder.outside(self.indices[name]) for name, coder in self.coders.items()) / max(numbers, 1)


class StoredSize(NamedTuple):
    """Sizes of the parts of a compressed code in bytes.

    Attributes:
        payload: Entropy-coded indices.
        side: Everything else: header, scales, constant latents, checksum; not the table, which codes share.
    """

    payload: int
    side: int

    @property
    def total(self) -> int:
        """Size of the file."""
        return self.payload + self.side


def quantized(code: InstanceCode, composer: Composer, bits: int, table: CodeTable | None = None) -> InstanceCode:
    """Return a code whose latents are those that a compressed file holds, and which is saved as one.

    Args:
        code: The code.
        composer: The model of the code.
        bits: Bits per number, one of `BITS`.
        table: Table of the model; if None, offsets and steps are computed from this code and stored in its file.

    Raises:
        ValueError: If the code or the table is not of this model, a number is not finite, or ``bits`` is none of `BITS`.
    """
    code.check(composer, code.name or "This code")
    return quantized_as(code, latent_shapes(composer.parametrization.latents), bits, table)


def quantized_as(
    code: InstanceCode, latents: Mapping[str, LatentShape], bits: int, table: CodeTable | None = None
) -> InstanceCode:
    """Return a code as `quantized` does, for stated latents rather than those of a model, such as of a linear code.

    Args:
        code: The code.
        latents: Its latents by name, in sorted order.
        bits: Bits per number, one of `BITS`.
        table: Table of these latents; if None, offsets and steps are computed from this code and stored in its file.

    Raises:
        ValueError: If the table is of another model, a number is not finite, or ``bits`` is none of `BITS`.
    """
    check_bits(bits)
    if table is not None:
        table.check(code.model, bits)
        if table.latents != latents:
            raise ValueError(
                "The table states other latents than the model: learn it again with `python -m tools.codes table`."
            )
    coders, indices = {}, {}
    for name, latent in latents.items():
        if latent.constant:
            continue
        if table is not None:
            coders[name] = table.coders[name]
            indices[name] = coders[name].quantizer.quantize(code.latents[name], name)
        else:
            coders[name], indices[name] = _fitted(latent, code.latents[name], bits, name)
    return _with_latents(code, QuantizedLatents(bits, coders, latents, indices, table), code.latents)


def _with_latents(code: InstanceCode, parts: QuantizedLatents, constants: Latents) -> InstanceCode:
    """Return a code with the latents of indices, and constant latents."""
    tiles, values = len(code.boxes), {}
    for name, latent in parts.latents.items():
        if latent.constant:
            values[name] = constants[name].detach().cpu().float()
        else:
            sizes = latent.sizes(code.layout, tiles)
            values[name] = parts.coders[name].quantizer.dequantize(parts.indices[name], sizes)
    return replace(code, latents=values, quantized=parts)


def _fitted(latent: LatentShape, values: Tensor, bits: int, name: str) -> tuple[LatentCoder, Indices]:
    """Return a coder of one code whose scales `_packed_scales` states exactly, and its indices."""
    numbers = latent.to_channels(values.detach().cpu().float().numpy()).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds numbers that are not finite, which have no index: encode the signal again.")
    scales = latent.channels
    if not latent.repeats and not latent.integers:
        scales = latent.shape[0] if latent.shape[1:] else 1
    fitted = Quantizer.fit(latent, numbers, bits, scales)
    step = (fitted.step.view(np.uint32) + np.uint32(1 << 15) & np.uint32(0xFFFF0000)).view(np.float32)
    first = np.rint(fitted.offset.astype(np.float64) / step).astype(np.int64)
    quantizer = _anchored(latent, step, first, fitted.levels)
    indices = quantizer.quantize(values, name)
    return LatentCoder.standard(quantizer, indices=indices), indices


def _anchored(latent: LatentShape, step: Any, first: Indices, levels: Indices) -> Quantizer:
    """Return a quantiser whose offsets are multiples of its steps."""
    offset = (step.astype(np.float64) * first).astype(np.float32)
    return Quantizer(latent, offset, step, levels)


def _packed_scales(quantizer: Quantizer) -> bytes:
    """Return steps, first indices, and the number of integers of channels that hold some."""
    parts, integer = bytearray(), quantizer.latent.is_integer()
    for scale, (offset, step) in enumerate(zip(quantizer.offset.tolist(), quantizer.step, strict=True)):
        parts += (int(step.view(np.uint32)) >> 16).to_bytes(2, "little")
        first = round(offset / float(step))
        parts += _packed_integer(2 * first if first >= 0 else -2 * first - 1)
        if integer.any() and integer[scale]:
            parts += _packed_integer(int(quantizer.levels[scale]))
    return bytes(parts)


def _packed_integer(number: int) -> bytes:
    """Return a natural number in groups of seven bits, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _read_scales(content: Iterator[int], latent: LatentShape, bits: int, shapes: str) -> LatentCoder:
    """Return the coder of scales that `_packed_scales` wrote, and of the distributions that the header names."""
    integer, step, first, levels = latent.is_integer(), [], [], []
    for scale in range(len(shapes)):
        step.append(next(content) | next(content) << 8)
        number = _read_integer(content)
        first.append(number // 2 if number % 2 == 0 else -(number + 1) // 2)
        levels.append(_read_integer(content) if integer.any() and integer[scale] else 2**bits)
    integers = sum(level for level, whole_numbers in zip(levels, integer, strict=False) if whole_numbers)
    if max(levels) > 1 << 16 or min(levels) < 1 or max(map(abs, first)) > 1 << 40 or integers > 1 << 20:
        raise ValueError("its scales are out of range")
    steps = (np.array(step, np.uint32) << 16).view(np.float32)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError("its scales are not positive")
    quantizer = _anchored(latent, steps, np.array(first, np.int64), np.array(levels, np.int64))
    coder = LatentCoder.standard(quantizer, shapes)
    check_coder(coder)
    return coder


def _read_integer(content: Iterator[int]) -> int:
    """Return the next natural number of `_packed_integer`."""
    number = 0
    for shift in range(0, 63, 7):
        byte = next(content)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise ValueError("its scales are out of range")


def pack(code: InstanceCode) -> bytes:
    """Return the content of the compressed file of a code that `quantized` returned."""
    return b"".join(_parts(code))


def stored_size(code: InstanceCode) -> StoredSize:
    """Return the sizes of the parts of the compressed file of a code that `quantized` returned."""
    parts = [len(part) for part in _parts(code)]
    return StoredSize(parts[-2], sum(parts) - parts[-2])


def _parts(code: InstanceCode) -> list[bytes]:
    """Return the parts of the file of a code: start, header, scales, constants, stream, checksum."""
    parts = code.quantized
    assert parts is not None, "the code was not quantised"
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_DICTIONARY)
    header = compressor.compress(json.dumps(_header(code, parts)).encode()) + compressor.flush()
    digest = bytes.fromhex(parts.table.digest) if parts.table else bytes(8)
    start = _START.pack(
        MAGIC, _VERSION, parts.bits, parts.table is not None, bytes.fromhex(code.model), digest, len(header)
    )
    constants = b"".join(
        code.latents[name].numpy().astype("<f4").tobytes() for name, latent in parts.latents.items() if latent.constant
    )
    content = [start, header, parts.scales, constants, parts.stream]
    checksum = 0
    for part in content:
        checksum = zlib.crc32(part, checksum)
    return [*content, _CHECKSUM.pack(checksum)]


def _header(code: InstanceCode, parts: QuantizedLatents) -> dict[str, Any]:
    """Return the metadata of a code, without what readers assume if it is missing."""
    header: dict[str, Any] = {"shape": code.shape, "name": printable(code.name), "facts": code.facts}
    header |= {"domain": code.domain.config(), "layout": code.layout.config()}
    if list(code.boxes) != [whole(code.shape)]:
        header["boxes"] = code.boxes
    if code.sample_rate is not None:
        header["sample_rate"] = code.sample_rate
    if parts.table is None:
        header["latents"] = {
            name: [*latent, "" if latent.constant else parts.coders[name].shapes()]
            for name, latent in parts.latents.items()
        }
    return header


def save_compressed(code: InstanceCode, path: str | Path) -> None:
    """Write the compressed file of a code, atomically, and a copy of its table beside it."""
    path, parts = Path(path), code.quantized
    assert parts is not None, "the code was not quantised"
    with written_whole(path) as part:
        part.write_bytes(pack(code))
    if parts.table is not None and not (copy := path.with_name(parts.table.filename)).is_file():
        parts.table.save(copy)


def read_compressed(
    path: Path, table: CodeTable | str | Path | None = None, max_samples: int = MAX_SAMPLES
) -> InstanceCode:
    """Read a compressed code.

    Args:
        path: The file.
        table: Its table, or the path of one; if None, the copy beside the file.
        max_samples: Maximum number of samples of the signal.

    Raises:
        ValueError: If the file is damaged or states more numbers than it can hold, or the table is missing or another one.
    """
    content = path.read_bytes()
    fix = "write it again with cli.py predict or `python -m tools.codes compress`"
    size = _START.size
    if len(content) < size + _CHECKSUM.size or content[:4] != MAGIC:
        raise ValueError(f"{path} is truncated or not a compressed code: {fix}.")
    if _CHECKSUM.unpack(content[-4:])[0] != zlib.crc32(content[:-4]):
        raise ValueError(f"{path} is damaged or truncated, its checksum differs: {fix}.")
    _, version, bits, has_table, model, digest, length = _START.unpack(content[:size])
    if version != _VERSION:
        remedy = "update the software" if version > _VERSION else fix
        raise ValueError(
            f"{path} is a compressed code of version {version}; this software reads version {_VERSION}: {remedy}."
        )
    if bits not in BITS or has_table > 1:
        raise ValueError(f"{path} states {bits} bits per number; allowed are {', '.join(map(str, BITS))}: {fix}.")
    stated = _stated_table(path, digest.hex(), model.hex(), bits, table) if has_table else None
    try:
        header = _inflated(content[size:-4][:length])
        return _unpacked(header | {"model": model.hex()}, bits, stated, content[size + length : -4], max_samples)
    except (
        AssertionError,
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        RecursionError,
        StopIteration,
    ) as error:
        raise ValueError(f"{path} does not describe its code completely ({error!r}): {fix}.") from error
    except (TypeError, ValueError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decoded ({error}): {fix}.") from error


def _stated_table(path: Path, digest: str, model: str, bits: int, table: CodeTable | str | Path | None) -> CodeTable:
    """Return the table of a file; raise a `ValueError` if it is missing or another one."""
    beside = path.with_name(f"table.{digest}.safetensors")
    if table is None:
        if not beside.is_file():
            raise ValueError(
                f"{path} was compressed with the table {digest}, and there is no {beside.name} beside it: copy that file, or "
                "pass the table with --table."
            )
        table = beside
    name = "The table" if isinstance(table, CodeTable) else f"The table {table}"
    read = table if isinstance(table, CodeTable) else CodeTable.read(table)
    if read.digest != digest:
        raise ValueError(
            f"{path} was compressed with the table {digest}; {name} is {read.digest}, for {read.bits} bits and the model "
            f"{read.model}: pass the file {beside.name}."
        )
    if (read.model, read.bits) != (model, bits):
        raise ValueError(
            f"{path} states {bits} bits and the model {model}, and its table {digest} {read.bits} bits and {read.model}: write "
            "it again with `python -m tools.codes compress`."
        )
    return read


def _inflated(content: bytes) -> dict[str, Any]:
    """Return the header; raise an error if it is damaged or large."""
    decompressor = zlib.decompressobj(-15, zdict=_DICTIONARY)
    text = decompressor.decompress(content, _MAX_HEADER)
    if not decompressor.eof:
        raise ValueError("its header is incomplete or too large")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise TypeError("its header is no mapping")
    return header


def _unpacked(
    entries: Mapping[str, Any], bits: int, table: CodeTable | None, content: bytes, max_samples: int
) -> InstanceCode:
    """Return the code of the entries of a header and the content behind it."""
    header = Header.of(entries, max_samples)
    boxes, layout = header.boxes, header.layout
    if table is None:
        stated = {
            name: LatentShape(tuple(map(int, sizes)), int(integers), bool(constant))
            for name, (sizes, integers, constant, _) in sorted(entries["latents"].items())
        }
    else:
        stated = dict(table.latents)
    sizes = {name: latent.sizes(layout, len(boxes)) for name, latent in stated.items()}
    numbers = sum(math.prod(map(_natural, some)) for some in sizes.values())
    if numbers > _FREE_NUMBERS + _NUMBERS_PER_BYTE * len(content):
        raise ValueError(f"it states {numbers:,} numbers in a stream of {len(content):,} bytes")
    position, coders = 0, dict[str, LatentCoder]()
    if table is None:
        scales = iter(enumerate(content))
        for name, latent in stated.items():
            if not latent.constant:
                digits = entries["latents"][name][3]
                coders[name] = _read_scales((byte for _, byte in scales), latent, bits, digits)
        position = next(scales, (len(content), 0))[0]
    else:
        coders = dict(table.coders)
    constants, position = _constants(stated, sizes, content, position)
    least = sum(coder.least_bits(math.prod(sizes[name])) for name, coder in coders.items())
    if numbers > _MAX_NUMBERS or 0.99 * least > 8 * (len(content) - position) + 64:
        raise ValueError(f"it states {numbers:,} numbers in a stream of {len(content) - position:,} bytes")
    decoder, indices = IndexDecoder(content[position:]), {}
    for name, coder in coders.items():
        indices[name] = coder.decode(math.prod(sizes[name]) // coder.latent.channels, decoder)
    decoder.finish()
    shape, boxes, model, name, facts, domain, layout, sample_rate = header
    code = InstanceCode(
        constants, boxes, shape, model, name, facts, domain=domain, layout=layout, sample_rate=sample_rate
    )
    code = _with_latents(code, QuantizedLatents(bits, coders, stated, indices, table), constants)
    check_latents(code.latents, len(boxes))
    return code


def _constants(
    stated: Mapping[str, LatentShape], sizes: Mapping[str, Sequence[int]], content: bytes, position: int
) -> tuple[Latents, int]:
    """Return the constant latents at a position of the content, and the position behind them."""
    constants: Latents = {}
    for name, latent in stated.items():
        if latent.constant:
            count = math.prod(sizes[name])
            values = np.frombuffer(content[position:], "<f4", count).astype(np.float32)
            constants[name], position = torch.from_numpy(values.reshape(sizes[name])), position + 4 * count
    return constants, position


def _natural(number: Any, limit: int = _LARGEST) -> int:
    """Return a positive integer below a limit; raise a `ValueError` for anything else."""
    if type(number) is not int or not 0 < number < limit:
        raise ValueError(f"it states the size {str(number)[:40]}")
    return number
