"""Models of kakaobrain/ginr-ipc: the section ``arch`` of their configs, and the names of the weights of hypernetworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.released import meta_inr
from tools.released.network import FIXED, IGNORED, IMAGE, SIGNAL, UNIT, layer_widths, network
from tools.released.options import Config, Options, describe

NAMES = {
    "start.readout.embedding.": "latent_mapping.latent_mapping.",
    "start.readout.positions": "latent_mapping.pos_emb_latent",
    "start.readout.weight_tokens": "weight_groups.weight_groups",
    "start.readout.heads.patterns_": "group_modulation_postfc.linear_wb",
    "start.readout.heads.scales_": "group_modulation_postfc.linear_wb",
    "start.readout.transformer.": "transformer.",
    ".attention_norm.": ".ln1.",
    ".attention.": ".attn.",
    ".projection.": ".proj.",
    ".mlp_norm.": ".ln2.",
    "network.encoding.frequencies": "hyponet.ff_linear",
    "network.layers.": "hyponet.params_dict.linear_wb",
    "parametrization.bases.": "shared_factor.linear_wb",
}
_TYPES = {"low_rank_modulated_transinr": ("TransformerIPC", "rank"), "transinr": ("TransINR", "num_groups")}
_TYPES |= {f"{name}_nerf": composer for name, composer in _TYPES.items()}
_AUDIO = SIGNAL | {"hyponet.input_dim": 1, "coord_sampler.data_type": "audio", "data_encoder.n_channel": 1}
_VIEWS = UNIT | {"coord_sampler.data_type": "nvs"}
_REQUIRED_OF_VIEWS = {  # supported value, and default of the released code, which is another
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
    "transformer.block.gelu": "v1",  # the exact GELU; v2 is an approximation
}
_IGNORED = (
    *IGNORED,
    "data_encoder.trainable",  # patches have no parameters
    "latent_mapping.activation",  # this option and the next require n_layer above 1
    "latent_mapping.hidden_dim",
)


def composer_config(arch: Mapping[str, Any], size: int | None = None) -> Config:
    """Return the config of the composer equivalent to the model that ``arch`` describes.

    Args:
        arch: The section as plain data.
        size: Height and width in pixels of the training images of a meta-learned model, if known.

    Raises:
        ValueError: If an option is not supported, or ``size`` is passed for a hypernetwork.
    """
    options = Options("arch", arch)
    name = options.choose("type", [*_TYPES, meta_inr.TYPE])
    if name == meta_inr.TYPE:
        return meta_inr.composer_config(options, size)
    if size is not None:
        raise ValueError(f"size is {size}, but the tokens of this hypernetwork determine it: leave size out.")
    return _hypernetwork(options, name)


def _hypernetwork(options: Options, name: str) -> Config:
    """Return the config of a composer with a hypernetwork."""
    composer, columns = _TYPES[name]
    network_arguments, encoder, rendering = (_views if name.endswith("_nerf") else _signal)(options)
    number = _columns(options, columns, network_arguments["modulated_layers"], layer_widths(network_arguments))
    config = describe(
        composer,
        network=describe("networks.CoordinateMLP", **network_arguments),
        encoder=encoder,
        transformer=_transformer(options),
        **{columns: number},
        **rendering,
    )
    options.fix(_FIXED)
    options.finish(_IGNORED)
    return config


def _signal(options: Options) -> tuple[Config, Config, Config]:
    """Return the arguments of the network, the encoder and no renderer, for images or audio."""
    audio = options.choose("data_encoder.type", ("unfold", "unfold_audio"), "unfold") == "unfold_audio"
    parts = network(options, coord_dim=1 if audio else 2), _patches(options, audio), Config()
    if audio:
        _check_coord_range(options)
    options.fix(_AUDIO if audio else IMAGE)
    return parts


def _check_coord_range(options: Options) -> None:
    """Raise if a coordinate range is not that of a recording. The data module states the range; the model ignores it."""
    ends = options.read("coord_sampler.coord_range", list, [-1.0, 1.0])
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not numbers or not 0 < ends[1] == -ends[0]:
        options.refuse("coord_sampler.coord_range", ends, "[-t, t] for recordings of t seconds")


def _views(options: Options) -> tuple[Config, Config, Config]:
    """Return the arguments of the network, the encoder and the renderer, for views."""
    options.choose("data_encoder.type", ["unfold"], "unfold")
    options.choose("hyponet.output_dim", [4], 3)
    for name, (supported, default) in _REQUIRED_OF_VIEWS.items():
        options.choose(name, [supported], default)
    options.fix(_VIEWS)
    network_arguments = network(options, coord_dim=3) | {"value_dim": 4}
    encoder = describe(
        "encoders.ViewPatches",
        signal_shape=[-1, 3, -1, -1],
        patch_size=options.count("data_encoder.encoder_spec.patch_size", 9),
        num_tokens=options.count("latent_mapping.n_patches", 400),
    )
    return network_arguments, encoder, {"renderer": renderer(options.count("coord_sampler.num_points_per_ray", 128))}


def renderer(samples_per_ray: int) -> Config:
    """Return the config of the renderer of all released models, with the depth range of their data."""
    return describe("rendering.VolumeRenderer", near=2.0, far=6.0, samples_per_ray=samples_per_ray)


def _patches(options: Options, audio: bool) -> Config:
    """Return the config of the encoder: ``arch`` contains the number of tokens, but not the size of the signal."""
    spec = "data_encoder.encoder_spec"
    if audio:
        mirrored = options.read(f"{spec}.use_padding", bool, True)
        arguments: Config = {"signal_shape": [1, -1], "remainder": "reflect" if mirrored else "refuse"}
    else:
        arguments = {"signal_shape": [options.count("data_encoder.n_channel", 3), -1, -1]}
        arguments["padding"] = options.read(f"{spec}.padding", int, 1)
    patch_size = options.count(f"{spec}.patch_size", 200 if audio else 9)
    num_tokens = options.count("latent_mapping.n_patches", 400)
    return describe("encoders.Patches", patch_size=patch_size, num_tokens=num_tokens, **arguments)


def _transformer(options: Options) -> Config:
    """Return the config of the transformer; all tokens must have the same width."""
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
    """Return the ``rank`` of IPC or the ``num_groups`` of TransINR, which must be the same for all layers."""
    groups = options.counts("n_weight_groups", len(widths))
    released = [min(groups[layer], widths[layer]) for layer in layers]
    largest = max(released)
    if released != [largest if columns == "rank" else min(largest, widths[layer]) for layer in layers]:
        options.refuse("n_weight_groups", groups, f"one {columns} for the layers {layers}, not {released}")
    return largest
