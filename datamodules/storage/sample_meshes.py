"""The bundled meshes, and which of them are held out."""

from __future__ import annotations

from pathlib import Path

from datamodules.storage.folders import Split

MESHES = Path(__file__).resolve().parents[2] / "samples" / "meshes"
CHAIRS: dict[Split, tuple[str, ...]] = {
    "train": (
        "chair_antiqueChair",
        "chair_armchair2",
        "chair_chair",
        "chair_chairWithCushion",
        "chair_deckChair",
        "chair_designChair",
        "chair_foldingChair",
        "chair_modernArmchair",
        "chair_silla2",
        "chair_stool",
        "chair_stool2",
        "chair_thonet",
    ),
    "val": ("chair_osakaChair", "chair_winchesterArmchair"),
    "test": ("chair_armchair", "chair_chair2", "chair_plasticChair", "chair_sillaBlanca"),
}
LAMPS: dict[Split, tuple[str, ...]] = {
    "train": ("lamp_desklamp", "lamp_lamp2"),
    "val": ("lamp_outdoorLamp",),
    "test": ("lamp_wallLight",),
}
