"""Metrics and losses per instance against loops, with masks, constant signals and other precisions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composers.losses import MeanAbsoluteError, MeanSquaredError
from composers.metrics import (
    PSNR,
    SSIM,
    DefinedMean,
    Gain,
    defined,
    instance_mean,
    instance_mse,
    luminance,
    psnr_of_mse,
)
from composers.rendering import Reconstruction
from datamodules.batch import Samples


def _samples(values, mask=None):
    return Samples(torch.zeros(values.shape[1], 2), values, mask)


def _measure(metric, values, target, shape=None):
    """Return what a metric measures of values at the coordinates of the target."""
    return metric.measure(Reconstruction.of_values(values), target, shape)


def _random(num_instances=3, num_coords=5, channels=2, *, masked=False, seed=0):
    """Return a prediction and its target; masked samples differ by about 100."""
    generator = torch.Generator().manual_seed(seed)
    prediction, values = torch.rand(2, num_instances, num_coords, channels, generator=generator)
    if not masked:
        return prediction, _samples(values)
    mask = torch.rand(num_instances, num_coords, generator=generator) < 0.6
    mask[:, 0] = True
    prediction[~mask] += 50
    values[~mask] -= 50
    return prediction, _samples(values, mask)


def _unmasked(target, instance):
    """Return the indices of the unmasked samples of an instance."""
    indices = range(target.values.shape[1])
    return [index for index in indices if target.mask is None or target.mask[instance, index]]


def _naive_mse(prediction, target):
    """Return the mean squared error of every instance by a loop over its samples and channels."""
    errors = []
    for instance in range(len(prediction)):
        squares = [
            (float(prediction[instance, index, channel]) - float(target.values[instance, index, channel])) ** 2
            for index in _unmasked(target, instance)
            for channel in range(prediction.shape[2])
        ]
        errors.append(sum(squares) / len(squares))
    return errors


def _naive_psnr(prediction, target):
    return [-10 * math.log10(error) for error in _naive_mse(prediction, target)]


def _assert_close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=atol, rtol=0)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 100))
def test_errors_equal_a_loop(num_instances, num_coords, channels, masked, seed):
    prediction, target = _random(num_instances, num_coords, channels, masked=masked, seed=seed)
    _assert_close(instance_mse(prediction, target), _naive_mse(prediction, target), atol=1e-6)
    _assert_close(
        MeanSquaredError()(Reconstruction.of_values(prediction), target), _naive_mse(prediction, target), atol=1e-6
    )
    _assert_close(_measure(PSNR(), prediction, target), _naive_psnr(prediction, target))


@pytest.mark.parametrize("masked", [False, True])
def test_gain_is_relative_to_the_constant_mean_value(masked):
    prediction, target = _random(masked=masked)
    constant = torch.empty_like(prediction)
    for instance in range(3):
        indices = _unmasked(target, instance)
        for channel in range(2):
            total = sum(target.values[instance, index, channel] for index in indices)
            constant[instance, :, channel] = total / len(indices)
    torch.testing.assert_close(instance_mean(target), constant)
    pairs = zip(_naive_psnr(prediction, target), _naive_psnr(constant, target), strict=True)
    _assert_close(_measure(Gain(), prediction, target), [psnr - mean for psnr, mean in pairs])
    _assert_close(_measure(Gain(), constant, target), [0.0, 0.0, 0.0])


def _mirrored(index, size):
    """Return an index, mirrored at the ends of an axis."""
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def _naive_ssim(prediction, true, shape):
    """Return the SSIM of one instance: a Gaussian window of 11 x 11 around every pixel, borders mirrored (Wang et al. 2004)."""
    height, width = shape
    gaussian = [math.exp(-(offset**2) / (2 * 1.5**2)) for offset in range(-5, 6)]
    weights = {(r - 5, c - 5): gaussian[r] * gaussian[c] / sum(gaussian) ** 2 for r in range(11) for c in range(11)}
    similarities = []
    for channel in range(prediction.shape[1]):
        x, y = (values[:, channel].double().reshape(shape).tolist() for values in (prediction, true))
        for row in range(height):
            for column in range(width):
                pixels = [(_mirrored(row + r, height), _mirrored(column + c, width)) for r, c in weights]
                window = [(w, x[r][c], y[r][c]) for w, (r, c) in zip(weights.values(), pixels, strict=True)]
                mean_x, mean_y = sum(w * a for w, a, _ in window), sum(w * b for w, _, b in window)
                variance_x = sum(w * (a - mean_x) ** 2 for w, a, _ in window)
                variance_y = sum(w * (b - mean_y) ** 2 for w, _, b in window)
                covariance = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in window)
                luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
                contrast = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
                similarities.append(luminance * contrast)
    return sum(similarities) / len(similarities)


@pytest.mark.parametrize("shape", [(11, 11), (12, 14)])
def test_ssim_equals_a_loop_over_windows(shape):
    prediction, target = _random(2, shape[0] * shape[1], 3)
    prediction = 0.7 * target.values + 0.3 * prediction
    expected = [_naive_ssim(prediction[i], target.values[i], shape) for i in range(2)]
    _assert_close(_measure(SSIM(), prediction, target, shape), expected)
    _assert_close(_measure(SSIM(), target.values, target, shape), [1.0, 1.0])


@pytest.mark.parametrize("shape", [None, (132,), (4, 33), (1, 12, 11)])
def test_ssim_is_nan_without_an_image_of_at_least_one_window(shape):
    prediction, target = _random(2, 132, 3)
    assert _measure(SSIM(), prediction, target, shape).isnan().tolist() == [True, True]


def test_predictions_are_neither_clamped_nor_rounded():
    target = _samples(torch.ones(1, 4, 1))
    assert _measure(PSNR(), torch.full((1, 4, 1), 2.0), target).item() == pytest.approx(0.0, abs=1e-5)
    assert _measure(PSNR(), torch.full((1, 4, 1), 1.0005), target).item() == pytest.approx(66.02, abs=0.01)


def test_errors_are_measured_in_float32():
    prediction, target = _random()
    low = instance_mse(prediction.bfloat16(), target)
    assert low.dtype == torch.float32
    _assert_close(low, _naive_mse(prediction.bfloat16().float(), target), atol=1e-6)


@pytest.mark.parametrize("metric", [PSNR(), Gain(), SSIM()], ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images_and_perfect_predictions_have_finite_metrics(metric, value):
    constant, noise = torch.full((1, 132, 3), value), torch.rand(1, 132, 3)
    for prediction, values in ((constant, constant), (noise, constant), (constant, noise), (noise, noise)):
        undefined = isinstance(metric, Gain) and values is constant
        assert _measure(metric, prediction, _samples(values), (12, 11)).isfinite().tolist() == [not undefined]


@pytest.mark.parametrize("level", [0.0, 1.0, 128 / 255, 2 / 255, 1 / 3])
def test_gain_of_a_constant_signal_is_undefined_despite_rounding_of_its_mean(level):
    prediction, values = torch.rand(2, 96 * 96, 3), torch.full((2, 96 * 96, 3), level)
    values[1, 0] += 0.1
    measured = _measure(Gain(), prediction, _samples(values))
    assert measured.isnan().tolist() == [True, False]
    assert defined(measured, prediction).tolist() == [False, True]


def test_gain_of_a_constant_signal_counts_if_the_prediction_diverged():
    prediction = torch.full((1, 9, 3), math.nan)
    measured = _measure(Gain(), prediction, _samples(torch.zeros(1, 9, 3)))
    assert defined(measured, prediction).tolist() == [True]


def test_mean_of_no_instance_is_left_out():
    mean = DefinedMean()
    mean.update(torch.zeros(0))
    assert mean.compute() is None
    mean.reset()
    mean.update(torch.tensor([1.0, 2.0]))
    mean.update(torch.zeros(0))
    assert mean.compute() == 1.5
    mean.update(torch.tensor([math.nan]))
    assert mean.compute().isnan()


def test_the_psnr_is_at_most_120_db():
    assert psnr_of_mse(torch.tensor([0.0, 1e-20, 1e-12, 1e-2])).tolist() == pytest.approx([120, 120, 120, 20])


def test_instances_do_not_mix():
    prediction, target = _random()
    prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(MeanSquaredError()(Reconstruction.of_values(prediction), target)[1], prediction)
    assert gradient[1].all()
    assert not gradient[[0, 2]].any()


def test_masked_samples_have_no_gradient():
    prediction, target = _random(masked=True)
    prediction.requires_grad_()
    MeanSquaredError()(Reconstruction.of_values(prediction), target).sum().backward()
    assert torch.equal(prediction.grad.any(-1), target.mask)


def test_a_target_without_values_is_rejected():
    with pytest.raises(ValueError, match="no values"):
        instance_mse(torch.zeros(1, 2, 1), Samples(torch.zeros(2, 1)))


def test_the_metric_of_a_signal_from_its_tiles():
    prediction, target = _random(4)
    tiles = PSNR().measure(Reconstruction.of_values(prediction), target, None).tolist()
    expected = -10 * math.log10(sum(_naive_mse(prediction, target)) / 4)
    assert PSNR().of_tiles(tiles) == pytest.approx(expected, abs=1e-5)
    assert SSIM().of_tiles([0.5, 1.0]) == 0.75
    assert math.isnan(PSNR().of_tiles([10.0, math.nan]))


# The mean absolute error


def _naive_mae(prediction, target):
    """Return the mean absolute error of every instance by a loop over its samples and channels."""
    errors = []
    for instance in range(len(prediction)):
        differences = [
            abs(float(prediction[instance, index, channel]) - float(target.values[instance, index, channel]))
            for index in _unmasked(target, instance)
            for channel in range(prediction.shape[2])
        ]
        errors.append(sum(differences) / len(differences))
    return errors


@pytest.mark.parametrize("masked", [False, True])
def test_absolute_errors_equal_a_loop(masked):
    prediction, target = _random(masked=masked)
    loss = MeanAbsoluteError()(Reconstruction.of_values(prediction), target)
    assert loss.shape == (3,)
    _assert_close(loss, _naive_mae(prediction, target), atol=1e-6)


def test_absolute_errors_are_measured_in_float32():
    prediction, target = _random()
    loss = MeanAbsoluteError()(Reconstruction.of_values(prediction.bfloat16()), target)
    assert loss.dtype == torch.float32
    _assert_close(loss, _naive_mae(prediction.bfloat16().float(), target), atol=1e-6)


def test_masked_samples_have_no_gradient_of_the_absolute_error():
    prediction, target = _random(masked=True)
    prediction.requires_grad_()
    MeanAbsoluteError()(Reconstruction.of_values(prediction), target).sum().backward()
    assert torch.equal(prediction.grad.any(-1), target.mask)


def test_absolute_errors_need_measured_values():
    with pytest.raises(ValueError, match="no values"):
        MeanAbsoluteError()(Reconstruction.of_values(torch.zeros(1, 2, 1)), Samples(torch.zeros(2, 1)))


# Super-resolution: clipped values, luminance, borders


def _border_mask(shape, border, instances=2):
    """Return a mask ``(B, N)`` that leaves out the border of an image."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[border : shape[0] - border, border : shape[1] - border] = True
    return mask.flatten().expand(instances, -1)


