"""Modalities: reading, writing, drawing and measuring each kind of signal."""

from datamodules.spec import Modality
from modalities.audio import Audio
from modalities.drawn import DrawnModality
from modalities.images import Images, to_image
from modalities.shapes import Shapes
from modalities.super_resolution import SuperResolvedImages
from modalities.views import PosedViews
from modalities.writing import Prediction, Row, Writer

MODALITIES: tuple[Modality, ...] = (Images(), SuperResolvedImages(), Audio(), PosedViews(), Shapes())

__all__ = [
    "MODALITIES",
    "Audio",
    "DrawnModality",
    "Images",
    "Modality",
    "PosedViews",
    "Prediction",
    "Row",
    "Shapes",
    "SuperResolvedImages",
    "Writer",
    "to_image",
]
