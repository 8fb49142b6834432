"""Specifications of data modules."""

import json

import pytest

import datamodules
from datamodules.audio.prediction import AudioFiles
from datamodules.domain import Domain, Grid, Rays
from datamodules.images.prediction import ImageFiles
from datamodules.scenes.prediction import SceneFiles
from datamodules.spec import DataSpec, Modality, agrees, declared

SPECS = [
    (datamodules.SamplePhotos, {"size": 32}, (Grid.unit(2), 3, (3, 32, 32))),
    (datamodules.ImageFolder, {"size": 16}, (Grid.unit(2), 3, (3, 16, 16))),
    (ImageFiles, {"signal_shape": [3, 8, 8]}, (Grid.unit(2), 3, (3, 8, 8))),
    (
        datamodules.AudioFolder,
        {"seconds": 2.0, "sample_rate": 500, "channels": 2},
        (Grid(((-2.0, 2.0),)), 2, (2, 1000)),
    ),
    (AudioFiles, {"signal_shape": [1, 400], "sample_rate": 200}, (Grid(((-2.0, 2.0),)), 1, (1, 400))),
    (datamodules.SceneFolder, {"views": 2, "size": 8, "near": 1.0, "far": 3.0}, (Rays(1.0, 3.0), 3, (2, 3, 8, 8))),
    (SceneFiles, {"signal_shape": [1, 3, 8, 4], "near": 2.0, "far": 6.0}, (Rays(2.0, 6.0), 3, (1, 3, 8, 4))),
    (SceneFiles, {"signal_shape": [1, 3, 8, 4]}, (Rays(), 3, (1, 3, 8, 4))),
]


@pytest.mark.parametrize(("module", "arguments", "expected"), SPECS, ids=lambda value: getattr(value, "__name__", None))
def test_spec_is_available_before_setup(module, arguments, expected):
    spec = module(**arguments).spec
    assert (spec.domain, spec.value_dim, spec.signal_shape) == expected
    assert spec.num_instances is None
    assert spec.sample_rate == arguments.get("sample_rate")


@pytest.mark.slow
def test_training_instances_are_counted_after_setup():
    photos = datamodules.SamplePhotos(size=8, crops_per_epoch=5, scales=[1.0])
    assert photos.spec.num_instances is None
    photos.setup("fit")
    assert photos.spec.num_instances == 5


def test_facts_are_json_compatible():
    facts = DataSpec(Rays(2.0, 6.0), 3, (1, 3, 8, 8), Modality(), 7)._replace(sample_rate=None).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert Domain.from_config(facts["domain"]) == Rays(2.0, 6.0)
    assert (facts["signal_shape"], facts["value_dim"], facts["num_instances"]) == ([1, 3, 8, 8], 3, 7)
    assert (facts["modality"], facts["sample_rate"]) == ("signals", None)


def test_part_without_from_data_takes_nothing():
    assert declared(object()) == {}


@pytest.mark.parametrize(
    ("value", "stated", "expected"),
    [
        (3, 3, True),
        (3, 2, False),
        (None, 2, True),
        (2.0, None, True),
        ((3, 8, 8), (3, 8, 8), True),
        ([3, 8, 8], (3, 8, 8), True),
        ((3, -1, -1), (3, 8, 9), True),
        ((3, -1, 8), (3, 8, 9), False),
        ((3, 8), (3, 8, 8), False),
    ],
)
def test_arguments_agree_with_the_data(value, stated, expected):
    assert agrees(value, stated) == expected
