"""Instance codes: files, models, and decoding at any resolution."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinates import grid
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composers import Composer
from composers.codes import InstanceCode, decode, encoded, fingerprint, interpolate, read_code
from composers.encoders import Patches, PerToken
from composers.inference import Hypernetwork
from composers.latents import Direct, Layout
from composers.networks import CoordinateNetwork, TensorSpec
from datamodules.batch import Observation, Samples
from datamodules.domain import CellGrid, Grid
from datamodules.tiles import boxes, whole


def _code(composer, tiles, shape, seed=0):
    """Return a code of random latents."""
    generator = torch.Generator().manual_seed(seed)
    layer = composer.network.modulated_layers[0]
    size = (len(tiles), composer.network.layer_sizes[layer][0], 8)
    latents = {f"patterns.{layer}": torch.randn(size, generator=generator)}
    return InstanceCode(
        latents, tiles, shape, fingerprint(composer), "cat", {"psnr": "30.1"}, domain=Grid.unit(len(shape))
    )


def _naive_decoding(composer, code, shape, overlap):
    """Decode pixel by pixel."""
    image = np.zeros((*shape, 3))
    for row in range(shape[0]):
        for column in range(shape[1]):
            position = [(row + 0.5) * code.shape[0] / shape[0], (column + 0.5) * code.shape[1] / shape[1]]
            total, weights = np.zeros(3), 0.0
            for index, box in enumerate(code.boxes):
                if not all(start <= at < stop for at, (start, stop) in zip(position, box, strict=True)):
                    continue
                coords = [
                    [2 * (at - start) / (stop - start) - 1 for at, (start, stop) in zip(position, box, strict=True)]
                ]
                modulations = composer.compose(
                    {name: latent[index : index + 1] for name, latent in code.latents.items()}
                )
                values = composer.render(modulations, torch.tensor(coords)).detach().double().numpy()[0, 0]
                weight = 1.0
                for at, (start, stop), extent in zip(position, box, code.shape, strict=True):
                    near = min((at - start) / overlap if start else 1, (stop - at) / overlap if stop < extent else 1)
                    near = min(max(near, 0), 1)
                    weight *= max(3 * near**2 - 2 * near**3, 1e-6)
                total, weights = total + weight * values, weights + weight
            image[row, column] = total / weights
    return image


@pytest.mark.parametrize("shape", [(12, 20), (7, 9), (30, 25), (1, 1)])
def test_decoding_equals_a_loop_over_pixels(tiny_ipc, shape):
    code = _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20))
    assert len(code.boxes) == 8
    decoded = torch.cat(list(decode(tiny_ipc, code, shape)))
    assert decoded.shape == (*shape, 3)
    assert np.abs(decoded.numpy() - _naive_decoding(tiny_ipc, code, shape, overlap=4)).max() < 2e-5


def test_a_code_without_tiles_is_decoded_on_a_grid(tiny_transinr, tiny_batch):
    latents = {name: latent[:1].detach() for name, latent in tiny_transinr.encode(tiny_batch.observation).items()}
    code = InstanceCode(latents, [whole((8, 12))], (8, 12), fingerprint(tiny_transinr), domain=Grid.unit(2))
    decoded = torch.cat(list(decode(tiny_transinr, code, (5, 6))))
    field = tiny_transinr.render(tiny_transinr.compose(latents), grid((5, 6)))
    assert torch.allclose(decoded.flatten(0, 1), field[0], atol=1e-6)
    assert torch.cat(list(decode(tiny_transinr, code))).shape == (8, 12, 3)  # the size of the image


def test_max_memory_limits_bands_without_changing_values(tiny_ipc):
    code = _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20))
    wide = list(decode(tiny_ipc, code, (64, 64)))
    narrow = list(decode(tiny_ipc, code, (64, 64), max_memory=0.05))
    assert len(wide) == 1
    assert len(narrow) > 8
    assert torch.allclose(torch.cat(narrow), wide[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"max_memory is 1e-06 MB; a signal of shape \(64, 64\) requires at least"):
        list(decode(tiny_ipc, code, (64, 64), max_memory=1e-6))


def test_signals_of_one_axis_are_decoded(make_ipc, make_network):
    composer = make_ipc(network=make_network(coord_dim=1, value_dim=1)).eval()
    code = _code(composer, boxes((50,), 16, 4), (50,))
    assert torch.cat(list(decode(composer, code, (100,)))).shape == (100, 1)
    with pytest.raises(ValueError, match=r"shape is \(10, 10\); a code of shape \(50,\) can be decoded at 1 sizes"):
        list(decode(composer, code, (10, 10)))


def test_codes_round_trip_through_files(tiny_ipc, tmp_path):
    code = _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20))
    path = tmp_path / "deep" / "cat.safetensors"
    code.save(path)
    actual = read_code(path)
    assert torch.equal(actual.latents["patterns.1"], code.latents["patterns.1"])
    assert (actual.boxes, actual.shape, actual.model, actual.name, actual.facts) == (
        code.boxes,
        (12, 20),
        fingerprint(tiny_ipc),
        "cat",
        {"psnr": "30.1"},
    )
    assert actual.numel == code.latents["patterns.1"].numel()
    assert [item.name for item in path.parent.iterdir()] == ["cat.safetensors"]
    assert path.stat().st_mode & 0o444 == 0o444  # readable by others


@pytest.mark.parametrize("domain", [Grid(((-3.0, 3.0), (0.0, 1.0))), CellGrid.unit(2)], ids=repr)
def test_the_domain_is_stored(tiny_ipc, tmp_path, domain):
    replace(_code(tiny_ipc, [whole((8, 12))], (8, 12)), domain=domain).save(tmp_path / "cat.safetensors")
    assert read_code(tmp_path / "cat.safetensors").domain == domain


def _rewrite(path, **changes):
    """Change the metadata of a file; None removes an entry."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(("stated", "ends"), [("[-3.0, 3.0]", (-3.0, 3.0)), (None, (-1.0, 1.0))])
