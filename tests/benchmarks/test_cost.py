"""The training cost equals a count by hand, without data and without computation."""

import re

import pytest
import torch
from program import REPOSITORY, TESTS

from benchmarks import cost
from benchmarks.cost import Cost
from datamodules import FFHQ, CelebA, ImageNette, LibriSpeech, SamplePhotos, SuperResolution

EXPERIMENTS = sorted(
    path
    for path in (REPOSITORY / "configs" / "experiments").glob("*.yaml")
    if not path.stem.startswith(("photos_", "folder_", "speech_", "objects_", "shapes_", "digits_"))
)
COMPUTED = ("ffhq1024_patch_ipc",)  # counting computes 2 TFLOP; ffhq512_patch_ipc has the same parts


@pytest.fixture
def tiny(tmp_path):
    """Return a function that writes a config based on the tiny one of a composer; keywords are arguments of the data."""

    def make(composer, **data):
        path = tmp_path / f"{composer}.yaml"
        arguments = "".join(f"\n    {name}: {value}" for name, value in data.items())
        base = TESTS / "configs" / f"tiny_{composer}.yaml"
        path.write_text(f"_base_: {base}\ndata:\n  init_args:{arguments or ' {}'}\n")
        return path

    return make


def product(times, rows, inner, columns):
    """Return the operations of ``times`` matrix products; a product with its backward pass counts as three."""
    return times * 2 * rows * inner * columns


