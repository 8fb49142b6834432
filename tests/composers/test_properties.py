"""Properties of every preset and combination, found by enumeration: each is built tiny from its YAML."""

import ast
import contextlib
import copy
import functools
import inspect
import pkgutil
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from program import REPOSITORY, TESTS
from scene_cameras import cameras
from torch.nn.parallel import DistributedDataParallel

import composers
from composers import Composer, Refinement
from composers.codes import InstanceCode, decode, encoded, fingerprint, quantized, read_code, steps_taken
from composers.construction import state_data, stated_domain
from composers.rendering import PointRenderer, Renderer, VolumeRenderer
from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from datamodules.configuration import instantiate, load_layers
from datamodules.domain import CellGrid, Grid, Rays
from datamodules.spec import DataSpec, declared
from datamodules.tiles import whole
from modalities import Images, PosedViews

SHAPE = (8, 8)
SPEC = DataSpec(Grid.unit(2), 3, (3, *SHAPE), Images(), num_instances=12)
SPECS = {  # of presets for other data, by their class or that of their renderer
    "LIIF": SPEC._replace(domain=CellGrid.unit(2), scales=(1.0, 4.0)),
    "SignedDistance": SPEC._replace(value_dim=1, signal_shape=(1, *SHAPE)),
}
VIEWS = DataSpec(Rays(2.0, 6.0), 3, (2, 3, *SHAPE), PosedViews(), num_instances=12)
OF_VIEWS = ("VoxelMLP", "PixelAlignedMLP")  # networks of models that observe posed views and render rays
RENDERER = {
    "class_path": "composers.rendering.VolumeRenderer",
    "init_args": {"samples_per_ray": 6, "density": "softplus"},
}
SIZES = {  # arguments of parts, by class
    "CoordinateMLP": {"hidden_dim": 8, "num_layers": 5},
    "AttentiveMLP": {"token_dim": 6, "num_tokens": 5, "hidden_dim": 8, "num_hidden": 2},
    "BandedMLP": {
        "token_dim": 6,
        "num_tokens": 5,
        "hidden_dim": 8,
        "bands": [2.0, 4.0],
        "query_frequency": 2.0,
        "num_frequencies": 2,
    },
    "TokenAttention": {"num_heads": 2, "head_dim": 4},
    "ANR": {"num_decoder_layers": 2},
    "FourierFeatures": {"num_frequencies": 2, "max_frequency": 4},
    "Sine": {"omega": 5},
    "Patches": {"patch_size": 4, "padding": 0},
    "PatchwiseMLP": {"patch_size": 4, "hidden_dim": 8, "rank": 3},
    "MixedPatches": {"patch_size": 4, "num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1},
    "PatchCodes": {"code_dim": 6, "num_clusters": 4, "num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1},
    "Transformer": {"embed_dim": 12, "num_blocks": 2, "num_heads": 3, "residual_dropout": 0.0},
    "Functa": {"latent_dim": 6},
    "LocalMLP": {"feature_dim": 6, "hidden_dim": 8, "num_hidden": 2},
    "EDSR": {"width": 6, "num_blocks": 1},
    "VoxelMLP": {"feature_dim": 4, "hidden_dim": 6},
    "ViewVoxels": {"grid_size": 4, "width": 4, "view_width": 4},
    "PixelAlignedMLP": {"feature_dim": 4, "hidden_dim": 6},
    "ViewFeatures": {"width": 4},
    "ClampedAbsoluteError": {"limit": 2.0},  # above the values of the tests
}
PRESETS = {
    name: kind
    for name, kind in vars(composers).items()
    if inspect.isclass(kind) and issubclass(kind, Composer) and kind is not Composer
}


def _model(path):
    """Return the model of a YAML file with its bases."""
    with contextlib.chdir(path.parent):
        return load_layers(path.read_text()).get("model")


FOLDERS = (REPOSITORY / "configs" / "composers", TESTS / "configs" / "combinations")
MODELS = {path.stem: _model(path) for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}
SUBJECTS = [name for name, model in MODELS.items() if "class_path" in model]
SCENES = [
    name for name in SUBJECTS if MODELS[name]["init_args"]["network"]["class_path"].rpartition(".")[2] in OF_VIEWS
]
for _scene in SCENES:
    MODELS[_scene]["init_args"]["renderer"] = RENDERER


def _spec(name):
    """Return the specification of the data of a YAML."""
    if name in SCENES:
        return VIEWS
    model = MODELS[name]
    parts = (model, model["init_args"].get("renderer") or {})
    kinds = [part.get("class_path", "").rpartition(".")[2] for part in parts]
    return next((SPECS[kind] for kind in kinds if kind in SPECS), SPEC)


def _states_places(size):
    """Return whether a size is null, as many as the signal has, or a number per axis, and is kept."""
    return size is None or (isinstance(size, list) and all(isinstance(number, int) for number in size))


def _tiny(part, spec):
    """Return the config of a part with small sizes, and with what it takes from the data."""
    if not isinstance(part, dict):
        return part
    if "class_path" not in part:
        return {name: _tiny(value, spec) for name, value in part.items()}
    kind, arguments = pkgutil.resolve_name(part["class_path"]), part.get("init_args", {})
    field = instantiate(Renderer, arguments["renderer"]).field_spec(spec) if "renderer" in arguments else spec
    arguments = {name: _tiny(value, field if name in Composer.of_field else spec) for name, value in arguments.items()}
    sizes = SIZES.get(kind.__name__, {})
    arguments |= {name: size for name, size in sizes.items() if not _states_places(arguments.get(name, size))}
    arguments |= {name: of(spec) for name, of in declared(kind).items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    return {"class_path": part["class_path"], "init_args": plain}


def _build(name):
    """Return a copy of the tiny composer of a YAML, in evaluation mode, with disturbed biases."""
    return copy.deepcopy(_built(name))


@functools.cache
def _built(name):
    """Return the composer that `_build` copies."""
    torch.manual_seed(0)
    spec = _spec(name)
    composer = state_data(composers.build(_tiny(MODELS[name], spec)), spec).eval()
    for key, parameter in composer.network.named_parameters():
        if "bias" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return composer


def _is_of_views(composer):
    """Return whether a composer observes posed views."""
    return isinstance(composer.renderer, VolumeRenderer)


def _scenes(instances=slice(None)):
    """Return two support views of some of four scenes, with the rays of both and their colours."""
    images = torch.rand(4, 2, 3, *SHAPE, generator=torch.Generator().manual_seed(1))[instances]
    poses, intrinsics = (tensor.expand(len(images), *tensor.shape) for tensor in cameras(2, SHAPE[0]))
    samples = Samples(Rays().coords((2, *SHAPE), cameras=(poses, intrinsics)), images.flatten(3).mT.flatten(1, 2))
    index = torch.tensor([5, 0, 7, 2])[instances]
    observation = Observation(Views(images, poses, intrinsics), samples, index)
    return CoordinateBatch(observation, samples, (2, *SHAPE), [f"scene {i}" for i in index.tolist()])


def _channels(composer):
    """Return the channels of the data of a composer."""
    return SPECS.get(type(composer).__name__, SPEC).value_dim


def _batch(composer, instances=slice(None)):
    """Return some of four training instances, with coordinates of the domain of a composer."""
    if _is_of_views(composer):
        return _scenes(instances)
    signal = torch.rand(4, 3, *SHAPE, generator=torch.Generator().manual_seed(1))[instances, : _channels(composer)]
    samples = Samples(stated_domain(composer).coords(SHAPE), signal.flatten(2).mT)
    index = torch.tensor([5, 0, 7, 2])[instances]
    return CoordinateBatch(Observation(signal, samples, index), samples, SHAPE, [f"image {i}" for i in index.tolist()])


@pytest.fixture(params=SUBJECTS)
def composer(request):
    """Return the tiny composer of every YAML."""
    return _build(request.param)


@pytest.fixture(params=[name for name in SUBJECTS if name not in SCENES])
def decodable(request):
    """Return the tiny composer of every YAML whose codes are decoded on a grid."""
    return _build(request.param)


@pytest.fixture
def pixels():
    """Return an image."""
    return torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)


def _encode(composer, pixels, refinement=None):
    """Return the code of an image, or of the first scene, at its size."""
    refinement = refinement or composer.refinement
    if _is_of_views(composer):
        observation = _scenes([0]).observation
        latents, layout = encoded(composer, [observation], refinement), composer.layout(observation)
        return InstanceCode(latents, [whole(SHAPE)], SHAPE, fingerprint(composer), domain=Rays(2.0, 6.0), layout=layout)
    signal = pixels[None, : _channels(composer)].float() / 255
    domain = stated_domain(composer)
    observation = Observation(signal, Samples(domain.coords(SHAPE), signal.flatten(2).mT))
    latents, layout = encoded(composer, [observation], refinement), composer.layout(observation)
    facts = steps_taken(composer, refinement.steps)
    return InstanceCode(latents, [whole(SHAPE)], SHAPE, fingerprint(composer), "", facts, domain=domain, layout=layout)


def _decoded(composer, code, shape=None):
    """Return the decoded code, or the rendered views of a scene."""
    if _is_of_views(composer):
        with torch.no_grad():
            return composer.render(composer.compose(code.latents, code.layout), _scenes([0]).query.coords)
    return torch.cat(list(decode(composer, code, shape)))


def test_every_preset_has_a_yaml():
    assert {MODELS[name]["class_path"] for name in SUBJECTS} == {
        "composers.Composer",
        *(f"composers.{name}" for name in PRESETS),
    }


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_only_names_its_parts(preset):
    path = Path(inspect.getfile(preset))
    assert len(path.read_text().splitlines()) <= 40
    [definition] = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in ast.walk(definition) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert functions == ["__init__"]


def test_a_code_file_round_trips(composer, pixels, tmp_path):
    code = _encode(composer, pixels, refinement=Refinement(2))
    code.save(tmp_path / "code.safetensors")
    restored = read_code(tmp_path / "code.safetensors")
    assert restored.latents.keys() == code.latents.keys() == composer.parametrization.latents.keys()
    for name, latent in code.latents.items():
        assert torch.equal(restored.latents[name], latent)
    for field in ("shape", "model", "name", "facts", "domain", "layout"):
        assert getattr(restored, field) == getattr(code, field)
    assert [tuple(box) for box in restored.boxes] == [tuple(box) for box in code.boxes]
    decoded = _decoded(composer, code)
    assert torch.equal(_decoded(composer, restored), decoded)
    for bits in (4, 16):
        compressed = quantized(code, composer, bits)
        compressed.save(tmp_path / "code.inr")
        restored = read_code(tmp_path / "code.inr")
        restored.check(composer)
        for name, spec in composer.parametrization.latents.items():
            assert torch.equal(restored.latents[name], compressed.latents[name])
            assert torch.equal(restored.latents[name], code.latents[name]) or not spec.constant
    torch.testing.assert_close(_decoded(composer, restored), decoded, rtol=1e-2, atol=1e-2)


def test_a_decoded_code_equals_the_rendered_latents(decodable, pixels):
    composer = decodable
    code = _encode(composer, pixels, refinement=Refinement(2))
    with torch.no_grad():
        values = composer.render(composer.compose(code.latents, code.layout), code.domain.coords(SHAPE))[0]
    torch.testing.assert_close(_decoded(composer, code).flatten(0, 1), values, atol=1e-5, rtol=0)


def test_decoding_at_three_times_the_size_agrees_at_shared_centres(decodable, pixels):
    composer = decodable
    code = _encode(composer, pixels, refinement=Refinement(2))
    enlarged, values = _decoded(composer, code, tuple(3 * size for size in SHAPE)), _decoded(composer, code)
    if isinstance(code.domain, CellGrid):  # the size of a query is an input
        assert (enlarged[1::3, 1::3] - values).abs().max() > 1e-3
        places, sizes = code.domain.coords([3 * size for size in SHAPE]), code.domain.coords(SHAPE)[:1, 2:]
        with torch.no_grad():
            field = composer.compose(code.latents, code.layout)
            enlarged = composer.render(field, torch.cat((places[:, :2], sizes.expand(len(places), -1)), dim=1))[0]
        enlarged = enlarged.unflatten(0, [3 * size for size in SHAPE])
    torch.testing.assert_close(enlarged[1::3, 1::3], values, atol=1e-4, rtol=0)


def test_thirty_refinement_steps_do_not_raise_the_loss(composer):
    batch = _batch(composer)
    with torch.no_grad():
        predicted = composer.encode(batch.observation)
    layout = composer.layout(batch.observation)
    refined = composer.refine(predicted, batch.query, Refinement(30, report=()), layout)
    with torch.no_grad():
        first, last = (
            composer.loss(composer.reconstruct(composer.compose(latents, layout), batch.query.coords), batch.query)
            for latents in (refined[0], refined[30])
        )
    assert (last <= first).all()
    assert (last < first).any()


def test_permuting_instances_permutes_outputs(composer):
    order = [2, 0, 3, 1]
    composer.refinement = composer.refinement.with_steps(min(composer.refinement.steps, 5))
    with torch.no_grad():
        evaluation, permuted = (
            composer._evaluate(_batch(composer, instances), "predict") for instances in (slice(None), order)
        )
        for step, values in evaluation["values"].items():
            torch.testing.assert_close(permuted["values"][step], values[order], atol=1e-4, rtol=0)
        composer.train()
        trained, permuted = (
            composer.encode(_batch(composer, instances).observation) for instances in (slice(None), order)
        )
        for name, latent in trained.items():
            torch.testing.assert_close(permuted[name], latent[order], atol=1e-5, rtol=0)


def test_chunked_equals_unchunked(composer):
    batch = _batch(composer)
    with torch.no_grad():
        renderer = partial(VolumeRenderer, 2.0, 6.0, 6) if _is_of_views(composer) else PointRenderer
        composer.renderer = renderer(chunk_size=1 << 20)
        unchunked = composer(batch.observation, batch.query.coords)
        composer.renderer = renderer(chunk_size=7)
        chunked = composer(batch.observation, batch.query.coords)
    torch.testing.assert_close(chunked, unchunked, atol=1e-5, rtol=0)


class _TrainingLoss(torch.nn.Module):
    """The loss of a training step as a module, for `DistributedDataParallel`.

    Args:
        composer: Put into training mode.
    """

    def __init__(self, composer):
        super().__init__()
        self.composer = composer.train()

    def forward(self, instances):
        """Return the mean loss of some instances."""
        return self.composer._evaluate(_batch(self.composer, instances), "train")["losses"].mean()


def _gradients(composer):
    """Return the gradient of every trained parameter, by name."""
    return {name: parameter.grad for name, parameter in composer.named_parameters() if parameter.requires_grad}


def _train_distributed(rank, port, folder):
    """Compute the gradients of every subject on half of the batch in one of two processes, and save them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    for name in SUBJECTS:
        composer = _build(name)
        distributed = DistributedDataParallel(_TrainingLoss(composer))  # must live until the backward pass
        distributed([2 * rank, 2 * rank + 1]).backward()
        torch.save(_gradients(composer), Path(folder, f"{name}-{rank}.pt"))
        del distributed  # its reducer would delete the group with the GIL, for which a thread of the group may wait
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_distributed, (port, str(tmp_path)), nprocs=2)
    for name in SUBJECTS:
        composer = _build(name)
        _TrainingLoss(composer)([0, 1, 2, 3]).backward()
        for rank in (0, 1):
            distributed = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert distributed.keys() == _gradients(composer).keys()
            for key, gradient in _gradients(composer).items():
                difference = (distributed[key] - gradient).abs().max()
                assert difference <= 1e-4 * gradient.abs().max() + 1e-7, (name, key)
