"""Compressed code files and their tables: exact round trips, sizes, and files that are damaged or do not fit."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import build_patch_ipc, random_pixels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composers import Refinement
from composers.codes import (
    BITS,
    CodeTable,
    container,
    decode,
    fingerprint,
    interpolate,
    latent_shapes,
    quantized,
    read_code,
    stored_size,
)
from composers.codes.container import MAGIC, pack
from composers.codes.entropy import empirical_entropy
from composers.latents import PatchCodes
from modalities.images import encode

PREDICTION = Refinement(steps=0)
CLUSTERS = PatchCodes(code_dim=5, num_clusters=6, context=1, num_blocks=1, kernel_size=3, mlp_ratio=1)


@pytest.fixture(scope="module")
def composer():
    """Return a tiny model whose codes contain the index of a cluster."""
    composer = build_patch_ipc(codes=CLUSTERS)
    generator = torch.Generator().manual_seed(0)
    composer.parametrization.initialize([torch.rand(4, 3, 32, 32, generator=generator)])
    return composer


def _code(composer, seed=0, rows=43, columns=58):
    """Return a code with numbers of several sizes, and indices of clusters."""
    code = encode(composer, random_pixels(rows, columns, seed), refinement=PREDICTION)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(code.latents["codes"].shape, generator=generator) * torch.tensor([1, 5, 0.1, 1, 1e-3]) + 2
    codes[..., 0] = torch.randint(0, 6, codes.shape[:-1], generator=generator)
    return replace(code, latents={"codes": codes}, facts={"refinement steps": "3"}, name="a näme")


@pytest.fixture(scope="module")
def code(composer):
    """Return the code of an image whose sizes are no multiples of the patch."""
    return _code(composer)


def _table(composer, bits, seeds=range(1, 4)):
    latents = [_code(composer, seed).latents for seed in seeds]
    return CodeTable.learn(fingerprint(composer), latent_shapes(composer.parametrization.latents), latents, bits)


@pytest.fixture(scope="module")
def table(composer):
    """Return a table of 8 bits."""
    return _table(composer, 8)


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_files_hold_exactly_the_quantised_code(composer, code, tmp_path, bits, with_table):
    table = _table(composer, bits) if with_table else None
    compressed = quantized(code, composer, bits, table)
    assert torch.equal(compressed.latents["codes"][..., 0], code.latents["codes"][..., 0])
    path = tmp_path / f"code{compressed.suffix}"
    compressed.save(path)
    restored = read_code(path)
    assert torch.equal(restored.latents["codes"], compressed.latents["codes"])
    for field in ("boxes", "shape", "model", "name", "facts", "domain", "layout", "sample_rate"):
        assert getattr(restored, field) == getattr(code, field)
    assert pack(restored) == path.read_bytes()
    assert sum(stored_size(restored)) == stored_size(restored).total == path.stat().st_size
    actual, expected = (torch.cat(list(decode(composer, some))) for some in (restored, compressed))
    assert torch.equal(actual, expected)
    deviations = code.latents["codes"].flatten(0, -2).std(0)
    errors = (restored.latents["codes"] - code.latents["codes"]).flatten(0, -2).abs().amax(0)
    assert (errors <= 1.2 * 4 * deviations / 2**bits + 1e-5).all()


def test_codes_of_several_tiles_round_trip(composer, tmp_path):
    code = encode(composer, random_pixels(30, 41), max_pixels=500, refinement=PREDICTION)
    compressed = quantized(code, composer, 6)
    compressed.save(tmp_path / "code.inr")
    restored = read_code(tmp_path / "code.inr")
    assert restored.boxes == code.boxes
    assert torch.equal(restored.latents["codes"], compressed.latents["codes"])


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_payloads_are_within_five_per_cent_of_the_empirical_entropy(composer, bits, with_table):
    code = _code(composer, 9, 150, 200)
    compressed = quantized(code, composer, bits, _table(composer, bits, range(10, 40)) if with_table else None)
    parts = compressed.quantized
    entropy = sum(empirical_entropy(coder.symbols(parts.indices[name])) for name, coder in parts.coders.items())
    assert 8 * stored_size(compressed).payload <= 1.05 * entropy


@pytest.mark.parametrize("scale", [0.5, 2])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_payloads_of_codes_of_another_scale_than_their_table_are_within_five_per_cent(composer, bits, scale):
    code = _code(composer, 9, 150, 200)
    code.latents["codes"][..., 1:] = 2 + scale * (code.latents["codes"][..., 1:] - 2)
    compressed = quantized(code, composer, bits, _table(composer, bits, range(10, 40)))
    parts = compressed.quantized
    entropy = sum(empirical_entropy(coder.symbols(parts.indices[name])) for name, coder in parts.coders.items())
    assert 8 * stored_size(compressed).payload <= 1.05 * entropy


def test_side_information_is_small(composer, code, table):
    assert stored_size(quantized(code, composer, 8, table)).side < 120
    assert stored_size(quantized(code, composer, 8)).side < 120 + 5 * 6


@pytest.mark.parametrize("with_table", [True, False])
def test_every_cut_and_every_flipped_byte_is_refused(composer, tmp_path, table, with_table):
    compressed = quantized(_code(composer, 3, 8, 12), composer, 8, table if with_table else None)
    path = tmp_path / "code.inr"
    compressed.save(path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in range(len(content)):
        path.write_bytes(content[:position])
        with pytest.raises(ValueError, match=r"code\.inr is (damaged|truncated).*write it again"):
            read_code(path)
        mutated = bytearray(content)
        mutated[position] ^= int(generator.integers(1, 256))
        path.write_bytes(mutated)
        with pytest.raises(ValueError, match=r"code\.inr is (damaged|truncated).*write it again"):
            read_code(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="is damaged"):
        read_code(path)


def _refusal(path):
    """Return the message with which a file is refused, empty if it is read."""
    try:
        read_code(path)
    except ValueError as error:
        return str(error)
    return ""


def _sealed(content):
    """Return a content with a valid checksum."""
    return bytes(content) + struct.pack("<I", zlib.crc32(bytes(content)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_forged_files_are_decoded_or_refused(forged, data):
    path, content = forged
    mutated = bytearray(content[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(4, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(_sealed(mutated[: data.draw(st.integers(20, len(mutated)))]))
    message = _refusal(path)
    assert not message or str(path) in message


@pytest.fixture(scope="module", params=[True, False])
def forged(request, composer, table, tmp_path_factory):
    """Return the path of a compressed code, and its content."""
    path = tmp_path_factory.mktemp("forged") / "code.inr"
    compressed = quantized(_code(composer, 3, 8, 12), composer, 8, table if request.param else None)
    compressed.save(path)
    return path, path.read_bytes()


def _with_header(content, change):
    """Return a compressed code with a changed header and a valid checksum."""
    start = container._START.unpack(content[: container._START.size])
    header = container._inflated(content[container._START.size :][: start[-1]])
    change(header)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=container._DICTIONARY)
    text = compressor.compress(json.dumps(header).encode()) + compressor.flush()
    return _sealed(
        container._START.pack(*start[:-1], len(text)) + text + content[container._START.size + start[-1] : -4]
    )


@pytest.mark.parametrize(
    "layout",
    [
        {"grid": [1 << 20, 1 << 20], "extent": [1 << 22, 1 << 22]},
        {"grid": [5_000_000, 1], "extent": [8, 12]},
        {"grid": [-2, -3], "extent": [8, 12]},
        {"grid": [2, 3.5], "extent": [8, 12]},
        {"grid": [10**400, 1], "extent": [8, 12]},
        {"grid": "23", "extent": [8, 12]},
        {"cells": [2, 3]},
        {},
    ],
)
def test_hostile_sizes_are_refused_before_anything_is_allocated(forged, layout, monkeypatch):
    path, content = forged
    path.write_bytes(_with_header(content, lambda header: header.update(layout=layout)))
    monkeypatch.setattr(container, "IndexDecoder", None)  # nothing is decoded
    with pytest.raises(ValueError, match=r"code\.inr .*write it again"):
        read_code(path)


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": [[[-64, 0], [0, 12]]]},
        {"boxes": [[[8, 16], [0, 12]]]},
        {"boxes": [[[0, 0], [0, 12]]]},
        {"boxes": [[[0.5, 8], [0, 12]]]},
        {"boxes": [[["0", "8"], [0, 12]]]},
        {"boxes": [[[-(10**400), 8], [0, 12]]]},
        {"boxes": [[[0, 8]]]},
        {"shape": []},
        {"sample_rate": 1 << 40},
        {"sample_rate": True},
    ],
    ids=str,
)
def test_tiles_outside_of_the_signal_and_other_impossible_facts_are_refused(forged, change):
    path, content = forged
    path.write_bytes(_with_header(content, lambda header: header.update(change)))
    with pytest.raises(ValueError, match=r"code\.inr .*write it again"):
        read_code(path)


def test_tiles_that_leave_out_a_part_of_the_signal_are_refused(composer, forged):
    path, content = forged
    path.write_bytes(_with_header(content, lambda header: header.update(boxes=[[[0, 4], [0, 12]]])))
    with pytest.raises(ValueError, match="boxes do not cover the signal"):
        list(decode(composer, read_code(path)))


def test_more_numbers_than_a_stream_can_hold_are_refused(composer, tmp_path, monkeypatch):
    path = tmp_path / "code.inr"
    quantized(_code(composer, 3, 8, 12), composer, 8).save(path)
    layout = {"grid": [500, 400], "extent": [2000, 1600]}  # below the numbers that any file may state
    path.write_bytes(_with_header(path.read_bytes(), lambda header: header.update(layout=layout)))
    monkeypatch.setattr(container, "IndexDecoder", None)  # nothing is decoded
    with pytest.raises(ValueError, match=r"it states [0-9,]+ numbers in a stream of [0-9]+ bytes"):
        read_code(path)


def test_headers_that_expand_too_far_are_refused(forged):
    path, content = forged
    path.write_bytes(_with_header(content, lambda header: header.update(name="a" * (1 << 21))))
    with pytest.raises(ValueError, match="its header is incomplete or too large"):
        read_code(path)


def test_other_files_are_refused(composer, code, tmp_path):
    path = tmp_path / "code.inr"
    code.save(path)  # safetensors
    with pytest.raises(ValueError, match=r"code\.inr is truncated or not a compressed code: write it again"):
        read_code(path)
    content = pack(quantized(code, composer, 8))
    for version, remedy in ((1, "write it again with cli.py predict"), (3, "update the software")):
        path.write_bytes(_sealed(MAGIC + bytes([version]) + content[5:-4]))
        with pytest.raises(ValueError, match=rf"code\.inr is .* version {version}; .* reads version 2: {remedy}"):
            read_code(path)
    path.write_bytes(_sealed(content[:5] + b"\x05" + content[6:-4]))
    with pytest.raises(ValueError, match="states 5 bits per number; allowed are 16, 8, 6, 4"):
        read_code(path)
    renamed = tmp_path / "code.safetensors"
    renamed.write_bytes(content)
    assert read_code(renamed).quantized.bits == 8


def test_tables_round_trip(composer, table, tmp_path):
    table.save(tmp_path / "t.safetensors")
    restored = CodeTable.read(tmp_path / "t.safetensors")
    assert (restored.digest, restored.bits, restored.model, restored.tiles) == (
        table.digest,
        8,
        fingerprint(composer),
        3,
    )
    assert restored.latents == table.latents
    assert _table(composer, 8, range(2, 5)).digest != table.digest


def test_the_table_is_found_beside_the_file_or_passed(composer, code, table, tmp_path):
    compressed = quantized(code, composer, 8, table)
    compressed.save(tmp_path / "code.inr")
    copy = tmp_path / table.filename
    assert read_code(tmp_path / "code.inr").numel == code.numel
    copy.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(
        ValueError, match=rf"code\.inr was compressed with the table {table.digest}.*pass the table with --table"
    ):
        read_code(tmp_path / "code.inr")
    for passed in (tmp_path / "elsewhere.safetensors", table):
        assert torch.equal(read_code(tmp_path / "code.inr", passed).latents["codes"], compressed.latents["codes"])
    other = _table(composer, 8, range(2, 5))
    with pytest.raises(ValueError, match=f"compressed with the table {table.digest}; The table is {other.digest}"):
        read_code(tmp_path / "code.inr", other)
    with pytest.raises(ValueError, match=r"The table .*missing\.safetensors does not exist: learn it again"):
        read_code(tmp_path / "code.inr", tmp_path / "missing.safetensors")


def test_tables_of_other_models_and_bits_are_refused(composer, code, table):
    with pytest.raises(ValueError, match="The table was learned for 8 bits, but --bits is 4: learn one with"):
        quantized(code, composer, 4, table)
    other = build_patch_ipc()
    with pytest.raises(
        ValueError, match=f"The table was learned for the model {table.model}, not for {fingerprint(other)}"
    ):
        quantized(encode(other, random_pixels(8, 8), refinement=PREDICTION), other, 8, table)
    with pytest.raises(ValueError, match="belongs to the model"):
        quantized(code, other, 8)
    with pytest.raises(ValueError, match="bits is 7; codes are quantised with"):
        quantized(code, composer, 7)


def test_damaged_tables_are_refused(table, tmp_path):
    path = tmp_path / "t.safetensors"
    table.save(path)
    content, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged or not a table of codes: learn it again"):
        CodeTable.read(path)
    changes = [
        ("kind", "instance code", "but not a table"),
        ("version", "1", "of version 1; .* reads version 2: learn it again with `python -m tools.codes table`"),
        ("bits", "5", "completely"),
    ]
    for key, value, message in changes:
        save_file(tensors, path, metadata | {key: value})
        with pytest.raises(ValueError, match=rf"t\.safetensors .*{message}"):
            CodeTable.read(path)
    frequencies = tensors["codes/frequencies"]
    wrong = [
        {"codes/frequencies": frequencies[:-1]},
        {"codes/frequencies": frequencies * 2},
        {"codes/frequencies": torch.zeros_like(frequencies)},
        {"codes/step": -tensors["codes/step"]},
        {"codes/step": tensors["codes/step"][:3]},
        {"codes/offset": tensors["codes/offset"] * torch.nan},
        {"codes/levels": tensors["codes/levels"] * 2},
        {"codes/levels": tensors["codes/levels"][:1]},
        {"codes/levels": tensors["codes/levels"][0]},
        {"codes/levels": torch.full_like(tensors["codes/levels"], 1 << 62)},
        {"codes/lengths": tensors["codes/lengths"].repeat(2)},
        {"codes/inertia": tensors["codes/inertia"][:3]},
        {"codes/inertia": tensors["codes/inertia"].long()},
        {"codes/inertia": tensors["codes/inertia"] - 1000},
        {"codes/inertia": tensors["codes/inertia"] + 1000},
    ]
    for latents in ("[]", "[" * 100_000):
        save_file(tensors, path, metadata | {"latents": latents})
        with pytest.raises(ValueError, match=r"t\.safetensors does not describe its table completely"):
            CodeTable.read(path)
    save_file(tensors | {"codes/step": tensors["codes/step"].bfloat16()}, path, metadata)
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged or not a table"):
        CodeTable.read(path)
    for change in wrong:
        save_file(tensors | change, path, metadata)
        with pytest.raises(ValueError, match=r"t\.safetensors does not describe its table completely"):
            CodeTable.read(path)


def test_tables_need_codes(composer, code):
    shapes = latent_shapes(composer.parametrization.latents)
    with pytest.raises(ValueError, match="no training codes"):
        CodeTable.learn(fingerprint(composer), shapes, [], 8)
    with pytest.raises(ValueError, match="not finite"):
        CodeTable.learn(fingerprint(composer), shapes, [{"codes": code.latents["codes"] * torch.nan}], 8)


def test_codes_between_two_compressed_codes_are_not_quantised(composer, code):
    ends = quantized(code, composer, 8), quantized(_code(composer, 5), composer, 8)
    between = interpolate(*ends, 0.5, composer)
    assert between.quantized is None
    assert between.suffix == ".safetensors"
