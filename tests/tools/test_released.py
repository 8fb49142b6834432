"""Released weights: golden vectors, a naive reference for other options, unsupported options, and the command line."""

import copy
import json
import math
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional

import composers
from composers import TransINR
from composers.encoders import Patches, Transformer
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import Observation
from tools.released import from_released, from_trans_inr
from tools.released.__main__ import main

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("ipc_image", "transinr_image", "ipc_audio", "transinr_audio")
WB1 = "hyponet.params_dict.linear_wb1"


def _arch(name):
    """Return the architecture of a golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return _golden(request.param)


def _golden(name):
    """Return name, architecture, weights and vectors of a golden file."""
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("state_dict."): vectors.pop(key) for key in list(vectors) if key.startswith("state_")}
    return name, _arch(name), weights, vectors


@pytest.fixture(scope="module")
def ipc_image():
    return _golden("ipc_image")[1:]


@pytest.fixture(scope="module")
def transinr_image():
    return _golden("transinr_image")[1:]


def _changed(arch, **changes):
    """Return a copy of an architecture with changed options; ``__`` stands for a dot, and `...` removes an option."""
    arch = copy.deepcopy(arch)
    for name, value in changes.items():
        *sections, option = name.split("__")
        section = arch
        for key in sections:
            section = section.setdefault(key, {})
        if value is ...:
            del section[option]
        else:
            section[option] = value
    return arch


@torch.no_grad()
def _render(composer, signal, coords):
    return composer.render(composer.modulate(Observation(signal)), coords)


# Golden vectors


@pytest.mark.parametrize("resolution", ["", "_x2"])
def test_outputs_equal_those_of_the_released_code(golden, resolution):
    name, arch, weights, vectors = golden
    if resolution and "audio" in name:
        return  # no golden vectors of audio at twice the sampling rate
    coords, expected = vectors[f"coord{resolution}"], vectors[f"output{resolution}"]
    composer = from_released(weights, arch)
    assert not composer.training
    for query in (coords.flatten(1, -2), coords[0].flatten(0, -2)):  # per instance, and shared
        actual = _render(composer, vectors["input"], query).mT.reshape(expected.shape)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_ipc_weights_equal_those_of_the_released_code(ipc_image):
    arch, weights, vectors = ipc_image
    modulations = from_released(weights, arch).modulate(Observation(vectors["input"]))
    assert list(modulations) == ["weight.1"]
    torch.testing.assert_close(modulations["weight.1"], vectors["modulation.linear_wb1"], atol=1e-5, rtol=0)


def test_transinr_scales_equal_those_of_the_released_code(transinr_image):
    arch, weights, vectors = transinr_image
    modulations = from_released(weights, arch).modulate(Observation(vectors["input"]))
    assert list(modulations) == [f"weight.{layer}" for layer in range(4)]
    for layer in range(4):
        scales = modulations[f"weight.{layer}"] / weights[f"hyponet.params_dict.linear_wb{layer}"][:-1]
        torch.testing.assert_close(scales, vectors[f"modulation.linear_wb{layer}"], atol=1e-5, rtol=0)


def test_frequencies_are_those_of_the_file(ipc_image):
    arch, weights, _ = ipc_image
    stored = weights["hyponet.ff_linear"] * 1.25
    composer = from_released(weights | {"hyponet.ff_linear": stored}, arch)
    assert torch.equal(composer.network.encoding.frequencies, stored)


def test_released_weights_are_not_modified(ipc_image):
    arch, weights, _ = ipc_image
    before = {key: weight.clone() for key, weight in weights.items()}
    composer = from_released(weights, arch)
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[key]) for key, weight in weights.items())


def test_prefix_of_data_parallel_training_is_stripped(ipc_image):
    arch, weights, _ = ipc_image
    wrapped = from_released({f"module.{key}": weight for key, weight in weights.items()}, arch)
    plain = from_released(weights, arch)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in wrapped.state_dict().items())


def test_base_weight_of_a_modulated_layer_is_unused(ipc_image):
    arch, weights, vectors = ipc_image
    changed = weights[WB1].clone()
    changed[:-1] = 7
    coords = vectors["coord"][0].flatten(0, -2)
    actual, expected = (
        _render(from_released(weights | {WB1: matrix}, arch), vectors["input"], coords)
        for matrix in (changed, weights[WB1])
    )
    assert torch.equal(actual, expected)


# Options without golden vectors


def _naive_network(arch, weights, layer_weights, coords):
    """Return values ``(N, C)`` of one instance from released weights, in float64 and without code of this software."""
    options = arch["hyponet"]
    coords, frequencies = coords.double().numpy(), weights["hyponet.ff_linear"].double().numpy()
    phases = np.concatenate([coords[:, axis : axis + 1] * frequencies for axis in range(coords.shape[1])], axis=1)
    hidden = np.concatenate([np.cos(math.pi * phases), np.sin(math.pi * phases)], axis=1)
    for layer in range(options["n_layer"]):
        matrix = weights[f"hyponet.params_dict.linear_wb{layer}"].double().numpy()
        weight = layer_weights.get(layer, matrix[:-1])
        if options["normalize_weight"]:
            weight = weight / np.sqrt((weight**2).sum(axis=0))
        hidden = hidden @ weight + matrix[-1]
        if layer < options["n_layer"] - 1:
            hidden = np.maximum(hidden, 0)
    return torch.from_numpy(hidden + options["output_bias"])


def _random_weights(arch, weights):
    """Return the weights of a golden file, with a random coordinate network, heads and bases that fit ``arch``."""
    options = arch["hyponet"]
    kept = {key: value for key, value in weights.items() if key.startswith(("latent_mapping", "transformer"))}
    kept["hyponet.ff_linear"] = 1 + torch.rand(options["fourier_mapping"]["ff_dim"] // 2)
    hidden = options["hidden_dim"] * (options["n_layer"] - 1 if len(options["hidden_dim"]) == 1 else 1)
    sizes = list(
        zip([2 * options["fourier_mapping"]["ff_dim"], *hidden], [*hidden, options["output_dim"]], strict=True)
    )
    tokens = 0
    modulated = arch["modulated_layer_idxs"]
    for layer, (fan_in, fan_out) in enumerate(sizes):
        kept[f"hyponet.params_dict.linear_wb{layer}"] = torch.randn(fan_in + 1, fan_out)
        if modulated is None or layer in modulated:
            groups = arch["n_weight_groups"]
            rank = min(groups[0] if len(groups) == 1 else groups[layer], fan_out)
            tokens += rank
            head = f"group_modulation_postfc.linear_wb{layer}"
            kept |= {f"{head}.0.weight": torch.randn(48), f"{head}.0.bias": torch.randn(48)}
            kept |= {f"{head}.1.weight": torch.randn(fan_in, 48), f"{head}.1.bias": torch.randn(fan_in)}
            if arch["type"] == "low_rank_modulated_transinr":
                kept[f"shared_factor.linear_wb{layer}"] = torch.randn(1, rank, fan_out)
    return kept | {"weight_groups.weight_groups": torch.randn(tokens, 48)}


@pytest.mark.parametrize("name", ["ipc_image", "transinr_image"])
@pytest.mark.parametrize(
    "changes",
    [
        {"hyponet__normalize_weight": False, "hyponet__output_bias": 0.25},
        {"hyponet__hidden_dim": [12, 24, 36], "modulated_layer_idxs": [1, 2]},
        {"n_weight_groups": [5, 12, 7, 9], "modulated_layer_idxs": [1]},
        {"n_weight_groups": [24], "modulated_layer_idxs": [0, 2]},
        {"n_weight_groups": [3], "modulated_layer_idxs": None},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_other_options_equal_the_naive_reference(name, changes):
    arch = _changed(_arch(name), **changes)
    weights = _random_weights(arch, _golden(name)[2])
    composer = from_released(weights, arch)
    coords = torch.rand(9, 2) * 2 - 1
    observation = Observation(torch.rand(2, 3, 14, 18))
    with torch.no_grad():
        modulations = composer.modulate(observation)
        values = composer.render(modulations, coords)
    for instance in range(2):
        layer_weights = {
            int(name.removeprefix("weight.")): weight[instance].double().numpy() for name, weight in modulations.items()
        }
        expected = _naive_network(arch, weights, layer_weights, coords)
        torch.testing.assert_close(values[instance].double(), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_residual_dropout_is_converted(ipc_image):
    arch, weights, _ = ipc_image
    assert from_released(weights, arch).start.readout.transformer.blocks[0].dropout.p == 0.1
    other = _changed(arch, transformer__block__resid_pdrop=0)
    assert from_released(weights, other).start.readout.transformer.blocks[0].dropout.p == 0


def test_options_of_full_configs_are_supported(ipc_image):
    arch, weights, _ = ipc_image
    full = _changed(
        arch,
        ema=False,
        data_encoder__trainable=False,
        latent_mapping__type="linear",
        latent_mapping__n_layer=1,
        latent_mapping__activation="relu",
        latent_mapping__hidden_dim=[256],
        latent_mapping__use_pe=True,
        transformer__mask=False,
        transformer__block={"n_head": 4, "embed_dim": 48, "mlp_bias": True, "attn_bias": True, "attn_pdrop": 0.0}
        | {"resid_pdrop": 0.1, "gelu": "v1"},
        hyponet__type="mlp",
        hyponet__initialization={"weight_init_type": "kaiming_uniform", "bias_init_type": "zero"},
        hyponet__fourier_mapping__trainable=False,
        hyponet__fourier_mapping__use_ff=True,
        coord_sampler__train_strategy=None,
        coord_sampler__val_strategy=None,
    )
    assert from_released(weights, full).config == from_released(weights, arch).config


def test_audio_is_mirrored_only_with_use_padding():
    _, arch, weights, vectors = _golden("ipc_audio")
    composer = from_released(weights, _changed(arch, data_encoder__encoder_spec__use_padding=False))
    with pytest.raises(ValueError, match="patch_size 20"):
        composer.encode(Observation(vectors["input"]))
    composer.encode(Observation(torch.rand(1, 1, 220)))


# Unsupported options and mismatched weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "liif"}, ["type", "'liif'", "low_rank_modulated_transinr"]),
        ({"type": ...}, ["type", "None"]),
        ({"ignore_base_param": True}, ["ignore_base_param", "unknown"]),
        ({"hyponet__gain": 2}, ["hyponet.gain"]),
        ({"hyponet": 5}, ["hyponet"]),
        ({"hyponet__activation__type": "silu"}, ["hyponet.activation.type", "'silu'", "'relu'"]),
        ({"hyponet__activation__type": "siren"}, ["hyponet.activation.type", "'siren'", "'relu'"]),
        ({"hyponet__fourier_mapping__use_ff": False}, ["hyponet.fourier_mapping.use_ff", "False"]),
        ({"hyponet__fourier_mapping__type": "random_gaussian"}, ["hyponet.fourier_mapping.type", "gaussian"]),
        ({"hyponet__use_bias": False}, ["hyponet.use_bias", "False", "True"]),
        ({"transformer__block__attn_bias": False}, ["transformer.block.attn_bias", "False"]),
        ({"transformer__block__mlp_bias": False}, ["transformer.block.mlp_bias", "False"]),
        ({"latent_mapping__use_pe": False}, ["latent_mapping.use_pe", "False"]),
        ({"coord_sampler__coord_range": [0, 1]}, ["coord_sampler.coord_range", "[0, 1]", "[-1.0, 1.0]"]),
        ({"hyponet__fourier_mapping__type": "deterministic_transinr_nerf"}, ["hyponet.fourier_mapping.type", "nerf"]),
        ({"hyponet__fourier_mapping__trainable": True}, ["hyponet.fourier_mapping.trainable", "True"]),
        ({"hyponet__fourier_mapping__ff_dim": 15}, ["hyponet.fourier_mapping.ff_dim", "15", "2"]),
        ({"hyponet__type": "video"}, ["hyponet.type", "'video'"]),
        ({"hyponet__hidden_dim": [24, 24]}, ["hyponet.hidden_dim", "1 or 3"]),
        ({"hyponet__hidden_dim": ...}, ["hyponet.hidden_dim", "None", "list"]),
        ({"hyponet__n_layer": 0}, ["hyponet.n_layer", "0"]),
        ({"hyponet__n_layer": "4"}, ["hyponet.n_layer", "'4'", "int"]),
        ({"hyponet__output_bias": [0.1, 0.2, 0.3]}, ["hyponet.output_bias", "float"]),
        ({"hyponet__input_dim": 3}, ["hyponet.input_dim", "3"]),
        ({"transformer__block__gelu": "v2"}, ["transformer.block.gelu", "'v2'", "'v1'"]),
        ({"transformer__block__attn_pdrop": 0.1}, ["transformer.block.attn_pdrop", "0.1"]),
        ({"transformer__block__embed_dim": 64}, ["transformer.block.embed_dim", "64", "48"]),
        ({"transformer__mask": True}, ["transformer.mask", "True"]),
        ({"latent_mapping__latent_dim": 64}, ["latent_mapping.latent_dim", "64", "48"]),
        ({"latent_mapping__n_layer": 2}, ["latent_mapping.n_layer", "2"]),
        ({"data_encoder__type": "vqgan"}, ["data_encoder.type", "'vqgan'", "unfold_audio"]),
        ({"data_encoder__encoder_spec__patch_size": [4, 4]}, ["data_encoder.encoder_spec.patch_size", "[4, 4]"]),
        ({"data_encoder__encoder_spec__use_padding": True}, ["data_encoder.encoder_spec.use_padding"]),
        ({"coord_sampler__data_type": "audio"}, ["coord_sampler.data_type", "'audio'", "'image'"]),
        ({"coord_sampler__train_strategy": "random"}, ["coord_sampler.train_strategy", "'random'"]),
        ({"modulated_layer_idxs": [4]}, ["modulated_layer_idxs", "[4]", "[0, 1, 2, 3]"]),
        ({"modulated_layer_idxs": []}, ["modulated_layer_idxs"]),
        ({"modulated_layer_idxs": [1.0]}, ["modulated_layer_idxs", "[1.0]"]),
        ({"n_weight_groups": [12, 12]}, ["n_weight_groups", "1 or 4"]),
        ({"n_weight_groups": [5, 12, 7, 9], "modulated_layer_idxs": [1, 2]}, ["n_weight_groups", "[12, 7]", "[1, 2]"]),
        ({"n_weight_groups": [24], "modulated_layer_idxs": None}, ["n_weight_groups", "[24, 24, 24, 3]"]),
        ({"n_weight_groups": [0]}, ["n_weight_groups", "[0]"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_options_raise_an_error(ipc_image, changes, words):
    arch, weights, _ = ipc_image
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_released(weights, _changed(arch, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("key", "weight", "line"),
    [
        (
            "weight_groups.weight_groups",
            None,
            "weight_groups.weight_groups: missing in the file, (12, 48) in the model",
        ),
        ("transformer.blocks.1.attn.key.bias", None, "attn.key.bias: missing in the file, (48,) in the model"),
        (WB1, None, f"{WB1}: missing in the file, (25, 24) in the model"),
        ("hyponet.ff_linear", None, "hyponet.ff_linear: missing in the file, (8,) in the model"),
        ("head.weight", torch.zeros(3), "head.weight: (3,) in the file, not in the model"),
        (
            "transformer.blocks.2.ln1.weight",
            torch.zeros(48),
            "blocks.2.ln1.weight: (48,) in the file, not in the model",
        ),
        (WB1, torch.zeros(24, 24), f"{WB1}: (24, 24) in the file, (25, 24) in the model"),
        ("transformer.blocks.0.attn.value.weight", torch.zeros(48, 40), "(48, 40) in the file, (48, 48) in the model"),
        ("latent_mapping.pos_emb_latent", torch.zeros(1, 19, 48), "(1, 19, 48) in the file, (1, 20, 48) in the model"),
        ("hyponet.ff_linear", "exp", "hyponet.ff_linear, which is not a named tensor"),
    ],
)
def test_mismatched_weights_raise_an_error(ipc_image, key, weight, line):
    arch, weights, _ = ipc_image
    changed = {name: value for name, value in weights.items() if name != key}
    if weight is not None:
        changed[key] = weight
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_released(changed, arch)
    assert line in str(caught.value)


def test_long_lists_of_mismatches_are_truncated(ipc_image):
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_released({f"other{number}": torch.zeros(2) for number in range(9)}, ipc_image[0])
    assert "and 42 more\n  other0: (2,) in the file, not in the model" in str(caught.value)
    assert "and 5 more" in str(caught.value)


# TransINR's own code


TRANS_INR_ARGS = {
    "tokenizer": {"name": "imgrec_tokenizer", "args": {"input_size": 10, "patch_size": 4, "padding": 1}},
    "hyponet": {
        "name": "hypo_mlp",
        "args": {"in_dim": 2, "out_dim": 3, "out_bias": 0.5, "depth": 3, "hidden_dim": 8, "use_pe": True, "pe_dim": 6},
    },
    "n_groups": 4,
    "transformer_encoder": {
        "name": "transformer_encoder",
        "args": {"dim": 16, "depth": 2, "n_head": 4, "head_dim": 4, "ff_dim": 64},
    },
}


@pytest.fixture
def trans_inr():
    """Return a composer without biases of queries, keys and values, and the same in the layout of TransINR's own code."""
    network = CoordinateMLP(2, 3, 8, 3, "all", FourierFeatures(num_frequencies=3, max_frequency=1024))
    composer = TransINR(network, Patches((3, 10, 10), 4, 1), Transformer(16, 2, 4, qkv_bias=False), num_groups=4).eval()
    for parameter in composer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.encoding.frequencies.copy_(torch.linspace(0, math.log(1024), 3).exp())
    readout = composer.start.readout
    weights = {
        "tokenizer.prefc.weight": readout.embedding.weight,
        "tokenizer.prefc.bias": readout.embedding.bias,
        "tokenizer.posemb": readout.positions[0],
        "wtokens": readout.weight_tokens,
    }
    for index, block in enumerate(readout.transformer.blocks):
        layer = f"transformer_encoder.layers.{index}"
        weights |= {
            f"{layer}.0.norm.weight": block.attention_norm.weight,
            f"{layer}.0.norm.bias": block.attention_norm.bias,
            f"{layer}.0.fn.to_q.weight": block.attention.query.weight,
            f"{layer}.0.fn.to_kv.weight": block.attention.key_value.weight,
            f"{layer}.0.fn.to_out.0.weight": block.attention.projection.weight,
            f"{layer}.0.fn.to_out.0.bias": block.attention.projection.bias,
            f"{layer}.1.norm.weight": block.mlp_norm.weight,
            f"{layer}.1.norm.bias": block.mlp_norm.bias,
            f"{layer}.1.fn.net.0.weight": block.mlp[0].weight,
            f"{layer}.1.fn.net.0.bias": block.mlp[0].bias,
            f"{layer}.1.fn.net.3.weight": block.mlp[2].weight,
            f"{layer}.1.fn.net.3.bias": block.mlp[2].bias,
        }
    for layer in "012":
        head = readout.heads[f"scales_{layer}"]
        weights |= {
            f"base_params.wb{layer}": torch.cat(
                (composer.parametrization.base_weights[layer], network.biases[layer].unsqueeze(0))
            ),
            f"wtoken_postfc.wb{layer}.0.weight": head[0].weight,
            f"wtoken_postfc.wb{layer}.0.bias": head[0].bias,
            f"wtoken_postfc.wb{layer}.1.weight": head[1].weight,
            f"wtoken_postfc.wb{layer}.1.bias": head[1].bias,
        }
    weights = {key: weight.detach().clone() for key, weight in weights.items()}
    return composer, {"name": "trans_inr", "args": copy.deepcopy(TRANS_INR_ARGS), "sd": weights}


