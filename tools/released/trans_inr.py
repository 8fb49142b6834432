"""Models of yinboc/trans-inr for images and views: the ``args`` of their checkpoints, and the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from composers.networks import CoordinateMLP
from tools.released.ginr_ipc import renderer
from tools.released.options import Config, Options, describe

NAMES = {
    "start.readout.embedding.": "tokenizer.prefc.",
    "start.readout.positions": "tokenizer.posemb",
    "start.readout.weight_tokens": "wtokens",
    "start.readout.heads.scales_": "wtoken_postfc.wb",
    "start.readout.transformer.blocks.": "transformer_encoder.layers.",
    ".attention_norm.": ".0.norm.",
    ".attention.query.": ".0.fn.to_q.",
    ".attention.key_value.": ".0.fn.to_kv.",
    ".attention.projection.": ".0.fn.to_out.0.",
    ".mlp_norm.": ".1.norm.",
    ".mlp.0.": ".1.fn.net.0.",
    ".mlp.2.": ".1.fn.net.3.",
    "network.layers.": "base_params.wb",
}
_FIXED = {
    "hyponet.args.use_pe": True,
    "transformer_encoder.name": "transformer_encoder",
    "transformer_encoder.args.dropout": 0,  # it would also apply inside the MLP
}
_IMAGES = {"tokenizer.name": "imgrec_tokenizer", "hyponet.name": "hypo_mlp", "hyponet.args.in_dim": 2}
_VIEWS = {
    "tokenizer.name": "nvs_tokenizer",
    "tokenizer.args.img_channels": 3,
    "tokenizer.args.padding": 0,
    "hyponet.args.use_viewdirs": False,
}
_LAST = "rgb_density_fc"  # the last layer of a network of views has a name instead of a number
_SAMPLES_PER_RAY = 128  # of all released configs; not part of the released model


def composer_config(args: Mapping[str, Any], views: int | None) -> Config:
    """Return the config of the composer equivalent to the model that ``args`` describe.

    Args:
        args: The arguments as plain data.
        views: Number of support views of a model of views, 1 if None; checkpoints do not contain it.

    Raises:
        ValueError: If an option is not supported, or ``views`` is passed for a model of images.
    """
    options = Options("model.args", args)
    of_views = options.choose("hyponet.name", ("hypo_mlp", "hypo_nerf")) == "hypo_nerf"
    if not of_views and views is not None:
        raise ValueError(f"views is {views}, but this is a model of images: leave views out.")
    options.fix(_FIXED | (_VIEWS if of_views else _IMAGES))
    parts = _scene_parts(options, 1 if views is None else views) if of_views else _image_parts(options)
    config = describe("TransINR", **parts, transformer=_transformer(options), num_groups=options.count("n_groups"))
    options.finish()
    return config


def completed(weights: Mapping[str, Tensor], composer: Composer) -> dict[str, Tensor]:
    """Return the weights of a file with those that files lack: frequencies, and the positions of views, which are zero.

    Reference: the released code computes frequencies in float32, which matters where the highest frequency times pi x is
    rounded; ours are rounded once.
    """
    network, positions = composer.network, composer.get_parameter("start.readout.positions")
    assert isinstance(network, CoordinateMLP)
    frequencies = network.encoding.get_buffer("frequencies")
    count, highest = len(frequencies), float(frequencies[-1])
    if network.coord_dim == 2:
        return {**weights, "network.encoding.frequencies": torch.linspace(0, math.log(highest), count).exp()}
    last = f"wb{network.num_layers - 1}"
    renamed = {name.replace(f".{_LAST}", f".{last}"): weight for name, weight in weights.items()}
    return renamed | {
        "network.encoding.frequencies": 2 ** torch.linspace(0, math.log2(highest), count),
        "tokenizer.posemb": torch.zeros_like(positions),
    }


def _scene_parts(options: Options, views: int) -> Config:
    """Return the configs of the network, the encoder and the renderer of a model of views."""
    frequencies = options.count("hyponet.args.pe_dim", 40) // 2
    network = describe(
        "networks.CoordinateMLP",
        coord_dim=3,
        value_dim=4,
        hidden_dim=options.count("hyponet.args.hidden_dim", 256),
        num_layers=options.count("hyponet.args.depth", 6),
        modulated_layers="all",
        encoding=describe("networks.FourierFeatures", num_frequencies=frequencies, max_frequency=256.0, use_pi=False),
        output_offset=0.0,
    )
    size = options.count("tokenizer.args.input_size")
    patch_size = options.count("tokenizer.args.patch_size")
    encoder = describe("encoders.ViewPatches", signal_shape=[views, 3, size, size], patch_size=patch_size)
    return {"network": network, "encoder": encoder, "renderer": renderer(_SAMPLES_PER_RAY)}


def _image_parts(options: Options) -> Config:
    """Return the configs of the network and the encoder of a model of images."""
    encoding = describe(
        "networks.FourierFeatures",
        num_frequencies=options.count("hyponet.args.pe_dim") // 2,
        max_frequency=options.read("hyponet.args.pe_sigma", float, 1024.0),
    )
    network = describe(
        "networks.CoordinateMLP",
        coord_dim=2,
        value_dim=options.count("hyponet.args.out_dim"),
        hidden_dim=options.count("hyponet.args.hidden_dim"),
        num_layers=options.count("hyponet.args.depth"),
        modulated_layers="all",
        encoding=encoding,
        output_offset=options.read("hyponet.args.out_bias", float, 0.0),
    )
    size = options.count("tokenizer.args.input_size")
    encoder = describe(
        "encoders.Patches",
        signal_shape=[options.count("tokenizer.args.img_channels", 3), size, size],
        patch_size=options.count("tokenizer.args.patch_size"),
        padding=options.read("tokenizer.args.padding", int, 0),
    )
    return {"network": network, "encoder": encoder}


def _transformer(options: Options) -> Config:
    """Return the config of the transformer, whose MLPs must be four times as wide as a token."""
    embed_dim, num_heads = (options.count(f"transformer_encoder.args.{name}") for name in ("dim", "n_head"))
    options.choose("transformer_encoder.args.head_dim", [embed_dim // num_heads])
    options.choose("transformer_encoder.args.ff_dim", [4 * embed_dim])
    return describe(
        "encoders.Transformer",
        embed_dim=embed_dim,
        num_blocks=options.count("transformer_encoder.args.depth"),
        num_heads=num_heads,
        residual_dropout=0.0,
        qkv_bias=False,
    )
