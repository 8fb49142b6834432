"""Losses against loops over instances and samples."""

import math

import pytest
import torch

from composers.losses import (
    ClampedAbsoluteError,
    LossSum,
    MeanAbsoluteError,
    MeanSquaredError,
    SignAndDistance,
    TruncatedSquaredError,
    WeightedLoss,
)
from composers.rendering import Reconstruction
from datamodules.batch import Samples

MASK = torch.tensor([[True, True, False, True, True, True], [True] * 6])
MEASURED = torch.tensor([[0.3, -0.2, 5.0, 0.0, -1.0, 0.05], [-0.01, 0.0, -0.4, -1.0, 0.5, 0.2]]).unsqueeze(-1)


def _reconstruction(outputs=2):
    """Return random raw outputs as a reconstruction; its values play no part."""
    raw = torch.randn(2, 6, outputs, generator=torch.Generator().manual_seed(0))
    return Reconstruction.of_values(torch.full((2, 6, 1), math.nan))._replace(raw=raw)


def _naive(raw, measured, mask, sigmas, surface, unknown):
    """Return the loss of one instance."""
    entropies, errors = [], []
    for (logit, distance), [true], counted in zip(raw.tolist(), measured.tolist(), mask.tolist(), strict=True):
        if not counted:
            continue
        outside = 1 / (1 + math.exp(-logit))
        target = 0.5 if surface == "half" and true == 0 else float(true > 0)
        if surface != "ignored" or true != 0:
            entropies.append(-target * math.log(outside) - (1 - target) * math.log(1 - outside))
        if true != unknown:
            errors.append(abs(distance - true))
    entropy, error = (sum(values) / len(values) for values in (entropies, errors))
    return entropy / (2 * sigmas[0] ** 2) + error / (2 * sigmas[1] ** 2) + math.log(sigmas[0] * sigmas[1])


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("unknown", [None, -1.0, 0.5])
@pytest.mark.parametrize("surface", ["inside", "half", "ignored"])
def test_sign_and_distance_equal_a_loop(surface, unknown, mask):
    loss = SignAndDistance(surface, unknown)
    loss.uncertainties.data = torch.tensor([0.7, 1.9])
    reconstruction = _reconstruction()
    actual = loss(reconstruction, Samples(torch.zeros(6, 2), MEASURED, mask))
    counted = torch.ones(2, 6, dtype=torch.bool) if mask is None else mask
    expected = [
        _naive(reconstruction.raw[index], MEASURED[index], counted[index], (0.7, 1.9), surface, unknown)
        for index in range(2)
    ]
    torch.testing.assert_close(actual.tolist(), expected, atol=1e-5, rtol=0)


def test_the_sign_has_a_gradient_through_raw_outputs_only():
    loss, reconstruction = SignAndDistance(), _reconstruction()
    raw = reconstruction.raw.requires_grad_()
    loss(reconstruction._replace(raw=raw), Samples(torch.zeros(6, 2), MEASURED)).sum().backward()
    assert raw.grad.abs().min() > 0
    assert loss.uncertainties.grad.abs().min() > 0


def test_samples_on_the_surface_alone_leave_no_sign_to_learn():
    target = Samples(torch.zeros(6, 2), torch.zeros(2, 6, 1))
    gradients = {}
    for surface in ("inside", "half", "ignored"):
        raw = _reconstruction().raw.requires_grad_()
        SignAndDistance(surface)(_reconstruction()._replace(raw=raw), target).sum().backward()
        gradients[surface] = raw.grad[..., 0]
    logits = _reconstruction().raw[..., 0]
    assert (gradients["inside"] > 0).all()  # every step lowers every logit
    assert torch.equal(gradients["half"].sign(), logits.sign())  # towards 0
    assert not gradients["ignored"].any()


def test_uncertainties_begin_at_one_and_may_change_signs():
    loss, target = SignAndDistance(), Samples(torch.zeros(6, 2), MEASURED)
    assert loss.uncertainties.tolist() == [1, 1]
    positive = loss(_reconstruction(), target)
    loss.uncertainties.data = torch.tensor([-1.0, 1.0])
    assert torch.equal(loss(_reconstruction(), target), positive)


def test_an_instance_without_counted_samples_has_no_terms():
    target = Samples(torch.zeros(6, 2), torch.full((2, 6, 1), -1.0))
    reconstruction = _reconstruction()
    signs = torch.nn.functional.softplus(reconstruction.raw[..., 0]).mean(1) / 2
    torch.testing.assert_close(SignAndDistance(unknown=-1.0)(reconstruction, target), signs)


