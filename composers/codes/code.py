"""The instance code and its file: latents, the fingerprint of their model, and the shape of what they stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from composers.base import Composer
from composers.latents import Latents, Layout
from datamodules.domain import Domain, Grid
from datamodules.storage.files import written_whole
from datamodules.storage.text import printable
from datamodules.tiles import Box

MEASURED = ("sample_rate", "samples")  # facts of a sound as it was before its model's rate was imposed on it
_KIND = "instance code"
_VERSION, _EARLIER = "2", "1"  # the earlier one states one range for all axes, coord_range


@dataclass(frozen=True)
class InstanceCode:
    """One signal as a model sees it: the latents of its tiles, or of the whole.

    Args:
        latents: ``(T, ...)`` by name, one row for each of ``T`` tiles.
        boxes: Start and stop of every tile along every axis, in samples of the signal; one box if it is whole, which may
            reach beyond the end: what the model saw there was padding.
        shape: Extents of the signal: rows and columns of an image.
        model: The `fingerprint` of the model that the latents belong to.
        name: Of the signal.
        facts: What else is worth knowing: refinement steps, PSNR, of audio the rate that it had.
        domain: Of a tile: the coordinates that the model was trained with.
        layout: Of the latents of a tile.
    """

    latents: Latents
    boxes: Sequence[Box]
    shape: tuple[int, ...]
    model: str
    name: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    domain: Domain = field(kw_only=True)
    layout: Layout = field(kw_only=True, default=Layout())

    @property
    def numel(self) -> int:
        """Numbers in the code."""
        return sum(latent.numel() for latent in self.latents.values())

    def check(self, composer: Composer, name: str | Path = "This code") -> None:
        """Refuse another model than the one that the code belongs to.

        Raises:
            ValueError: With both fingerprints.
        """
        if (found := fingerprint(composer)) != self.model:
            raise ValueError(
                f"{name} belongs to the model {self.model}, the checkpoint holds {found}: a code means nothing to another "
                "model. Give the checkpoint that made it."
            )

    def save(self, path: str | Path) -> None:
        """Write the code as safetensors, whole or not at all."""
        told = {"kind": _KIND, "version": _VERSION, "model": self.model, "name": printable(self.name)}
        told |= {"shape": json.dumps(self.shape), "boxes": json.dumps(self.boxes), "facts": json.dumps(self.facts)}
        told |= {"domain": json.dumps(self.domain.config()), "layout": json.dumps(self.layout.config())}
        with written_whole(Path(path)) as part:
            part.write_bytes(save({name: latent.cpu().contiguous() for name, latent in self.latents.items()}, told))


def read_code(path: str | Path) -> InstanceCode:
    """Return the code in a file.

    Raises:
        ValueError: If the file is missing, damaged, or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no code {path}: make one with cli.py predict, or name another file.")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            latents = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no instance code: make it again with cli.py predict.") from error
    if told.get("kind") != _KIND or not latents:
        raise ValueError(f"{path} holds tensors, but no instance code: name a file that cli.py predict wrote.")
    if told.get("version") not in (_VERSION, _EARLIER):
        raise ValueError(
            f"{path} is an instance code of version {told.get('version')}, this software reads {_EARLIER} and "
            f"{_VERSION}: update it."
        )
    boxes = [tuple((start, stop) for start, stop in box) for box in json.loads(told["boxes"])]
    shape, facts = tuple(json.loads(told["shape"])), json.loads(told["facts"])
    return InstanceCode(
        latents,
        boxes,
        shape,
        told["model"],
        told["name"],
        facts,
        domain=_domain(told, len(shape), path),
        layout=Layout.from_config(json.loads(told.get("layout", "{}"))),
    )


def _domain(told: Mapping[str, str], axes: int, path: str | Path) -> Domain:
    """Return the domain that a file states, in the words of its version."""
    try:
        if told["version"] == _EARLIER:
            return Grid((json.loads(told.get("coord_range", "[-1.0, 1.0]")),) * axes)
        return Domain.from_config(json.loads(told["domain"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not state the coordinates of its model ({error}): make it again.") from error


def interpolate(first: InstanceCode, last: InstanceCode, share: float) -> InstanceCode:
    """Return the code on the straight line between two, at a share of the way in [0, 1].

    Its shape is that of the first, and of the first's facts it keeps those that say how it was measured (`MEASURED`).

    Raises:
        ValueError: If they belong to different models, or are cut into different numbers of tiles.
    """
    if first.model != last.model:
        raise ValueError(f"The codes belong to the models {first.model} and {last.model}: nothing lies between them.")
    if len(first.boxes) != len(last.boxes):
        raise ValueError(
            f"The codes have {len(first.boxes)} and {len(last.boxes)} tiles: encode both signals whole, or at one size."
        )
    latents = {name: torch.lerp(latent, last.latents[name], share) for name, latent in first.latents.items()}
    facts = {fact: first.facts[fact] for fact in MEASURED if fact in first.facts}
    return replace(first, latents=latents, name=f"{first.name} to {last.name}", facts=facts | {"share": f"{share:g}"})


def fingerprint(composer: Composer) -> str:
    """Return what tells a trained model from every other: 16 hexadecimal digits of all its weights.

    Example:
        ``fingerprint(composers.load("weights/photos_ipc/weights.ckpt"))``
    """
    digest = hashlib.sha256(type(composer).__name__.encode())
    for name, weight in sorted(composer.state_dict().items()):
        raw = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]
