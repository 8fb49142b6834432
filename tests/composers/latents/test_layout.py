"""Layouts: sizes of latents that depend on the signal, and their form in files."""

import json

import pytest
import torch

from composers.encoders import Patches
from composers.latents import Layout
from composers.latents.layout import module_key


@pytest.mark.parametrize(
    ("layout", "stated", "expected"),
    [
        (Layout(), (4, 5), (4, 5)),
        (Layout(), (), ()),
        (Layout((2, 3)), (4, 5), (4, 5)),
        (Layout((2, 3)), (8, -1, -1), (8, 2, 3)),
        (Layout((2, 3)), (-1, 8), (6, 8)),
        (Layout((2, 3)), (-1,), (6,)),
        (Layout((7,)), (-1, 8), (7, 8)),
        (Layout((7,)), (8, -1), (8, 7)),
        (Layout((2, 3, 4)), (-1, -1, -1, 5), (2, 3, 4, 5)),
    ],
)
def test_free_axes_are_filled_from_the_grid(layout, stated, expected):
    assert layout.shape(stated) == expected


@pytest.mark.parametrize(
    ("layout", "stated"), [(Layout(), (-1, 8)), (Layout((2, 3, 4)), (8, -1, -1)), (Layout((2,)), (-1, -1))]
)
def test_free_axes_without_a_matching_grid_are_rejected(layout, stated):
    with pytest.raises(
        ValueError, match=r"take the sizes of their -1 axes from the signal, whose grid is .*: use a start"
    ):
        layout.shape(stated)


@pytest.mark.parametrize("layout", [Layout(), Layout((2, 3)), Layout((2, 3), (8, 12)), Layout((5,), (17,))])
def test_layouts_round_trip_through_json(layout):
    assert Layout.from_config(json.loads(json.dumps(layout.config()))) == layout


def test_patches_state_their_grid_and_the_samples_they_cover():
    signal = torch.rand(2, 3, 8, 12)
    assert Patches((3, 8, 12), 4).layout(signal) == Layout((2, 3), (8, 12))
    assert Patches((1, 10), 4, remainder="reflect").layout(torch.rand(1, 1, 10)) == Layout((3,), (10,))


def test_module_keys_have_no_dots():
    assert module_key("patterns.1") == "patterns_1"
    assert module_key("latent") == "latent"