@pytest.mark.parametrize("raw", [None, torch.zeros(2, 6, 1), torch.zeros(2, 6, 3)])
def test_a_field_without_both_outputs_is_refused(raw):
    with pytest.raises(ValueError, match="set renderer to SignedDistance with heads both"):
        SignAndDistance()(_reconstruction()._replace(raw=raw), Samples(torch.zeros(6, 2), MEASURED))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_clamped_errors_equal_a_loop(mask):
    values = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(1)) / 4
    actual = ClampedAbsoluteError(0.1)(Reconstruction.of_values(values), Samples(torch.zeros(6, 2), MEASURED, mask))
    for index in range(2):
        errors = [
            abs(min(max(value, -0.1), 0.1) - min(max(true, -0.1), 0.1))
            for place, ([value], [true]) in enumerate(
                zip(values[index].tolist(), MEASURED[index].tolist(), strict=True)
            )
            if mask is None or mask[index, place]
        ]
        assert actual[index].item() == pytest.approx(sum(errors) / len(errors), abs=1e-6)
    assert actual.max() <= 0.2


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_truncated_errors_equal_a_loop_and_have_a_gradient_beyond_the_limit(mask):
    values = (torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(1)) / 4).requires_grad_()
    actual = TruncatedSquaredError(0.1)(Reconstruction.of_values(values), Samples(torch.zeros(6, 2), MEASURED, mask))
    for index in range(2):
        errors = [
            ((value - min(max(true, -0.1), 0.1)) / 0.1) ** 2
            for place, ([value], [true]) in enumerate(
                zip(values[index].tolist(), MEASURED[index].tolist(), strict=True)
            )
            if mask is None or mask[index, place]
        ]
        assert actual[index].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    (gradient,) = torch.autograd.grad(actual.sum(), values)
    counted = torch.ones(2, 6, dtype=torch.bool) if mask is None else mask
    assert ((gradient[..., 0] != 0) == counted).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignAndDistance("outside"), "surface is outside; allowed are inside, half and ignored"),
        (lambda: SignAndDistance(unknown=0.0), "unknown is 0.0; it must be a finite distance other than 0"),
        (lambda: SignAndDistance(unknown=math.nan), "unknown is nan"),
        (lambda: ClampedAbsoluteError(0.0), "limit is 0.0; it must be a positive distance"),
        (lambda: ClampedAbsoluteError(math.nan), "limit is nan"),
        (lambda: TruncatedSquaredError(-1.0), "limit is -1.0; it must be a positive distance"),
    ],
)
def test_arguments_out_of_range_raise_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _pair():
    """Return random values as a reconstruction, and a masked target."""
    values = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(1))
    return Reconstruction.of_values(values), Samples(torch.zeros(6, 2), MEASURED, MASK)


@pytest.mark.parametrize(
    ("start", "ramp", "expected"),
    [
        (0, 0, {0: 2.0, 1: 2.0, 50: 2.0}),
        (10, 0, {0: 0.0, 9: 0.0, 10: 2.0, 11: 2.0}),
        (0, 4, {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.0}),
        (10, 20, {0: 0.0, 10: 0.0, 15: 0.5, 20: 1.0, 29: 1.9, 30: 2.0, 10_000: 2.0}),
    ],
)
def test_a_weight_is_ramped_in_by_training_steps(start, ramp, expected):
    loss = WeightedLoss(MeanSquaredError(), 2.0, start, ramp)
    reconstruction, target = _pair()
    plain = MeanSquaredError()(reconstruction, target)
    for step, weight in expected.items():
        assert loss.weight_at(step) == pytest.approx(weight)
        torch.testing.assert_close(loss.at(step)(reconstruction, target), weight * plain)
    torch.testing.assert_close(loss(reconstruction, target), 2 * plain)  # of evaluation


def test_a_sum_adds_its_parts_at_every_step():
    first, second = MeanSquaredError(), MeanAbsoluteError()
    loss = LossSum({"wave": WeightedLoss(first, 3.0), "level": WeightedLoss(second, 0.5, start=2, ramp=2)})
    reconstruction, target = _pair()
    squared, absolute = first(reconstruction, target), second(reconstruction, target)
    for step, weight in {0: 0.0, 2: 0.0, 3: 0.25, 4: 0.5, 9: 0.5}.items():
        torch.testing.assert_close(loss.at(step)(reconstruction, target), 3 * squared + weight * absolute)
    torch.testing.assert_close(loss(reconstruction, target), 3 * squared + 0.5 * absolute)
    assert loss.needs_order == ()


def test_a_loss_without_weight_is_not_computed_unless_it_learns():
    class NeverComputedError(MeanSquaredError):
        def forward(self, reconstruction, target):
            raise AssertionError

    reconstruction, target = _pair()
    assert WeightedLoss(NeverComputedError(), start=5).at(4)(reconstruction, target).tolist() == [0, 0]
    learned = WeightedLoss(SignAndDistance(), start=5)
    learned.at(0)(_reconstruction(), Samples(torch.zeros(6, 2), MEASURED)).sum().backward()
    assert learned.loss.uncertainties.grad.tolist() == [0, 0]


def test_other_losses_are_the_same_in_every_step():
    loss = MeanSquaredError()
    assert loss.at(0) is loss.at(1000) is loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedLoss(MeanSquaredError(), 0.0), r"weight is 0\.0; it must be positive"),
        (lambda: WeightedLoss(MeanSquaredError(), math.inf), "weight is inf"),
        (lambda: WeightedLoss(MeanSquaredError(), start=-1), "start is -1 and ramp 0"),
        (lambda: WeightedLoss(MeanSquaredError(), ramp=-2), "ramp -2; numbers of steps must be at least 0"),
        (lambda: LossSum({}), r"parts is \[\]; give at least one loss"),
        (lambda: LossSum({"a.b": MeanSquaredError()}), "names without dots"),
        (lambda: LossSum({"type": MeanSquaredError()}), "no attributes of a module"),
    ],
)
def test_sums_and_weights_check_their_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_first_step_of_a_ramp_can_be_differentiated_without_other_losses():
    values = torch.tensor([[[0.5], [torch.inf]]], requires_grad=True)
    target = Samples(torch.zeros(2, 1), torch.zeros(1, 2, 1))
    loss = WeightedLoss(MeanSquaredError(), ramp=10).at(0)(Reconstruction.of_values(values), target)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert values.grad.tolist() == [[[0.0], [0.0]]]
