"""Generalizable implicit neural representations: one class per method, and `load` for checkpoints."""

from composers.anr import ANR
from composers.base import Composer
from composers.construction import build, load, save
from composers.evaluation import Evaluation
from composers.functa import Functa
from composers.inference import GradientSteps, Refinement
from composers.la_inr import LocalityAwareINR
from composers.learned_init import LearnedInit
from composers.liif import LIIF
from composers.meta_ipc import MetaIPC
from composers.metasdf import MetaSDF
from composers.patch_ipc import PatchIPC
from composers.pixel_aligned import PixelAligned
from composers.transformer_ipc import TransformerIPC
from composers.transinr import TransINR
from composers.voxel_codes import VoxelCodes

__all__ = [
    "ANR",
    "LIIF",
    "Composer",
    "Evaluation",
    "Functa",
    "GradientSteps",
    "LearnedInit",
    "LocalityAwareINR",
    "MetaIPC",
    "MetaSDF",
    "PatchIPC",
    "PixelAligned",
    "Refinement",
    "TransINR",
    "TransformerIPC",
    "VoxelCodes",
    "build",
    "load",
    "save",
]
