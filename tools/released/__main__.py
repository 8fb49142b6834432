"""Convert a released checkpoint of IPC, TransINR or LIIF into a checkpoint for composers.load."""

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
from composers.construction import save
from datamodules.storage.files import written_whole
from tools.released import from_liif, from_released, from_trans_inr

_UNSAFE = (
    "it contains an object of class {}, and only tensors and plain data are loaded, never code. In the environment that wrote "
    'it, run torch.save({{"state_dict": torch.load(path)["state_dict"]}}, new_path), with "state_dict_ema" for --ema or '
    '"model" for trans-inr and liif; then convert new_path, for ginr-ipc with --config.'
)


def main(args: list[str] | None = None) -> None:
    """Run the command line; user errors end with one message and exit status 1 or 2.

    Args:
        args: Command-line arguments; those of the process if None.
    """
    parser = ArgumentParser("python -m tools.released", description=__doc__)
    parser.add_argument(
        "src",
        type=Path,
        help="epoch{N}_model.pt of kakaobrain/ginr-ipc, or epoch-{N}.pth of yinboc/trans-inr or yinboc/liif",
    )
    parser.add_argument("dst", type=Path, help="checkpoint to write")
    parser.add_argument(
        "--config", type=Path, help="config.yaml of a checkpoint of ginr-ipc; default: config.yaml in its folder"
    )
    parser.add_argument("--ema", action="store_true", help="convert the moving average of the weights, state_dict_ema")
    parser.add_argument(
        "--views",
        type=int,
        help="number of support views of a model of views of trans-inr, which its checkpoint does not contain; default: 1",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="height and width in pixels of the training images of a meta-learned model of ginr-ipc, which its config does "
        "not contain; required to predict from image files",
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite dst if it exists")
    try:
        _convert(**vars(parser.parse_args(args)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _convert(
    src: Path, dst: Path, config: Path | None, ema: bool, views: int | None, size: int | None, overwrite: bool
) -> None:
    """Convert a checkpoint and print a summary."""
    if dst.resolve() == src.resolve() or dst.is_dir() or (dst.exists() and not overwrite):
        raise ValueError(f"{dst} exists: pass another DST, or --overwrite to replace a file other than SRC.")
    try:
        composer = _composer(_read(src), src, config, ema, views, size)
    except ValueError as error:
        raise ValueError(f"{src} cannot be converted: {error}") from error
    _write(composer, dst)
    parameters = sum(parameter.numel() for parameter in composer.parameters())
    average = ", moving average of the weights" if ema else ""
    print(f"Wrote {dst}: {type(composer).__name__}, {parameters:,} parameters{average}.")
    print(f'Next: python -c "import composers; print(composers.load({str(dst)!r}))"')


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint without running any code that it contains."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}: pass a file written by the released code.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise any exception
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(_UNSAFE.format(match[1])) from error
        raise ValueError("it is not a complete checkpoint: download it again.") from error
    if not isinstance(content, dict):
        raise ValueError("it does not contain a dictionary, so it is not a checkpoint of the released code.")
    return content


def _composer(
    content: Mapping[str, Any], src: Path, config: Path | None, ema: bool, views: int | None, size: int | None
) -> Composer:
    """Return the composer equivalent to the content of a checkpoint of ginr-ipc, trans-inr or liif."""
    if "composer" in content:
        raise ValueError("it is already a checkpoint of this software: load it with composers.load.")
    if isinstance(content.get("model"), Mapping):
        if config or ema or size is not None:
            raise ValueError(
                "it is a checkpoint of yinboc/trans-inr or yinboc/liif, with its own config and no moving average: leave "
                "--config, --ema and --size out."
            )
        return _self_described(content["model"], views)
    if views is not None:
        raise ValueError(
            "it is a checkpoint of kakaobrain/ginr-ipc, whose config has the number of views: leave --views out."
        )
    key = "state_dict_ema" if ema else "state_dict"
    if not isinstance(content.get(key), Mapping):
        raise ValueError(
            f"it has no {key}, only {', '.join(map(str, content))}: pass a checkpoint of ginr-ipc, trans-inr or liif, and "
            "--ema only if a moving average was saved."
        )
    return from_released(content[key], _arch(config or src.parent / "config.yaml"), size)


def _self_described(model: Mapping[str, Any], views: int | None) -> Composer:
    """Return the composer equivalent to a model with its own config, of trans-inr or liif."""
    name = model.get("name")
    if name == "trans_inr":
        return from_trans_inr(model, views)
    if name != "liif":
        raise ValueError(
            f"its model is {name!r}; supported: 'trans_inr' of yinboc/trans-inr and 'liif' of yinboc/liif."
        )
    if views is not None:
        raise ValueError("it is a checkpoint of yinboc/liif, a model of images: leave --views out.")
    return from_liif(model)


def _arch(path: Path) -> Mapping[str, Any]:
    """Return the section ``arch`` of a released config file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no config {path}: pass the config.yaml of this checkpoint with --config.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its config {path} is not plain YAML: {error}") from error
    arch = config.get("arch") if isinstance(config, Mapping) else None
    if not isinstance(arch, Mapping):
        raise ValueError(
            f"its config {path} has no section arch: pass the config.yaml of this checkpoint with --config."
        )
    return arch


def _write(composer: Composer, dst: Path) -> None:
    """Write a checkpoint atomically."""
    try:
        with written_whole(dst) as part:
            save(composer, part)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{dst} cannot be written: {error}. Pass a DST in a writable folder with enough free space."
        ) from error


if __name__ == "__main__":
    main()
