"""Weights that were trained with the released code of IPC and of TransINR, as composers of this software.

``python -m composers.released epoch300_model.pt ipc.ckpt`` converts a checkpoint of kakaobrain/ginr-ipc, whose ``config.yaml``
lies beside it, or one of yinboc/trans-inr, which holds its own config; ``composers.load("ipc.ckpt")`` then rebuilds the model.
Hypernetwork models of pictures and audio are read. Every option and every weight is used, or refused by its name.
"""

from __future__ import annotations

import math
import re
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from composers.base import Composer
from composers.checkpoint import build, save
from composers.inr import CoordinateMLP

T = TypeVar("T")
Config = dict[str, Any]

_CLASSES = {"low_rank_modulated_transinr": "TransformerIPC", "transinr": "TransINR"}


class _Schema(NamedTuple):
    """The options that a released config may hold, by dotted name.

    Attributes:
        where: The section they are in, for messages.
        defaults: Options that are read, with the default of the released code; None where one must be given, or null has a
            meaning.
        allowed: The values that this version reads, for options of which it reads only some.
        unread: Options without influence on a trained model.
    """

    where: str
    defaults: Mapping[str, Any]
    allowed: Mapping[str, tuple[Any, ...]]
    unread: Collection[str] = ()


_ARCH = _Schema(
    where="arch",
    defaults={
        "type": None,
        "n_weight_groups": None,
        "modulated_layer_idxs": None,
        "data_encoder.type": "unfold",
        "data_encoder.n_channel": 3,
        "latent_mapping.type": "linear",
        "latent_mapping.n_layer": 1,
        "latent_mapping.n_patches": 400,
        "latent_mapping.latent_dim": 256,
        "latent_mapping.use_pe": True,
        "transformer.n_layer": None,
        "transformer.embed_dim": 768,
        "transformer.mask": False,
        "transformer.block.embed_dim": None,
        "transformer.block.n_head": None,
        "transformer.block.mlp_bias": True,
        "transformer.block.attn_bias": True,
        "transformer.block.attn_pdrop": 0.0,
        "transformer.block.resid_pdrop": 0.1,
        "transformer.block.gelu": "v1",
        "hyponet.type": "mlp",
        "hyponet.n_layer": 5,
        "hyponet.hidden_dim": None,
        "hyponet.use_bias": True,
        "hyponet.input_dim": 2,
        "hyponet.output_dim": 3,
        "hyponet.output_bias": 0.5,
        "hyponet.normalize_weight": True,
        "hyponet.fourier_mapping.type": "deterministic_transinr",
        "hyponet.fourier_mapping.trainable": False,
        "hyponet.fourier_mapping.use_ff": True,
        "hyponet.fourier_mapping.ff_sigma": 1024,
        "hyponet.fourier_mapping.ff_dim": 128,
        "hyponet.activation.type": "relu",
        "hyponet.activation.siren_w0": 30.0,
        "coord_sampler.data_type": "image",
        "coord_sampler.train_strategy": None,
        "coord_sampler.val_strategy": None,
    },
    allowed={
        "latent_mapping.type": ("linear",),
        "latent_mapping.n_layer": (1,),
        "transformer.mask": (False,),
        "transformer.block.attn_pdrop": (0.0,),
        "transformer.block.gelu": ("v1",),  # the erf form; the other is an approximation
        "hyponet.type": ("mlp",),
        "hyponet.fourier_mapping.type": ("deterministic_transinr", "random_gaussian"),
        "hyponet.fourier_mapping.trainable": (False,),
        "hyponet.activation.type": ("relu", "siren"),
        "coord_sampler.train_strategy": (None,),
        "coord_sampler.val_strategy": (None,),
    },
    unread={
        "ema",  # whether an average was kept too; which weights are read is the caller's choice
        "data_encoder.trainable",  # cutting into patches has no parameters
        "latent_mapping.activation",  # this and the next are for an n_layer above 1
        "latent_mapping.hidden_dim",
        "hyponet.initialization.weight_init_type",  # initial weights are overwritten
        "hyponet.initialization.bias_init_type",
        "coord_sampler.coord_range",  # coordinates are the data's
    },
)
_SPEC = "data_encoder.encoder_spec"
_ENCODERS: Mapping[str, tuple[Config, Config]] = {  # what the type of data encoder adds to defaults and allowed
    "unfold": (
        {f"{_SPEC}.patch_size": 9, f"{_SPEC}.padding": 1},
        {"hyponet.input_dim": (2,), "coord_sampler.data_type": ("image",)},
    ),
    "unfold_audio": (
        {f"{_SPEC}.patch_size": 200, f"{_SPEC}.use_padding": True},
        {"hyponet.input_dim": (1,), "coord_sampler.data_type": ("audio",), "data_encoder.n_channel": (1,)},
    ),
}

