"""Convert a released checkpoint of IPC or TransINR into one that composers.load reads."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from composers.base import Composer
from composers.checkpoint import save
from datamodules.storage.files import written_whole
from tools.released import from_released, from_trans_inr

_WAY_OUT = (
    "it holds an object of class {}, and only tensors and plain data are loaded, never code. In the environment that made "
    'it, run torch.save({{"state_dict": torch.load(path)["state_dict"]}}, new_path), with "state_dict_ema" for --ema or '
    '"model" for trans-inr; then convert new_path, for ginr-ipc with --config.'
)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message and exit status 1 or 2.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = ArgumentParser("python -m tools.released", description=__doc__)
    parser.add_argument(
        "src", type=Path, help="epoch{N}_model.pt of kakaobrain/ginr-ipc or epoch-{N}.pth of yinboc/trans-inr"
    )
    parser.add_argument("dst", type=Path, help="file to write")
    parser.add_argument(
        "--config", type=Path, help="config.yaml of a checkpoint of ginr-ipc; by default the one beside it"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights, state_dict_ema")
    parser.add_argument(
        "--views",
        type=int,
        help="views at a time of a model of views of trans-inr, whose checkpoints do not say; 1 if left out",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="pixels along each side of the images that a meta-learned model of ginr-ipc was trained on, which its config "
        "does not say in numbers; needed to predict from files",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace dst if it exists")
    try:
        _convert(**vars(parser.parse_args(args)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _convert(
    src: Path, dst: Path, config: Path | None, ema: bool, views: int | None, size: int | None, overwrite: bool
) -> None:
    """Convert a checkpoint and say what was written."""
    if dst.resolve() == src.resolve() or dst.is_dir() or (dst.exists() and not overwrite):
        raise ValueError(f"{dst} exists: name another file, or replace a file that is not SRC with --overwrite.")
    try:
        composer = _composer(_read(src), src, config, ema, views, size)
    except ValueError as error:
        raise ValueError(f"{src} cannot be converted: {error}") from error
    _write(composer, dst)
    parameters = sum(parameter.numel() for parameter in composer.parameters())
    average = ", averages of the weights" if ema else ""
    print(f"Wrote {dst}: {type(composer).__name__}, {parameters:,} parameters{average}.")
    print(f'Next: python -c "import composers; print(composers.load({str(dst)!r}))"')


def _read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, if that is data alone: an object of other software would run its code."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}: name a file that the released code wrote.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(_WAY_OUT.format(named[1])) from error
        raise ValueError("it is no whole checkpoint: take it from its source again.") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary, so it is no checkpoint of the released code.")
    return content


def _composer(
    content: Mapping[str, Any], src: Path, config: Path | None, ema: bool, views: int | None, size: int | None
) -> Composer:
    """Return the composer of what a checkpoint of either code holds."""
    if "composer" in content:
        raise ValueError("it is a checkpoint of this software already: composers.load reads it.")
    if isinstance(content.get("model"), Mapping):
        if config or ema or size is not None:
            raise ValueError(
                "it is of yinboc/trans-inr, with a config that says the size, and no average: leave --config, --ema and --size "
                "out."
            )
        return from_trans_inr(content["model"], views)
    if views is not None:
        raise ValueError("it is of kakaobrain/ginr-ipc, whose config says how many views: leave --views out.")
    key = "state_dict_ema" if ema else "state_dict"
    if not isinstance(content.get(key), Mapping):
        raise ValueError(
            f"it has no {key} but {', '.join(map(str, content))}: name a checkpoint of ginr-ipc or trans-inr, and --ema only "
            "where an average was kept."
        )
    return from_released(content[key], _arch(config or src.parent / "config.yaml"), size)


def _arch(path: Path) -> Mapping[str, Any]:
    """Return the section ``arch`` of a released config file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no config {path}: name the config.yaml of this checkpoint with --config.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its config {path} is no plain YAML: {error}") from error
    arch = config.get("arch") if isinstance(config, Mapping) else None
    if not isinstance(arch, Mapping):
        raise ValueError(
            f"its config {path} has no section arch: name the config.yaml of this checkpoint with --config."
        )
    return arch


def _write(composer: Composer, dst: Path) -> None:
    """Write a checkpoint whole or not at all."""
    try:
        with written_whole(dst) as part:
            save(composer, part)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{dst} cannot be written: {error}. Name a file in a folder that has room for it.") from error


if __name__ == "__main__":
    main()
