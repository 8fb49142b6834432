"""Base class of prediction writers, and the reconstruction that they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode
from composers.rendering import Reconstruction
from datamodules.batch import Instance

Row = dict[str, str]


class Prediction(NamedTuple):
    """A signal and its reconstruction by a model.

    Attributes:
        composer: The model.
        code: Instance code of all tiles of the signal, with metadata on the refinement and the headline metric.
        instance: The model's input and its reconstructions; None if the signal was split into tiles.
        original: ``(C, *shape)``, the signal at its original resolution if it was split into tiles or resized; else None.
        source: Metadata of the file, such as the ``sample_rate`` of audio.
    """

    composer: Composer
    code: InstanceCode
    instance: Instance | None = None
    original: Tensor | None = None
    source: Mapping[str, Any] = {}

    def reconstruction(self) -> Reconstruction:
        """Return the reconstruction of all tiles as a batch, on the device of the model, without rendering."""
        latents = {name: latent.to(self.composer.device) for name, latent in self.code.latents.items()}
        with torch.no_grad():
            return self.composer.reconstruction(latents, self.code.layout, self.source)


class Writer:
    """Base class for writers of predictions: write the instance code of a signal as NAME.safetensors, or NAME.inr if quantised.

    A subclass is a frozen dataclass, and its fields are options of prediction. It extends `write` by what people open.

    Attributes:
        results: Description of the written files.
        size_heading: Heading of the signal size in the printed table.
        counted: Column of the table that counts the parts of a signal.
        assembles: Whether the results are made by `write_values` from the values of the tiles of a signal, rather than by
            `write` from its code.
        numbers: Columns of values measured besides the headline metric of prediction and refinement, NaN where nothing can be
            measured, and their headings.
    """

    results: ClassVar[str] = "Codes"
    size_heading: ClassVar[str] = "size"
    counted: ClassVar[str] = "tiles"
    assembles: ClassVar[bool] = False
    numbers: ClassVar[Mapping[str, str]] = {}

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the files of one signal.

        Args:
            prediction: The signal and its prediction.
            path: Path of the files without extensions.

        Returns:
            The row of the table, with the same columns for all signals.
        """
        code = prediction.code
        code.save(f"{path}{code.suffix}")
        return {"size": " x ".join(map(str, code.shape)), "tiles": str(len(code.boxes))} | code.facts

    def kept(self, values: Tensor) -> Tensor:
        """Return the values ``(N, C)`` of a tile as they are kept until the signal is complete, if ``assembles``."""
        return values.cpu()

    def write_values(self, values: Tensor, path: Path, source: Mapping[str, Any]) -> Row:
        """Write the files of one signal from its values, if ``assembles``.

        Args:
            values: ``(*shape, C)``, as `kept` returned those of the tiles.
            path: Path of the files without extensions.
            source: Facts of the source of the signal.

        Returns:
            The row of the table, as `write`.
        """
        raise NotImplementedError(f"{type(self).__name__} assembles values: implement write_values.")

    def size_of(self, row: Row) -> str:
        """Return the size of a signal as text for the printed table."""
        return row["size"]

    def check(self, composer: Composer) -> list[str]:
        """Check that the options fit a model before prediction starts, and return messages for the user.

        Raises:
            ValueError: If the options do not fit the model.
        """
        return []

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Decode codes without their signals, and write the results.

        Args:
            composer: The model of the codes.
            codes: A single code, written to the file ``path``; or the frames of an interpolation, written to the folder
                ``path``.
            path: Output path; for a single code, ``stem`` with an extension if None.
            stem: Path without extension for the default output path.

        Returns:
            The output path and a description of the results.

        Raises:
            ValueError: If codes of this modality cannot be decoded on their own, or belong to another model.
        """
        raise ValueError(f"{type(self).__name__} does not support decoding of codes.")