def test_trans_inr_round_trip(trans_inr):
    composer, model = trans_inr
    signal, coords = torch.rand(2, 3, 10, 10), torch.rand(30, 2) * 2 - 1
    converted = from_trans_inr(model)
    assert not converted.training
    assert torch.equal(_render(converted, signal, coords), _render(composer, signal, coords))


def test_trans_inr_attention_equals_its_own_code(trans_inr):
    """Keys precede values in the fused weight, and heads are consecutive slices."""
    _, model = trans_inr
    tokens, layer = torch.rand(1, 5, 16), "transformer_encoder.layers.1.0.fn"
    query = tokens @ model["sd"][f"{layer}.to_q.weight"].T
    key, value = (tokens @ part.T for part in model["sd"][f"{layer}.to_kv.weight"].split(16))
    gathered = [
        functional.softmax(query[..., s] @ key[..., s].mT / 4**0.5, -1) @ value[..., s]
        for s in (slice(start, start + 4) for start in range(0, 16, 4))
    ]
    expected = (
        torch.cat(gathered, -1) @ model["sd"][f"{layer}.to_out.0.weight"].T + model["sd"][f"{layer}.to_out.0.bias"]
    )
    actual = from_trans_inr(model).start.readout.transformer.blocks[1].attention(tokens, 5)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("section", "option", "value", "words"),
    [
        ("tokenizer", "name", "nvs_tokenizer", ["tokenizer.name", "'nvs_tokenizer'"]),
        ("hyponet", "name", "hypo_siren", ["hyponet.name", "'hypo_siren'", "'hypo_mlp'", "'hypo_nerf'"]),
        ("transformer_encoder", "args", {"dropout": 0.1}, ["transformer_encoder.args.dropout", "0.1"]),
        ("transformer_encoder", "args", {"head_dim": 8}, ["transformer_encoder.args.head_dim", "8"]),
        ("transformer_encoder", "args", {"ff_dim": 32}, ["transformer_encoder.args.ff_dim", "32", "64"]),
        ("hyponet", "args", {"pe_sigma": "x"}, ["hyponet.args.pe_sigma"]),
        ("hyponet", "args", {"pe_sigma": 0}, ["max_frequency is 0"]),
        ("hyponet", "args", {"gain": 1}, ["hyponet.args.gain", "unknown"]),
        ("tokenizer", "args", {"patch_size": 0}, ["tokenizer.args.patch_size", "0"]),
    ],
)
def test_unsupported_trans_inr_options_raise_an_error(trans_inr, section, option, value, words):
    _, model = trans_inr
    if isinstance(value, dict):
        model["args"][section][option] |= value
    else:
        model["args"][section][option] = value
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_trans_inr(model)
    assert all(word in str(caught.value) for word in words), caught.value


