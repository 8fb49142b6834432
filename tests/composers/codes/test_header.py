"""What code files state is checked when they are read: one message with the file and the key for everything else."""

import json
import math
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from composers.codes import MAX_SAMPLES, LatentShape, quantized_as, read_code
from composers.codes.container import _CHECKSUM, _DICTIONARY, _START
from composers.codes.header import Header
from tools import codes

GRID = {"class_path": "datamodules.domain.Grid", "init_args": {"ranges": [[-1.0, 1.0], [-1.0, 1.0]]}}
STATED = {
    "kind": "instance code",
    "version": "2",
    "model": "0123456789abcdef",
    "name": "cat",
    "shape": [8, 12],
    "boxes": [[[0, 8], [0, 12]]],
    "facts": {"psnr": "30.1"},
    "domain": GRID,
    "layout": {},
}
LATENTS = {"codes": torch.linspace(-1, 1, 24).reshape(1, 4, 6)}


def _write(path, latents=LATENTS, **changes):
    """Write a code file; None removes an entry, and strings are written unchanged."""
    stated = {key: value for key, value in (STATED | changes).items() if value is not None}
    save_file(
        latents, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in stated.items()}
    )
    return path


def _grid(*ranges):
    return GRID | {"init_args": {"ranges": [list(ends) for ends in ranges]}}