def by_hand(weight_tokens, heads, composition, layers, batch):
    """Return the operations of a training step of a tiny composer, product by product."""
    data_tokens, numbers, width = 4, 3 * 8 * 8, 12
    tokens = data_tokens + weight_tokens
    total = product(2, batch * data_tokens, numbers, width)  # pixels have no gradient
    for read in (tokens, weight_tokens):  # the last block computes only the weight tokens
        total += product(3, batch * read, width, width)  # queries
        total += product(3, batch * tokens, width, 2 * width)  # keys and values
        total += product(3, batch * 3 * read, width // 3, tokens)  # scores of three heads
        total += product(3, batch * 3 * read, tokens, width // 3)  # weighted values
        total += product(3, batch * read, width, width)  # projection
        total += product(3, batch * read, width, 4 * width) + product(3, batch * read, 4 * width, width)
    total += sum(product(3, batch * count, width, height) for count, height in heads)
    total += sum(product(3, batch * rows, inner, columns) for rows, inner, columns in composition)
    return total + sum(product(*layer) for layer in layers)


@pytest.mark.parametrize("noise", ["per_instance", "shared"])
def test_cost_of_ipc_equals_the_count_by_hand(tiny, noise):
    batch, points = 4, 128  # half of 16 x 16
    first = batch * points if noise == "per_instance" else points  # shared coordinates are computed once for the batch
    layers = [(2, first, 8, 8), (3, batch * points, 8, 8), (3, batch * points, 8, 3)]
    actual = cost.count(tiny("ipc", coordinate_noise=noise))
    assert actual.step_flop == by_hand(8, [(8, 8)], [(8, 8, 8)], layers, batch)
    assert (actual.tokens, actual.code_size) == ("4 data + 8 weight", 64)
    assert (actual.coordinates, actual.batch_size) == (points, batch)


def test_cost_of_transinr_equals_the_count_by_hand(tiny):
    batch, points = 5, 256
    layers = [(2, batch * points, 8, 8), (3, batch * points, 8, 8), (3, batch * points, 8, 3)]
    actual = cost.count(tiny("transinr", coordinate_subset="null"), batch_size=batch)
    assert actual.step_flop == by_hand(19, [(8, 8), (8, 8), (3, 8)], [], layers, batch)
    assert (actual.tokens, actual.code_size) == ("4 data + 19 weight", 152)
    assert (actual.coordinates, actual.batch_size) == (points, batch)


def test_parameters_are_counted(tiny):
    width = 12
    block = 4 * width + 4 * (width**2 + width) + (width * 48 + 48) + (48 * width + width)  # norms, attention, MLP
    encoder = (192 * width + width) + 4 * width + 8 * width + 2 * block  # embedding, positions, weight tokens
    head = 2 * width + width * 8 + 8
    network = 64 + 8 + 8 + 24 + 3 + 64  # layers 0 and 2 with biases, the bias of layer 1, the basis
    composer, data, epochs = cost.build(tiny("ipc"))
    assert sum(parameter.numel() for parameter in composer.parameters()) == encoder + head + network
    assert (type(data), epochs) == (SamplePhotos, 1)


@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_operations_of_convolutions_equal_the_count_by_hand(groups):
    convolution = torch.nn.Conv2d(4, 4, 3, padding="same", groups=groups)
    signal = torch.randn(2, 4, 6, 5)
    forward = 2 * (2 * 6 * 5) * 4 * (4 // groups) * 3 * 3
    for needs_gradient, products in ((True, 3), (False, 2)):
        with cost.counter() as counted:
            convolution(signal.requires_grad_(needs_gradient)).sum().backward()
        assert counted.get_total_flops() == products * forward


def test_patch_wise_networks_compute_a_step():
    actual = cost.count(REPOSITORY / "configs" / "experiments" / "photos_patch_ipc.yaml", batch_size=2)
    assert (actual.code_size, actual.coordinates, actual.batch_size) == (64 * 24, 64 * 64, 2)
    mixers = product(3, 5 * 2 * 64, 192, 2 * 3 * 192)
    assert mixers < actual.step_flop < 3 * mixers


def test_operations_of_patch_wise_networks_are_linear_in_the_instances():
    composer, data, _ = cost.build(TESTS / "configs" / "tiny_patch_ipc.yaml")
    step, batch = cost.ForwardAndBackward(composer), cost.random_batch(data, 5)
    with cost.counter() as counted:
        step(batch)
    actual = cost.count(TESTS / "configs" / "tiny_patch_ipc.yaml", batch_size=5)
    assert actual.batch_size == 5
    assert actual.step_flop == pytest.approx(counted.get_total_flops(), rel=5e-2)  # routes depend on random coordinates


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxels", "pixel_aligned"])
def test_renderers_that_skip_samples_are_counted_with_all(tmp_path, name):
    base = TESTS / "configs" / f"tiny_{name}.yaml"
    skipping = "{occupancy: {class_path: composers.rendering.Occupancy}, radius: 1.4}"
    path = tmp_path / "skipping.yaml"
    path.write_text(f"_base_: {base}\nmodel:\n  init_args:\n    renderer:\n      init_args: {skipping}\n")
    actual, dense = cost.count(path), cost.count(base)
    assert (actual.parameters, actual.coordinates) == (dense.parameters, 2 * 16)
    assert actual.step_flop == dense.step_flop


def test_steps_are_known_if_the_number_of_items_is_published():
    published = {CelebA: 162_770, FFHQ: 60_000, ImageNette: 9_469, LibriSpeech: 28_539, SamplePhotos: None}
    assert {data: cost.published_items(data()) for data in published} == published
    assert cost.published_items(SuperResolution(CelebA(), repeat=3)) == 3 * 162_770
    assert cost.published_items(SuperResolution(SamplePhotos())) is None
    sizes = {"parameters": 1, "tokens": None, "code_size": 1, "coordinates": 1, "step_flop": 1}
    assert Cost(**sizes, batch_size=16, epochs=3, items=100).steps == 18  # four are dropped
    assert Cost(**sizes, batch_size=16, epochs=None, items=100).steps is None
    assert Cost(**sizes, batch_size=16, epochs=3, items=None).steps is None


def test_main_prints_and_measures(tiny, monkeypatch, capsys):
    monkeypatch.setattr(cost, "published_items", lambda data: 30)
    steps = []
    monkeypatch.setattr(cost, "duration", lambda step, device: steps.append(step()) or float(len(steps)))
    actual = cost.main(["--config", str(tiny("ipc")), "--batch_size", "2", "--measure", "true", "--steps", "3"])
    printed = capsys.readouterr().out
    assert actual.batch_size == 2
    assert len(steps) == 4
    assert "3 s per step" in printed  # the median of 2, 3 and 4, without the warm-up step
    for part in (
        "4 data + 8 weight",
        "code size",
        "training step of 2",
        f"{actual.step_flop / 2e9:.1f} GFLOP",
        "EFLOP",
    ):
        assert part in printed


def test_measured_steps_train(tiny, monkeypatch):
    composers = []
    build = cost.build
    monkeypatch.setattr(cost, "build", lambda config: composers.append(build(config)) or composers[-1])
    monkeypatch.setattr(cost, "duration", lambda step, device: step() or 1.0)
    cost.measure(cost.CostSettings(tiny("ipc"), steps=1))
    composer = composers[0][0]
    assert composer.training
    assert torch.all(composer.network.biases["2"] != 0)  # zero before training


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"steps": 0}], ids=["batch_size", "steps"])
def test_settings_out_of_range_raise_an_error(tmp_path, arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        cost.CostSettings(tmp_path, **arguments)


def test_missing_config_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.yaml"):
        cost.build(tmp_path / "nowhere.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if path.stem not in COMPUTED], ids=lambda path: path.stem
)
def test_costs_in_experiments_equal_the_counted_ones(path):
    actual = cost.count(path)
    stated = [float(number) for number in re.findall(r"([\d.]+) (?:M|TFLOP|EFLOP)\b", path.read_text())]
    counted = [actual.parameters / 1e6, actual.step_flop / 1e12]
    if actual.steps is not None:
        counted = [counted[0], actual.steps / 1e6, counted[1], actual.steps * actual.step_flop / 1e18]
    assert stated == pytest.approx(counted, rel=5e-3)
