"""Meta-learned models of kakaobrain/ginr-ipc, IPC and its Learned Init: their options, and the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tools.released.network import FIXED, IMAGE, UNREAD, network
from tools.released.options import Config, Options, describe

TYPE = "meta_low_rank_modulated_inr"
NAMES = {
    "patterns.": "factors.init_modulation_factors.linear_wb",
    "bases.": "factors.shared_factors.linear_wb",
    "weights.": "factors.init_modulation_factors.linear_wb",
    "inr.encoding.frequencies": "hyponet.ff_linear",
    "inr.layers.": "hyponet.params_dict.linear_wb",
}


def composer_config(options: Options, size: int | None) -> Config:
    """Return the config of the composer that the options of a meta-learned model describe.

    Reference: base weights of adapted layers are never read there, whether ``ignore_base_param``, which the configs of Learned
    Init have and the code does not know, says so or not.

    Args:
        options: Of the section ``arch``, of which ``type`` has been read.
        size: Pixels along each side of the images of training; None if they are not known.

    Raises:
        ValueError: If there is an option that this version does not read, or ``size`` is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; it counts from 1.")
    factorized = options.read("use_factorization", bool, True)
    inr, arguments = network(options, coord_dim=2), Config(inner_loop=_inner_loop(options))
    if factorized:
        arguments["rank"] = _rank(options, inr["modulated_layers"], [*inr["hidden_dim"], inr["value_dim"]])
    if size is not None:
        arguments["signal_shape"] = [inr["value_dim"], size, size]
    options.fix(FIXED | IMAGE | {"ignore_base_param": True})
    options.finish(UNREAD if factorized else (*UNREAD, "rank"))  # plain weights have none
    return describe(
        "MetaIPC" if factorized else "LearnedInit", inr=describe("networks.CoordinateMLP", **inr), **arguments
    )


def _inner_loop(options: Options) -> Config:
    """Return the config of the inner loop, which is the same in training and test."""
    rate = options.read("inner_lr", float, 0.01)
    if not 0 < rate < math.inf:
        options.refuse("inner_lr", rate, "a finite number above 0")
    return describe("InnerLoop", steps=options.count("n_inner_step", 2), lr=rate)


def _rank(options: Options, layers: Sequence[int], widths: Sequence[int]) -> int | None:
    """Return the ``rank`` of a MetaIPC, which is one for all layers, or None for the width of each."""
    ranks = options.counts("rank", len(widths))
    used = [min(ranks[layer], widths[layer]) for layer in layers]
    if used == [widths[layer] for layer in layers]:
        return None
    if len(set(used)) > 1:
        options.refuse("rank", ranks, f"one rank for the layers {list(layers)}, or their widths, not {used}")
    return used[0]
