"""Options of the coordinate network, shared by hypernetworks and meta-learned models of kakaobrain/ginr-ipc."""

from __future__ import annotations

from tools.released.options import Config, Options, describe

SIGNAL = {"hyponet.fourier_mapping.type": "deterministic_transinr"}
UNIT = {"coord_sampler.coord_range": [-1.0, 1.0]}
IMAGE = SIGNAL | UNIT | {"hyponet.input_dim": 2, "coord_sampler.data_type": "image"}
FIXED = {
    "hyponet.type": "mlp",
    "hyponet.use_bias": True,
    "hyponet.fourier_mapping.trainable": False,
    "hyponet.fourier_mapping.use_ff": True,
    "hyponet.activation.type": "relu",
    "coord_sampler.train_strategy": None,
    "coord_sampler.val_strategy": None,
}
IGNORED = (
    "ema",  # whether averaged weights were saved too; the caller selects the weights
    "hyponet.initialization.weight_init_type",  # initial weights are overwritten
    "hyponet.initialization.bias_init_type",
    "hyponet.activation.siren_w0",  # sine activations only
)


def network(options: Options, coord_dim: int) -> Config:
    """Return the arguments of a `CoordinateMLP` for coordinates with ``coord_dim`` dimensions."""
    num_layers = options.count("hyponet.n_layer", 5)
    return {
        "coord_dim": coord_dim,
        "value_dim": options.count("hyponet.output_dim", 3),
        "hidden_dim": options.counts("hyponet.hidden_dim", num_layers - 1),
        "num_layers": num_layers,
        "modulated_layers": _modulated_layers(options, num_layers),
        "encoding": _encoding(options, coord_dim),
        "normalize_weights": options.read("hyponet.normalize_weight", bool, True),
        "output_offset": options.read("hyponet.output_bias", float, 0.5),
    }


def layer_widths(arguments: Config) -> list[int]:
    """Return the output width of every layer of a `CoordinateMLP` with these arguments."""
    return [*arguments["hidden_dim"], arguments["value_dim"]]


def _modulated_layers(options: Options, num_layers: int) -> list[int]:
    """Return the modulated layers; all if the option is omitted."""
    all_layers = list(range(num_layers))
    layers = options.read("modulated_layer_idxs", list, all_layers)
    if not layers or any(type(layer) is not int or layer not in all_layers for layer in layers):
        options.refuse("modulated_layer_idxs", layers, f"null for all layers, or a non-empty list from {all_layers}")
    return sorted(set(layers))


def _encoding(options: Options, coord_dim: int) -> Config:
    """Return the config of the encoding. Its frequencies are replaced by those of the file."""
    width = options.count("hyponet.fourier_mapping.ff_dim", 128)
    if width % coord_dim:
        options.refuse("hyponet.fourier_mapping.ff_dim", width, f"multiples of the {coord_dim} coordinate dimensions")
    highest = options.read("hyponet.fourier_mapping.ff_sigma", float, 1024.0)
    if coord_dim == 3:  # views: the option is an exponent
        if not 0 <= highest <= 64:
            options.refuse(
                "hyponet.fourier_mapping.ff_sigma", highest, "0 to 64, the exponent of the highest frequency"
            )
        return describe(
            "networks.FourierFeatures", num_frequencies=width // 3, max_frequency=2.0**highest, use_pi=False
        )
    return describe("networks.FourierFeatures", num_frequencies=width // coord_dim, max_frequency=highest)