_TRANS_INR = _Schema(
    where="model.args",
    defaults={
        "n_groups": None,
        "tokenizer.name": None,
        "tokenizer.args.input_size": None,
        "tokenizer.args.patch_size": None,
        "tokenizer.args.padding": 0,
        "tokenizer.args.img_channels": 3,
        "hyponet.name": None,
        "hyponet.args.depth": None,
        "hyponet.args.in_dim": None,
        "hyponet.args.out_dim": None,
        "hyponet.args.hidden_dim": None,
        "hyponet.args.use_pe": None,
        "hyponet.args.pe_dim": None,
        "hyponet.args.pe_sigma": 1024,
        "hyponet.args.out_bias": 0,
        "transformer_encoder.name": None,
        "transformer_encoder.args.dim": None,
        "transformer_encoder.args.depth": None,
        "transformer_encoder.args.n_head": None,
        "transformer_encoder.args.head_dim": None,
        "transformer_encoder.args.ff_dim": None,
        "transformer_encoder.args.dropout": 0,
    },
    allowed={
        "tokenizer.name": ("imgrec_tokenizer",),
        "hyponet.name": ("hypo_mlp",),
        "hyponet.args.in_dim": (2,),
        "transformer_encoder.name": ("transformer_encoder",),
        "transformer_encoder.args.dropout": (0,),  # it also drops inside the MLP
    },
)


class _Layout(NamedTuple):
    """Where a file keeps the weights of a composer.

    Attributes:
        matrices: Name of the weights of a layer of the coordinate network, ``(I + 1, O)``, its bias in the last row.
        names: From our name of any other weight to its name in the file, or to the names of its parts in order; a ``*`` stands
            for the same word on both sides.
        biased: Whether the matrices have that last row; if not, the biases are zero.
        absent: Patterns of our names that the file lacks, because zeros do the same.
    """

    matrices: str
    names: Mapping[str, tuple[str, ...]]
    biased: bool = True
    absent: Sequence[str] = ()


_BLOCK = "hypernet.transformer.blocks.*"
_GINR = _Layout(
    "hyponet.params_dict.linear_wb{}",
    {
        "hypernet.embedding.*": ("latent_mapping.latent_mapping.*",),
        "hypernet.positions": ("latent_mapping.pos_emb_latent",),
        "hypernet.weight_tokens": ("weight_groups.weight_groups",),
        "hypernet.heads.*.*.*": ("group_modulation_postfc.linear_wb*.*.*",),
        f"{_BLOCK}.attention_norm.*": ("transformer.blocks.*.ln1.*",),
        f"{_BLOCK}.attention.query.*": ("transformer.blocks.*.attn.query.*",),
        f"{_BLOCK}.attention.key_value.*": ("transformer.blocks.*.attn.key.*", "transformer.blocks.*.attn.value.*"),
        f"{_BLOCK}.attention.projection.*": ("transformer.blocks.*.attn.proj.*",),
        f"{_BLOCK}.mlp_norm.*": ("transformer.blocks.*.ln2.*",),
        f"{_BLOCK}.mlp.*.*": ("transformer.blocks.*.mlp.*.*",),
        "inr.encoding.frequencies": ("hyponet.ff_linear",),
        "bases.*": ("shared_factor.linear_wb*",),
    },
)
_TRANS_INR_LAYOUT = _Layout(
    "base_params.wb{}",
    {
        "hypernet.embedding.*": ("tokenizer.prefc.*",),
        "hypernet.positions": ("tokenizer.posemb",),
        "hypernet.weight_tokens": ("wtokens",),
        "hypernet.heads.*.*.*": ("wtoken_postfc.wb*.*.*",),
        f"{_BLOCK}.attention_norm.*": ("transformer_encoder.layers.*.0.norm.*",),
        f"{_BLOCK}.attention.query.*": ("transformer_encoder.layers.*.0.fn.to_q.*",),
        f"{_BLOCK}.attention.key_value.*": ("transformer_encoder.layers.*.0.fn.to_kv.*",),
        f"{_BLOCK}.attention.projection.*": ("transformer_encoder.layers.*.0.fn.to_out.0.*",),
        f"{_BLOCK}.mlp_norm.*": ("transformer_encoder.layers.*.1.norm.*",),
        f"{_BLOCK}.mlp.0.*": ("transformer_encoder.layers.*.1.fn.net.0.*",),
        f"{_BLOCK}.mlp.2.*": ("transformer_encoder.layers.*.1.fn.net.3.*",),
        "inr.encoding.frequencies": ("frequencies",),
    },
)


