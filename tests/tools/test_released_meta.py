"""Released meta-learned models: golden vectors, a naive inner loop for other options, unsupported options, the command line."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from coordinates import grid
from safetensors.torch import load_file

import composers
from composers import LearnedInit, MetaIPC
from datamodules.batch import Observation, Samples
from tools.released import from_released
from tools.released.__main__ import main

GOLDEN = Path(__file__).parents[1] / "golden"
FACTORS, SHARED = "factors.init_modulation_factors.linear_wb", "factors.shared_factors.linear_wb"
WB = "hyponet.params_dict.linear_wb"
COMPOSERS = {"ipc_meta_image": MetaIPC, "learned_init_image": LearnedInit}


def _golden(name):
    """Return architecture, weights and vectors of a golden file."""
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("state_dict."): vectors.pop(key) for key in list(vectors) if key.startswith("state_")}
    return json.loads((GOLDEN / f"{name}.json").read_text()), weights, vectors


@pytest.fixture(scope="module", params=COMPOSERS)
def golden(request):
    return request.param, *_golden(request.param)


@pytest.fixture(scope="module")
def ipc():
    return _golden("ipc_meta_image")


@pytest.fixture(scope="module")
def learned_init():
    return _golden("learned_init_image")


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


def _adapted(composer, images):
    """Return the latents of images by layer index, and their reconstructions."""
    coords = grid(images.shape[2:])
    latents = composer.encode(Observation(None, Samples(coords, images.flatten(2).mT)))
    with torch.no_grad():
        values = composer.render(composer.compose(latents), coords)
    return {name.rpartition(".")[2]: latent for name, latent in latents.items()}, values.mT.reshape(images.shape)


# Golden vectors


def test_converted_model_adapts_and_renders_as_the_released_code(golden, tmp_path):
    name, arch, weights, vectors = golden
    composer = from_released(weights, arch)
    assert type(composer) is COMPOSERS[name]
    composers.save(composer, tmp_path / "meta.ckpt")
    latents, values = _adapted(composers.load(tmp_path / "meta.ckpt"), vectors["input"])
    torch.testing.assert_close(values, vectors["output"], atol=1e-5, rtol=0)
    assert {f"adapted.linear_wb{layer}" for layer in latents} == {key for key in vectors if key.startswith("adapted")}
    for layer, latent in latents.items():
        torch.testing.assert_close(latent, vectors[f"adapted.linear_wb{layer}"], atol=1e-6, rtol=0)


def test_inner_loop_follows_the_config(golden):
    _, arch, weights, _ = golden
    inner = from_released(weights, _changed(arch, n_inner_step=5, inner_lr=0.25)).inner
    assert (inner.steps, inner.test_steps, inner.samples_per_step) == (5, 5, "all")
    assert (inner.rule.lr, inner.rule.learned_lr, inner.rule.outer) == (0.25, (), "second_order")
    inner = from_released(weights, _changed(arch, n_inner_step=None, inner_lr=...)).inner
    assert (inner.steps, inner.rule.lr) == (2, 0.01)  # the released defaults


def test_base_weights_of_adapted_layers_are_unused(golden):
    _, arch, weights, vectors = golden
    adapted = [key for key in weights if key.startswith(FACTORS)]
    rows = {WB + key[-1]: weights[WB + key[-1]].clone() for key in adapted}
    for matrix in rows.values():
        matrix[:-1] = 7
    actual, expected = (_adapted(from_released(each, arch), vectors["input"])[1] for each in (weights | rows, weights))
    assert torch.equal(actual, expected)
    shifted = {key: matrix + 0.1 for key, matrix in rows.items()}
    assert not torch.equal(_adapted(from_released(weights | shifted, arch), vectors["input"])[1], expected)


def test_all_other_weights_are_used(golden):
    _, arch, weights, _ = golden
    composer = from_released({f"module.{key}": weight for key, weight in weights.items()}, arch)
    unused = sum(weights[WB + key[-1]][:-1].numel() for key in weights if key.startswith(FACTORS))
    converted = sum(parameter.numel() for parameter in composer.parameters())
    assert (
        converted == sum(weight.numel() for weight in weights.values()) - unused - weights["hyponet.ff_linear"].numel()
    )


@pytest.mark.parametrize(("name", "parameters"), [("ipc_meta_image", 395_075), ("learned_init_image", 526_915)])
def test_sizes_of_the_published_models(name, parameters):
    arch = _changed(_golden(name)[0], hyponet__n_layer=5, hyponet__hidden_dim=[256], rank=[256])
    arch["hyponet"]["fourier_mapping"]["ff_dim"] = 128
    weights = _random(arch)
    assert sum(weight.numel() for weight in weights.values()) == parameters
    composer = from_released(weights, arch)
    used = {"ipc_meta_image": 329_475, "learned_init_image": 263_939}[name]
    assert sum(parameter.numel() for parameter in composer.parameters()) == used


# Options without golden vectors


def _random(arch):
    """Return random weights of an architecture in the released layout."""
    options, generator = arch["hyponet"], torch.Generator().manual_seed(0)
    hidden = options["hidden_dim"] * (options["n_layer"] - 1 if len(options["hidden_dim"]) == 1 else 1)
    width = options["fourier_mapping"]["ff_dim"]
    weights = {"hyponet.ff_linear": 1 + torch.rand(width // 2, generator=generator)}
    for layer, sizes in enumerate(zip([2 * width, *hidden], [*hidden, options["output_dim"]], strict=True)):
        fan_in, fan_out = sizes
        weights[f"{WB}{layer}"] = torch.randn(fan_in + 1, fan_out, generator=generator) / math.sqrt(fan_in)
        if arch["modulated_layer_idxs"] is None or layer in arch["modulated_layer_idxs"]:
            ranks = arch["rank"] * (options["n_layer"] if len(arch["rank"]) == 1 else 1)
            columns = min(ranks[layer], fan_out) if arch["use_factorization"] else fan_out
            weights[f"{FACTORS}{layer}"] = torch.randn(fan_in, columns, generator=generator)
            if arch["use_factorization"]:
                weights[f"{SHARED}{layer}"] = torch.randn(columns, fan_out, generator=generator) / math.sqrt(fan_in)
    return weights


def _naive(arch, weights, image):
    """Return the reconstruction ``(N, C)`` of one image ``(C, H, W)``, in float64 and without code of this software."""
    options, weights = arch["hyponet"], {key: weight.double() for key, weight in weights.items()}
    axes = [-1 + 2 * (torch.arange(size).double() + 0.5) / size for size in image.shape[1:]]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    phases = torch.cat([coords[:, axis : axis + 1] * weights["hyponet.ff_linear"] for axis in range(2)], 1) * math.pi
    target = image.double().flatten(1).T

    def field(factors):
        hidden = torch.cat([phases.cos(), phases.sin()], 1)
        for layer in range(options["n_layer"]):
            matrix, name = weights[f"{WB}{layer}"], str(layer)
            weight = factors.get(name, matrix[:-1])
            weight = weight @ weights[SHARED + name] if SHARED + name in weights else weight
            if options["normalize_weight"]:
                weight = weight / weight.square().sum(0).sqrt()
            hidden = hidden @ weight + matrix[-1]
            hidden = hidden.clamp(min=0) if layer < options["n_layer"] - 1 else hidden + options["output_bias"]
        return hidden

    factors = {key.removeprefix(FACTORS): weight for key, weight in weights.items() if key.startswith(FACTORS)}
    for _ in range(arch["n_inner_step"]):
        factors = {name: factor.detach().requires_grad_() for name, factor in factors.items()}
        (field(factors) - target).square().mean().backward()
        factors = {
            name: factor
            - arch["inner_lr"] * (factor.square().sum() if options["normalize_weight"] else 1) * factor.grad
            for name, factor in factors.items()
        }
    return field(factors).detach()


@pytest.mark.parametrize("factorized", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"hyponet__normalize_weight": False, "hyponet__output_bias": 0.25},
        {"hyponet__hidden_dim": [12, 24, 36], "modulated_layer_idxs": [2, 1], "n_inner_step": 3},
        {"rank": [5, 7, 7, 9], "modulated_layer_idxs": [1, 2], "inner_lr": 0.02},
        {"rank": [64], "modulated_layer_idxs": None},
        {"rank": [24], "modulated_layer_idxs": [0], "hyponet__output_dim": 1},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_other_options_equal_the_naive_reference(ipc, factorized, changes):
    arch = _changed(ipc[0], use_factorization=factorized, **changes)
    weights, images = _random(arch), torch.rand(2, arch["hyponet"]["output_dim"], 6, 5)
    _, values = _adapted(from_released(weights, arch), images)
    for actual, image in zip(values, images, strict=True):
        expected = _naive(arch, weights, image)
        tolerance = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(actual.flatten(1).T.double(), expected, atol=tolerance, rtol=0)


def test_options_of_full_configs_are_supported(golden):
    _, arch, weights, _ = golden
    full = _changed(
        arch,
        ema=None,
        ignore_base_param=True,
        hyponet__type="mlp",
        hyponet__initialization={"weight_init_type": "kaiming_uniform", "bias_init_type": "zero"},
        hyponet__fourier_mapping__trainable=False,
        hyponet__fourier_mapping__use_ff=True,
        coord_sampler__train_strategy=None,
        coord_sampler__val_strategy=None,
    )
    assert from_released(weights, full).config == from_released(weights, arch).config


# Unsupported options and mismatched weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_inner_step": 0}, ["n_inner_step", "0", "1 or more"]),
        ({"n_inner_step": 2.5}, ["n_inner_step", "2.5", "int"]),
        ({"inner_lr": 0}, ["inner_lr", "0", "above 0"]),
        ({"inner_lr": float("inf")}, ["inner_lr", "inf", "finite"]),
        ({"inner_lr": "fast"}, ["inner_lr", "'fast'", "float"]),
        ({"use_factorization": "yes"}, ["use_factorization", "'yes'", "bool"]),
        ({"ignore_base_param": False}, ["ignore_base_param", "False", "True"]),
        ({"rank": ...}, ["rank", "None", "list"]),
        ({"rank": [12, 12]}, ["rank", "[12, 12]", "1 or 4"]),
        ({"rank": [0]}, ["rank", "[0]", "1 or more"]),
        ({"rank": [3, 4, 5, 6], "modulated_layer_idxs": [1, 2]}, ["rank", "one rank", "[4, 5]"]),
        ({"modulated_layer_idxs": []}, ["modulated_layer_idxs", "[]", "null"]),
        ({"modulated_layer_idxs": [4]}, ["modulated_layer_idxs", "[4]"]),
        ({"latent_mapping__type": "linear"}, ["latent_mapping.type", "unknown"]),
        ({"n_weight_groups": [12]}, ["n_weight_groups", "unknown"]),
        ({"inner_optimizer": "adam"}, ["inner_optimizer", "unknown"]),
        ({"coord_sampler__data_type": "audio"}, ["coord_sampler.data_type", "'audio'", "'image'"]),
        ({"coord_sampler__coord_range": [0, 1]}, ["coord_sampler.coord_range", "[0, 1]"]),
        ({"hyponet__input_dim": 3}, ["hyponet.input_dim", "3"]),
        ({"hyponet__activation__type": "siren"}, ["hyponet.activation.type", "'siren'", "'relu'"]),
        ({"hyponet__use_bias": False}, ["hyponet.use_bias", "False"]),
    ],
    ids=str,
)
def test_unsupported_options_raise_an_error(ipc, changes, words):
    arch, weights, _ = ipc
    with pytest.raises(ValueError, match=r"^arch ") as caught:
        from_released(weights, _changed(arch, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


def test_mismatched_weights_raise_an_error(golden):
    name, arch, weights, _ = golden
    changed = weights | {
        f"{FACTORS}1": torch.zeros(24, 5),
        "factors.more": torch.zeros(3),
        f"{WB}2": weights[f"{WB}2"].T,
    }
    del changed[f"{WB}3"]
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_released(changed, arch)
    columns = 12 if name == "ipc_meta_image" else 24
    for line in (
        f"{FACTORS}1: (24, 5) in the file, (24, {columns}) in the model",
        f"{WB}2: (24, 25) in the file, (25, 24) in the model",
        f"{WB}3: missing in the file, (25, 3) in the model",
        "factors.more: (3,) in the file, not in the model",
    ):
        assert line in str(caught.value)


def test_only_factorized_models_have_a_basis(ipc, learned_init):
    arch, weights, _ = ipc
    with pytest.raises(ValueError, match=rf"{SHARED}1: \(12, 24\) in the file, not in the model"):
        from_released(weights, _changed(arch, use_factorization=False))
    arch, weights, _ = learned_init
    with pytest.raises(ValueError, match=rf"{SHARED}0: missing in the file, \(24, 24\) in the model"):
        from_released(weights, _changed(arch, use_factorization=True, rank=[24]))


# The size of images, and the command line


@pytest.fixture
def run(tmp_path, golden):
    """Return the folder of a released run: a checkpoint, and its config."""
    _, arch, weights, _ = golden
    torch.save({"epoch": 800, "state_dict": weights, "optimizer": {}, "scheduler": {}}, tmp_path / "epoch800_model.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": "stage_inr", "arch": arch}))
    return tmp_path


@pytest.mark.parametrize(("options", "shape"), [([], None), (["--size", "178"], (3, 178, 178))], ids=["unknown", "178"])
def test_checkpoint_is_converted_on_the_command_line(run, golden, capsys, options, shape):
    name, _, _, vectors = golden
    main([str(run / "epoch800_model.pt"), str(run / "meta.ckpt"), *options])
    assert f"{COMPOSERS[name].__name__}, 2,067 parameters" in capsys.readouterr().out
    loaded = composers.load(run / "meta.ckpt")
    assert loaded.start.signal_shape == shape
    torch.testing.assert_close(_adapted(loaded, vectors["input"])[1], vectors["output"], atol=1e-5, rtol=0)


def test_size_of_a_hypernetwork_raises_an_error():
    arch, weights, _ = _golden("ipc_image")
    with pytest.raises(ValueError, match="size is 178, but the tokens of this hypernetwork determine it"):
        from_released(weights, arch, size=178)


def test_size_must_be_positive(ipc):
    arch, weights, _ = ipc
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        from_released(weights, arch, size=0)


def test_views_option_raises_an_error(run, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(run / "epoch800_model.pt"), str(run / "meta.ckpt"), "--views", "1"])
    assert "leave --views out" in str(caught.value.code)
    assert not (run / "meta.ckpt").exists()
