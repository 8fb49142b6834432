"""Decode instance codes without their signals, interpolate between codes, compress them, and print information on a code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

import composers
from composers.base import Composer
from composers.codes import (
    BITS,
    MAX_SAMPLES,
    CodeTable,
    Example,
    InstanceCode,
    check_bits,
    fingerprint,
    interpolate,
    latent_shapes,
    quantized,
    read_code,
    sensitivities,
    stored_size,
)
from composers.codes.container import SUFFIX
from composers.latents import Latents
from composers.plugins import add_plugins_option, import_plugins
from datamodules.code_size import CodeSize
from datamodules.spec import Modality
from modalities import MODALITIES
from modalities.images import Size
from modalities.triangle_mesh import MeshFormat
from modalities.writing import Writer

_EXAMPLES = 32  # codes from which sensitivities are estimated
_MAX_COORDS = 1 << 24  # samples of a tile of these
_MAX_SAMPLES = 1 << 13  # of a tile that are decoded for them, drawn at random
_MEASURED = (" predicted", " refined")  # facts that `PredictionWriter` measured


def main(args: list[str] | None = None) -> None:
    """Run the command line. On an error, print one message and exit with status 1 or 2.

    Args:
        args: Command-line arguments; ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser("python -m tools.codes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="render|interpolate|compress|table|info")
    _add_render(commands.add_parser("render", help="decode a code at any size or rate"))
    _add_interpolate(commands.add_parser("interpolate", help="decode an interpolation between two codes"))
    _add_compress(commands.add_parser("compress", help="quantise and compress codes"))
    _add_table(commands.add_parser("table", help="learn the table of compressed codes from codes of training signals"))
    _add_info(commands.add_parser("info", help="print information on a code"))
    for command in commands.choices.values():
        add_plugins_option(command)
    options = vars(parser.parse_args(args))
    try:
        import_plugins(options.pop("plugins") or ())
        options.pop("run")(**options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _add_render(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``render``."""
    parser.add_argument("code", type=Path, help="NAME.safetensors or NAME.inr of cli.py predict")
    _add_decoding(parser)
    parser.add_argument("--frames", type=int, help="number of frames of the turntable video of a scene (default: 48)")
    parser.add_argument("--seconds", type=float, help="duration of the turntable video of a scene (default: 4)")
    parser.add_argument("--mp4", action="store_const", const=True, help="require the video of a scene as MP4")
    parser.add_argument("--mesh", action="store_const", const=True, help="also write the coloured surface of a scene")
    parser.add_argument("--mesh_format", choices=get_args(MeshFormat), help="format of this surface (default: ply)")
    parser.add_argument("--mesh_resolution", type=int, help="points along each side of its cube (default: 128)")
    parser.add_argument("--mesh_level", type=float, help="density of this surface (default: half opaque)")
    parser.add_argument(
        "--output",
        type=Path,
        help="PNG, WAV, mesh (PLY, OBJ, GLB) or turntable video of a scene (GIF, MP4) to write; by default CODE with "
        ".ROWSxCOLUMNS.png, .SAMPLE_RATE.wav, .RESOLUTION.ply or .ROWSxCOLUMNS.gif for its ending",
    )
    parser.set_defaults(run=_render)


def _add_interpolate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``interpolate``."""
    parser.add_argument("first", type=Path, help="code of the first frame")
    parser.add_argument("last", type=Path, help="code of the last frame, of the same model")
    _add_decoding(parser)
    parser.add_argument(
        "--frames", type=int, default=24, help="number of frames including both ends, at least 2 (default: 24)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("interpolation"),
        help="output folder for 000.png ... or 000.ply ... and frames.gif, or for 000.wav ... (default: interpolation)",
    )
    parser.set_defaults(run=_interpolate)


def _add_compress(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``compress``."""
    parser.add_argument("codes", type=Path, nargs="+", metavar="CODE", help="NAME.safetensors of cli.py predict")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of the model that encoded the codes")
    parser.add_argument("--bits", type=int, required=True, help=f"bits per number: {', '.join(map(str, BITS))}")
    parser.add_argument(
        "--table", type=Path, help="table for this model and these bits (default: scales in every file)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the compressed codes NAME.inr (default: the folder of each code)"
    )
    parser.set_defaults(run=_compress)


def _add_table(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``table``."""
    parser.add_argument(
        "codes", type=Path, nargs="+", metavar="CODE", help="codes of training signals, NAME.safetensors"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of the model that encoded the codes")
    parser.add_argument("--bits", type=int, required=True, help=f"bits per number: {', '.join(map(str, BITS))}")
    parser.add_argument(
        "--output", type=Path, default=Path("table.safetensors"), help="file (default: table.safetensors)"
    )
    parser.set_defaults(run=_table)


def _add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``info``."""
    parser.add_argument("code", type=Path, help="NAME.safetensors or NAME.inr of cli.py predict")
    _add_reading(parser)
    parser.add_argument("--checkpoint", type=Path, help="also print whether the code belongs to this model")
    parser.set_defaults(run=_info)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for decoding."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of the model that encoded the code")
    _add_reading(parser)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=_size, help="pixels of the longer side, or ROWSxCOLUMNS")
    sizes.add_argument("--scale", type=float, help="scale factor relative to the encoded image (default: 1)")
    sizes.add_argument("--sample_rate", type=int, help="samples per second of audio (default: those of the file)")
    sizes.add_argument("--resolution", type=int, help="cells along each side of the cube of a shape (default: 256)")
    parser.add_argument(
        "--elevation",
        type=float,
        help="elevation of the camera of a scene in degrees (default: as when it was encoded)",
    )
    parser.add_argument(
        "--max_memory",
        type=float,
        default=500.0,
        help="memory limit of decoding in MB, in addition to the result (default: 500)",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading codes: the table of compressed codes, and the largest size that a code may state."""
    parser.add_argument("--table", type=Path, help="table of a compressed code (default: the copy beside it)")
    parser.add_argument(
        "--max_samples",
        type=int,
        default=MAX_SAMPLES,
        help="maximum number of samples, such as rows times columns, that a code may state, also when enlarged by --scale or "
        "--sample_rate; sizes given by options such as --size are not limited (default: %(default)s)",
    )


def _size(text: str) -> Size:
    """Parse a size given as pixels of the longer side or ROWSxCOLUMNS."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a size: pass pixels of the longer side, or ROWSxCOLUMNS.")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _render(
    code: Path, checkpoint: Path, output: Path | None, table: Path | None, max_samples: int, **options: Any
) -> None:
    """Decode a code and print the output path."""
    composer, instance_code = composers.load(checkpoint), read_code(code, table, max_samples)
    instance_code.check(composer, code)
    _check_enlarged(instance_code, code, options, max_samples)
    path, size = _writer(instance_code, options).decode(composer, [instance_code], output, code.with_suffix(""))
    print(f"Wrote {path}: {size}, decoded from {_code_size(instance_code, code).describe()}.")


def _check_enlarged(code: InstanceCode, path: Path, options: Mapping[str, Any], max_samples: int) -> None:
    """Raise a `ValueError` if the size that a code states, enlarged by an option, is above the limit."""
    stated, option, factor = math.prod(code.shape), "--scale", (options["scale"] or 1.0) ** len(code.shape)
    if options["sample_rate"] and (rate := int(code.facts.get("sample_rate", code.sample_rate or 0))):
        stated, option, factor = int(code.facts.get("samples", stated)), "--sample_rate", options["sample_rate"] / rate
    if stated * factor > max_samples and factor != 1:
        raise ValueError(
            f"{path} has {stated:,} samples, and {stated * factor:,.0f} with {option} {options[option[2:]]:g}, but at most "
            f"{max_samples:,} are decoded: pass a lower {option}, or a higher --max_samples."
        )


def _interpolate(
    first: Path,
    last: Path,
    checkpoint: Path,
    frames: int,
    output: Path,
    table: Path | None,
    max_samples: int,
    **options: Any,
) -> None:
    """Decode an interpolation between two codes and print the output folder."""
    if frames < 2:
        raise ValueError(f"--frames is {frames}, but must be at least 2, since both ends are frames.")
    composer, ends = (
        composers.load(checkpoint),
        (read_code(first, table, max_samples), read_code(last, table, max_samples)),
    )
    for path, code in zip((first, last), ends, strict=True):
        code.check(composer, path)
    _check_enlarged(ends[0], first, options, max_samples)
    writer = _writer(ends[0], options)
    codes = [interpolate(*ends, frame / (frames - 1), composer) for frame in range(frames)]
    _, size = writer.decode(composer, codes, output, first.with_suffix(""))
    print(f"Wrote {frames} frames of {size} into {output}.")


def _compress(codes: list[Path], checkpoint: Path, bits: int, table: Path | None, output: Path | None) -> None:
    """Compress codes and print their sizes."""
    check_bits(bits, "--bits")
    code_table = None if table is None else CodeTable.read(table)
    composer = composers.load(checkpoint)
    if code_table is not None:
        code_table.check(fingerprint(composer), bits, f"The table {table}")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    targets = [(output or path.parent) / f"{path.stem}{SUFFIX}" for path in codes]
    if twice := {str(target) for target in targets if targets.count(target) > 1}:
        raise ValueError(
            f"{', '.join(sorted(twice))} would be written twice: compress codes of the same name one by one."
        )
    for (path, code), target in zip(_read_all(codes, composer), targets, strict=True):
        sizes = _modality(code).size_of_code(code).facts()
        facts = {  # without what only holds before quantisation
            name: fact for name, fact in code.facts.items() if name not in sizes and not name.endswith(_MEASURED)
        }
        try:
            compressed = quantized(replace(code, facts=facts), composer, bits, code_table)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        compressed.save(target)
        console.print(f"Wrote {target}: {_code_size(compressed, target).describe()}.")


def _table(codes: list[Path], checkpoint: Path, bits: int, output: Path) -> None:
    """Learn a table and print its path."""
    check_bits(bits, "--bits")
    composer = composers.load(checkpoint)
    shapes = latent_shapes(composer.parametrization.latents)

    def latents() -> Iterator[Latents]:
        for _, code in _read_all(codes, composer):
            yield code.latents

    examples = (example for _, code in _read_all(codes[:_EXAMPLES], composer) for example in _examples(code))
    table = CodeTable.learn(fingerprint(composer), shapes, latents(), bits, sensitivities(composer, examples))
    table.save(output)
    print(
        f"Wrote {output}: {bits} bits per number, learned from {table.tiles:,} codes; {output.stat().st_size:,} bytes."
    )


def _examples(code: InstanceCode) -> Iterator[Example]:
    """Yield the first tile of a code for `sensitivities`, if its signal is on a regular grid of moderate size."""
    sizes = [stop - start for start, stop in code.boxes[0]]
    if _modality(code).interpolation is not None and math.prod(sizes) <= _MAX_COORDS:
        latents = {name: latent[:1] for name, latent in code.latents.items()}
        coords = code.domain.coords(sizes)
        drawn = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))[:_MAX_SAMPLES]
        yield Example(latents, code.layout, coords[drawn])


def _read_all(paths: list[Path], composer: Composer) -> Iterator[tuple[Path, InstanceCode]]:
    """Yield codes with their paths; raise a `ValueError` if one is of another model or already quantised."""
    for path in paths:
        code = read_code(path)
        code.check(composer, path)
        if code.quantized is not None:
            raise ValueError(
                f"{path} is quantised already: pass the NAME.safetensors that cli.py predict writes without --bits."
            )
        yield path, code


def _code_size(code: InstanceCode, path: Path) -> CodeSize:
    """Return the size of the code in a file."""
    size = _modality(code).size_of_code(code)
    return size if code.quantized is None else size._replace(file_bytes=path.stat().st_size)


def _modality(code: InstanceCode) -> Modality:
    """Return the modality of the signal of a code."""
    return next((modality for modality in MODALITIES if modality.decodes(code)), Modality())


def _writer(code: InstanceCode, options: Mapping[str, Any]) -> Writer:
    """Return the writer for the modality of a code; raise an error for options of other modalities."""
    modality = _modality(code)
    if modality.writer is None or not modality.decoding:
        raise ValueError(
            f"{code.name or 'The code'} encodes a {modality.noun} of shape {code.shape}, which cannot be decoded on its own: "
            "run cli.py predict on the original files instead."
        )
    arguments = {option: value for option, value in options.items() if value is not None}
    if unsupported := [option for option in arguments if option not in (*modality.decoding, "max_memory")]:
        supported = " or ".join(f"--{option}" for option in modality.decoding)
        raise ValueError(
            f"--{unsupported[0]} does not apply to codes of {modality.name}: pass {supported}, or omit the option."
        )
    writer: Writer = modality.writer(**arguments)
    return writer


def _info(code: Path, checkpoint: Path | None, table: Path | None, max_samples: int) -> None:
    """Print information on a code."""
    instance_code = read_code(code, table, max_samples)
    size = _code_size(instance_code, code)
    match = ""
    if checkpoint is not None:
        model = fingerprint(composers.load(checkpoint))
        match = (
            f", that of {checkpoint}" if model == instance_code.model else f"; {checkpoint} is another model, {model}"
        )
    facts = {
        "name": instance_code.name,
        "shape": " x ".join(map(str, instance_code.shape)),
        "tiles": str(len(instance_code.boxes)),
        "latents": ", ".join(f"{name} {tuple(latent.shape)}" for name, latent in instance_code.latents.items()),
        "code size": f"{size.describe()}; the file has {code.stat().st_size:,} bytes",
        **_compression(instance_code),
        "model": instance_code.model + match,
    } | {name: fact for name, fact in instance_code.facts.items() if name not in size.facts()}
    print("\n".join(f"{name + ':':<18} {fact}" for name, fact in facts.items()))


def _compression(code: InstanceCode) -> dict[str, str]:
    """Return information on the compression of a code; empty if it is not quantised."""
    if code.quantized is None:
        return {}
    parts, table = stored_size(code), code.quantized.table
    numbers = sum(indices.size for indices in code.quantized.indices.values())
    return {
        "quantised": f"to {code.quantized.bits} bits, {8 * parts.payload / max(numbers, 1):.3f} bits per number entropy-coded",
        "file": f"{parts.payload:,} bytes of payload, {parts.side:,} bytes of side information",
        "outside range": f"{100 * code.quantized.outside:.2f} % of the numbers, coded with an escape",
        "table": "none; the file contains its scales" if table is None else f"{table.digest}, shared by all codes",
    }


if __name__ == "__main__":
    main()
