"""Sizes that data of scenes states, written where a config leaves them open."""

import pytest
from jsonargparse import Namespace

from application.sizes import state_sizes
from datamodules import CoordinateDataModule, domain
from datamodules.spec import DataSpec


class Rays(CoordinateDataModule):
    """Stands for data of scenes: it states sizes, and has no items."""

    spec = DataSpec(domain.Rays(1.5, 4.5), 3, (2, 3, 8, 8), None)

    def setup(self, stage):
        raise AssertionError("sizes need no data")


def _stated(**renderer):
    """Return the config of a model for `Rays`, completed; the renderer's arguments as given."""
    inr = {"class_path": "composers.networks.CoordinateMLP", "init_args": {"coord_dim": None, "value_dim": None}}
    tokenizer = {"class_path": "composers.encoders.ViewPatches", "init_args": {"signal_shape": None, "patch_size": 4}}
    parts = {"inr": inr, "tokenizer": tokenizer}
    name = renderer.pop("name", "VolumeRenderer")
    parts["renderer"] = {"class_path": f"composers.rendering.{name}", "init_args": renderer}
    model = Namespace({"class_path": "composers.TransformerIPC", "init_args": _namespaces(parts)})
    state_sizes(model, Namespace({"class_path": f"{__name__}.Rays", "init_args": Namespace()}))
    return model.init_args


def _namespaces(part):
    return Namespace({k: _namespaces(v) for k, v in part.items()}) if isinstance(part, dict) else part


def test_depths_and_dimensions_come_from_the_data():
    stated = _stated(near=None, far=None, samples_per_ray=9)
    assert stated.renderer.init_args == Namespace(near=1.5, far=4.5, samples_per_ray=9)
    assert stated.inr.init_args == Namespace(coord_dim=3, value_dim=4)
    assert stated.tokenizer.init_args.signal_shape == [2, 3, 8, 8]


@pytest.mark.parametrize(
    ("given", "wanted"), [({"near": 1.0, "far": None}, (1.0, 4.5)), ({"near": 0, "far": 9}, (0, 9))]
)
def test_depths_that_were_given_stay(given, wanted):
    found = _stated(**given).renderer.init_args
    assert (found.near, found.far) == wanted


def test_light_fields_have_no_depths():
    stated = _stated(name="LightFieldRenderer", chunk_size=5)
    assert stated.renderer.init_args == Namespace(chunk_size=5)
    assert stated.inr.init_args == Namespace(coord_dim=6, value_dim=3)
