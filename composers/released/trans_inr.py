"""Picture models of yinboc/trans-inr: the ``args`` in their checkpoints, and the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composers.inr import CoordinateMLP
from composers.released.options import Config, Options, describe

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
    "tokenizer.name": "imgrec_tokenizer",
    "hyponet.name": "hypo_mlp",
    "hyponet.args.in_dim": 2,
    "hyponet.args.use_pe": True,
    "transformer_encoder.name": "transformer_encoder",
    "transformer_encoder.args.dropout": 0,  # it also drops inside the MLP
}


def composer_config(args: Mapping[str, Any]) -> Config:
    """Return the config of the composer that the ``args`` of a model describe."""
    options = Options("model.args", args)
    options.fix(_FIXED)
    config = describe(
        "TransINR",
        inr=_inr(options),
        tokenizer=_tokenizer(options),
        transformer=_transformer(options),
        num_groups=options.count("n_groups"),
    )
    options.finish()
    return config


def frequencies(inr: CoordinateMLP) -> dict[str, Tensor]:
    """Return the frequencies by our name, which no file holds.

    Reference: made in float32 there, which is seen where the highest times pi x is rounded; ours are rounded once.
    """
    ours = inr.encoding.get_buffer("frequencies")
    return {"inr.encoding.frequencies": torch.linspace(0, math.log(float(ours[-1])), len(ours)).exp()}


def _inr(options: Options) -> Config:
    """Return the config of the coordinate network."""
    encoding = describe(
        "inr.FourierFeatures",
        num_frequencies=options.count("hyponet.args.pe_dim") // 2,
        max_frequency=options.read("hyponet.args.pe_sigma", float, 1024.0),
    )
    return describe(
        "inr.CoordinateMLP",
        coord_dim=2,
        value_dim=options.count("hyponet.args.out_dim"),
        hidden_dim=options.count("hyponet.args.hidden_dim"),
        num_layers=options.count("hyponet.args.depth"),
        modulated_layers="all",
        encoding=encoding,
        output_offset=options.read("hyponet.args.out_bias", float, 0.0),
    )


def _tokenizer(options: Options) -> Config:
    """Return the config of the tokenizer."""
    size = options.count("tokenizer.args.input_size")
    return describe(
        "hypernet.Patches",
        signal_shape=[options.count("tokenizer.args.img_channels", 3), size, size],
        patch_size=options.count("tokenizer.args.patch_size"),
        padding=options.read("tokenizer.args.padding", int, 0),
    )


def _transformer(options: Options) -> Config:
    """Return the config of the transformer, whose heads share the width and whose MLPs are four times as wide."""
    embed_dim, num_heads = (options.count(f"transformer_encoder.args.{name}") for name in ("dim", "n_head"))
    options.choose("transformer_encoder.args.head_dim", [embed_dim // num_heads])
    options.choose("transformer_encoder.args.ff_dim", [4 * embed_dim])
    return describe(
        "hypernet.Transformer",
        embed_dim=embed_dim,
        num_blocks=options.count("transformer_encoder.args.depth"),
        num_heads=num_heads,
        residual_dropout=0.0,
        qkv_bias=False,
    )