def test_mismatched_trans_inr_weights_raise_an_error(trans_inr):
    _, model = trans_inr
    del model["sd"]["tokenizer.posemb"]
    model["sd"]["base_params.rgb_density_fc"] = torch.zeros(9, 4)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_trans_inr(model)
    assert "tokenizer.posemb: missing in the file, (1, 9, 16) in the model" in str(caught.value)
    assert "base_params.rgb_density_fc: (9, 4) in the file, not in the model" in str(caught.value)
    with pytest.raises(ValueError, match="'other'"):
        from_trans_inr(model | {"name": "other"})


# The command line


class _Foreign:
    """Stand-in for an object of a config library in a checkpoint."""

    def __init__(self):
        self.content = [0.9, 0.999]


class _Malicious:
    """Calls a function when it is unpickled, as code in a checkpoint could."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def run(tmp_path, ipc_image):
    """Return the folder of a released run: a checkpoint with a moving average, and its config."""
    arch, weights, _ = ipc_image
    average = {key: weight * 0.9 for key, weight in weights.items()}
    checkpoint = {"epoch": 3, "state_dict": weights, "state_dict_ema": average, "optimizer": {}, "scheduler": {}}
    torch.save(checkpoint, tmp_path / "epoch3_model.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": "stage_inr", "arch": arch}))
    return tmp_path


def _fails(capsys, *arguments, status=1):
    """Run the command line, which must fail without a traceback, and return the error message."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr().err
    if isinstance(caught.value.code, str):  # the interpreter prints it and exits with status 1
        assert status == 1
        return caught.value.code
    assert caught.value.code == status
    return printed