HEADERS = {
    "shape missing": ({"shape": None}, "shape is missing"),
    "shape empty": ({"shape": []}, r"shape is \[\]"),
    "shape object": ({"shape": {"a": 3}}, r"shape is \{'a': 3\}"),
    "shape zero": ({"shape": [0, 12]}, "shape states the size 0"),
    "shape negative": ({"shape": [-4, 12]}, "shape states the size -4"),
    "shape fraction": ({"shape": [8.0, 12]}, r"shape states the size 8\.0"),
    "shape true": ({"shape": [True, 12]}, "shape states the size True"),
    "shape no JSON": ({"shape": "[8, 12"}, "shape is not valid JSON"),
    "shape deep": ({"shape": "[" * 100_000}, "shape is not valid JSON"),
    "shape digits": ({"shape": "[" + "9" * 5000 + "]"}, "shape"),
    "large": (
        {"shape": [60_000, 60_000], "boxes": [[[0, 60_000], [0, 60_000]]]},
        r"shape is 60,000 x 60,000, 3,600,000,000 samples, but at most 134,217,728 are decoded unless max_samples \(--max_s",
    ),
    "boxes missing": ({"boxes": None}, "boxes is missing"),
    "boxes none": ({"boxes": []}, r"boxes is \[\]"),
    "boxes reversed": ({"boxes": [[[8, 0], [12, 0]]]}, "a box must start before it stops"),
    "boxes outside": ({"boxes": [[[100, 200], [0, 12]]]}, r"which lies outside of the signal of shape \(8, 12\)"),
    "boxes before": ({"boxes": [[[-9, 0], [0, 12]]]}, "which lies outside"),
    "boxes of one axis": ({"boxes": [[[0, 8]]]}, "a box has a start and a stop for each of 2 axes"),
    "boxes of three ends": ({"boxes": [[[0, 8, 8], [0, 12]]]}, "a box has a start and a stop"),
    "boxes not a number": ({"boxes": "[[[0, NaN], [0, 12]]]"}, "its ends must be integers"),
    "boxes infinite": ({"boxes": "[[[0, 8], [-Infinity, 12]]]"}, "its ends must be integers"),
    "boxes with a gap": ({"boxes": [[[0, 8], [0, 11]]]}, "boxes do not cover the signal"),
    "boxes for other tiles": (
        {"boxes": [[[0, 8], [0, 12]]] * 2},
        r"codes has the shape \(1, 4, 6\); .* the number of boxes, 2",
    ),
    "domain missing": ({"domain": None}, "domain is missing"),
    "domain of code": (
        {"domain": {"class_path": "os.system", "init_args": {}}},
        "domain is not valid: .*os.system' is unknown",
    ),
    "domain not a number": ({"domain": json.dumps(_grid((math.nan, 1), (-1, 1)))}, "domain is not valid: ranges is"),
    "domain empty": ({"domain": _grid((0, 0), (-1, 1))}, "domain is not valid: ranges is"),
    "domain of three axes": ({"domain": _grid((-1, 1), (-1, 1), (-1, 1))}, "domain has 3 axes, shape has 2"),
    "domain far": ({"domain": _grid((-1, 1e300), (-1, 1))}, r"domain holds .* must lie in .-1e\+09"),
    "domain narrow": ({"domain": _grid((0, 1e-300), (-1, 1))}, "domain has the ranges .* narrower than 1e-09"),
    "layout": ({"layout": {"grid": [2, -3]}}, r"layout \(grid\) states the size -3"),
    "layout of text": ({"layout": {"grid": "ab"}}, "layout states the grid 'ab'"),
    "layout unknown": ({"layout": {"cells": [2]}}, "layout is .*; it must state a grid and an extent"),
    "layout uneven": ({"layout": {"grid": [2, 3], "extent": [8]}}, "a grid of 2 axes and an extent of 1"),
    "facts missing": ({"facts": None}, "facts is missing"),
    "facts list": ({"facts": [1]}, "facts is"),
    "facts nested": ({"facts": {"a": {}}}, "facts is"),
    "fact scale": ({"facts": {"scale": "nan"}}, "facts states the scale 'nan'"),
    "fact camera": ({"facts": {"camera": "1 2 3"}}, "facts states the camera '1 2 3'; it must be 4 finite"),
    "fact samples": ({"facts": {"samples": "-3"}}, "facts states the samples '-3'; it must be a positive integer"),
    "fact many samples": ({"facts": {"samples": str(1 << 30)}}, "facts states 1,073,741,824 samples, but at most"),
    "name missing": ({"name": None}, "name is missing"),
    "model": ({"model": "../x"}, "model is '../x'; it must be the fingerprint"),
    "sample rate": ({"sample_rate": 0}, "sample_rate states the size 0"),
}
ROWS = {
    "integers": ({"codes": torch.zeros(1, 4, 6, dtype=torch.int8)}, r"codes holds numbers of type torch\.int8"),
    "no tiles": ({"codes": torch.zeros(0, 4, 6)}, r"codes has the shape \(0, 4, 6\)"),
    "no numbers": ({"codes": torch.zeros(1, 4, 0)}, r"codes has the shape \(1, 4, 0\)"),
    "scalar": ({"codes": torch.zeros(())}, r"codes has the shape \(\)"),
    "not a number": ({"codes": torch.full((1, 4), math.nan)}, "codes holds numbers that are not finite"),
    "infinite": ({"codes": torch.full((1, 4), math.inf)}, "codes holds numbers that are not finite"),
    "too large": ({"codes": torch.full((1, 4), 1e300, dtype=torch.float64)}, "codes holds numbers that are not finite"),
    "hidden name": (
        {"co\x1b[2Jdes": torch.full((1, 4), math.nan)},
        r"co\\x1b\[2Jdes holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_invalid_entries_are_named_with_the_file(case, tmp_path):
    changes, message = HEADERS[case]
    path = _write(tmp_path / "a.safetensors", **changes)
    with pytest.raises(
        ValueError, match=rf"a\.safetensors is not a valid code: .*{message}.*\. Write it again"
    ) as raised:
        read_code(path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("case", ROWS)
def test_latents_that_are_no_numbers_for_the_tiles_are_refused(case, tmp_path):
    latents, message = ROWS[case]
    path = _write(tmp_path / "a.safetensors", latents)
    with pytest.raises(ValueError, match=rf"a\.safetensors is not a valid code: {message}"):
        read_code(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_numbers_are_read_as_float32(dtype, tmp_path):
    path = _write(tmp_path / "a.safetensors", {"codes": LATENTS["codes"].to(dtype)})
    assert torch.equal(read_code(path).latents["codes"], LATENTS["codes"].to(dtype).float())


def test_padded_and_overlapping_tiles_are_read(tmp_path):
    boxes = [[[0, 6], [-2, 14]], [[2, 8], [-2, 14]]]
    path = _write(tmp_path / "a.safetensors", {"codes": torch.zeros(2, 4)}, boxes=boxes)
    assert read_code(path).boxes == [((0, 6), (-2, 14)), ((2, 8), (-2, 14))]


def test_the_limit_of_the_size_can_be_raised(tmp_path):
    path = _write(tmp_path / "a.safetensors", shape=[1 << 14, 1 << 14], boxes=[[[0, 1 << 14], [0, 1 << 14]]])
    with pytest.raises(ValueError, match=f"at most {MAX_SAMPLES:,} are decoded"):
        read_code(path)
    assert read_code(path, max_samples=1 << 28).shape == (1 << 14, 1 << 14)


def test_names_and_facts_cannot_move_the_cursor(tmp_path, capsys):
    names = {"name": "../../a\x1b[2J\u202eb", "facts": {"note\r": "c\x07\u2028d"}}
    path = _write(tmp_path / "a.safetensors", **names)
    code = read_code(path)
    assert (code.name, code.facts) == ("../../a\\x1b[2J\\u202eb", {"note\\r": "c\\x07\\u2028d"})
    codes.main(["info", str(path)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert all(line.isprintable() for line in printed.splitlines())


def _compressed(tmp_path, **changes):
    """Write a compressed code whose header was changed, with a valid checksum, and return its path."""
    code = read_code(_write(tmp_path / "plain.safetensors"))
    quantized_as(code, {"codes": LatentShape((4, 6))}, 8).save(tmp_path / "a.inr")
    content = (tmp_path / "a.inr").read_bytes()
    start = list(_START.unpack(content[: _START.size]))
    header = json.loads(zlib.decompressobj(-15, zdict=_DICTIONARY).decompress(content[_START.size :][: start[-1]]))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_DICTIONARY)
    text = compressor.compress(json.dumps(header | changes).encode()) + compressor.flush()
    rest = content[_START.size + start[-1] : -4]
    content = _START.pack(*start[:-1], len(text)) + text + rest
    (tmp_path / "a.inr").write_bytes(content + _CHECKSUM.pack(zlib.crc32(content)))
    return tmp_path / "a.inr"


@pytest.mark.parametrize("case", [name for name, (changes, _) in HEADERS.items() if None not in changes.values()])
def test_compressed_codes_are_checked_alike(case, tmp_path):
    changes, message = HEADERS[case]
    if case in ("boxes for other tiles", "model") or any(isinstance(value, str) for value in changes.values()):
        pytest.skip("stated in another way by compressed codes")
    with pytest.raises(ValueError, match=rf"a\.inr cannot be decoded \(.*{message}"):
        read_code(_compressed(tmp_path, **changes))


def test_the_program_limits_enlarged_codes(tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.safetensors has 96 samples, and 96,000,000 with --scale 1000, but at most 1,000,000"
    ):
        codes._check_enlarged(
            read_code(_write(tmp_path / "a.safetensors")),
            tmp_path / "a.safetensors",
            {"scale": 1000.0, "sample_rate": None},
            1_000_000,
        )


def _refusal(function, *arguments):
    """Return the message of the `ValueError` of a call; None without one."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return None


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
VALUES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    key=st.sampled_from(["shape", "boxes", "facts", "domain", "layout", "sample_rate", "name", "model"]), value=VALUES
)
def test_any_entry_is_read_or_refused_with_its_key(key, value):
    stated = {name: entry for name, entry in STATED.items() if name not in ("kind", "version")} | {key: value}
    message = _refusal(Header.of, stated)
    if message is None:
        assert math.prod(Header.of(stated).shape) <= MAX_SAMPLES
    else:
        assert any(name in message for name in (key, "shape", "boxes"))
        assert len(message.splitlines()) == 1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_with_their_name(data, tmp_path):
    stated = {key: value if isinstance(value, str) else json.dumps(value) for key, value in STATED.items()}
    content = bytearray(save(LATENTS, stated))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    assert str(path) in (_refusal(read_code, path) or str(path))
