"""The contact figure of super-resolution: crops of the input, bicubic interpolation, the reconstruction and the truth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import data_of, gather_rows, headline_metric
from callbacks.super_resolution import bicubic_values, measure_values, scales_of_batch
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.metrics import luminance
from datamodules.base import CoordinateDataModule
from datamodules.batch import Cell, CoordinateBatch
from datamodules.spec import Modality
from datamodules.storage.files import written_whole
from modalities.drawing import enlarged, image_grid
from modalities.drawn import GALLERY_SIZE
from modalities.super_resolution import repeated


class ContactRow(NamedTuple):
    """Crops of an image at a scale.

    Attributes:
        image: Name of the image, without the scale.
        scale: Scale of the item.
        place: Index of the item in the test set.
        cells: Input, bicubic interpolation, reconstruction and truth, all of the same region.
    """

    image: str
    scale: float
    place: int
    cells: list[Cell]


class ContactFigure(Callback):
    """Draw a figure after a test of super-resolution, with a row per image and scale, to compare details.

    The columns are the observed image, its pixels repeated; bicubic interpolation; the prediction; and the truth. All show the
    same region, the one with most detail in the truth: the largest sum of squared differences between neighbouring pixels.
    The labels state the headline metric of the whole image, not of the region, as in ``test_instances.csv``.

    Data modules that state no scales have no such figure.

    Args:
        filename: Name of the figure in the run folder.
        scales: Scales to show, of those that are tested.
        crop: Pixels of the target along each side of the region; less for smaller images.
        num_images: Number of images, the first ones of the test set.

    Raises:
        ValueError: If ``crop`` or ``num_images`` is less than 1, or ``scales`` is empty.
    """

    def __init__(
        self,
        filename: str = "contact.png",
        scales: Sequence[float] = (2.0, 4.0, 8.0),
        crop: int = 128,
        num_images: int = 4,
    ) -> None:
        if crop < 1 or num_images < 1 or not scales:
            raise ValueError(
                f"crop is {crop}, num_images {num_images}, scales {list(scales)}: crop and num_images must be at least 1, and "
                "scales must not be empty."
            )
        self.filename = filename
        self.scales = tuple(map(float, scales))
        self.crop = crop
        self.num_images = num_images
        self.rows: dict[str, ContactRow] = {}
        self._seen = 0  # items of this process

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows."""
        self.rows, self._seen = {}, 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add rows of the first images of this process at every scale."""
        places = [trainer.world_size * (self._seen + index) + trainer.global_rank for index in range(len(batch.names))]
        self._seen += len(batch.names)
        data = data_of(trainer)
        if data is None or not isinstance(pl_module, Composer) or (scales := scales_of_batch(data, batch)) is None:
            return
        chosen = [index for index, scale in enumerate(scales) if scale in self.scales]
        held = [row.scale for row in self.rows.values()]
        chosen = [index for index in chosen if held.count(scales[index] or 0.0) < self.num_images]
        if chosen:
            self._add_rows(pl_module, outputs, batch, data, {index: places[index] for index in chosen})

    def _add_rows(
        self,
        composer: Composer,
        evaluation: Evaluation,
        batch: CoordinateBatch,
        data: CoordinateDataModule,
        places: Mapping[int, int],
    ) -> None:
        """Add the rows of some items of a batch, given their index in the test set by their index in the batch."""
        modality, bicubic = data.spec.modality, bicubic_values(batch)
        metric, predicted = headline_metric(composer, modality), evaluation["values"][0]
        measured = {
            label: measure_values(values, batch, {"": metric})[""]
            for label, values in (("bicubic", bicubic), ("prediction", predicted))
        }
        signal, shape = batch.observation.signal, batch.shape
        assert isinstance(signal, Tensor)
        assert shape is not None
        for index, place in places.items():
            name, scale = batch.names[index], data.scale_of(batch.names[index])
            assert scale is not None
            labels = {
                label: f"{label} {values[index]:.2f} {modality.headline.unit}" for label, values in measured.items()
            }
            columns = {
                name: repeated(signal[index].float(), shape).flatten(1).mT,
                labels["bicubic"]: bicubic[index],
                labels["prediction"]: predicted[index],
                "truth": batch.query.measured[index],
            }
            images = {label: values.float().cpu().mT.unflatten(-1, shape) for label, values in columns.items()}
            rows, cols = most_detailed(images["truth"], self.crop)
            crops = {label: image[:, rows, cols] for label, image in images.items()}
            cells = [
                Cell(label, crop.flatten(1).mT.clone(), tuple(crop.shape[1:]), data.spec.domain)
                for label, crop in crops.items()
            ]
            self.rows[name] = ContactRow(name.removesuffix(f"-x{scale:g}"), scale, place, cells)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figure of the images of all processes."""
        rows = ordered(gather_rows(self.rows).values(), self.num_images)
        folder, data = output_folder(trainer), data_of(trainer)
        self.rows = {}
        if folder is None or data is None or not rows or not trainer.is_global_zero:
            return
        path = folder / self.filename
        figure = contact_figure(rows, data.spec.modality)
        with written_whole(path) as part:
            figure.save(part, format="PNG", compress_level=4)
        Console(soft_wrap=True).print(f"Contact figure: {relative_path(path)}")


def most_detailed(image: Tensor, crop: int) -> tuple[slice, slice]:
    """Return the rows and columns of the square of an image ``(C, H, W)`` with most detail; the first of equal ones.

    Detail is the sum of squared differences of the luminance between neighbouring pixels of the square.

    Args:
        image: Values in [0, 1], with 1 or 3 channels.
        crop: Pixels along each side of the square; less along an axis where the image has fewer.

    Example:
        >>> image = torch.zeros(1, 6, 8)
        >>> image[0, 4, 5] = 1
        >>> most_detailed(image, 3)
        (slice(3, 6, None), slice(4, 7, None))
    """
    grey = luminance(image.movedim(0, -1).double())[..., 0].mul(255).round()  # integers, so that sums are exact
    height, width = (min(crop, extent) for extent in grey.shape)
    vertical = _sums(grey.diff(dim=0).square(), height - 1, width)
    horizontal = _sums(grey.diff(dim=1).square(), height, width - 1)
    detail = vertical + horizontal
    place = int((detail == detail.max()).flatten().nonzero()[0])
    top, left = divmod(place, detail.shape[1])
    return slice(top, top + height), slice(left, left + width)


def _sums(values: Tensor, height: int, width: int) -> Tensor:
    """Return the sums over all windows of ``height x width`` of values ``(H, W)``."""
    sums = torch.nn.functional.pad(values, (1, 0, 1, 0)).cumsum(0).cumsum(1)
    return (sums[height:, width:] - sums[: len(sums) - height, width:] - sums[height:, : sums.shape[1] - width]) + sums[
        : len(sums) - height, : sums.shape[1] - width
    ]


def ordered(rows: Collection[ContactRow], num_images: int) -> list[ContactRow]:
    """Return the rows of the first images of the test set, image by image, with ascending scales."""
    images = list(dict.fromkeys(row.image for row in sorted(rows, key=lambda row: row.place)))[:num_images]
    chosen = [row for row in rows if row.image in images]
    return sorted(chosen, key=lambda row: (images.index(row.image), row.scale))


def contact_figure(rows: Sequence[ContactRow], modality: Modality) -> Image.Image:
    """Return the figure of rows of crops; pixels are repeated by one integer factor, such that crops have 256 pixels."""
    return image_grid(
        [
            [(cell.label, enlarged(modality.panel(cell.values, cell.shape), GALLERY_SIZE)) for cell in row.cells]
            for row in rows
        ]
    )
