"""Instance codes: render one without its picture or clip, walk from one to another, say what one is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image
from torch import Tensor

import composers
from composers.base import Composer
from composers.codes import InstanceCode, fingerprint, interpolate, read_code
from modalities import audio as sound
from modalities.images import Size, render, save_picture


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
        help="PNG or WAV to write; by default CODE with .ROWSxCOLUMNS.png or .RATE.wav for its ending",
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
    sizes.add_argument("--scale", type=float, help="pixels per pixel of the picture, along each side (default: 1)")
    sizes.add_argument("--rate", type=int, help="samples per second of sound (default: those of the clip)")
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


def _render(
    code: Path,
    checkpoint: Path,
    size: Size,
    scale: float | None,
    rate: int | None,
    max_memory: float,
    output: Path | None,
) -> None:
    """Decode a code and say what was written."""
    composer, found = composers.load(checkpoint), read_code(code)
    found.check(composer, code)
    if _is_sound(found, size, scale, rate):
        values, wanted = sound.render(composer, found, rate, max_memory), rate or sound.own_rate(found)
        path = output or code.with_suffix(f".{wanted}.wav")
        sound.save_wav(values, wanted, path)
        made = _told(values, wanted)
    else:
        image = render(composer, found, size, scale, max_memory)
        path = output or code.with_suffix(f".{image.height}x{image.width}.png")
        save_picture(image, path)
        made = f"{image.height} x {image.width} pixels"
    print(f"Wrote {path}: {made} of a code of {found.numel:,} numbers.")


def _interpolate(
    first: Path,
    last: Path,
    checkpoint: Path,
    size: Size,
    scale: float | None,
    rate: int | None,
    max_memory: float,
    frames: int,
    output: Path,
) -> None:
    """Write the frames between two codes and say where."""
    if frames < 2:
        raise ValueError(f"--frames is {frames}; both ends are frames, so it is at least 2.")
    composer, ends = composers.load(checkpoint), (read_code(first), read_code(last))
    for path, code in zip((first, last), ends, strict=True):
        code.check(composer, path)
    between = [interpolate(*ends, frame / (frames - 1)) for frame in range(frames)]
    if _is_sound(ends[0], size, scale, rate):
        made = _write_clips([sound.render(composer, code, rate, max_memory) for code in between], between, rate, output)
    else:
        made = _write_pictures([render(composer, code, size, scale, max_memory) for code in between], output)
    print(f"Wrote {frames} frames of {made} into {output}.")


def _write_clips(clips: list[Tensor], codes: list[InstanceCode], rate: int | None, output: Path) -> str:
    """Write the frames between two sounds, and return what they are."""
    wanted = rate or sound.own_rate(codes[0])
    for frame, values in enumerate(clips):
        sound.save_wav(values, wanted, output / f"{frame:03d}.wav")
    return _told(clips[0], wanted)


def _write_pictures(images: list[Image.Image], output: Path) -> str:
    """Write the frames between two pictures, one by one and moving, and return what they are."""
    for frame, image in enumerate(images):
        save_picture(image, output / f"{frame:03d}.png")
    images[0].save(output / "frames.gif", save_all=True, append_images=images[1:], duration=80, loop=0)
    return f"{images[0].height} x {images[0].width} pixels and frames.gif"


def _is_sound(code: InstanceCode, size: Size, scale: float | None, rate: int | None) -> bool:
    """Return whether a code stands for sound, and refuse options of the other kind."""
    is_sound = len(code.shape) == 1
    if is_sound and (size is not None or scale is not None):
        raise ValueError(f"{code.name or 'This code'} is sound, which has no pixels: give --rate, or nothing.")
    if not is_sound and rate is not None:
        raise ValueError(
            f"{code.name or 'This code'} is no sound, which --rate is of: give --size or --scale, or nothing."
        )
    return is_sound


def _told(values: Tensor, rate: int) -> str:
    """Return how long sound is, in words."""
    return f"{values.shape[1] / rate:.2f} s at {rate:,} Hz"


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
