"""What training costs is counted as a hand formula counts it, without data and without computing."""

import re

import pytest
import torch
from program import REPOSITORY, TESTS

from benchmarks import cost
from benchmarks.cost import Cost
from datamodules import FFHQ, CelebA, ImageNette, LibriSpeech, SamplePhotos

EXPERIMENTS = sorted(
    path
    for path in (REPOSITORY / "configs" / "experiments").glob("*.yaml")
    if not path.stem.startswith(("photos_", "folder_", "speech_", "objects_"))
)


@pytest.fixture
def tiny(tmp_path):
    """Return a maker of YAML files laid over the tiny config of a composer; keywords are arguments of the data."""

    def make(composer, **data):
        path = tmp_path / f"{composer}.yaml"
        arguments = "".join(f"\n    {name}: {value}" for name, value in data.items())
        base = TESTS / "configs" / f"tiny_{composer}.yaml"
        path.write_text(f"_base_: {base}\ndata:\n  init_args:{arguments or ' {}'}\n")
        return path

    return make


def product(times, rows, inner, columns):
    """Return the operations of ``times`` products of matrices, forward and backward of one being three."""
    return times * 2 * rows * inner * columns


def by_hand(weight_tokens, heads, composition, layers, batch):
    """Return the operations of a training step of a tiny composer, product by product."""
    data_tokens, numbers, width = 4, 3 * 8 * 8, 12
    tokens = data_tokens + weight_tokens
    total = product(2, batch * data_tokens, numbers, width)  # of pixels there is no gradient
    for read in (tokens, weight_tokens):  # the last block computes what is read
        total += product(3, batch * read, width, width)  # queries
        total += product(3, batch * tokens, width, 2 * width)  # keys and values
        total += product(3, batch * 3 * read, width // 3, tokens)  # scores of three heads
        total += product(3, batch * 3 * read, tokens, width // 3)  # what they gather
        total += product(3, batch * read, width, width)  # projection
        total += product(3, batch * read, width, 4 * width) + product(3, batch * read, 4 * width, width)
    total += sum(product(3, batch * count, width, height) for count, height in heads)
    total += sum(product(3, batch * rows, inner, columns) for rows, inner, columns in composition)
    return total + sum(product(*layer) for layer in layers)


@pytest.mark.parametrize("noise", ["per_instance", "shared"])
def test_ipc_is_counted_as_by_hand(tiny, noise):
    batch, points = 4, 128  # half of 16 x 16
    first = batch * points if noise == "per_instance" else points  # shared coordinates are computed once for the batch
    layers = [(2, first, 8, 8), (3, batch * points, 8, 8), (3, batch * points, 8, 3)]
    found = cost.count(tiny("ipc", coordinate_noise=noise))
    assert found.step_flop == by_hand(8, [(8, 8)], [(8, 8, 8)], layers, batch)
    assert (found.data_tokens, found.weight_tokens, found.code_numbers) == (4, 8, 64)
    assert (found.coordinates, found.batch_size) == (points, batch)


def test_transinr_is_counted_as_by_hand(tiny):
    batch, points = 5, 256
    layers = [(2, batch * points, 8, 8), (3, batch * points, 8, 8), (3, batch * points, 8, 3)]
    found = cost.count(tiny("transinr", coordinate_subset="null"), batch_size=batch)
    assert found.step_flop == by_hand(19, [(8, 8), (8, 8), (3, 8)], [], layers, batch)
    assert (found.data_tokens, found.weight_tokens, found.code_numbers) == (4, 19, 152)
    assert (found.coordinates, found.batch_size) == (points, batch)


def test_parameters_are_counted(tiny):
    width = 12
    block = 4 * width + 4 * (width**2 + width) + (width * 48 + 48) + (48 * width + width)  # norms, attention, MLP
    encoder = (192 * width + width) + 4 * width + 8 * width + 2 * block  # embedding, positions, weight tokens
    head = 2 * width + width * 8 + 8
    network = 64 + 8 + 8 + 24 + 3 + 64  # layers 0 and 2 with biases, the bias of layer 1, the basis
    composer, data, epochs = cost.build(tiny("ipc"))
    assert sum(parameter.numel() for parameter in composer.parameters()) == encoder + head + network
    assert (type(data), epochs) == (SamplePhotos, 1)


def test_the_run_is_known_where_the_published_items_are():
    published = {CelebA: 162_770, FFHQ: 60_000, ImageNette: 9_469, LibriSpeech: 28_539, SamplePhotos: None}
    assert {data: cost.published_items(data()) for data in published} == published
    sizes = {"parameters": 1, "data_tokens": 0, "weight_tokens": 0, "code_numbers": 1, "coordinates": 1, "step_flop": 1}
    assert Cost(**sizes, batch_size=16, epochs=3, items=100).steps == 18  # four left over
    assert Cost(**sizes, batch_size=16, epochs=None, items=100).steps is None
    assert Cost(**sizes, batch_size=16, epochs=3, items=None).steps is None


def test_main_prints_and_measures(tiny, monkeypatch, capsys):
    monkeypatch.setattr(cost, "published_items", lambda data: 30)
    steps = []
    monkeypatch.setattr(cost, "duration", lambda step, device: steps.append(step()) or float(len(steps)))
    found = cost.main(["--config", str(tiny("ipc")), "--batch_size", "2", "--measure", "true", "--steps", "3"])
    printed = capsys.readouterr().out
    assert found.batch_size == 2
    assert len(steps) == 4
    assert "3 s a step" in printed  # the median of 2, 3 and 4: the first is not counted
    for part in (
        "4 data + 8 weight",
        "64 numbers",
        "training step of 2",
        f"{found.step_flop / 2e9:.1f} GFLOP",
        "EFLOP",
    ):
        assert part in printed


def test_a_measured_step_trains(tiny, monkeypatch):
    composers = []
    build = cost.build
    monkeypatch.setattr(cost, "build", lambda config: composers.append(build(config)) or composers[-1])
    monkeypatch.setattr(cost, "duration", lambda step, device: step() or 1.0)
    cost.measure(cost.CostSettings(tiny("ipc"), steps=1))
    composer = composers[0][0]
    assert composer.training
    assert torch.all(composer.network.biases["2"] != 0)  # zero before training


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"steps": 0}], ids=["batch_size", "steps"])
def test_settings_are_checked(tmp_path, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        cost.CostSettings(tmp_path, **wrong)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.yaml"):
        cost.build(tmp_path / "nowhere.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_costs_that_experiments_state_are_the_counted_ones(path):
    found = cost.count(path)
    stated = [float(number) for number in re.findall(r"([\d.]+) (?:M|TFLOP|EFLOP)\b", path.read_text())]
    counted = [found.parameters / 1e6, found.step_flop / 1e12]
    if found.steps is not None:
        counted = [counted[0], found.steps / 1e6, counted[1], found.steps * found.step_flop / 1e18]
    assert stated == pytest.approx(counted, rel=5e-3)
