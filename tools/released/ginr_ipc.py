"""Models of kakaobrain/ginr-ipc: the section ``arch`` of their configs, and the names of the weights of hypernetworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.released import meta_inr
from tools.released.network import FIXED, IMAGE, SIGNAL, UNIT, UNREAD, network
from tools.released.options import Config, Options, describe

NAMES = {
    "hypernet.embedding.": "latent_mapping.latent_mapping.",
    "hypernet.positions": "latent_mapping.pos_emb_latent",
    "hypernet.weight_tokens": "weight_groups.weight_groups",
    "hypernet.heads.": "group_modulation_postfc.linear_wb",
    "hypernet.transformer.": "transformer.",
    ".attention_norm.": ".ln1.",
    ".attention.": ".attn.",
    ".projection.": ".proj.",
    ".mlp_norm.": ".ln2.",
    "inr.encoding.frequencies": "hyponet.ff_linear",
    "inr.layers.": "hyponet.params_dict.linear_wb",
    "bases.": "shared_factor.linear_wb",
}
_KINDS = {"low_rank_modulated_transinr": ("TransformerIPC", "rank"), "transinr": ("TransINR", "num_groups")}
_KINDS |= {f"{name}_nerf": kind for name, kind in _KINDS.items()}
_AUDIO = SIGNAL | {"hyponet.input_dim": 1, "coord_sampler.data_type": "audio", "data_encoder.n_channel": 1}
_VIEWS = UNIT | {"coord_sampler.data_type": "nvs"}
_VIEWS_STATED = {  # where what is left out means something else
    "hyponet.input_dim": (3, 2),
    "hyponet.fourier_mapping.type": ("deterministic_transinr_nerf", "deterministic_transinr"),
    "data_encoder.n_channel": (9, 3),
    "data_encoder.encoder_spec.padding": (0, 1),
}
_FIXED = FIXED | {
    "latent_mapping.type": "linear",
    "latent_mapping.n_layer": 1,
    "latent_mapping.use_pe": True,
    "transformer.mask": False,
    "transformer.block.mlp_bias": True,
    "transformer.block.attn_bias": True,
    "transformer.block.attn_pdrop": 0.0,
    "transformer.block.gelu": "v1",  # the erf form; the other is an approximation
}
_UNREAD = (
    *UNREAD,
    "data_encoder.trainable",  # cutting into patches has no parameters
    "latent_mapping.activation",  # this and the next are for an n_layer above 1
    "latent_mapping.hidden_dim",
)


def composer_config(arch: Mapping[str, Any], size: int | None = None) -> Config:
    """Return the config of the composer that an ``arch`` describes.

    Args:
        arch: As plain data.
        size: Pixels along each side of the images that a meta-learned model was trained on, if known.

    Raises:
        ValueError: If there is an option that this version does not read, or ``size`` for a hypernetwork.
    """
    options = Options("arch", arch)
    name = options.choose("type", [*_KINDS, meta_inr.TYPE])
    if name == meta_inr.TYPE:
        return meta_inr.composer_config(options, size)
    if size is not None:
        raise ValueError(f"size is {size}, but this is a hypernetwork, whose tokens say it: leave size out.")
    return _hypernetwork(options, name)


def _hypernetwork(options: Options, name: str) -> Config:
    """Return the config of the composer with a hypernetwork that the options describe."""
    kind, columns = _KINDS[name]
    read = _views if name.endswith("_nerf") else _signal
    inr, tokenizer, rendering = read(options)
    config = describe(
        kind,
        inr=describe("networks.CoordinateMLP", **inr),
        tokenizer=tokenizer,
        transformer=_transformer(options),
        **{columns: _columns(options, columns, inr["modulated_layers"], [*inr["hidden_dim"], inr["value_dim"]])},
        **rendering,
    )
    options.fix(_FIXED)
    options.finish(_UNREAD)
    return config


def _signal(options: Options) -> tuple[Config, Config, Config]:
    """Return the network's arguments, the tokenizer and no renderer, of a model of images or audio."""
    audio = options.choose("data_encoder.type", ("unfold", "unfold_audio"), "unfold") == "unfold_audio"
    read = network(options, coord_dim=1 if audio else 2), _tokenizer(options, audio), Config()
    if audio:
        _check_seconds(options)
    options.fix(_AUDIO if audio else IMAGE)
    return read