@pytest.mark.parametrize("ema", [False, True])
def test_converted_checkpoint_equals_the_released_model(run, capsys, ipc_image, ema):
    arch, weights, vectors = ipc_image
    main([str(run / "epoch3_model.pt"), str(run / "new" / "ipc.ckpt"), *(["--ema"] if ema else [])])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2
    assert all(words in printed for words in ("TransformerIPC", "63,483 parameters", "Next: python -c"))
    assert ("average" in printed) == ema
    loaded = composers.load(run / "new" / "ipc.ckpt")
    direct = from_released({key: weight * (0.9 if ema else 1) for key, weight in weights.items()}, arch)
    coords = vectors["coord"][0].flatten(0, -2)
    assert torch.equal(_render(loaded, vectors["input"], coords), _render(direct, vectors["input"], coords))


def test_checkpoint_of_trans_inr_is_converted(tmp_path, trans_inr, capsys):
    composer, model = trans_inr
    torch.save({"model": model, "optimizer": {}, "epoch": 30, "cfg": {}}, tmp_path / "epoch-last.pth")
    main([str(tmp_path / "epoch-last.pth"), str(tmp_path / "out.ckpt")])
    assert "TransINR" in capsys.readouterr().out
    signal, coords = torch.rand(1, 3, 10, 10), torch.rand(30, 2)
    converted = composers.load(tmp_path / "out.ckpt")
    assert torch.equal(_render(converted, signal, coords), _render(composer, signal, coords))
    message = _fails(capsys, tmp_path / "epoch-last.pth", tmp_path / "b.ckpt", "--ema")
    assert "yinboc/trans-inr" in message
    assert "--ema" in message


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(words in printed for words in ("python -m tools.released", "config.yaml", "--ema", "--overwrite"))


