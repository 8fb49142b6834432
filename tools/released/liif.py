"""Models of yinboc/liif without up-sampler: the ``args`` of their checkpoints, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from datamodules.domain import CellGrid
from datamodules.spec import DataSpec
from modalities.super_resolution import SuperResolvedImages
from tools.released.options import Config, Options, describe

DATA = DataSpec(CellGrid.unit(2), 3, (3, 48, 48), SuperResolvedImages(), scales=(1.0, 4.0))
"""The published training data; checkpoints do not state theirs."""

_EDSR = {"edsr-baseline": (16, 64, 1.0), "edsr": (32, 256, 0.1)}  # blocks, width and factor of the residuals
_RDN = {"A": (20, 6, 32), "B": (16, 8, 64)}  # blocks, layers of a block and growth
_IGNORED = ("encoder_spec.args.scale", "encoder_spec.args.rgb_range")  # of the up-sampler, and of the unused layers
_UNUSED = ("encoder.sub_mean.", "encoder.add_mean.")  # created, saved and not called


def composer_config(args: Mapping[str, Any]) -> Config:
    """Return the config of the composer equivalent to the model that ``args`` describe.

    Raises:
        ValueError: If an option is not supported.
    """
    options = Options("model.args", args)
    encoder, width = _encoder(options)
    options.choose("imnet_spec.name", ["mlp"])
    widths = options.read("imnet_spec.args.hidden_list", list)
    if not widths or any(type(size) is not int or size < 1 or size != widths[0] for size in widths):
        options.refuse("imnet_spec.args.hidden_list", widths, "one or more equal widths, such as [256, 256, 256, 256]")
    network = describe(
        "networks.LocalMLP",
        coord_dim=4,
        value_dim=options.choose("imnet_spec.args.out_dim", [3]),
        feature_dim=width,
        hidden_dim=widths[0],
        num_hidden=len(widths),
        unfold=options.read("feat_unfold", bool, True),
        use_cell=options.read("cell_decode", bool, True),
        ensemble=options.read("local_ensemble", bool, True),
    )
    options.finish(_IGNORED)
    return describe("LIIF", network=network, encoder=encoder)


def used(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a file without those of layers that the released code never calls."""
    return {name: weight for name, weight in weights.items() if not name.startswith(_UNUSED)}


def names(config: Config) -> dict[str, str]:
    """Return the replacements that turn names of the weights of a `composer_config` into the released ones."""
    network, encoder = (config["init_args"][part]["init_args"] for part in ("network", "encoder"))
    dense = range(encoder.get("num_layers", 0))
    of_encoder = {
        "start.encoder.head.": "encoder.SFENet1.",
        "start.encoder.second.": "encoder.SFENet2.",
        "start.encoder.fusion.": "encoder.GFF.",
        "start.encoder.blocks.": "encoder.RDBs.",
        ".fusion.": ".LFF.",
        **{f".layers.{layer}.": f".convs.{layer}.conv.0." for layer in dense},
    }
    if not dense:
        of_encoder = {
            "start.encoder.head.": "encoder.head.0.",
            "start.encoder.blocks.": "encoder.body.",
            "start.encoder.tail.": f"encoder.body.{encoder['num_blocks']}.",
        }
    layers = network["num_hidden"]
    of_network = {f"network.hidden.{layer}.": f"imnet.layers.{2 * layer + 2}." for layer in range(layers - 1)}
    ends = {"network.first.linear.": "imnet.layers.0.", "network.last.": f"imnet.layers.{2 * layers}."}
    return of_encoder | of_network | ends


def _encoder(options: Options) -> tuple[Config, int]:
    """Return the config of the encoder and its width."""
    name = options.choose("encoder_spec.name", [*_EDSR, "rdn"])
    options.choose("encoder_spec.args.no_upsampling", [True], False)
    if name == "rdn":
        blocks, layers, growth = _RDN[options.choose("encoder_spec.args.RDNconfig", _RDN, "B")]
        options.choose("encoder_spec.args.RDNkSize", [3], 3)
        width = options.count("encoder_spec.args.G0", 64)
        sizes = {"width": width, "growth": growth, "num_blocks": blocks, "num_layers": layers}
        return describe("encoders.RDN", signal_shape=[3, -1, -1], **sizes), width
    blocks, width, scale = _EDSR[name]
    blocks = options.count("encoder_spec.args.n_resblocks", blocks)
    width = options.count("encoder_spec.args.n_feats", width)
    scale = options.read("encoder_spec.args.res_scale", float, scale)
    encoder = describe("encoders.EDSR", signal_shape=[3, -1, -1], width=width, num_blocks=blocks, residual_scale=scale)
    return encoder, width
