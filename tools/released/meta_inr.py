"""Meta-learned models of kakaobrain/ginr-ipc, IPC and its Learned Init: their options and the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tools.released.network import FIXED, IGNORED, IMAGE, layer_widths, network
from tools.released.options import Config, Options, describe

TYPE = "meta_low_rank_modulated_inr"
NAMES = {
    "start.latents.patterns_": "factors.init_modulation_factors.linear_wb",
    "start.latents.weight_": "factors.init_modulation_factors.linear_wb",
    "parametrization.bases.": "factors.shared_factors.linear_wb",
    "network.encoding.frequencies": "hyponet.ff_linear",
    "network.layers.": "hyponet.params_dict.linear_wb",
}


def composer_config(options: Options, size: int | None) -> Config:
    """Return the config of the composer equivalent to a meta-learned model.

    Reference: the released code never reads the base weights of adapted layers. The configs of Learned Init have an option
    ``ignore_base_param``, which the code does not know.

    Args:
        options: Options of the section ``arch``, whose ``type`` has been read.
        size: Height and width in pixels of the training images; None if unknown.

    Raises:
        ValueError: If an option is not supported, or ``size`` is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; it must be at least 1.")
    factorized = options.read("use_factorization", bool, True)
    network_arguments = network(options, coord_dim=2)
    arguments = Config(network=describe("networks.CoordinateMLP", **network_arguments), inner=_inner(options))
    if factorized:
        arguments["rank"] = _rank(options, network_arguments["modulated_layers"], layer_widths(network_arguments))
    if size is not None:
        arguments["signal_shape"] = [network_arguments["value_dim"], size, size]
    options.fix(FIXED | IMAGE | {"ignore_base_param": True})
    options.finish(IGNORED if factorized else (*IGNORED, "rank"))  # full weights have no rank
    return describe("MetaIPC" if factorized else "LearnedInit", **arguments)


def _inner(options: Options) -> Config:
    """Return the config of the inner loop, which is the same in training and evaluation."""
    lr = options.read("inner_lr", float, 0.01)
    if not 0 < lr < math.inf:
        options.refuse("inner_lr", lr, "a finite number above 0")
    rule = describe("inference.DifferentiableSGD", lr=lr)
    return describe("GradientSteps", steps=options.count("n_inner_step", 2), rule=rule)


def _rank(options: Options, layers: Sequence[int], widths: Sequence[int]) -> int | None:
    """Return the ``rank`` of a `MetaIPC`: one for all layers, or None for the width of each layer."""
    ranks = options.counts("rank", len(widths))
    used = [min(ranks[layer], widths[layer]) for layer in layers]
    if used == [widths[layer] for layer in layers]:
        return None
    if len(set(used)) > 1:
        options.refuse("rank", ranks, f"one rank for the layers {list(layers)}, or their widths, not {used}")
    return used[0]
