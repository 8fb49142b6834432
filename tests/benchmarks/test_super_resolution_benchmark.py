"""Time and memory of super-resolution: every method enlarges the same, and the table compares them."""

import numpy as np
import pytest
import torch
from program import rows
from super_resolvers import tiny_liif

import composers
from benchmarks import super_resolution as benchmark


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the checkpoint of a tiny LIIF."""
    path = tmp_path_factory.mktemp("trained") / "liif.ckpt"
    composers.save(tiny_liif(), path)
    return path


def test_every_method_gives_the_same_result():
    composer, image = tiny_liif(), torch.randint(256, (3, 9, 12), dtype=torch.uint8)
    with torch.inference_mode():
        whole, per_query, tiles = (
            benchmark.METHODS[name](composer, image, 3) for name in ("whole", "per query", "tiles")
        )
    torch.testing.assert_close(per_query, whole, atol=1e-5, rtol=0)
    assert np.abs(np.asarray(tiles) - whole.clamp(0, 1).view(27, 36, 3).numpy() * 255).max() < 0.51


@pytest.mark.slow
def test_the_table_compares_methods_by_size(checkpoint, tmp_path):
    table = tmp_path / "results.csv"
    benchmark.main([f"--checkpoint={checkpoint}", "--sizes=[[32,48]]", "--repeats=1", "--scale=2", f"--csv={table}"])
    measured = rows(table)
    assert [row["method"] for row in measured] == ["tiles", "whole", "per query"]
    assert measured[0]["time over the first"] == "1.00"
    assert {row["result"] for row in measured} == {"32 x 48"}
    assert all(float(row["peak [MB]"]) > -100 for row in measured)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ((10, 11),)}, "multiples of scale"),
        ({"repeats": 0}, "positive"),
        ({"methods": ("fast",)}, "choose some of"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        benchmark.SuperResolutionSettings(**options)