def from_released(state_dict: Mapping[str, Tensor], arch: Mapping[str, Any]) -> Composer:
    """Return the composer that computes what a model of kakaobrain/ginr-ipc computes, ready for evaluation.

    Biases and positions that the model was built without are zero here; training on would move them. The range of the
    coordinates, ``coord_sampler.coord_range``, belongs to the data: render at coordinates of that range.

    Args:
        state_dict: The ``state_dict`` or ``state_dict_ema`` of a checkpoint.
        arch: The section ``arch`` of its config, as plain data; what it leaves out has the released default.

    Raises:
        ValueError: If the model is of a kind, or has an option, that this version does not read, or if weights are
            missing, unknown or of another shape than ``arch`` says.
    """
    options = _ginr_options(arch)
    weights = _without_prefix(state_dict)
    if options.get("hyponet.fourier_mapping.type", str) == "random_gaussian" and "hyponet.ff_linear" in weights:
        # Reference: phases of random frequencies are pi f x there, here 2 pi f x.
        weights["hyponet.ff_linear"] = weights["hyponet.ff_linear"] / 2
    layout = _GINR._replace(biased=options.get("hyponet.use_bias", bool), absent=_absent(options))
    return _fill(build(_ginr_config(options)), weights, layout)


def from_trans_inr(model: Mapping[str, Any]) -> Composer:
    """Return the composer that computes what a picture model of yinboc/trans-inr computes, ready for evaluation.

    Args:
        model: The entry ``model`` of a checkpoint: ``name``, ``args`` and the weights ``sd``.

    Raises:
        ValueError: As `from_released`.
    """
    name, args, weights = (model.get(key) for key in ("name", "args", "sd"))
    if name != "trans_inr" or not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"model of yinboc/trans-inr is {name!r}; this version reads 'trans_inr' with its args and sd.")
    if _flat(args).get("tokenizer.name") == "nvs_tokenizer":
        raise ValueError("This model of yinboc/trans-inr renders views, which come later: this version reads pictures.")
    options = _Options(args, _TRANS_INR)
    weights = _without_prefix(weights)
    composer = build(_ginr_config(_ginr_options(_arch_of(options))))
    if options.get("hyponet.args.use_pe", bool):
        # Reference: nothing is stored; made in float32 as there, since what rounding does to 1024 pi x is seen.
        highest, count = options.get("hyponet.args.pe_sigma", float), options.get("hyponet.args.pe_dim", int) // 2
        weights["frequencies"] = torch.linspace(0, math.log(highest), count).exp()
    return _fill(composer, weights, _TRANS_INR_LAYOUT)


