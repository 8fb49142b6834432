"""Instance codes and their files: latents, the fingerprint of their model, and the shape of the signal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from composers.base import Composer
from composers.codes.header import MAX_AXES, MAX_SAMPLES, Header, check_latents
from composers.latents import Latents, Layout, lerp
from datamodules.domain import Domain
from datamodules.storage.files import written_whole
from datamodules.storage.text import printable, visible
from datamodules.tiles import Box

if TYPE_CHECKING:
    from composers.codes.container import QuantizedLatents
    from composers.codes.table import CodeTable

MEASURED = ("sample_rate", "samples")  # facts of a recording as it was before its model's rate was imposed on it
_KEPT = (*MEASURED, "signal", "camera")  # facts that a code between two others has as well
_KIND = "instance code"
_VERSION, _EARLIER = "2", "1"  # version 1 has one range for all axes, coord_range
_MAX_ENTRY = 1 << 24  # characters of an entry of the metadata


@dataclass(frozen=True)
class InstanceCode:
    """Code of a signal: the latents of its tiles, or of the complete signal.

    Args:
        latents: ``(T, ...)`` by name, one row for each of ``T`` tiles.
        boxes: Start and stop of every tile along every axis, in samples of the signal. The box of a complete signal may exceed
            the signal, which was padded in this case.
        shape: Samples of the signal along every axis: rows and columns of an image.
        model: `fingerprint` of the model.
        name: Name of the signal.
        facts: Further facts by name: refinement steps, PSNR, the original sampling rate of audio.
        domain: Domain of a tile, as in training.
        layout: Layout of the latents of a tile.
        sample_rate: Samples per second of ``shape`` for audio; None for other signals, and in earlier files of audio, whose
            domain determines it.
        quantized: Indices of the latents if they are quantised, which `save` writes; None otherwise.
    """

    latents: Latents
    boxes: Sequence[Box]
    shape: tuple[int, ...]
    model: str
    name: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    domain: Domain = field(kw_only=True)
    layout: Layout = field(kw_only=True, default=Layout())
    sample_rate: int | None = field(kw_only=True, default=None)
    quantized: QuantizedLatents | None = field(kw_only=True, default=None)

    @property
    def numel(self) -> int:
        """Code size: the number of entries of all latents."""
        return sum(latent.numel() for latent in self.latents.values())

    def check(self, composer: Composer, name: str | Path = "This code") -> None:
        """Check that the code belongs to a model, and that its latents have the shapes that the model takes.

        Raises:
            ValueError: If it belongs to another model, or its latents are of other shapes.
        """
        if (actual := fingerprint(composer)) != self.model:
            raise ValueError(
                f"{name} belongs to the model {self.model}, the checkpoint holds {actual}: a code can only be decoded by its "
                "own model. Pass the checkpoint that it was encoded with."
            )
        self._check_shapes(composer, name)

    def _check_shapes(self, composer: Composer, name: str | Path) -> None:
        """Raise a `ValueError` if the latents do not have the shapes that the model takes for these tiles and this layout."""
        tiles, fix = len(self.boxes), "encode the signal again with cli.py predict"
        shapes = {latent: tuple(values.shape) for latent, values in self.latents.items()}
        specs = composer.parametrization.latents
        try:
            expected = {latent: (tiles, *self.layout.shape(spec.shape)) for latent, spec in specs.items()}
        except ValueError as error:
            raise ValueError(f"{name} states no layout of its latents ({error}): {fix}.") from error
        if shapes != expected:
            raise ValueError(
                f"{name} holds latents of the shapes {shapes}; for {tiles} tile(s) of the layout {self.layout.config()} this "
                f"model takes {expected}: {fix}."
            )

    @property
    def suffix(self) -> str:
        """Ending of the file of the code: ``.inr`` if its latents are quantised, else ``.safetensors``."""
        return ".safetensors" if self.quantized is None else ".inr"

    def save(self, path: str | Path) -> None:
        """Write the code, atomically: as safetensors; if its latents are quantised, as a compressed code."""
        if self.quantized is not None:
            from composers.codes.container import save_compressed  # here, because it imports this module

            save_compressed(self, path)
            return
        metadata = {"kind": _KIND, "version": _VERSION, "model": self.model, "name": printable(self.name)}
        metadata |= {"shape": json.dumps(self.shape), "boxes": json.dumps(self.boxes), "facts": json.dumps(self.facts)}
        metadata |= {} if self.sample_rate is None else {"sample_rate": str(self.sample_rate)}
        metadata |= {"domain": json.dumps(self.domain.config()), "layout": json.dumps(self.layout.config())}
        with written_whole(Path(path)) as part:
            part.write_bytes(save({name: latent.cpu().contiguous() for name, latent in self.latents.items()}, metadata))


def read_code(
    path: str | Path, table: CodeTable | str | Path | None = None, max_samples: int = MAX_SAMPLES
) -> InstanceCode:
    """Read a code from a file, whether it is compressed or not, and check everything that the file states.

    Args:
        path: The file.
        table: Table of a compressed code, or its path; if None, the copy beside the file. Other codes need none.
        max_samples: Maximum number of samples of the signal, such as rows times columns of an image. Without a limit, a file
            of a few bytes could ask for any amount of memory.

    Raises:
        ValueError: If the file is missing, damaged, or not an instance code, if an entry is invalid (the message names it), or
            its table is missing or does not match.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist: write a code with cli.py predict, or pass another file.")
    if Path(path).suffix == ".inr" or _starts_compressed(Path(path)):
        from composers.codes.container import read_compressed  # here, because it imports this module

        return read_compressed(Path(path), table, max_samples)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            latents = {name: file.get_tensor(name) for name in sorted(file.keys())}  # not a mapping
    except Exception as error:  # damaged data may raise any exception
        raise ValueError(f"{path} is damaged or not an instance code: write it again with cli.py predict.") from error
    if metadata.get("kind") != _KIND or not latents:
        raise ValueError(f"{path} holds tensors, but not an instance code: pass a file written by cli.py predict.")
    if (version := metadata.get("version")) not in (_VERSION, _EARLIER):
        raise ValueError(
            f"{path} is an instance code of version {visible(str(version))[:20]}; this software reads versions {_EARLIER} and "
            f"{_VERSION}: update the software."
        )
    try:
        header = Header.of(_stated(metadata), max_samples)
        latents = check_latents(latents, len(header.boxes))
    except ValueError as error:
        raise ValueError(f"{path} is not a valid code: {error}. Write it again with cli.py predict.") from error
    return _with_header(latents, header)


