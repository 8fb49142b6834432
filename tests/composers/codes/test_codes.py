"""Instance codes: their files, their models, and their decoding at any resolution."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinates import grid
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composers.codes import InstanceCode, decode, fingerprint, interpolate, read_code
from datamodules.domain import CellGrid, Grid
from datamodules.tiles import boxes, whole


def _code(composer, places, shape, seed=0):
    """Return a code of random latents."""
    generator = torch.Generator().manual_seed(seed)
    layer = composer.network.modulated_layers[0]
    size = (len(places), composer.network.layer_sizes[layer][0], 8)
    latents = {f"patterns.{layer}": torch.randn(size, generator=generator)}
    return InstanceCode(
        latents, places, shape, fingerprint(composer), "cat", {"psnr": "30.1"}, domain=Grid.unit(len(shape))
    )


def _naive_decoding(composer, code, shape, overlap):
    """Return what `decode` should, pixel by pixel."""
    image = np.zeros((*shape, 3))
    for row in range(shape[0]):
        for column in range(shape[1]):
            place = [(row + 0.5) * code.shape[0] / shape[0], (column + 0.5) * code.shape[1] / shape[1]]
            total, weights = np.zeros(3), 0.0
            for index, box in enumerate(code.boxes):
                if not all(start <= at < stop for at, (start, stop) in zip(place, box, strict=True)):
                    continue
                coords = [[2 * (at - start) / (stop - start) - 1 for at, (start, stop) in zip(place, box, strict=True)]]
                modulations = composer.compose(
                    {name: latent[index : index + 1] for name, latent in code.latents.items()}
                )
                values = composer.render(modulations, torch.tensor(coords)).detach().double().numpy()[0, 0]
                weight = 1.0
                for at, (start, stop), extent in zip(place, box, code.shape, strict=True):
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


def test_a_whole_image_is_the_field_on_a_grid(tiny_transinr, tiny_batch):
    latents = {name: latent[:1].detach() for name, latent in tiny_transinr.encode(tiny_batch.observation).items()}
    code = InstanceCode(latents, [whole((8, 12))], (8, 12), fingerprint(tiny_transinr), domain=Grid.unit(2))
    decoded = torch.cat(list(decode(tiny_transinr, code, (5, 6))))
    field = tiny_transinr.render(tiny_transinr.compose(latents), grid((5, 6)))
    assert torch.allclose(decoded.flatten(0, 1), field[0], atol=1e-6)
    assert torch.cat(list(decode(tiny_transinr, code))).shape == (8, 12, 3)  # its own size


def test_memory_bounds_bands_and_changes_nothing(tiny_ipc):
    code = _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20))
    wide = list(decode(tiny_ipc, code, (64, 64)))
    narrow = list(decode(tiny_ipc, code, (64, 64), max_memory=0.05))
    assert len(wide) == 1
    assert len(narrow) > 8
    assert torch.allclose(torch.cat(narrow), wide[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"max_memory is 1e-06 MB; a signal of \(64, 64\) needs at least"):
        list(decode(tiny_ipc, code, (64, 64), max_memory=1e-6))


def test_signals_of_one_axis_are_decoded_too(make_ipc, make_network):
    composer = make_ipc(inr=make_network(coord_dim=1, value_dim=1)).eval()
    code = _code(composer, boxes((50,), 16, 4), (50,))
    assert torch.cat(list(decode(composer, code, (100,)))).shape == (100, 1)
    with pytest.raises(ValueError, match=r"A code of \(50,\) cannot be decoded as \(10, 10\): give 1 extents"):
        list(decode(composer, code, (10, 10)))


def test_a_code_survives_its_file(tiny_ipc, tmp_path):
    code = _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20))
    path = tmp_path / "deep" / "cat.safetensors"
    code.save(path)
    again = read_code(path)
    assert torch.equal(again.latents["patterns.1"], code.latents["patterns.1"])
    assert (again.boxes, again.shape, again.model, again.name, again.facts) == (
        code.boxes,
        (12, 20),
        fingerprint(tiny_ipc),
        "cat",
        {"psnr": "30.1"},
    )
    assert again.numel == code.latents["patterns.1"].numel()
    assert [item.name for item in path.parent.iterdir()] == ["cat.safetensors"]
    assert path.stat().st_mode & 0o444 == 0o444  # others may read it


@pytest.mark.parametrize("domain", [Grid(((-3.0, 3.0), (0.0, 1.0))), CellGrid.unit(2)], ids=repr)
def test_a_code_knows_its_domain(tiny_ipc, tmp_path, domain):
    replace(_code(tiny_ipc, [whole((8, 12))], (8, 12)), domain=domain).save(tmp_path / "cat.safetensors")
    assert read_code(tmp_path / "cat.safetensors").domain == domain


def _rewrite(path, **changes):
    """Write a code again with other facts; None removes one."""
    with safe_open(path, "pt") as file:
        told = file.metadata() | changes
    save_file(load_file(path), path, {key: value for key, value in told.items() if value is not None})


@pytest.mark.parametrize(("stated", "ends"), [("[-3.0, 3.0]", (-3.0, 3.0)), (None, (-1.0, 1.0))])
def test_codes_of_the_first_version_are_read(tiny_ipc, tmp_path, stated, ends):
    code, path = _code(tiny_ipc, [whole((8, 12))], (8, 12)), tmp_path / "old.safetensors"
    code.save(path)
    _rewrite(path, version="1", domain=None, coord_range=stated)
    again = read_code(path)
    assert again.domain == Grid((ends, ends))
    assert torch.equal(again.latents["patterns.1"], code.latents["patterns.1"])


@pytest.mark.parametrize("domain", [None, "3", "no json", '{"class_path": "os.system"}'])
def test_codes_without_a_domain_are_refused(tiny_ipc, tmp_path, domain):
    path = tmp_path / "odd.safetensors"
    _code(tiny_ipc, [whole((8, 12))], (8, 12)).save(path)
    _rewrite(path, domain=domain)
    with pytest.raises(
        ValueError, match=r"odd\.safetensors does not state the coordinates of its model .* make it again"
    ):
        read_code(path)


@pytest.mark.parametrize("shape", [(8, 12), (5, 30)])
def test_every_axis_is_decoded_in_its_own_range(tiny_ipc, shape):
    domain = Grid(((-3.0, 3.0), (0.0, 1.0)))
    code = replace(_code(tiny_ipc, [whole((8, 12))], (8, 12)), domain=domain)
    field = tiny_ipc.render(tiny_ipc.compose(code.latents), domain.coords(shape))
    assert torch.allclose(torch.cat(list(decode(tiny_ipc, code, shape))).flatten(0, 1), field[0], atol=1e-5)


def test_a_fingerprint_tells_models_apart(make_ipc, make_transinr, tiny_ipc):
    before = fingerprint(tiny_ipc)
    assert before == fingerprint(tiny_ipc.double().float())
    assert before not in (fingerprint(make_ipc()), fingerprint(make_transinr()))
    with torch.no_grad():
        tiny_ipc.bases["1"][0, 0] += 1e-6
    assert fingerprint(tiny_ipc) != before


def test_a_code_of_another_model_is_refused(tiny_ipc, make_ipc):
    other = make_ipc()
    code = _code(other, [whole((8, 12))], (8, 12))
    with pytest.raises(
        ValueError, match=f"belongs to the model {code.model}, the checkpoint holds {fingerprint(tiny_ipc)}"
    ):
        next(decode(tiny_ipc, code))
    with pytest.raises(ValueError, match="nothing lies between them"):
        interpolate(code, _code(tiny_ipc, [whole((8, 12))], (8, 12)), 0.5)


def test_interpolation_is_a_straight_line(tiny_ipc):
    first, last = (_code(tiny_ipc, [whole((8, 12))], shape, seed) for seed, shape in enumerate([(8, 12), (9, 9)]))
    middle = interpolate(first, last, 0.25)
    wanted = 0.75 * first.latents["patterns.1"] + 0.25 * last.latents["patterns.1"]
    assert torch.allclose(middle.latents["patterns.1"], wanted, atol=1e-6)
    assert middle.shape == (8, 12)
    for end, share in ((first, 0), (last, 1)):
        assert torch.equal(interpolate(first, last, share).latents["patterns.1"], end.latents["patterns.1"])
    with pytest.raises(ValueError, match="have 1 and 8 tiles"):
        interpolate(first, _code(tiny_ipc, boxes((12, 20), 8, 4), (12, 20)), 0.5)


def test_other_files_are_refused(tmp_path, tiny_ipc):
    with pytest.raises(ValueError, match="There is no code"):
        read_code(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    code = _code(tiny_ipc, [whole((8, 12))], (8, 12))
    code.save(cut)
    content = cut.read_bytes()
    for damaged in (b"", b"no code", content[:100], content[:-10]):
        cut.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut.safetensors is damaged or no instance code"):
            read_code(cut)
    save_file({"weight": torch.zeros(2)}, cut)
    with pytest.raises(ValueError, match="holds tensors, but no instance code"):
        read_code(cut)
    code.save(cut)
    told = {"kind": "instance code", "version": "3", "shape": json.dumps([8, 12])}
    save_file(load_file(cut), cut, told)
    with pytest.raises(ValueError, match="is an instance code of version 3, this software reads 1 and 2"):
        read_code(cut)


def test_cells_shrink_when_a_code_is_decoded_larger(make_ipc, make_network):
    composer = make_ipc(inr=make_network(coord_dim=4)).eval()
    domain = CellGrid(((-1.0, 1.0), (0.0, 3.0)))
    code = replace(_code(composer, [whole((8, 12))], (8, 12)), domain=domain)
    for shape in ((8, 12), (5, 30)):
        field = composer.render(composer.compose(code.latents), domain.coords(shape))
        assert torch.allclose(torch.cat(list(decode(composer, code, shape))).flatten(0, 1), field[0], atol=1e-5)
