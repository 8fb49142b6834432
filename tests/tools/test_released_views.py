"""Released weights of views and of longer audio: golden vectors, unsupported options, and TransINR's own files."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coordinates import grid, pixel_rays
from safetensors.torch import load_file

import composers
from composers import TransformerIPC, TransINR
from composers.encoders import Transformer, ViewPatches
from composers.networks import CoordinateMLP, FourierFeatures
from composers.rendering import VolumeRenderer
from datamodules.batch import Observation, Views
from datamodules.cameras import centred_intrinsics, look_at
from tools.released import from_released, from_trans_inr
from tools.released.__main__ import main

GOLDEN = Path(__file__).parents[1] / "golden"


def _golden(name):
    """Return architecture, weights and vectors of a golden file."""
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("state_dict."): vectors.pop(key) for key in list(vectors) if key.startswith("state_")}
    return json.loads((GOLDEN / f"{name}.json").read_text()), weights, vectors


@pytest.fixture(scope="module", params=["ipc_nerf", "transinr_nerf"])
def golden(request):
    return _golden(request.param)


@pytest.fixture(scope="module")
def ipc_nerf():
    return _golden("ipc_nerf")


def _support(vectors):
    """Return the observation of the support views."""
    intrinsics = centred_intrinsics(vectors["support_focals"], (16, 16))
    return Observation(Views(vectors["support_imgs"], vectors["support_poses"], intrinsics))


def _views(number, size, instances=2):
    """Return random posed views."""
    positions = torch.nn.functional.normalize(torch.randn(instances, number, 3), dim=-1) * 4
    intrinsics = centred_intrinsics(torch.full((instances, number, 2), 1.2 * size), (size, size))
    return Observation(Views(torch.rand(instances, number, 3, size, size), look_at(positions), intrinsics))


def _changed(arch, **changes):
    """Return a copy of an architecture with changed options; ``__`` stands for a dot, and `...` removes an option."""
    arch = copy.deepcopy(arch)
    for name, value in changes.items():
        *sections, option = name.split("__")
        section = arch
        for key in sections:
            section = section[key]
        if value is ...:
            del section[option]
        else:
            section[option] = value
    return arch


def test_rays_equal_those_of_the_released_code(golden):
    _, _, vectors = golden
    rays = pixel_rays(vectors["query_poses"], vectors["query_focals"], (16, 16))[:, 0]
    torch.testing.assert_close(rays[..., :3], vectors["rays_o"], atol=0, rtol=0)
    torch.testing.assert_close(rays[..., 3:], vectors["rays_d"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("gradients", [True, False])
def test_colours_equal_those_of_the_released_code(golden, gradients):
    arch, weights, vectors = golden
    composer = from_released(weights, arch)
    assert not composer.training
    with torch.set_grad_enabled(gradients):
        for rays in (
            torch.cat((vectors["rays_o"], vectors["rays_d"]), dim=-1),
            pixel_rays(vectors["query_poses"], vectors["query_focals"], (16, 16)).flatten(1, 2),
        ):
            values = composer(_support(vectors), rays)
            torch.testing.assert_close(values, vectors["output"], atol=1e-6, rtol=0)


def test_depth_range_and_samples_per_ray_equal_the_released_ones(golden):
    arch, weights, vectors = golden
    renderer = from_released(weights, arch).renderer
    assert isinstance(renderer, VolumeRenderer)
    assert (vectors["z_range"] == torch.tensor([renderer.near, renderer.far])).all()
    assert renderer.samples_per_ray == 9
    arch = _changed(arch, coord_sampler__num_points_per_ray=...)
    assert from_released(weights, arch).renderer.samples_per_ray == 128


def test_type_and_frequencies_follow_the_file(golden):
    arch, weights, _ = golden
    stored = weights["hyponet.ff_linear"]
    torch.testing.assert_close(stored, 2 ** torch.linspace(0, 4, 4))
    composer = from_released(weights | {"hyponet.ff_linear": stored * 1.25}, arch)
    assert isinstance(composer, TransformerIPC if "low_rank" in arch["type"] else TransINR)
    assert torch.equal(composer.network.encoding.frequencies, stored * 1.25)
    assert composer.network.encoding.factor == 1


@pytest.mark.parametrize(("views", "size"), [(2, 16), (1, 12)])
def test_other_numbers_or_sizes_of_views_raise_an_error(ipc_nerf, views, size):
    arch, weights, _ = ipc_nerf
    with pytest.raises(ValueError, match=rf"views have shape \({views}, 3, {size}, {size}\).*with 16 patches of 4 x 4"):
        from_released(weights, arch).encode(_views(views, size))


def test_options_of_full_configs_of_views_are_supported(ipc_nerf):
    arch, weights, _ = ipc_nerf
    full = _changed(
        arch,
        ema=None,
        data_encoder__trainable=False,
        latent_mapping__type="linear",
        latent_mapping__n_layer=1,
        latent_mapping__activation="relu",
        latent_mapping__hidden_dim=[256],
        latent_mapping__use_pe=True,
        hyponet__type="mlp",
        hyponet__initialization={"weight_init_type": "kaiming_uniform", "bias_init_type": "zero"},
        hyponet__fourier_mapping__trainable=False,
        hyponet__fourier_mapping__use_ff=True,
        coord_sampler__train_strategy=None,
        coord_sampler__val_strategy=None,
    )
    assert from_released(weights, full).config == from_released(weights, arch).config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hyponet__input_dim": 2}, ["hyponet.input_dim", "2", "3"]),
        ({"hyponet__output_dim": 3}, ["hyponet.output_dim", "3", "4"]),
        ({"hyponet__output_dim": ...}, ["hyponet.output_dim", "3", "4"]),
        ({"hyponet__fourier_mapping__type": "deterministic_transinr"}, ["hyponet.fourier_mapping.type", "_nerf"]),
        ({"hyponet__fourier_mapping__type": ...}, ["hyponet.fourier_mapping.type", "'deterministic_transinr'"]),
        ({"hyponet__fourier_mapping__ff_sigma": 1024}, ["hyponet.fourier_mapping.ff_sigma", "1024", "exponent"]),
        ({"hyponet__fourier_mapping__ff_dim": 13}, ["hyponet.fourier_mapping.ff_dim", "13", "3"]),
        ({"data_encoder__n_channel": 3}, ["data_encoder.n_channel", "3", "9"]),
        ({"data_encoder__encoder_spec__padding": ...}, ["data_encoder.encoder_spec.padding", "1", "0"]),
        ({"data_encoder__encoder_spec__use_padding": True}, ["data_encoder.encoder_spec.use_padding"]),
        ({"data_encoder__type": "unfold_audio"}, ["data_encoder.type", "'unfold_audio'", "'unfold'"]),
        ({"coord_sampler__data_type": "image"}, ["coord_sampler.data_type", "'image'", "'nvs'"]),
        ({"coord_sampler__coord_range": [-3, 3]}, ["coord_sampler.coord_range", "[-3, 3]"]),
        ({"coord_sampler__num_points_per_ray": 0}, ["coord_sampler.num_points_per_ray", "0"]),
        ({"coord_sampler__near": 1}, ["coord_sampler.near", "unknown"]),
        ({"type": "transinr"}, ["hyponet.fourier_mapping.type"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_options_of_views_raise_an_error(ipc_nerf, changes, words):
    arch, weights, _ = ipc_nerf
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_released(weights, _changed(arch, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


# Audio longer than one second


def test_audio_of_three_seconds_is_supported():
    arch, weights, vectors = _golden("ipc_audio")
    longer = _changed(arch, coord_sampler__coord_range=[-3.0, 3.0])
    composer = from_released(weights, longer)
    coords = grid((215,), -3.0, 3.0)
    with torch.no_grad():
        actual = composer(Observation(vectors["input"]), coords)
        expected = from_released(weights, arch)(Observation(vectors["input"]), coords)
    assert torch.equal(actual, expected)  # the range belongs to the data, and the network is the same


@pytest.mark.parametrize("coord_range", [[-1, 3], [0, 0], [1.0, -1.0], [-3], ["a", "b"], 3, [-1.0, float("nan")]])
def test_ranges_other_than_those_of_recordings_raise_an_error(coord_range):
    arch, weights, _ = _golden("ipc_audio")
    with pytest.raises(ValueError, match=r"coord_sampler\.coord_range is .*; supported"):
        from_released(weights, _changed(arch, coord_sampler__coord_range=coord_range))


# TransINR's own code


ARGS = {
    "tokenizer": {"name": "nvs_tokenizer", "args": {"input_size": 8, "patch_size": 4}},
    "hyponet": {"name": "hypo_nerf", "args": {"depth": 3, "hidden_dim": 8, "pe_dim": 6}},
    "n_groups": 4,
    "transformer_encoder": {
        "name": "transformer_encoder",
        "args": {"dim": 16, "depth": 1, "n_head": 4, "head_dim": 4, "ff_dim": 64},
    },
}


@pytest.fixture
def trans_inr():
    """Return a composer for two views without positions, and the same in the layout of TransINR's own code."""
    network = CoordinateMLP(3, 4, 8, 3, "all", FourierFeatures(3, 256, use_pi=False), output_offset=0.0)
    composer = TransINR(
        network,
        ViewPatches((2, 3, 8, 8), 4),
        Transformer(16, 1, 4, qkv_bias=False),
        num_groups=4,
        renderer=VolumeRenderer(2, 6),
    ).eval()
    for parameter in composer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    readout = composer.start.readout
    torch.nn.init.zeros_(readout.positions)
    network.encoding.frequencies.copy_(2 ** torch.linspace(0, 8, 3))
    block = readout.transformer.blocks[0]
    attention, feed = "transformer_encoder.layers.0.0", "transformer_encoder.layers.0.1"
    weights = {
        "tokenizer.prefc.weight": readout.embedding.weight,
        "tokenizer.prefc.bias": readout.embedding.bias,
        "wtokens": readout.weight_tokens,
        f"{attention}.norm.weight": block.attention_norm.weight,
        f"{attention}.norm.bias": block.attention_norm.bias,
        f"{attention}.fn.to_q.weight": block.attention.query.weight,
        f"{attention}.fn.to_kv.weight": block.attention.key_value.weight,
        f"{attention}.fn.to_out.0.weight": block.attention.projection.weight,
        f"{attention}.fn.to_out.0.bias": block.attention.projection.bias,
        f"{feed}.norm.weight": block.mlp_norm.weight,
        f"{feed}.norm.bias": block.mlp_norm.bias,
        f"{feed}.fn.net.0.weight": block.mlp[0].weight,
        f"{feed}.fn.net.0.bias": block.mlp[0].bias,
        f"{feed}.fn.net.3.weight": block.mlp[2].weight,
        f"{feed}.fn.net.3.bias": block.mlp[2].bias,
    }
    for layer, name in enumerate(("wb0", "wb1", "rgb_density_fc")):
        head = readout.heads[f"scales_{layer}"]
        base = torch.cat((composer.parametrization.base_weights[str(layer)], network.biases[str(layer)].unsqueeze(0)))
        weights |= {f"base_params.{name}": base}
        weights |= {
            f"wtoken_postfc.{name}.{i}.{kind}": getattr(head[i], kind) for i in (0, 1) for kind in ("weight", "bias")
        }
    weights = {key: weight.detach().clone() for key, weight in weights.items()}
    return composer, {"name": "trans_inr", "args": copy.deepcopy(ARGS), "sd": weights}