def convert(src: Path, dst: Path, config: Path | None = None, ema: bool = False, overwrite: bool = False) -> None:
    """Convert a released checkpoint of IPC or TransINR into one that composers.load reads.

    Args:
        src: Checkpoint of kakaobrain/ginr-ipc (epoch300_model.pt) or of yinboc/trans-inr (epoch-last.pth).
        dst: File to write.
        config: The config.yaml of a checkpoint of ginr-ipc; by default the one beside it.
        ema: Take the moving average of the weights, state_dict_ema.
        overwrite: Replace dst if it exists.
    """
    if dst.resolve() == src.resolve() or dst.is_dir() or (dst.exists() and not overwrite):
        raise ValueError(f"{dst} exists: name another file, or replace a file that is not SRC with --overwrite.")
    content, left_out = _load(src)
    try:
        composer, coord_range = _composer_of(content, src, config, ema)
    except ValueError as error:
        raise ValueError(f"{src} cannot be converted: {error}") from error
    _write(composer, dst)
    size = sum(parameter.numel() for parameter in composer.parameters())
    weights = "the average of the weights" if ema else "the weights"
    without = f", without its objects of {', '.join(left_out)}" if left_out else ""
    print(f"Read {weights} of epoch {content.get('epoch', 'unknown')} from {src}{without}.")
    print(f"Wrote {dst}: {type(composer).__name__}, {size:,} parameters, for coordinates in {coord_range}.")
    print(f'Next: python -c "import composers; print(composers.load({str(dst)!r}))"')


def main(args: list[str] | None = None) -> None:
    """Run `convert` from the command line; a user's mistake ends with one message and exit status 1 or 2.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = _Parser(prog="python -m composers.released", description=(convert.__doc__ or "").split("\n")[0])
    parser.add_function_arguments(convert, as_group=False, as_positional=True)
    try:
        convert(**parser.parse_args(args).as_dict())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


class _Parser(ArgumentParser):
    """A parser whose switches take no value: ``--ema``, not ``--ema true``."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument, a boolean one as a switch."""
        if kwargs.get("type") is bool:
            kwargs = {"action": "store_true", "default": kwargs["default"], "help": kwargs.get("help")}
        return super().add_argument(*args, **kwargs)


class _Options:
    """The options of a released config by dotted name, with the released defaults.

    Args:
        section: The config section, as plain data.
        schema: What it may hold.

    Raises:
        ValueError: If an option is unknown, or has a value that this version does not read.
    """

    def __init__(self, section: Mapping[str, Any], schema: _Schema) -> None:
        given = _flat(section)
        known = schema.defaults.keys() | set(schema.unread)
        if unknown := [name for name in given if name not in known]:
            raise ValueError(
                f"{schema.where} has options that this version does not know: {', '.join(unknown)}. It reads configs as "
                "released: leave an option out only if the code that trained the model does not read it either."
            )
        self._where = schema.where
        self._values = {**schema.defaults, **{name: value for name, value in given.items() if value is not None}}
        for name, allowed in schema.allowed.items():
            if self._values[name] not in allowed:
                self.refuse(name, " or ".join(repr(value) for value in allowed))

    def get(self, name: str, kind: type[T]) -> T:
        """Return an option, or refuse it if it is missing or of another type."""
        value = float(self._values[name]) if kind is float and self.is_a(name, int) else self._values[name]
        if type(value) is not kind:
            self.refuse(name, f"a value of type {kind.__name__}")
        found: T = value
        return found

    def is_a(self, name: str, kind: type) -> bool:
        """Return whether an option has a value of exactly this type."""
        return type(self._values[name]) is kind

    def refuse(self, name: str, wanted: str) -> NoReturn:
        """Raise a ValueError that names an option, its value and what this version reads."""
        raise ValueError(f"{self._where} option {name} is {self._values[name]!r}; this version reads {wanted}.")


def _flat(section: Mapping[str, Any], prefix: str = "") -> Config:
    """Return the options of a section and of the sections in it, by dotted name."""
    options: Config = {}
    for name, value in section.items():
        options |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return options