def test_codes_of_the_first_version_are_read(tiny_ipc, tmp_path, stated, ends):
    code, path = _code(tiny_ipc, [whole((8, 12))], (8, 12)), tmp_path / "old.safetensors"
    code.save(path)
    _rewrite(path, version="1", domain=None, layout=None, coord_range=stated)
    actual = read_code(path)
    assert actual.domain == Grid((ends, ends))
    assert actual.layout == Layout()
    assert torch.equal(actual.latents["patterns.1"], code.latents["patterns.1"])


@pytest.mark.parametrize("domain", [None, "3", "not json", '{"class_path": "os.system"}'])
def test_codes_without_a_domain_are_refused(tiny_ipc, tmp_path, domain):
    path = tmp_path / "odd.safetensors"
    _code(tiny_ipc, [whole((8, 12))], (8, 12)).save(path)
    _rewrite(path, domain=domain)
    with pytest.raises(
        ValueError, match=r"odd\.safetensors is not a valid code: domain is .* Write it again with cli\.py predict"
    ):
        read_code(path)


@pytest.mark.parametrize("shape", [(8, 12), (5, 30)])
def test_every_axis_is_decoded_in_its_range(tiny_ipc, shape):
    domain = Grid(((-3.0, 3.0), (0.0, 1.0)))
    code = replace(_code(tiny_ipc, [whole((8, 12))], (8, 12)), domain=domain)
    field = tiny_ipc.render(tiny_ipc.compose(code.latents), domain.coords(shape))
    assert torch.allclose(torch.cat(list(decode(tiny_ipc, code, shape))).flatten(0, 1), field[0], atol=1e-5)


def test_fingerprints_of_different_models_differ(make_ipc, make_transinr, tiny_ipc):
    before = fingerprint(tiny_ipc)
    assert before == fingerprint(tiny_ipc.double().float())
    assert before not in (fingerprint(make_ipc()), fingerprint(make_transinr()))
    with torch.no_grad():
        tiny_ipc.parametrization.bases["1"][0, 0] += 1e-6
    assert fingerprint(tiny_ipc) != before


def test_a_code_of_another_model_is_refused(tiny_ipc, make_ipc):
    other = make_ipc()
    code = _code(other, [whole((8, 12))], (8, 12))
    with pytest.raises(
        ValueError, match=f"belongs to the model {code.model}, the checkpoint holds {fingerprint(tiny_ipc)}"
    ):
        next(decode(tiny_ipc, code))
    with pytest.raises(ValueError, match="interpolate codes of one model"):
        interpolate(code, _code(tiny_ipc, [whole((8, 12))], (8, 12)), 0.5)


def test_interpolation_is_linear(tiny_ipc):
    first, last = (_code(tiny_ipc, [whole((8, 12))], shape, seed) for seed, shape in enumerate([(8, 12), (9, 9)]))
    middle = interpolate(first, last, 0.25)
    expected = 0.75 * first.latents["patterns.1"] + 0.25 * last.latents["patterns.1"]
    assert torch.allclose(middle.latents["patterns.1"], expected, atol=1e-6)
    assert middle.shape == (8, 12)
    for end, share in ((first, 0), (last, 1)):
        assert torch.equal(interpolate(first, last, share).latents["patterns.1"], end.latents["patterns.1"])
    with pytest.raises(ValueError, match="have 1 and 8 tiles"):
        interpolate(first, _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20)), 0.5)