def test_module_runs_as_a_program(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["released", str(run / "epoch3_model.pt"), str(run / "ipc.ckpt")])
    monkeypatch.delitem(sys.modules, "tools.released.__main__")
    runpy.run_module("tools.released", run_name="__main__")
    assert "Wrote" in capsys.readouterr().out
    assert (run / "ipc.ckpt").is_file()


def test_config_may_be_in_another_folder(run, capsys):
    config = (run / "config.yaml").rename(run / "elsewhere.yaml")
    message = _fails(capsys, run / "epoch3_model.pt", run / "ipc.ckpt")
    assert str(run / "config.yaml") in message
    assert "--config" in message
    main([str(run / "epoch3_model.pt"), str(run / "ipc.ckpt"), "--config", str(config)])
    assert (run / "ipc.ckpt").is_file()


def test_existing_files_are_not_overwritten(run, capsys):
    target = run / "ipc.ckpt"
    target.write_text("precious")
    assert str(target) in _fails(capsys, run / "epoch3_model.pt", target)
    assert target.read_text() == "precious"
    main([str(run / "epoch3_model.pt"), str(target), "--overwrite"])
    composers.load(target)
    for unfit in (run / "epoch3_model.pt", run):
        assert "exists" in _fails(capsys, run / "epoch3_model.pt", unfit, "--overwrite")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "epoch3_model.pt", "ipc.ckpt"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"hello world",
        lambda content: content[: len(content) // 2],
        lambda content: content[:200] + bytes(byte ^ 255 for byte in content[200:300]) + content[300:],
    ],
    ids=["empty", "text", "cut", "flipped"],
)
def test_damaged_checkpoints_raise_an_error(run, capsys, damage):
    source = run / "epoch3_model.pt"
    source.write_bytes(damage(source.read_bytes()))
    message = _fails(capsys, source, run / "ipc.ckpt")
    assert message.startswith(f"error: {source} cannot be converted: it is not a complete checkpoint")
    assert not (run / "ipc.ckpt").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], ["not contain a dictionary"]),
        ({"epoch": 1, "weights": {}}, ["no state_dict", "weights", "ginr-ipc"]),
        ({"state_dict": {}, "composer": {}}, ["already a checkpoint of this software", "composers.load"]),
        ({"state_dict": {"a": torch.ones(1)}}, ["do not fit the model", "a: (1,) in the file"]),
        ({"model": {"name": "other"}}, ["yinboc/trans-inr", "'other'"]),
    ],
)
def test_files_other_than_released_checkpoints_raise_an_error(run, capsys, content, words):
    torch.save(content, run / "epoch3_model.pt")
    message = _fails(capsys, run / "epoch3_model.pt", run / "ipc.ckpt")
    assert all(word in message for word in ["error: ", str(run / "epoch3_model.pt"), *words]), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arch: [", ["not plain YAML"]),
        ("arch: !!python/object/apply:os.getcwd []", ["not plain YAML"]),
        ("dataset: {}", ["no section arch"]),
        ("- 1", ["no section arch"]),
    ],
)
def test_invalid_configs_raise_an_error(run, capsys, text, words):
    (run / "config.yaml").write_text(text)
    message = _fails(capsys, run / "epoch3_model.pt", run / "ipc.ckpt")
    assert all(word in message for word in [str(run / "config.yaml"), *words]), message