def _starts_compressed(path: Path) -> bool:
    """Return whether a file begins as a compressed code."""
    from composers.codes.container import MAGIC

    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _stated(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of a file of any version as plain data; raise a `ValueError` if an entry is not valid JSON."""
    stated: dict[str, Any] = {key: metadata[key] for key in ("model", "name") if key in metadata}
    for key in ("shape", "boxes", "facts", "domain", "layout", "sample_rate", "coord_range"):
        if key in metadata:
            stated[key] = _parsed(key, metadata[key])
    if "boxes" not in stated:
        raise ValueError("boxes is missing")
    if metadata["version"] == _EARLIER:
        axes = len(stated["shape"]) if isinstance(stated.get("shape"), list) else 1
        ranges = [stated.get("coord_range", [-1.0, 1.0])] * min(axes, MAX_AXES)
        stated["domain"] = {"class_path": "datamodules.domain.Grid", "init_args": {"ranges": ranges}}
    return stated


def _parsed(key: str, text: str) -> Any:
    """Return an entry of the metadata, which is JSON; raise a `ValueError` if it is not."""
    if len(text) > _MAX_ENTRY:
        raise ValueError(f"{key} has {len(text):,} characters; at most {_MAX_ENTRY:,} are read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key} is not valid JSON") from error


def _with_header(latents: Latents, header: Header) -> InstanceCode:
    """Return the code of latents and a header."""
    shape, boxes, model, name, facts, domain, layout, sample_rate = header
    return InstanceCode(
        latents, boxes, shape, model, name, facts, domain=domain, layout=layout, sample_rate=sample_rate
    )


def interpolate(
    first: InstanceCode, last: InstanceCode, share: float, composer: Composer | None = None
) -> InstanceCode:
    """Interpolate between two codes, as the parametrization of their model does; linearly without a model.

    The result has the shape of the first code, and those of its facts that describe the original recording (`MEASURED`), or the
    kind of signal and its camera.

    Args:
        first: Code at ``share`` 0.
        last: Code at ``share`` 1.
        share: Position between the codes, in [0, 1].
        composer: Model of the codes.

    Raises:
        ValueError: If the codes belong to different models, have different numbers of tiles or layouts, or differ in latents
            that the network of ``composer`` takes as constant.
    """
    if first.model != last.model:
        raise ValueError(
            f"The codes belong to the models {first.model} and {last.model}: interpolate codes of one model."
        )
    if len(first.boxes) != len(last.boxes):
        raise ValueError(
            f"The codes have {len(first.boxes)} and {len(last.boxes)} tiles: encode both signals without tiles, or at one size."
        )
    if first.layout != last.layout:
        raise ValueError(
            f"The codes have the layouts {first.layout.config()} and {last.layout.config()}: encode both signals at one size."
        )
    mix = lerp if composer is None else composer.parametrization.interpolate
    latents = mix(first.latents, last.latents, share)
    facts = {fact: first.facts[fact] for fact in _KEPT if fact in first.facts}
    facts |= {"share": f"{share:g}"}
    return replace(first, latents=latents, name=f"{first.name} to {last.name}", facts=facts, quantized=None)


def fingerprint(composer: Composer) -> str:
    """Return a hash of the class and all weights of a model as 16 hexadecimal digits.

    Example:
        ``fingerprint(composers.load("weights/photos_ipc/weights.ckpt"))``
    """
    digest = hashlib.sha256(type(composer).__name__.encode())
    for name, weight in sorted(composer.state_dict().items()):
        content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]
