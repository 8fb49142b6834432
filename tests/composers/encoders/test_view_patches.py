"""`ViewPatches` against loops over views, patches and pixels."""

import numpy as np
import pytest
import torch

from composers.encoders import Patches, Transformer, ViewPatches, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import Layout
from composers.networks import TensorSpec
from datamodules.batch import Observation, Views


def _views(number, height, width, instances=2):
    """Return random images with random poses, which need not be rotations, two focal lengths each, and any principal point."""
    return Views(
        torch.rand(instances, number, 3, height, width),
        torch.randn(instances, number, 3, 4),
        5 + 5 * torch.rand(instances, number, 4),
    )


def _naive_pixel(views, instance, view, row, column):
    """Return the nine channels of one pixel: colour, ray origin, ray direction."""
    pose = views.poses[instance, view].double().numpy()
    along, down, centre_x, centre_y = views.intrinsics[instance, view].double().numpy()
    direction = pose[:, 0] * (column + 0.5 - centre_x) / along - pose[:, 1] * (row + 0.5 - centre_y) / down - pose[:, 2]
    return [*views.images[instance, view, :, row, column].double().numpy(), *pose[:, 3], *direction]


def _naive_tokens(views, patch_size, instance):
    """Return the tokens of one instance."""
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
    encoder, views = ViewPatches((number, 3, height, width), patch_size), _views(number, height, width)
    tokens = encoder.tokens(views)
    count = number * (height // patch_size) * (width // patch_size)
    assert (encoder.num_tokens, encoder.embed_dim) == (count, 9 * patch_size**2)
    assert tokens.shape == (2, count, 9 * patch_size**2)
    for instance in range(2):
        np.testing.assert_allclose(tokens[instance].numpy(), _naive_tokens(views, patch_size, instance), atol=1e-5)


@pytest.mark.parametrize(("number", "tokens"), [(1, 256), (2, 512), (5, 1280)])
def test_published_sizes_of_views(number, tokens):
    encoder = ViewPatches((number, 3, 128, 128))
    assert (encoder.num_tokens, encoder.embed_dim) == (tokens, 576)
    assert not list(encoder.parameters())


def test_rays_are_exact_under_autocast():
    encoder, views = ViewPatches((2, 3, 4, 4), 2), _views(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        actual = encoder.tokens(views)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, encoder.tokens(views))


def test_latents_of_a_hypernetwork_depend_on_the_poses():
    transformer = Transformer(embed_dim=12, num_blocks=1, num_heads=3, mlp_ratio=2)
    start = Hypernetwork(ViewPatches((2, 3, 4, 4), 2), WeightTokens(transformer)).eval()
    start.connect({"patterns.1": TensorSpec((5, 6), lambda: torch.zeros(5, 6))})
    views = _views(2, 4, 4)
    latents = start(Observation(views), Layout())["patterns.1"]
    assert latents.shape == (2, 5, 6)
    moved = Observation(views._replace(poses=views.poses + 0.1))
    assert not torch.allclose(start(moved, Layout())["patterns.1"], latents)


def test_tokens_of_views_have_no_grid():
    encoder, views = ViewPatches((2, 3, 4, 4), 2), _views(2, 4, 4)
    assert encoder(views).grid is None
    assert encoder.layout(views) == Layout()
    assert Patches((3, 4, 4), 2).layout(views) == Layout()


def test_open_shape_takes_views_with_the_given_number_of_tokens():
    encoder = ViewPatches((-1, 3, -1, -1), 2, num_tokens=8)
    views = _views(2, 4, 4)
    assert torch.equal(encoder.tokens(views), ViewPatches((2, 3, 4, 4), 2).tokens(views))
    assert encoder(_views(1, 4, 8)).tokens.shape == (2, 8, 36)
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 4\).*with 8 patches of 2 x 2"):
        encoder(_views(3, 4, 4))


@pytest.mark.parametrize("sizes", [(1, 4, 6), (3, 4, 6), (2, 6, 4), (2, 4, 4), (2, 8, 12), (2, 5, 6)])
def test_other_numbers_or_sizes_of_views_raise_an_error(sizes):
    with pytest.raises(
        ValueError, match=r"views have shape \(.*this model takes \(2, 3, 4, 6\) with 12 patches"
    ) as caught:
        ViewPatches((2, 3, 4, 6), 2)(_views(*sizes))
    assert f"({sizes[0]}, 3, {sizes[1]}, {sizes[2]})" in str(caught.value)


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
def test_invalid_arguments_raise_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        ViewPatches(*arguments)


def test_images_for_views_and_views_for_images_raise_an_error():
    with pytest.raises(ValueError, match=r"ViewPatches takes posed views.*encoder Patches"):
        ViewPatches((1, 3, 4, 4), 2)(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="received posed views: choose encoder ViewPatches"):
        Patches((3, 4, 4), 2)(_views(1, 4, 4))
