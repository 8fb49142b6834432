"""Export a checkpoint as programs that run without this software: encoder and decoder for torch.export, and for ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

from composers.meta_learned import MetaLearned
from jsonargparse import ArgumentError, ArgumentParser

from composers.checkpoint import load
from datamodules.configuration import readable
from tools.export.files import DESCRIPTION, export


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message, and exit status 2 if in the arguments, else 1.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = ArgumentParser(prog="python -m tools.export", description=__doc__, exit_on_error=False)
    parser.add_function_arguments(_export, as_group=False, as_positional=True)
    try:
        _export(**parser.parse_args(args).as_dict())
    except ArgumentError as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _export(
    checkpoint: Path, folder: Path, onnx: bool = False, shape: list[int] | None = None, overwrite: bool = False
) -> None:
    """Export a checkpoint and say what was written.

    Args:
        checkpoint: A checkpoint of cli.py fit, of composers.save, or of python -m tools.released.
        folder: Where to write; made if it does not exist.
        onnx: Whether to write ONNX too; needs the packages onnx, onnxscript and onnxruntime.
        shape: Sizes of the axes of the signal, as in "[178, 178]"; only for a checkpoint that leaves them open.
        overwrite: Whether an earlier export in the folder is replaced.
    """
    composer = load(checkpoint)
    differences = export(composer, folder, onnx, shape, overwrite)
    for name, difference in differences.items():
        size = (folder / name).stat().st_size / 1e6
        print(f"Wrote {folder / name}: {size:.1f} MB, read again, differs by at most {difference:.1e}.")
    if isinstance(composer, MetaLearned):
        print(
            "No encoder: gradient steps find the latents of this model. Take them from the codes that cli.py predict writes."
        )
    print(f"Wrote {folder / DESCRIPTION}: what goes in and what comes out.")


if __name__ == "__main__":
    main()
