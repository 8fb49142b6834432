"""Arguments that parts take from the data: filled in where a config leaves them open, and compared at set-up."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from jsonargparse import Namespace

from application.sizes import state_sizes
from composers import Composer
from composers.encoders import Patches
from composers.inference import LearnedCode, LearnedStart, ZeroStart
from composers.latents import LowRank
from datamodules import CoordinateDataModule, domain
from datamodules.spec import DataSpec, Modality


class Rays(CoordinateDataModule):
    """A data module of scenes, with a specification only."""

    spec = DataSpec(domain.Rays(1.5, 4.5), 3, (2, 3, 8, 8), Modality())

    def setup(self, stage):
        raise AssertionError("the specification must suffice")


class Images(CoordinateDataModule):
    """A data module of images with another range along each axis, with a specification only."""

    spec = DataSpec(domain.Grid(((0.0, 1.0), (-1.0, 1.0))), 3, (3, 4, 6), Modality(), num_instances=7)

    def setup(self, stage):
        raise AssertionError("the specification must suffice")


class Ends(torch.nn.Module):
    """A third-party part that takes the upper ends of the axes, and contains another part.

    Args:
        ends: Upper ends.
        value_dim: An argument with the name of one of the network, which this part does not declare.
        part: Another part.
    """

    from_data: ClassVar = {"ends": lambda spec: tuple(high for _, high in spec.domain.ranges)}

    def __init__(self, ends=None, value_dim=None, part=None):
        super().__init__()
        self.ends, self.value_dim, self.part = ends, value_dim, part


class Plain:
    """A part that declares nothing."""


def _part(class_path, **arguments):
    """Return the config of a part."""
    return {"class_path": class_path, "init_args": arguments}


def _ends(**arguments):
    """Return the config of an `Ends`."""
    return _part(f"{__name__}.Ends", **{"ends": None, "value_dim": None, "part": None} | arguments)


def _namespaces(config):
    """Return nested dictionaries as namespaces."""
    if not isinstance(config, dict):
        return config
    return Namespace({name: _namespaces(value) for name, value in config.items()})


def _filled(data, class_path="composers.TransformerIPC", **arguments):
    """Return the arguments of a model, completed from the specification of a data module."""
    model = _namespaces(_part(class_path, **arguments))
    state_sizes(model, Namespace({"class_path": f"{__name__}.{data}", "init_args": Namespace()}))
    return model.init_args


def _views_model(name, **arguments):
    """Return the completed arguments of a model of views with a renderer."""
    return _filled(
        "Rays",
        network=_part("composers.networks.CoordinateMLP", coord_dim=None, value_dim=None),
        encoder=_part("composers.encoders.ViewPatches", signal_shape=None, patch_size=4),
        renderer=_part(f"composers.rendering.{name}", **arguments),
    )


def test_depths_and_dimensions_come_from_the_data():
    arguments = _views_model("VolumeRenderer", near=None, far=None, samples_per_ray=9)
    assert arguments.renderer.init_args == Namespace(near=1.5, far=4.5, samples_per_ray=9)
    assert arguments.network.init_args == Namespace(coord_dim=3, value_dim=4)
    assert arguments.encoder.init_args.signal_shape == [2, 3, 8, 8]


@pytest.mark.parametrize(
    ("depths", "expected"), [({"near": 1.0, "far": None}, (1.0, 4.5)), ({"near": 0, "far": 9}, (0, 9))]
)
def test_depths_of_the_config_are_kept(depths, expected):
    renderer = _views_model("VolumeRenderer", **depths).renderer.init_args
    assert (renderer.near, renderer.far) == expected


def test_light_fields_have_no_depths():
    arguments = _views_model("LightFieldRenderer", chunk_size=5)
    assert arguments.renderer.init_args == Namespace(chunk_size=5)
    assert arguments.network.init_args == Namespace(coord_dim=6, value_dim=3)


def test_third_party_parts_take_what_they_declare_only():
    encoder = _filled("Images", encoder=_ends(part=_ends()), signal_shape=None).encoder.init_args
    assert encoder.ends == encoder.part.init_args.ends == [1.0, 1.0]
    assert encoder.value_dim is encoder.part.init_args.value_dim is None


def test_an_argument_that_a_composer_does_not_declare_stays_open():
    assert _filled("Images", encoder=_ends(), signal_shape=None).signal_shape is None


@pytest.mark.parametrize("preset", ["MetaIPC", "LearnedInit", "Functa"])
def test_composers_declare_too(preset):
    assert _filled("Images", f"composers.{preset}", signal_shape=None).signal_shape == [3, 4, 6]


def test_starts_declare_the_shape_of_the_signal_and_the_number_of_instances():
    start = _part("composers.inference.LearnedCode", num_instances=None, signal_shape=None)
    arguments = _filled("Images", "composers.Composer", start=start).start.init_args
    assert (arguments.num_instances, arguments.signal_shape) == (7, [3, 4, 6])


def test_parts_in_lists_and_dictionaries_are_found():
    plain = Namespace(class_path=f"{__name__}.Plain", init_args=Namespace(parts=[_namespaces(_ends())]))
    model = Namespace(class_path="composers.TransformerIPC", init_args=Namespace(encoder=plain))
    model.init_args["metrics"] = {"a": _namespaces(_ends())}
    state_sizes(model, Namespace({"class_path": f"{__name__}.Images", "init_args": Namespace()}))
    assert model.init_args["metrics"]["a"].init_args.ends == [1.0, 1.0]
    assert model.init_args.encoder.init_args.parts[0].init_args.ends == [1.0, 1.0]


def test_parts_of_the_network_take_the_field_behind_the_renderer():
    encoding = _part("composers.networks.GaussianFourierFeatures", coord_dim=None)
    network = _part("composers.networks.CoordinateMLP", coord_dim=None, value_dim=None, encoding=encoding)
    arguments = _filled("Images", network=network).network.init_args
    assert (arguments.coord_dim, arguments.value_dim, arguments.encoding.init_args.coord_dim) == (2, 3, 2)


@pytest.mark.parametrize(
    ("slot", "ends", "message"),
    [
        ("start", (1.0, 2.0), r"^Ends was built for ends \(1.0, 2.0\); the data has \(1.0, 1.0\): leave ends out"),
        ("network", (3.0, 3.0), r"^Ends was built for ends \(3.0, 3.0\); the data has \(1.0, 1.0\)"),
    ],
)
def test_arguments_of_the_config_are_compared_with_the_data(make_ipc, slot, ends, message):
    composer = make_ipc(encoder=Patches((3, 4, 6), 2))
    composer.check_sizes(Images())
    getattr(composer, slot).add_module("ends", Ends(ends))
    with pytest.raises(ValueError, match=message):
        composer.check_sizes(Images())


@pytest.mark.parametrize("start", [LearnedStart, ZeroStart, partial(LearnedCode, 7)], ids=["start", "zero", "code"])
def test_starts_without_an_encoder_record_the_signal_and_take_any(make_network, start):
    composer = Composer(make_network(), LowRank(3), start(signal_shape=(3, 99, 99)))
    composer.check_sizes(Images())
    assert composer.start.signal_shape == (3, 99, 99)


def test_the_number_of_learned_codes_is_compared_with_the_data(make_network):
    composer = Composer(make_network(), LowRank(3), LearnedCode(5))
    with pytest.raises(
        ValueError, match=r"^LearnedCode was built for num_instances 5; the data has 7: leave num_instances"
    ):
        composer.check_sizes(Images())
