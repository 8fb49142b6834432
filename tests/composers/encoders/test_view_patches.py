"""Patches of posed views against loops over views, patches and pixels."""

import numpy as np
import pytest
import torch
from composers.inference.hypernetwork import Columns

from composers.encoders import Patches, Transformer, ViewPatches
from composers.inference import Hypernetwork
from datamodules.batch import Views


def _views(number, height, width, instances=2):
    """Return random images with random poses, which need not be rotations, and two focal lengths each."""
    return Views(
        torch.rand(instances, number, 3, height, width),
        torch.randn(instances, number, 3, 4),
        5 + 5 * torch.rand(instances, number, 2),
    )


def _naive_pixel(views, instance, view, row, column):
    """Return the nine numbers of one pixel: colour, origin, direction."""
    height, width = views.images.shape[-2:]
    pose = views.poses[instance, view].double().numpy()
    along, down = views.focals[instance, view].double().numpy()
    direction = (
        pose[:, 0] * (column + 0.5 - width / 2) / along - pose[:, 1] * (row + 0.5 - height / 2) / down - pose[:, 2]
    )
    return [*views.images[instance, view, :, row, column].double().numpy(), *pose[:, 3], *direction]


def _naive_tokens(views, patch_size, instance):
    tokens = []
    for view in range(views.images.shape[1]):
        for top in range(0, views.images.shape[-2], patch_size):
            for left in range(0, views.images.shape[-1], patch_size):
                pixels = [
                    _naive_pixel(views, instance, view, top + row, left + column)
                    for row in range(patch_size)
                    for column in range(patch_size)
                ]
                tokens.append([pixel[channel] for channel in range(9) for pixel in pixels])
    return np.array(tokens)


@pytest.mark.parametrize(
    ("number", "height", "width", "patch_size"), [(1, 4, 4, 2), (2, 4, 6, 2), (3, 3, 3, 3), (2, 6, 3, 3), (1, 2, 3, 1)]
)
def test_tokens_equal_loops(number, height, width, patch_size):
    tokenizer, views = ViewPatches((number, 3, height, width), patch_size), _views(number, height, width)
    tokens = tokenizer(views)
    count = number * (height // patch_size) * (width // patch_size)
    assert (tokenizer.num_tokens, tokenizer.token_dim) == (count, 9 * patch_size**2)
    assert tokens.shape == (2, count, 9 * patch_size**2)
    for instance in range(2):
        np.testing.assert_allclose(tokens[instance].numpy(), _naive_tokens(views, patch_size, instance), atol=1e-5)


@pytest.mark.parametrize(("number", "tokens"), [(1, 256), (2, 512), (5, 1280)])
def test_published_sizes_of_views(number, tokens):
    tokenizer = ViewPatches((number, 3, 128, 128))
    assert (tokenizer.num_tokens, tokenizer.token_dim) == (tokens, 576)
    assert not list(tokenizer.parameters())


def test_rays_are_exact_under_autocast():
    tokenizer, views = ViewPatches((2, 3, 4, 4), 2), _views(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = tokenizer(views)
    assert found.dtype == torch.float32
    assert torch.equal(found, tokenizer(views))


def test_hypernetworks_read_views():
    transformer = Transformer(embed_dim=12, num_blocks=1, num_heads=3, mlp_ratio=2)
    hypernet = Hypernetwork(ViewPatches((2, 3, 4, 4), 2), transformer, {1: Columns(6, 5, 6)}).eval()
    views = _views(2, 4, 4)
    columns = hypernet(views)
    assert columns[1].shape == (2, 5, 6)
    moved = views._replace(poses=views.poses + 0.1)
    assert not torch.allclose(hypernet(moved)[1], columns[1])


def test_the_number_of_views_may_be_left_to_the_number_of_tokens():
    tokenizer = ViewPatches((-1, 3, -1, -1), 2, num_tokens=8)
    views = _views(2, 4, 4)
    assert torch.equal(tokenizer(views), ViewPatches((2, 3, 4, 4), 2)(views))
    assert tokenizer(_views(1, 4, 8)).shape == (2, 8, 36)
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 4\).*with 8 patches of 2 x 2"):
        tokenizer(_views(3, 4, 4))


@pytest.mark.parametrize("found", [(1, 4, 6), (3, 4, 6), (2, 6, 4), (2, 4, 4), (2, 8, 12), (2, 5, 6)])
def test_other_views_than_stated_are_refused(found):
    with pytest.raises(
        ValueError, match=r"views have shape \(.*this model takes \(2, 3, 4, 6\) with 12 patches"
    ) as caught:
        ViewPatches((2, 3, 4, 6), 2)(_views(*found))
    assert f"({found[0]}, 3, {found[1]}, {found[2]})" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None,), "signal_shape is None"),
        (((3, 8, 8),), r"signal_shape is \(3, 8, 8\).*posed views"),
        (((2, 4, 8, 8),), r"signal_shape is \(2, 4, 8, 8\)"),
        (((0, 3, 8, 8),), r"signal_shape is \(0, 3, 8, 8\)"),
        (((1, 3, 8, 12), 5), "patch_size 5 does not divide views of 8 x 12 pixels"),
        (((1, 3, 8, 12), 8), "patch_size 8 does not divide views of 8 x 12 pixels"),
        (((1, 3, 8, 8), 0), "patch_size is 0"),
        (((1, 3, 8, 8), 4, 3), r"num_tokens is 3, but signal_shape \(1, 3, 8, 8\) gives 4"),
        (((-1, 3, -1, -1), 4), "num_tokens is None, but signal_shape"),
        (((1, 3, -1, 8), 4, 0), "num_tokens is 0, but signal_shape"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ViewPatches(*arguments)


def test_images_and_views_are_told_apart():
    with pytest.raises(ValueError, match=r"ViewPatches takes posed views.*tokenizer Patches"):
        ViewPatches((1, 3, 4, 4), 2)(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="was given posed views: choose tokenizer ViewPatches"):
        Patches((3, 4, 4), 2)(_views(1, 4, 4))
