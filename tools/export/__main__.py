"""Export a checkpoint as programs that run without this software: encoder and decoder for torch.export, and for ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from composers.construction import load
from composers.plugins import add_plugins_option, import_plugins
from datamodules.configuration import readable
from tools.export.files import DESCRIPTION, export
from tools.export.modules import missing_encoder


def main(args: list[str] | None = None) -> None:
    """Run the command line; invalid input ends with one message, and exit status 2 for invalid arguments, else 1.

    Args:
        args: Arguments of the command line; ``sys.argv`` if None.
    """
    parser = ArgumentParser(prog="python -m tools.export", description=__doc__, exit_on_error=False)
    parser.add_function_arguments(_export, as_group=False, as_positional=True)
    add_plugins_option(parser)
    try:
        options = parser.parse_args(args).as_dict()
        import_plugins(options.pop("plugins") or ())
        _export(**options)
    except ArgumentError as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _export(
    checkpoint: Path, folder: Path, onnx: bool = False, shape: list[int] | None = None, overwrite: bool = False
) -> None:
    """Export a checkpoint and print the files.

    Args:
        checkpoint: Checkpoint of cli.py fit, composers.save or python -m tools.released, or the name of bundled weights.
        folder: Output folder, created if it does not exist.
        onnx: Whether to write ONNX too; requires the packages onnx, onnxscript and onnxruntime.
        shape: Sizes of the axes of the signal, as in "[178, 178]", or of a point set, as in "[2048, 6]", only if the checkpoint
            leaves them open. Latents whose shape depends on the signal have the layout of this size.
        overwrite: Whether to replace an earlier export in the folder.
    """
    composer = load(checkpoint)
    differences = export(composer, folder, onnx, shape, overwrite)
    for name, difference in differences.items():
        size = (folder / name).stat().st_size / 1e6
        print(f"Wrote {folder / name}: {size:.1f} MB; largest difference from the checkpoint {difference:.1e}.")
    if reason := missing_encoder(composer):
        print(f"No encoder: {reason}. Take latents from the codes that cli.py predict writes.")
    print(f"Wrote {folder / DESCRIPTION}: inputs, outputs, domain and layout.")


if __name__ == "__main__":
    main()