def _ginr_options(arch: Mapping[str, Any]) -> _Options:
    """Return the options of an ``arch``, or refuse kinds other than IPC and TransINR on pictures and audio."""
    kind, encoder = str(arch.get("type")), str(_flat(arch).get("data_encoder.type", "unfold"))
    reason = f"this version reads {' and '.join(_CLASSES)}"
    if kind.endswith("_nerf"):
        reason = "this version reads models of images and audio; those that render views come later"
    elif kind.startswith("meta_"):
        reason = "this version reads hypernetworks; models that find their latents by inner loops come later"
    if kind not in _CLASSES:
        raise ValueError(f"arch option type is {kind!r}: {reason}.")
    if encoder not in _ENCODERS:
        raise ValueError(
            f"arch option data_encoder.type is {encoder!r}; this version reads {' and '.join(_ENCODERS)}, not what other "
            "networks have encoded."
        )
    defaults, allowed = _ENCODERS[encoder]
    return _Options(arch, _ARCH._replace(defaults={**_ARCH.defaults, **defaults}, allowed={**_ARCH.allowed, **allowed}))


def _ginr_config(options: _Options) -> Config:
    """Return the config of the composer that an ``arch`` describes."""
    return _class(
        _CLASSES[options.get("type", str)],
        inr=_inr(options),
        tokenizer=_tokenizer(options),
        transformer=_transformer(options),
        **_columns(options),
    )


def _inr(options: _Options) -> Config:
    """Return the config of the coordinate network."""
    activation = _class("inr.ReLU")
    if options.get("hyponet.activation.type", str) == "siren":
        activation = _class("inr.Sine", omega=options.get("hyponet.activation.siren_w0", float))
    return _class(
        "inr.CoordinateMLP",
        coord_dim=options.get("hyponet.input_dim", int),
        value_dim=options.get("hyponet.output_dim", int),
        hidden_dim=_widths(options)[:-1],
        num_layers=options.get("hyponet.n_layer", int),
        modulated_layers=_modulated_layers(options),
        encoding=_encoding(options),
        activation=activation,
        normalize_weights=options.get("hyponet.normalize_weight", bool),
        output_offset=options.get("hyponet.output_bias", float),
    )


