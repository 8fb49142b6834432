"""Linear codes: against a naive PCA, at any size, and on the bundled data."""

import math

import numpy as np
import pytest
import torch
from flat_images import FlatData
from hums import Hums

from datamodules import SamplePhotos, SampleSpeech
from datamodules.spec import LinearPatch
from modalities import Audio, Images, PosedViews
from modalities.linear import LinearBaseline, LinearCode, from_patches, num_patches, to_patches, training_signals


def _naive_patches(signal, side):
    """Return the patches of an image ``(C, H, W)``, rows first, repeating the last row and column."""
    channels, height, width = signal.shape
    patches = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = (
                [min(first + i, size - 1) for i in range(side)] for first, size in ((top, height), (left, width))
            )
            patches.append([signal[c, row, column] for c in range(channels) for row in rows for column in columns])
    return np.array(patches, dtype=np.float64)


def _psnr(actual, expected):
    return -10 * math.log10((actual - expected).square().mean())


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (3, 4, 11), (2, 2, 3)], ids=str)
def test_patches_are_those_of_naive_loops_and_are_joined_again(shape):
    signal = torch.rand(shape)
    patches = to_patches(signal, (4, 4))
    np.testing.assert_allclose(patches, _naive_patches(signal.numpy(), 4), rtol=1e-6)
    assert len(patches) == num_patches(shape[1:], (4, 4))
    assert torch.equal(from_patches(patches, (4, 4), shape), signal)


@pytest.mark.parametrize(("shape", "patch"), [((2, 7), (3,)), ((1, 4, 5, 6), (2, 3, 4))], ids=str)
def test_patches_have_any_number_of_axes(shape, patch):
    signal = torch.rand(shape)
    patches = to_patches(signal, patch)
    assert patches.shape == (num_patches(shape[1:], patch), shape[0] * math.prod(patch))
    assert torch.equal(patches[0], signal[(slice(None), *map(slice, patch))].flatten())
    assert torch.equal(from_patches(patches, patch, shape), signal)


@pytest.mark.parametrize("count", [2, 40], ids=["fewer patches than values", "more"])
def test_linear_code_is_the_principal_component_analysis(count):
    images, image = torch.rand(count, 3, 8, 8), torch.rand(3, 10, 7)
    code = LinearCode.fit(images, (4, 4))
    patches = np.concatenate([_naive_patches(part.numpy(), 4) for part in images])
    mean = patches.mean(0)
    _, variances, components = np.linalg.svd(patches - mean, full_matrices=False)
    rank = (variances > 1e-6).sum()
    assert code.components.shape == (48, rank)
    basis = components[:5]
    expected = (_naive_patches(image.numpy(), 4) - mean) @ basis.T @ basis + mean
    actual = to_patches(code.reconstruct(image, 5), (4, 4))[0]  # the only patch without padding in rows and columns
    np.testing.assert_allclose(actual, expected[0], atol=1e-9)
    assert code.reconstruct(image).shape == image.shape


def test_incomplete_patches_of_training_signals_do_not_count():
    image = torch.rand(3, 10, 8)
    code, expected = (LinearCode.fit([part], (4, 4)) for part in (image, image[:, :8]))
    torch.testing.assert_close(code.mean, expected.mean)
    assert LinearCode.fit([torch.rand(3, 3, 2)], (4, 4)).mean.shape == (48,)  # there is no complete one


def test_all_components_reconstruct_a_signal_of_their_space():
    images = torch.rand(60, 1, 4, 4)
    code = LinearCode.fit(images, (2, 2))
    torch.testing.assert_close(code.reconstruct(images[0]), images[0].double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "label"),
    [
        (287, "PCA, 8 per 8 x 8 pixels"),  # 9 images with a complete patch each have 8 components
        (24, "PCA, 8 per 8 x 8 pixels"),
        (9, "PCA, 4 per 8 x 8 pixels"),
        (3, "PCA, 1 per 8 x 8 pixels"),
        (1, "PCA, 1 per 16 x 16 pixels"),
        (288, ">= signal"),
    ],
)
def test_number_of_components(numbers, label):
    data = FlatData()
    baseline = LinearBaseline(data, Images.linear)
    actual = baseline.reconstruct(torch.rand(3, 8, 12), numbers)
    assert actual.label == label
    assert (actual.values is None) == (label == ">= signal")
    assert not baseline.failure


def test_training_data_is_not_read_for_a_code_as_large_as_the_signal(monkeypatch):
    monkeypatch.setattr(FlatData, "training_batches", lambda *_: pytest.fail("training data was read"))
    baseline = LinearBaseline(FlatData(), Images.linear)
    assert baseline.reconstruct(torch.rand(3, 8, 12), 400) == (">= signal", None)


def test_missing_training_data_is_a_failure_with_its_reason():
    class WithoutTraining(FlatData):
        def setup(self, stage):
            if stage == "fit":
                raise FileNotFoundError("There is no\nfolder.")

    baseline = LinearBaseline(WithoutTraining(), Images.linear)
    assert baseline.reconstruct(torch.rand(3, 8, 12), 4) == ("not available", None)
    assert baseline.failure == "There is no folder."


def test_training_signals_have_no_padding():
    assert sorted(signal.shape[1] for signal in training_signals(Hums())) == [150, 200]


def test_modalities_state_their_patches():
    assert Images.linear == LinearPatch("PCA", (8, 8), "pixels")
    assert Audio.linear == LinearPatch("KLT", (200,), "samples")
    assert PosedViews.linear is None


@pytest.mark.parametrize(
    ("kind", "per_patch", "expected"),
    [(SamplePhotos, 8, 24.2), (SamplePhotos, 24, 29.9), (SamplePhotos, 64, 36.2)],
)
def test_linear_code_of_the_bundled_photographs(kind, per_patch, expected):
    data = kind()
    data.setup("test")
    baseline = LinearBaseline(data, Images.linear)
    images = [item.values.float() / 255 for item in (data.test_set[index] for index in range(34))]
    results = [baseline.reconstruct(image, 64 * per_patch) for image in images]
    assert {result.label for result in results} == {f"PCA, {per_patch} per 8 x 8 pixels"}
    mean = np.mean([_psnr(result.values, image) for result, image in zip(results, images, strict=True)])
    assert mean == pytest.approx(expected, abs=0.06)


def test_linear_code_of_the_bundled_speech():
    data = SampleSpeech()
    data.setup("test")
    baseline = LinearBaseline(data, Audio.linear)
    gains = []
    for signal in (data.test_set[index].values for index in range(len(data.test_set))):
        values = baseline.reconstruct(signal, 80 * 25).values
        gains.append(_psnr(values, signal) - _psnr(torch.zeros(()), signal))
    assert np.mean(gains) == pytest.approx(14.3, abs=0.06)