def test_unsupported_types_fail_on_the_command_line(run, capsys):
    (run / "config.yaml").write_text(yaml.safe_dump({"arch": _arch("ipc_image") | {"type": "liif"}}))
    assert "option type is" in _fails(capsys, run / "epoch3_model.pt", run / "ipc.ckpt")


def test_user_errors_on_the_command_line(run, capsys):
    assert "There is no checkpoint" in _fails(capsys, run / "no.pt", run / "ipc.ckpt")
    assert "dst" in _fails(capsys, run / "epoch3_model.pt", status=2)
    message = _fails(capsys, run / "epoch3_model.pt", run / "config.yaml" / "ipc.ckpt")
    assert "cannot be written" in message
    torch.save({"state_dict": {}}, run / "epoch3_model.pt")
    assert "no state_dict_ema" in _fails(capsys, run / "epoch3_model.pt", run / "ipc.ckpt", "--ema")


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_other_software_raise_an_error_with_the_fix(run, capsys, zipped):
    source = run / "epoch3_model.pt"
    checkpoint = torch.load(source, weights_only=True)
    content = checkpoint | {"optimizer": {"betas": _Foreign()}}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    message = _fails(capsys, source, run / "ipc.ckpt")
    assert all(words in message for words in (str(source), f"class {__name__}._Foreign", "--ema", "trans-inr"))
    assert 'torch.save({"state_dict": torch.load(path)["state_dict"]}, new_path)' in message
    torch.save({"state_dict": torch.load(source, weights_only=False)["state_dict"]}, source)
    main([str(source), str(run / "ipc.ckpt")])


def test_code_in_a_checkpoint_never_runs(run, capsys):
    source, trap = run / "epoch3_model.pt", run / "trap"
    checkpoint = torch.load(source, weights_only=True)
    for function, *arguments in ((open, str(trap), "w"), (os.mkdir, str(trap))):
        torch.save(checkpoint | {"optimizer": _Malicious(function, *arguments)}, source)
        assert f"{function.__module__}.{function.__name__}" in _fails(capsys, source, run / "ipc.ckpt")
    assert not trap.exists()