def _encoding(options: _Options) -> Config:
    """Return the config of the encoding, whose frequencies are those of the file in the end."""
    section = "hyponet.fourier_mapping"
    if not options.get(f"{section}.use_ff", bool):
        return _class("inr.IdentityEncoding")
    coord_dim, width = options.get("hyponet.input_dim", int), options.get(f"{section}.ff_dim", int)
    highest = options.get(f"{section}.ff_sigma", float)
    if options.get(f"{section}.type", str) == "random_gaussian":
        return _class("inr.GaussianFourierFeatures", coord_dim=coord_dim, num_frequencies=width, scale=highest / 2)
    if width % coord_dim:
        options.refuse(f"{section}.ff_dim", f"multiples of hyponet.input_dim {coord_dim}")
    return _class("inr.FourierFeatures", num_frequencies=width // coord_dim, max_frequency=highest)


def _tokenizer(options: _Options) -> Config:
    """Return the config of the tokenizer: ``arch`` states the number of tokens, and no size of the signal."""
    audio = options.get("data_encoder.type", str) == "unfold_audio"
    reflect = audio and options.get(f"{_SPEC}.use_padding", bool)
    return _class(
        "hypernet.Patches",
        signal_shape=[options.get("data_encoder.n_channel", int), *([-1] if audio else [-1, -1])],
        patch_size=options.get(f"{_SPEC}.patch_size", int),
        padding=0 if audio else options.get(f"{_SPEC}.padding", int),
        remainder="reflect" if reflect else "refuse",
        num_tokens=options.get("latent_mapping.n_patches", int),
    )


def _transformer(options: _Options) -> Config:
    """Return the config of the transformer."""
    embed_dim = options.get("transformer.embed_dim", int)
    if options.get("latent_mapping.latent_dim", int) != embed_dim:
        options.refuse("latent_mapping.latent_dim", f"the transformer.embed_dim, here {embed_dim}")
    if (
        options.is_a("transformer.block.embed_dim", int)
        and options.get("transformer.block.embed_dim", int) != embed_dim
    ):
        options.refuse("transformer.block.embed_dim", f"the transformer.embed_dim, here {embed_dim}")
    return _class(
        "hypernet.Transformer",
        embed_dim=embed_dim,
        num_blocks=options.get("transformer.n_layer", int),
        num_heads=options.get("transformer.block.n_head", int),
        mlp_ratio=4,
        residual_dropout=options.get("transformer.block.resid_pdrop", float),
        qkv_bias=options.get("transformer.block.attn_bias", bool),
    )


def _columns(options: _Options) -> Config:
    """Return the rank of an IPC or the number of groups of a TransINR, of which ours have one for all layers."""
    layers, widths = _modulated_layers(options), _widths(options)
    groups = _per_layer(options, "n_weight_groups", len(widths))
    found = [min(groups[layer], widths[layer]) for layer in layers]
    one = max(found) if len(set(found)) == 1 or options.get("type", str) == "transinr" else None
    if found != [min(one or widths[layer], widths[layer]) for layer in layers]:
        options.refuse("n_weight_groups", f"one number for all modulated layers, not {found} for the layers {layers}")
    return {"num_groups" if options.get("type", str) == "transinr" else "rank": one}


def _widths(options: _Options) -> list[int]:
    """Return the outputs of every layer of the coordinate network."""
    hidden = _per_layer(options, "hyponet.hidden_dim", options.get("hyponet.n_layer", int) - 1)
    return [*hidden, options.get("hyponet.output_dim", int)]


def _per_layer(options: _Options, name: str, count: int) -> list[int]:
    """Return one number per layer of an option that lists one for each, or one for all."""
    numbers = options.get(name, list)
    if len(numbers) not in (1, count) or any(type(number) is not int for number in numbers):
        options.refuse(name, f"a list of 1 or {count} whole numbers")
    return numbers if len(numbers) == count else numbers * count


def _modulated_layers(options: _Options) -> list[int]:
    """Return the modulated layers; without any list, all are."""
    every = list(range(options.get("hyponet.n_layer", int)))
    if not every:
        options.refuse("hyponet.n_layer", "1 or more")
    if options.is_a("modulated_layer_idxs", type(None)):
        return every
    layers = options.get("modulated_layer_idxs", list)
    if not layers or any(layer not in every for layer in layers):
        options.refuse("modulated_layer_idxs", f"null for all layers, or a list of some of {every}")
    return sorted(set(layers))


def _absent(options: _Options) -> list[str]:
    """Return patterns of our weights that a model with these options was built without."""
    switches = {
        "transformer.block.attn_bias": f"{_BLOCK}.attention.projection.bias",
        "transformer.block.mlp_bias": f"{_BLOCK}.mlp.*.bias",
        "latent_mapping.use_pe": "hypernet.positions",
    }
    return [pattern for name, pattern in switches.items() if not options.get(name, bool)]


def _arch_of(options: _Options) -> Config:
    """Return the ``arch`` of ginr-ipc, by dotted name, that says the same as the ``args`` of a model of yinboc/trans-inr."""
    tokens, inr, encoder = "tokenizer.args", "hyponet.args", "transformer_encoder.args"
    patch_size, padding = options.get(f"{tokens}.patch_size", int), options.get(f"{tokens}.padding", int)
    embed_dim, num_heads = options.get(f"{encoder}.dim", int), options.get(f"{encoder}.n_head", int)
    if options.get(f"{encoder}.head_dim", int) * num_heads != embed_dim:
        options.refuse(f"{encoder}.head_dim", f"{encoder}.dim over n_head, here {embed_dim} over {num_heads}")
    if options.get(f"{encoder}.ff_dim", int) != 4 * embed_dim:
        options.refuse(f"{encoder}.ff_dim", f"4 times {encoder}.dim, here {4 * embed_dim}")
    return {
        "type": "transinr",
        "n_weight_groups": [options.get("n_groups", int)],
        "data_encoder.n_channel": options.get(f"{tokens}.img_channels", int),
        f"{_SPEC}.patch_size": patch_size,
        f"{_SPEC}.padding": padding,
        "latent_mapping.n_patches": ((options.get(f"{tokens}.input_size", int) + 2 * padding) // max(patch_size, 1))
        ** 2,
        "latent_mapping.latent_dim": embed_dim,
        "transformer.n_layer": options.get(f"{encoder}.depth", int),
        "transformer.embed_dim": embed_dim,
        "transformer.block.n_head": num_heads,
        "transformer.block.attn_bias": False,
        "transformer.block.resid_pdrop": 0.0,
        "hyponet.n_layer": options.get(f"{inr}.depth", int),
        "hyponet.hidden_dim": [options.get(f"{inr}.hidden_dim", int)],
        "hyponet.output_dim": options.get(f"{inr}.out_dim", int),
        "hyponet.output_bias": options.get(f"{inr}.out_bias", float),
        "hyponet.fourier_mapping.use_ff": options.get(f"{inr}.use_pe", bool),
        "hyponet.fourier_mapping.ff_sigma": options.get(f"{inr}.pe_sigma", float),
        "hyponet.fourier_mapping.ff_dim": options.get(f"{inr}.pe_dim", int),
    }


def _class(name: str, **arguments: Any) -> Config:
    """Return the config of an object of `composers`."""
    return {"class_path": f"composers.{name}", "init_args": arguments}


class _Reader:
    """Takes weights from a state dict by name, and keeps a list of all that does not fit.

    Args:
        weights: The state dict, which is left as it is.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._left = dict(weights)
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a weight of this shape, zeros if it does not fit; axes of size 1 in front may be more or fewer."""
        weight = self._left.pop(name, None)
        if weight is None:
            self._missing.append(f"{name}: missing in the file, {tuple(shape)} in the model")
        elif _without_leading_ones(weight.shape) != _without_leading_ones(shape):
            self._misshapen.append(f"{name}: {tuple(weight.shape)} in the file, {tuple(shape)} in the model")
        else:
            return weight.reshape(*shape)
        return torch.zeros(*shape)

    def finish(self) -> None:
        """Refuse a state dict of which anything was missing, misshapen or not taken."""
        unknown = [
            f"{name}: {tuple(weight.shape)} in the file, not in the model" for name, weight in self._left.items()
        ]
        lines = [line for misfits in (self._misshapen, self._missing, unknown) for line in _first(4, misfits)]
        if lines:
            raise ValueError(
                "the weights are of another model than their config describes:\n  "
                + "\n  ".join(lines)
                + "\nTake the config that was written beside them."
            )


def _first(count: int, lines: Sequence[str]) -> list[str]:
    """Return the first lines, and how many follow."""
    more = [f"and {len(lines) - count} more like the last"] if len(lines) > count else []
    return [*lines[:count], *more]


def _without_leading_ones(shape: Sequence[int]) -> list[int]:
    """Return a shape without the axes of size 1 in front, which some layouts have and others not."""
    return list(dropwhile(lambda size: size == 1, shape))


def _without_prefix(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a copy of a state dict without the ``module.`` that data parallel training puts in front of every name."""
    if odd := [name for name, weight in state_dict.items() if not isinstance(weight, Tensor)]:
        raise ValueError(
            f"the state dict holds {odd[0]}, which is no tensor: pass the part state_dict of a checkpoint."
        )
    wrapped = all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if wrapped else name: weight for name, weight in state_dict.items()}


def _fill(composer: Composer, weights: Mapping[str, Tensor], layout: _Layout) -> Composer:
    """Give a composer the weights of a file, every one of which must be known."""
    reader = _Reader(weights)
    found = _split_matrices(composer.inr, reader, layout)
    own = composer.state_dict()
    for name in [name for name in own if name not in found]:
        found[name] = _join(reader, _names_in_file(name, layout), own[name])
    reader.finish()
    composer.load_state_dict({name: found[name] for name in own})  # IPC files hold base weights that nobody reads
    return composer.eval()


def _split_matrices(inr: CoordinateMLP, reader: _Reader, layout: _Layout) -> dict[str, Tensor]:
    """Return the weights and biases of the coordinate network, by all names that ours may have for them."""
    found = {}
    for layer, (fan_in, fan_out) in enumerate(inr.layer_sizes):
        matrix = reader.take(layout.matrices.format(layer), (fan_in + layout.biased, fan_out))
        found[f"inr.weights.{layer}"] = found[f"base_weights.{layer}"] = matrix[:fan_in]
        found[f"inr.biases.{layer}"] = matrix[fan_in] if layout.biased else torch.zeros(fan_out)
    return found


def _names_in_file(name: str, layout: _Layout) -> list[str]:
    """Return the names in the file of the parts of one of our weights; none where the file lacks it."""
    if any(fnmatchcase(name, pattern) for pattern in layout.absent):
        return []
    for ours, theirs in layout.names.items():
        if match := re.fullmatch(re.escape(ours).replace(r"\*", r"(\w+)"), name):
            return [part.replace("*", "{}").format(*match.groups()) for part in theirs]
    raise ValueError(f"{name} has no name in the released layout: this composer is none of the released models.")


def _join(reader: _Reader, names: Sequence[str], own: Tensor) -> Tensor:
    """Return a weight of the shape of ``own``, made of parts of equal height; zeros without any part."""
    if not names:
        return torch.zeros_like(own)
    height, *rest = own.shape
    return torch.cat([reader.take(name, (height // len(names), *rest)) for name in names])


class _LeftOut:
    """Stands where a checkpoint has an object of other software: nothing of that is run, and what it held is dropped."""

    def __new__(cls, *_: object) -> Self:
        """Return an empty object, whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Forget what the file stored."""


def _load(path: Path) -> tuple[Config, list[str]]:
    """Return what a checkpoint holds, and the packages whose objects in it were left out.

    Those of ginr-ipc are never plain data: their optimizer state points to the whole config, made of objects of omegaconf.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}: name a file that the released code wrote.")
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_LeftOut, name) for name in foreign]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = (
            f"holds objects that cannot be left out ({', '.join(foreign)})" if foreign else "is no whole checkpoint"
        )
        raise ValueError(f"{path} {reason}: take it from its source again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dictionary, so it is no checkpoint of the released code.")
    return content, sorted({name.split(".")[0] for name in foreign})


