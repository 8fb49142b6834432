"""Models of yinboc/trans-inr, of images and of views: the ``args`` in their checkpoints, and the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from tools.released.ginr_ipc import renderer
from tools.released.options import Config, Options, describe

NAMES = {
    "hypernet.embedding.": "tokenizer.prefc.",
    "hypernet.positions": "tokenizer.posemb",
    "hypernet.weight_tokens": "wtokens",
    "hypernet.heads.": "wtoken_postfc.wb",
    "hypernet.transformer.blocks.": "transformer_encoder.layers.",
    ".attention_norm.": ".0.norm.",
    ".attention.query.": ".0.fn.to_q.",
    ".attention.key_value.": ".0.fn.to_kv.",
    ".attention.projection.": ".0.fn.to_out.0.",
    ".mlp_norm.": ".1.norm.",
    ".mlp.0.": ".1.fn.net.0.",
    ".mlp.2.": ".1.fn.net.3.",
    "inr.layers.": "base_params.wb",
}
_FIXED = {
    "hyponet.args.use_pe": True,
    "transformer_encoder.name": "transformer_encoder",
    "transformer_encoder.args.dropout": 0,  # it also drops inside the MLP
}
_IMAGES = {"tokenizer.name": "imgrec_tokenizer", "hyponet.name": "hypo_mlp", "hyponet.args.in_dim": 2}
_VIEWS = {
    "tokenizer.name": "nvs_tokenizer",
    "tokenizer.args.img_channels": 3,
    "tokenizer.args.padding": 0,
    "hyponet.args.use_viewdirs": False,
}
_LAST = "rgb_density_fc"  # the last layer of a network of views has a name, and no number
_SAMPLES_PER_RAY = 128  # of every released config; it is no part of the model there


def composer_config(args: Mapping[str, Any], views: int | None) -> Config:
    """Return the config of the composer that the ``args`` of a model describe.

    Args:
        args: As plain data.
        views: Views that a model of views is given at a time, 1 if None; no file says how many.

    Raises:
        ValueError: If there is an option that this version does not read, or ``views`` for a model of images.
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
    """Return the weights of a file with what no file holds: frequencies, and of views the positions, which are zero there.

    Reference: frequencies are made in float32 there, which is seen where the highest times pi x is rounded; ours are rounded
    once.
    """
    inr, positions = composer.network, composer.get_parameter("hypernet.positions")
    highest = float(inr.encoding.get_buffer("frequencies")[-1])
    count = len(inr.encoding.get_buffer("frequencies"))
    if inr.coord_dim == 2:
        return {**weights, "inr.encoding.frequencies": torch.linspace(0, math.log(highest), count).exp()}
    last = f"wb{inr.num_layers - 1}"
    renamed = {name.replace(f".{_LAST}", f".{last}"): weight for name, weight in weights.items()}
    made = {"inr.encoding.frequencies": 2 ** torch.linspace(0, math.log2(highest), count)}
    return renamed | made | {"tokenizer.posemb": torch.zeros_like(positions)}


def _scene_parts(options: Options, views: int) -> Config:
    """Return the configs of network, tokenizer and renderer of a model of views."""
    frequencies = options.count("hyponet.args.pe_dim", 40) // 2
    inr = describe(
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
    tokenizer = describe("encoders.ViewPatches", signal_shape=[views, 3, size, size], patch_size=patch_size)
    return {"inr": inr, "tokenizer": tokenizer, "renderer": renderer(_SAMPLES_PER_RAY)}


def _image_parts(options: Options) -> Config:
    """Return the configs of network and tokenizer of a model of images."""
    encoding = describe(
        "networks.FourierFeatures",
        num_frequencies=options.count("hyponet.args.pe_dim") // 2,
        max_frequency=options.read("hyponet.args.pe_sigma", float, 1024.0),
    )
    inr = describe(
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
    tokenizer = describe(
        "encoders.Patches",
        signal_shape=[options.count("tokenizer.args.img_channels", 3), size, size],
        patch_size=options.count("tokenizer.args.patch_size"),
        padding=options.read("tokenizer.args.padding", int, 0),
    )
    return {"inr": inr, "tokenizer": tokenizer}


def _transformer(options: Options) -> Config:
    """Return the config of the transformer, whose heads share the width and whose MLPs are four times as wide."""
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
