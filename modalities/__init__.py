"""Modalities: reading, writing, drawing and measuring each kind of signal."""

from datamodules.spec import Modality
from modalities.audio import Audio
from modalities.images import Images
from modalities.views import PosedViews

MODALITIES: tuple[Modality, ...] = (Images(), Audio(), PosedViews())

__all__ = ["MODALITIES", "Audio", "Images", "PosedViews"]