def _rays():
    """Return rays that pass near the origin."""
    return torch.cat(
        (torch.tensor([[0.0, -4.0, 0.0]]).expand(5, -1), torch.tensor([0.0, 1.0, 0.0]) + torch.rand(5, 3) / 9), -1
    )


def test_trans_inr_round_trip_of_views(trans_inr):
    composer, model = trans_inr
    converted, observation, rays = from_trans_inr(model, views=2), _views(2, 8), _rays()
    assert not converted.training
    assert converted.renderer.samples_per_ray == 128
    with torch.no_grad():
        assert torch.equal(converted(observation, rays), composer(observation, rays))


def test_trans_inr_frequencies_are_powers_of_two(trans_inr):
    frequencies = from_trans_inr(trans_inr[1]).network.encoding.frequencies
    np.testing.assert_array_equal(frequencies.numpy(), [1, 16, 256])


def test_trans_inr_defaults_of_views(trans_inr):
    _, model = trans_inr
    arguments = model["args"]["hyponet"]["args"]
    arguments.clear()
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_trans_inr(model)
    assert "base_params.wb0: (19, 8) in the file, (121, 256) in the model" in str(caught.value)
    assert "base_params.wb5: (9, 4) in the file, (257, 4) in the model" in str(caught.value)


def test_trans_inr_has_one_view_by_default(trans_inr):
    _, model = trans_inr
    assert from_trans_inr(model).start.encoder.signal_shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"signal_shape is \(0, 3, 8, 8\)"):
        from_trans_inr(model, views=0)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("hyponet", {"use_viewdirs": True}, ["hyponet.args.use_viewdirs", "True", "False"]),
        ("hyponet", {"use_pe": False}, ["hyponet.args.use_pe", "False"]),
        ("hyponet", {"out_bias": 0.5}, ["hyponet.args.out_bias", "unknown"]),
        ("tokenizer", {"padding": 1}, ["tokenizer.args.padding", "1", "0"]),
        ("tokenizer", {"img_channels": 4}, ["tokenizer.args.img_channels", "4", "3"]),
        ("tokenizer", {"patch_size": 3}, ["patch_size 3", "8 x 8"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_trans_inr_options_of_views_raise_an_error(trans_inr, section, changes, words):
    _, model = trans_inr
    model["args"][section]["args"] |= changes
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_trans_inr(model)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("section", "name", "words"),
    [
        ("tokenizer", "imgrec_tokenizer", ["tokenizer.name", "'imgrec_tokenizer'", "'nvs_tokenizer'"]),
        ("hyponet", "hypo_mlp", ["tokenizer.name", "'nvs_tokenizer'", "'imgrec_tokenizer'"]),
    ],
)
def test_mixed_trans_inr_parts_of_images_and_views_raise_an_error(trans_inr, section, name, words):
    _, model = trans_inr
    model["args"][section]["name"] = name
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_trans_inr(model)
    assert all(word in str(caught.value) for word in words), caught.value


def test_views_on_the_command_line(tmp_path, trans_inr, capsys):
    composer, model = trans_inr
    torch.save({"model": model}, tmp_path / "epoch-last.pth")
    main([str(tmp_path / "epoch-last.pth"), str(tmp_path / "two.ckpt"), "--views", "2"])
    assert "TransINR" in capsys.readouterr().out
    observation, rays = _views(2, 8), _rays()
    with torch.no_grad():
        assert torch.equal(composers.load(tmp_path / "two.ckpt")(observation, rays), composer(observation, rays))


def test_number_of_views_is_refused_where_the_file_determines_it(tmp_path, trans_inr, ipc_nerf):
    arch, weights, _ = ipc_nerf
    torch.save({"state_dict": weights}, tmp_path / "epoch1_model.pt")
    (tmp_path / "config.yaml").write_text(json.dumps({"arch": arch}))
    arguments = [str(tmp_path / "epoch1_model.pt"), str(tmp_path / "out.ckpt")]
    with pytest.raises(SystemExit, match="leave --views out"):
        main([*arguments, "--views", "2"])
    main(arguments)
    assert isinstance(composers.load(tmp_path / "out.ckpt"), TransformerIPC)
    _, model = trans_inr
    model["args"]["hyponet"]["name"] = "hypo_mlp"
    with pytest.raises(ValueError, match="views is 2, but this is a model of images"):
        from_trans_inr(model, views=2)
