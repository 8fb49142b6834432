"""The size of codes, in the units of the modality."""

import pytest
import torch

from composers.codes import InstanceCode
from datamodules.code_size import CodeSize
from datamodules.domain import Grid
from datamodules.spec import Modality
from modalities import Audio, Images, PosedViews


@pytest.mark.parametrize(
    ("modality", "shape", "sample_rate", "unit", "rate"),
    [
        (Images(), (400, 600), None, "bits per pixel", 24_000 * 32 / 240_000),
        (Audio(), (48_000,), 16_000, "kbit/s", 24_000 * 32 / 3 / 1000),
        (Audio(), (48_000,), None, "", None),
        (PosedViews(), (4, 64, 64), None, "", None),
        (Modality(), (4, 8, 8), None, "", None),
    ],
)
def test_size_has_the_rate_of_the_modality(modality, shape, sample_rate, unit, rate):
    size = modality.code_size(24_000, shape, sample_rate)
    assert (size.numbers, size.kilobytes, size.unit) == (24_000, 96.0, unit)
    assert size.rate == (None if rate is None else pytest.approx(rate))
    assert list(size.facts()) == ["code size", "kB", *([unit] if unit else [])]


def test_mean_rate_is_that_of_all_bits():
    sizes = [Images().code_size(100, (10, 10)), Images().code_size(100, (20, 20))]
    assert CodeSize.mean(sizes).rate == pytest.approx(200 * 32 / 500)


def test_size_of_a_code_counts_all_tiles():
    latents = {"a": torch.zeros(3, 4, 5), "b": torch.zeros(3, 2)}
    boxes = [((start, start + 400),) for start in (0, 300, 600)]
    code = InstanceCode(latents, boxes, (1000,), "model", domain=Grid(((-1.0, 1.0),)))  # a second has 400 samples
    size = Audio().size_of_code(code)
    assert (size.numbers, size.unit) == (66, "kbit/s")
    assert size.rate == pytest.approx(66 * 32 / 2.5 / 1000)
