"""Conversion of weights trained with the released code of IPC, TransINR and LIIF into composers.

``python -m tools.released epoch300_model.pt ipc.ckpt`` converts a checkpoint of kakaobrain/ginr-ipc, which needs its
``config.yaml``, or one of yinboc/trans-inr or yinboc/liif, which contains its config. ``composers.load("ipc.ckpt")`` loads the
result. Supported are hypernetworks for images, audio and views, meta-learned models for images, and LIIF with the encoders EDSR
and RDN. Unknown options and weights raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from composers.base import Composer
from composers.construction import build, state_data
from tools.released import ginr_ipc, liif, meta_inr, trans_inr
from tools.released.layout import fill, fill_by_name, unwrap

__all__ = ["from_liif", "from_released", "from_trans_inr"]


def from_released(state_dict: Mapping[str, Tensor], arch: Mapping[str, Any], size: int | None = None) -> Composer:
    """Return the composer equivalent to a model of kakaobrain/ginr-ipc, in evaluation mode.

    Args:
        state_dict: The ``state_dict`` or ``state_dict_ema`` of a checkpoint.
        arch: The section ``arch`` of its config. Omitted options have the default of the released code.
        size: Height and width in pixels of the training images, for meta-learned models only. Neither ``arch`` nor the weights
            contain it; prediction from image files requires it.

    Raises:
        ValueError: If a type or an option is not supported, or weights are missing, unknown or have another shape than
            ``arch`` implies.
    """
    composer = build(ginr_ipc.composer_config(arch, size))
    return fill(composer, unwrap(state_dict), ginr_ipc.NAMES if composer.inner is None else meta_inr.NAMES)


def from_trans_inr(model: Mapping[str, Any], views: int | None = None) -> Composer:
    """Return the composer equivalent to a model of yinboc/trans-inr, in evaluation mode.

    Args:
        model: The entry ``model`` of a checkpoint, with ``name``, ``args`` and the weights ``sd``.
        views: Number of support views, for models of views only; 1 if None. Checkpoints do not contain it, and because their
            tokens have no positions, the weights fit any number.

    Raises:
        ValueError: As `from_released`.
    """
    name, args, weights = (model.get(key) for key in ("name", "args", "sd"))
    if name != "trans_inr" or not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"The model of yinboc/trans-inr is {name!r}; only 'trans_inr' with args and sd is supported.")
    composer = build(trans_inr.composer_config(args, views))
    return fill(composer, trans_inr.completed(unwrap(weights), composer), trans_inr.NAMES)


def from_liif(model: Mapping[str, Any]) -> Composer:
    """Return the composer equivalent to a model of yinboc/liif, in evaluation mode, which states the published data.

    Args:
        model: The entry ``model`` of a checkpoint, with ``name``, ``args`` and the weights ``sd``.

    Raises:
        ValueError: As `from_released`.
    """
    name, args, weights = (model.get(key) for key in ("name", "args", "sd"))
    if name != "liif" or not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"The model of yinboc/liif is {name!r}; only 'liif' with args and sd is supported.")
    config = liif.composer_config(args)
    composer = fill_by_name(build(config), liif.used(unwrap(weights)), liif.names(config))
    return state_data(composer, liif.DATA)
