"""What data states, written where parts declare it and a config leaves it open."""

from typing import ClassVar

import pytest
import torch
from jsonargparse import Namespace

from application.sizes import state_sizes
from composers.encoders import Patches
from datamodules import CoordinateDataModule, domain
from datamodules.spec import DataSpec, Modality


class Rays(CoordinateDataModule):
    """Stands for data of scenes: it states sizes, and has no items."""

    spec = DataSpec(domain.Rays(1.5, 4.5), 3, (2, 3, 8, 8), Modality())

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
    assert stated.network.init_args == Namespace(coord_dim=3, value_dim=4)
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
    assert stated.network.init_args == Namespace(coord_dim=6, value_dim=3)


class Images(CoordinateDataModule):
    """Stands for data of images on a grid with another range along each axis."""

    spec = DataSpec(domain.Grid(((0.0, 1.0), (-1.0, 1.0))), 3, (3, 4, 6), Modality())

    def setup(self, stage):
        raise AssertionError("sizes need no data")


class Ends(torch.nn.Module):
    """A part of somebody else, which takes the upper ends of the axes, and holds a part of its own.

    Args:
        ends: Upper ends.
        value_dim: The same name as an argument of the network, and declared by nobody here.
        inner: Another part.
    """

    from_data: ClassVar = {"ends": lambda spec: tuple(high for _, high in spec.domain.ranges)}

    def __init__(self, ends=None, value_dim=None, inner=None):
        super().__init__()
        self.ends, self.value_dim, self.inner = ends, value_dim, inner


def _filled(**parts):
    """Return the parts of a model for `Images`, completed."""
    model = Namespace({"class_path": "composers.TransformerIPC", "init_args": _namespaces(parts)})
    state_sizes(model, Namespace({"class_path": f"{__name__}.Images", "init_args": Namespace()}))
    return model.init_args


def _ends(**arguments):
    return {"class_path": f"{__name__}.Ends", "init_args": {"ends": None, "value_dim": None, "inner": None} | arguments}


def test_parts_of_somebody_else_take_what_they_declare_and_nothing_else():
    found = _filled(tokenizer=_ends(inner=_ends()), signal_shape=None).tokenizer.init_args
    assert found.ends == found.inner.init_args.ends == [1.0, 1.0]
    assert found.value_dim is found.inner.init_args.value_dim is None


def test_a_name_that_a_composer_does_not_declare_stays_open():
    assert _filled(tokenizer=_ends(), signal_shape=None).signal_shape is None


def test_composers_declare_too():
    model = Namespace({"class_path": "composers.MetaIPC", "init_args": Namespace(signal_shape=None)})
    state_sizes(model, Namespace({"class_path": f"{__name__}.Images", "init_args": Namespace()}))
    assert model.init_args.signal_shape == [3, 4, 6]


def test_parts_in_lists_and_dictionaries_are_found():
    model = Namespace({"class_path": "composers.TransformerIPC", "init_args": Namespace()})
    model.init_args["metrics"] = {"a": _namespaces(_ends())}
    model.init_args["tokenizer"] = Namespace(
        class_path=f"{__name__}.Plain", init_args=Namespace(parts=[_namespaces(_ends())])
    )
    state_sizes(model, Namespace({"class_path": f"{__name__}.Images", "init_args": Namespace()}))
    assert model.init_args["metrics"]["a"].init_args.ends == [1.0, 1.0]
    assert model.init_args.encoder.init_args.parts[0].init_args.ends == [1.0, 1.0]


class Plain:
    """A part that declares nothing."""


def test_parts_of_the_network_see_the_field_behind_the_renderer():
    inr = {
        "class_path": "composers.networks.CoordinateMLP",
        "init_args": {
            "coord_dim": None,
            "value_dim": None,
            "encoding": {"class_path": "composers.networks.GaussianFourierFeatures", "init_args": {"coord_dim": None}},
        },
    }
    found = _filled(inr=inr).network.init_args
    assert (found.coord_dim, found.value_dim, found.encoding.init_args.coord_dim) == (2, 3, 2)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (
            "tokenizer",
            {"ends": (1.0, 2.0)},
            r"^Ends was built for ends \(1.0, 2.0\); the data has \(1.0, 1.0\): leave ends out",
        ),
        ("inr", {"ends": (3.0, 3.0)}, r"^Ends was built for ends \(3.0, 3.0\); PointRenderer asks for \(1.0, 1.0\)"),
    ],
)
def test_what_was_given_is_compared_by_the_same_declaration(make_ipc, part, change, words):
    composer = make_ipc(tokenizer=Patches((3, 4, 6), 2))
    composer.check_sizes(Images())
    {"tokenizer": composer.hypernet, "inr": composer.network}[part].add_module("ends", Ends(**change))
    with pytest.raises(ValueError, match=words):
        composer.check_sizes(Images())
