"""Grids of patches: against naive loops, with any number of axes."""

import itertools

import pytest
import torch

from composers.networks.patch_grid import crop, cut, extend, grid_shape, join, patch_sizes

CASES = [((2, 12), (3,)), ((3, 4, 6), (2, 3)), ((1, 4, 2, 6), (2, 1, 3))]


@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
def test_patches_are_those_of_a_naive_loop_and_are_joined_again(shape, patch):
    signal = torch.rand(2, *shape)
    patches = cut(signal, patch)
    grid = grid_shape(shape[1:], patch)
    assert patches.shape[:-1] == (2, *grid)
    for index in itertools.product(*map(range, grid)):
        window = tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, patch, strict=True))
        assert torch.equal(patches[:, *index], signal[:, :, *window].flatten(1))
    assert torch.equal(join(patches, patch), signal)


def test_signals_are_extended_by_their_last_values():
    signal = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert extend(signal, (2, 2)).tolist() == [[[[1, 2, 3, 3], [1, 2, 3, 3]]]]
    assert extend(signal, (1, 3)) is signal


def test_incomplete_patches_are_cropped_where_there_are_complete_ones():
    signal = torch.rand(1, 1, 3, 7)
    assert torch.equal(crop(signal, (4, 4)), signal[..., :4])
    assert torch.equal(crop(signal, (2, 7)), signal[:, :, :2])


@pytest.mark.parametrize("value", [0, (4,), (4, 4, 4), (4, -1)])
def test_patch_sizes_out_of_range_are_rejected(value):
    with pytest.raises(ValueError, match=r"patch_size is .* and the signal has 2 axes: give one number of at least 1"):
        patch_sizes(value, 2)


def test_one_patch_size_is_that_of_all_axes():
    assert patch_sizes(4, 2) == patch_sizes([4, 4], 2) == (4, 4)
