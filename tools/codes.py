"""Instance codes: render one without its signal, walk from one to another, say what one is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import composers
from composers.base import Composer
from composers.codes import InstanceCode, fingerprint, interpolate, read_code
from datamodules.spec import Modality
from modalities import MODALITIES
from modalities.images import Size
from modalities.writing import Writer


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message and exit status 1 or 2.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = argparse.ArgumentParser("python -m tools.codes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="render|interpolate|info")
    _add_render(commands.add_parser("render", help="decode a code at any size or rate"))
    _add_interpolate(commands.add_parser("interpolate", help="write the frames between two codes"))
    _add_info(commands.add_parser("info", help="say what a code is"))
    options = vars(parser.parse_args(args))
    try:
        options.pop("run")(**options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _add_render(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``render``."""
    parser.add_argument("code", type=Path, help="NAME.safetensors of cli.py predict")
    _add_decoding(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="PNG or WAV to write; by default CODE with .ROWSxCOLUMNS.png or .SAMPLE_RATE.wav for its ending",
    )
    parser.set_defaults(run=_render)


def _add_interpolate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``interpolate``."""
    parser.add_argument("first", type=Path, help="code of the first frame")
    parser.add_argument("last", type=Path, help="code of the last frame, of the same model")
    _add_decoding(parser)
    parser.add_argument("--frames", type=int, default=24, help="frames, with both ends; at least 2 (default: 24)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("interpolation"),
        help="folder of 000.png ... and frames.gif, or of 000.wav ...",
    )
    parser.set_defaults(run=_interpolate)


def _add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``info``."""
    parser.add_argument("code", type=Path, help="NAME.safetensors of cli.py predict")
    parser.add_argument("--checkpoint", type=Path, help="say whether the code belongs to this model")
    parser.set_defaults(run=_info)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a decoding."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model that made the code")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=_size, help="pixels of the longer side, or ROWSxCOLUMNS")
    sizes.add_argument("--scale", type=float, help="pixels per pixel of the image, along each side (default: 1)")
    sizes.add_argument("--sample_rate", type=int, help="samples per second of audio (default: those of the file)")
    parser.add_argument(
        "--max_memory", type=float, default=500.0, help="MB that decoding may take beside the result (default: 500)"
    )


def _size(text: str) -> Size:
    """Return a size as a person writes it."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is no size: give pixels of the longer side, or ROWSxCOLUMNS.")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _render(code: Path, checkpoint: Path, output: Path | None, **options: Any) -> None:
    """Decode a code and say what was written."""
    composer, content = composers.load(checkpoint), read_code(code)
    content.check(composer, code)
    path, size = _writer(content, options).decode(composer, [content], output, code.with_suffix(""))
    print(f"Wrote {path}: {size} of a code of {content.numel:,} numbers.")


def _interpolate(first: Path, last: Path, checkpoint: Path, frames: int, output: Path, **options: Any) -> None:
    """Write the frames between two codes and say where."""
    if frames < 2:
        raise ValueError(f"--frames is {frames}; both ends are frames, so it is at least 2.")
    composer, ends = composers.load(checkpoint), (read_code(first), read_code(last))
    for path, code in zip((first, last), ends, strict=True):
        code.check(composer, path)
    writer = _writer(ends[0], options)
    between = [interpolate(*ends, frame / (frames - 1)) for frame in range(frames)]
    _, size = writer.decode(composer, between, output, first.with_suffix(""))
    print(f"Wrote {frames} frames of {size} into {output}.")


def _writer(code: InstanceCode, options: Mapping[str, Any]) -> Writer:
    """Return what writes the signal of a code, or refuse options of another modality."""
    name = code.name or "This code"
    modality = next((modality for modality in MODALITIES if modality.decodes(code)), Modality())
    if modality.writer is None or not modality.decoding:
        raise ValueError(
            f"{name} stands for a {modality.noun} of shape {code.shape}, which no code is decoded to alone: predict from its "
            "files with cli.py predict."
        )
    given = {option: value for option, value in options.items() if value is not None}
    if others := [option for option in given if option not in (*modality.decoding, "max_memory")]:
        allowed = " or ".join(f"--{option}" for option in modality.decoding)
        raise ValueError(
            f"{name} is a code of {modality.name}, which has no --{others[0]}: give {allowed}, or nothing."
        )
    writer: Writer = modality.writer(**given)
    return writer


def _info(code: Path, checkpoint: Path | None) -> None:
    """Say what a code is."""
    found = read_code(code)
    facts = {
        "name": found.name,
        "shape": " x ".join(map(str, found.shape)),
        "tiles": str(len(found.boxes)),
        "latents": ", ".join(f"{name} {tuple(latent.shape)}" for name, latent in found.latents.items()),
        "numbers": f"{found.numel:,}, in {code.stat().st_size:,} bytes",
        "model": found.model + _match(found, checkpoint),
    } | found.facts
    print("\n".join(f"{name + ':':<18} {fact}" for name, fact in facts.items()))


def _match(code: InstanceCode, checkpoint: Path | None) -> str:
    """Return whether a code belongs to a checkpoint, in words; nothing if none is given."""
    if checkpoint is None:
        return ""
    composer: Composer = composers.load(checkpoint)
    found = fingerprint(composer)
    return f", that of {checkpoint}" if found == code.model else f"; {checkpoint} is another, {found}"


if __name__ == "__main__":
    main()