def _beyond(instances=2, shape=(20, 23), channels=3, border=0):
    """Return predictions, some of them beyond [0, 1], and their target."""
    prediction, target = _random(instances, shape[0] * shape[1], channels)
    prediction = 1.4 * (0.6 * target.values + 0.4 * prediction) - 0.2
    assert prediction.min() < 0
    assert prediction.max() > 1
    mask = _border_mask(shape, border, instances) if border else None
    return prediction, target._replace(mask=mask)


def _difference_in_luminance(prediction, target, instance, index):
    """Return the weighted difference of the colours of a sample, as in the released code of LIIF."""
    pairs = zip((65.738, 129.057, 25.064), prediction[instance, index], target.values[instance, index], strict=True)
    return sum(weight / 256 * (float(a) - float(b)) for weight, a, b in pairs)


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_the_psnr_of_clipped_luminance_equals_a_loop(clip, luma, border):
    prediction, target = _beyond(border=border)
    compared = prediction.clamp(0, 1) if clip else prediction
    expected = _naive_psnr(compared, target)
    if luma:
        errors = [
            [_difference_in_luminance(compared, target, instance, index) ** 2 for index in _unmasked(target, instance)]
            for instance in range(2)
        ]
        expected = [-10 * math.log10(sum(squares) / len(squares)) for squares in errors]
    _assert_close(_measure(PSNR(clip=clip, luma=luma), prediction, target, (20, 23)), expected)


