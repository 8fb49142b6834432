"""Weights that were trained with the released code of IPC and of TransINR, as composers of this software.

``python -m tools.released epoch300_model.pt ipc.ckpt`` converts a checkpoint of kakaobrain/ginr-ipc, whose ``config.yaml``
lies beside it, or one of yinboc/trans-inr, which holds its own config; ``composers.load("ipc.ckpt")`` then rebuilds the model.
Hypernetworks for images, audio and views are read, and meta-learned models of images. Every option and every weight is
used, or refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composers.meta_learned import MetaLearned
from torch import Tensor

from composers.base import Composer
from composers.checkpoint import build
from tools.released import ginr_ipc, meta_inr, trans_inr
from tools.released.layout import fill, unwrap

__all__ = ["from_released", "from_trans_inr"]


def from_released(state_dict: Mapping[str, Tensor], arch: Mapping[str, Any], size: int | None = None) -> Composer:
    """Return the composer that computes what a model of kakaobrain/ginr-ipc computes, ready for evaluation.

    Args:
        state_dict: The ``state_dict`` or ``state_dict_ema`` of a checkpoint.
        arch: The section ``arch`` of its config, as plain data; what it leaves out has the released default.
        size: Only for meta-learned models: pixels along each side of the images of training, at which images are then
            predicted. No ``arch`` says it, and the weights are the same for any; without it nothing is predicted from files.

    Raises:
        ValueError: If the model is of a kind, or has an option, that this version does not read, or if weights are
            missing, unknown or of another shape than ``arch`` says.
    """
    composer = build(ginr_ipc.composer_config(arch, size))
    return fill(composer, unwrap(state_dict), meta_inr.NAMES if isinstance(composer, MetaLearned) else ginr_ipc.NAMES)


def from_trans_inr(model: Mapping[str, Any], views: int | None = None) -> Composer:
    """Return the composer that computes what a model of yinboc/trans-inr computes, ready for evaluation.

    Args:
        model: The entry ``model`` of a checkpoint: ``name``, ``args`` and the weights ``sd``.
        views: Only for models of views: how many are given at a time, 1 if None. No checkpoint says it, and their
            tokens have no positions, so that the weights are the same for any number.

    Raises:
        ValueError: As `from_released`.
    """
    name, args, weights = (model.get(key) for key in ("name", "args", "sd"))
    if name != "trans_inr" or not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"model of yinboc/trans-inr is {name!r}; this version reads 'trans_inr' with its args and sd.")
    composer = build(trans_inr.composer_config(args, views))
    return fill(composer, trans_inr.completed(unwrap(weights), composer), trans_inr.NAMES)