def _check_seconds(options: Options) -> None:
    """Refuse a range that no recording has: two units a second, around 0, which our data states itself."""
    found = options.read("coord_sampler.coord_range", list, [-1.0, 1.0])
    numbers = len(found) == 2 and all(type(end) in (int, float) for end in found)
    if not numbers or not 0 < found[1] == -found[0]:
        options.refuse("coord_sampler.coord_range", found, "[-t, t] for recordings of t seconds")


def _views(options: Options) -> tuple[Config, Config, Config]:
    """Return the network's arguments, the tokenizer and the renderer, of a model of views."""
    options.choose("data_encoder.type", ["unfold"], "unfold")
    options.choose("hyponet.output_dim", [4], 3)
    for name, (stated, default) in _VIEWS_STATED.items():
        options.choose(name, [stated], default)
    options.fix(_VIEWS)
    inr = network(options, coord_dim=3) | {"value_dim": 4}
    tokenizer = describe(
        "encoders.ViewPatches",
        signal_shape=[-1, 3, -1, -1],
        patch_size=options.count("data_encoder.encoder_spec.patch_size", 9),
        num_tokens=options.count("latent_mapping.n_patches", 400),
    )
    return inr, tokenizer, {"renderer": renderer(options.count("coord_sampler.num_points_per_ray", 128))}


def renderer(samples_per_ray: int) -> Config:
    """Return the config of the renderer of all released models: the depths are those of their data."""
    return describe("rendering.VolumeRenderer", near=2.0, far=6.0, samples_per_ray=samples_per_ray)


def _tokenizer(options: Options, audio: bool) -> Config:
    """Return the config of the tokenizer: ``arch`` states the number of tokens, and no size of the signal."""
    spec = "data_encoder.encoder_spec"
    if audio:
        mirrored = options.read(f"{spec}.use_padding", bool, True)
        cut: Config = {"signal_shape": [1, -1], "remainder": "reflect" if mirrored else "refuse"}
    else:
        cut = {"signal_shape": [options.count("data_encoder.n_channel", 3), -1, -1]}
        cut["padding"] = options.read(f"{spec}.padding", int, 1)
    patch_size = options.count(f"{spec}.patch_size", 200 if audio else 9)
    num_tokens = options.count("latent_mapping.n_patches", 400)
    return describe("encoders.Patches", patch_size=patch_size, num_tokens=num_tokens, **cut)


def _transformer(options: Options) -> Config:
    """Return the config of the transformer, whose tokens have one width everywhere."""
    embed_dim = options.count("transformer.embed_dim", 768)
    options.choose("latent_mapping.latent_dim", [embed_dim], 256)
    options.choose("transformer.block.embed_dim", [embed_dim], embed_dim)
    return describe(
        "encoders.Transformer",
        embed_dim=embed_dim,
        num_blocks=options.count("transformer.n_layer"),
        num_heads=options.count("transformer.block.n_head"),
        residual_dropout=options.read("transformer.block.resid_pdrop", float, 0.1),
    )


def _columns(options: Options, columns: str, layers: Sequence[int], widths: Sequence[int]) -> int:
    """Return the ``rank`` of an IPC or the ``num_groups`` of a TransINR, of which ours have one for all layers."""
    groups = options.counts("n_weight_groups", len(widths))
    used = [min(groups[layer], widths[layer]) for layer in layers]
    most = max(used)
    ours = [most if columns == "rank" else min(most, widths[layer]) for layer in layers]
    if used != ours:
        options.refuse("n_weight_groups", groups, f"one {columns} for the layers {layers}, not {used}")
    return most