@pytest.mark.parametrize("luma", [False, True])
def test_the_ssim_of_clipped_luminance_leaves_out_the_border(luma):
    prediction, target = _beyond(border=4)
    inner = [
        part.unflatten(1, (20, 23))[:, 4:-4, 4:-4].flatten(1, 2) for part in (prediction.clamp(0, 1), target.values)
    ]
    if luma:
        weights = torch.tensor([65.738, 129.057, 25.064]) / 256
        inner = [(part * weights).sum(-1, keepdim=True) for part in inner]
    expected = [_naive_ssim(*(part[i] for part in inner), (12, 15)) for i in range(2)]
    _assert_close(_measure(SSIM(clip=True, luma=luma), prediction, target, (20, 23)), expected)


def test_the_ssim_is_nan_if_the_border_leaves_less_than_a_window():
    prediction, target = _beyond(border=5)
    assert _measure(SSIM(), prediction, target, (20, 23)).isnan().all()
    assert _measure(SSIM(), prediction, target._replace(mask=torch.zeros(2, 460).bool()), (20, 23)).isnan().all()


def test_values_are_clipped_on_request_only():
    target = _samples(torch.ones(1, 4, 1))
    over = torch.full((1, 4, 1), 2.0)
    assert _measure(PSNR(clip=True), over, target).item() == pytest.approx(120)
    assert _measure(PSNR(), over, target).item() == pytest.approx(0, abs=1e-5)


def test_the_luminance_of_grey_images_is_their_values():
    values = torch.rand(2, 5, 1)
    assert luminance(values) is values
    assert luminance(torch.ones(1, 1, 3)).item() == pytest.approx(219.859 / 256)
    prediction, target = _random(channels=1)
    assert torch.equal(_measure(PSNR(luma=True), prediction, target), _measure(PSNR(), prediction, target))