def test_other_files_are_refused(tmp_path, tiny_ipc):
    with pytest.raises(ValueError, match=r"none\.safetensors does not exist"):
        read_code(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    code = _code(tiny_ipc, [whole((8, 12))], (8, 12))
    code.save(cut)
    content = cut.read_bytes()
    for damaged in (b"", b"not a code", content[:100], content[:-10]):
        cut.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut.safetensors is damaged or not an instance code"):
            read_code(cut)
    save_file({"weight": torch.zeros(2)}, cut)
    with pytest.raises(ValueError, match="holds tensors, but not an instance code"):
        read_code(cut)
    code.save(cut)
    metadata = {"kind": "instance code", "version": "3", "shape": json.dumps([8, 12])}
    save_file(load_file(cut), cut, metadata)
    with pytest.raises(ValueError, match="is an instance code of version 3; this software reads versions 1 and 2"):
        read_code(cut)


def test_cells_shrink_when_a_code_is_decoded_larger(make_ipc, make_network):
    composer = make_ipc(network=make_network(coord_dim=4)).eval()
    domain = CellGrid(((-1.0, 1.0), (0.0, 3.0)))
    code = replace(_code(composer, [whole((8, 12))], (8, 12)), domain=domain)
    for shape in ((8, 12), (5, 30)):
        field = composer.render(composer.compose(code.latents), domain.coords(shape))
        assert torch.allclose(torch.cat(list(decode(composer, code, shape))).flatten(0, 1), field[0], atol=1e-5)


# Latents with a layout


class TokenMean(CoordinateNetwork):
    """A field whose values are the mean of tokens, so that any number of tokens is accepted."""

    def __init__(self):
        super().__init__()
        self.coord_dim, self.value_dim = 2, 3
        self.slots = {"map": TensorSpec((3, -1, -1), lambda: torch.zeros(3, 1, 1))}

    @property
    def floats_per_coord(self):
        return 3

    def forward(self, coords, modulations):
        return modulations["map"].mean((2, 3)).unsqueeze(1) + coords.sum(-1, keepdim=True)


class Recorded(Direct):
    """A parametrization that keeps the layouts it was called with."""

    def compose(self, latents, layout):
        self.layouts = [*getattr(self, "layouts", []), layout]
        return latents


@pytest.fixture
def map_composer():
    """Return a composer whose latents are maps, for images with six patches of 4 x 4."""
    start = Hypernetwork(Patches((3, -1, -1), 4, num_tokens=6), PerToken())
    return Composer(TokenMean(), Recorded(), start).eval()


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_the_layout_is_stored_and_used_for_decoding(map_composer, tmp_path, shape):
    signal = torch.rand(1, 3, *shape)
    observation = Observation(signal, Samples(grid(shape), signal.flatten(2).mT))
    layout = map_composer.layout(observation)
    latents = {name: latent.detach() for name, latent in encoded(map_composer, [observation]).items()}
    assert latents["map"].shape == (1, 3, *layout.grid)
    model = fingerprint(map_composer)
    InstanceCode(latents, [whole(shape)], shape, model, domain=Grid.unit(2), layout=layout).save(
        tmp_path / "a.safetensors"
    )
    code = read_code(tmp_path / "a.safetensors")
    assert code.layout == layout == Layout(tuple(size // 4 for size in shape), shape)
    map_composer.parametrization.layouts = []
    decoded = torch.cat(list(decode(map_composer, code)))
    assert set(map_composer.parametrization.layouts) == {layout}
    expected = map_composer.render(map_composer.compose(latents, layout), grid(shape))[0]
    assert torch.allclose(decoded.flatten(0, 1), expected, atol=1e-6)


def test_codes_of_different_layouts_are_not_interpolated(map_composer):
    model, domain = fingerprint(map_composer), Grid.unit(2)
    first, last = (
        InstanceCode(
            {"map": torch.rand(1, 3, *size)}, [whole((8, 8))], (8, 8), model, domain=domain, layout=Layout(size)
        )
        for size in ((2, 3), (3, 2))
    )
    with pytest.raises(
        ValueError, match=r"have the layouts \{'grid': \[2, 3\]\} and \{'grid': \[3, 2\]\}: encode both"
    ):
        interpolate(first, last, 0.5)