def _composer_of(content: Config, src: Path, config: Path | None, ema: bool) -> tuple[Composer, Any]:
    """Return the composer of what a checkpoint holds, and the range of the coordinates it was trained with."""
    model = content.get("model")
    if not isinstance(model, Mapping):
        weights, arch = _state_dict(content, ema), _arch(config or src.parent / "config.yaml")
        return from_released(weights, arch), _flat(arch).get("coord_sampler.coord_range")
    if config or ema:
        raise ValueError(
            "it is of yinboc/trans-inr, which has its config inside and no average: leave --config and --ema out."
        )
    return from_trans_inr(model), [-1.0, 1.0]


def _state_dict(content: Config, ema: bool) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint of ginr-ipc, or their average."""
    if "composer" in content:
        raise ValueError("it is a checkpoint of this software already: composers.load reads it.")
    key = "state_dict_ema" if ema else "state_dict"
    weights = content.get(key)
    if not isinstance(weights, Mapping):
        way_out = "leave --ema out" if ema else "name an epoch{N}_model.pt of ginr-ipc or an epoch-{N}.pth of trans-inr"
        raise ValueError(f"it has no {key} but {', '.join(map(str, content))}: {way_out}.")
    return weights


def _arch(path: Path) -> Mapping[str, Any]:
    """Return the section ``arch`` of a released config file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no config {path}: name the config.yaml of this checkpoint with --config.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its config {path} is no plain YAML: {error}") from error
    arch = config.get("arch") if isinstance(config, Mapping) else None
    if not isinstance(arch, Mapping):
        raise ValueError(
            f"its config {path} has no section arch: name the config.yaml of this checkpoint with --config."
        )
    return arch


def _write(composer: Composer, dst: Path) -> None:
    """Write a checkpoint whole or not at all."""
    partial = dst.with_name(f"{dst.name}.part")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        save(composer, partial)
        partial.replace(dst)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        raise ValueError(f"{dst} cannot be written: {error}. Name a file in a folder that has room for it.") from error


if __name__ == "__main__":
    main()
