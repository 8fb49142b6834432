"""The plain formulation equals ours, and the benchmark refuses to time what differs."""

import csv
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import decode, loading, reference, speed
from benchmarks.reference import from_composer
from composers.networks import Sine
from datamodules.domain import jitter
from modalities.images import render, to_image

TINY = [
    *("--size=8", "--batch_size=2", "--patch_size=4", "--padding=0", "--embed_dim=12", "--num_blocks=2"),
    *("--num_heads=3", "--hidden_dim=8", "--num_layers=3", "--num_frequencies=2", "--steps=2"),
]

IPC = {
    "published": ({}, {}),
    "rank": ({"rank": 4}, {}),
    "base_weight": ({"base_weight": True}, {}),
    "base_weight_and_rank": ({"base_weight": True, "rank": 2}, {}),
    "not_factorized": ({"factorized": False}, {}),
    "grouped_tokens": ({"num_weight_tokens": 4}, {}),
    "first_layer": ({}, {"modulated_layers": [0]}),
    "several_layers": ({"base_weight": True}, {"modulated_layers": [0, 2, 3]}),
    "not_normalised": ({}, {"normalize_weights": False}),
}


def wake(composer):
    """Give heads that start at zero a prediction, so that there is something to compare."""
    for head in composer.hypernet.heads.values():
        torch.nn.init.normal_(head[1].weight, std=0.3)
    return composer.eval()


def assert_equal(composer, batch, coords):
    """Compare values and the gradients of every parameter."""
    plain = from_composer(composer)
    parameters = list(composer.parameters())
    outcomes = []
    for model in (composer, plain):
        values = model(batch.observation, coords)
        loss = (values - batch.query.values).square().mean()
        outcomes.append((values, torch.autograd.grad(loss, parameters)))
    (ours, our_gradients), (theirs, their_gradients) = outcomes
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for found, wanted in zip(our_gradients, their_gradients, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("shared", [True, False], ids=["shared_coords", "own_coords"])
@pytest.mark.parametrize("case", IPC)
def test_plain_ipc_equals_ours(make_ipc, make_inr, tiny_batch, case, shared):
    changes, inr_changes = IPC[case]
    composer = wake(make_ipc(inr=make_inr(**inr_changes), **changes))
    coords = tiny_batch.query.coords
    if not shared:
        coords = jitter(coords.repeat(3, 1, 1), (0.1, 0.1), torch.Generator())
    assert_equal(composer, tiny_batch, coords)


def test_plain_transinr_equals_ours(make_transinr, tiny_batch):
    assert_equal(wake(make_transinr()), tiny_batch, tiny_batch.query.coords)


def test_plain_formulation_shares_parameters_and_mode(make_ipc):
    composer = make_ipc(base_weight=True)
    plain = from_composer(composer)
    assert {id(parameter) for parameter in plain.parameters()} == {id(parameter) for parameter in composer.parameters()}
    composer.eval()
    assert not plain.hypernet.hypernet.transformer.blocks[0].dropout.training


def test_plain_formulation_refuses_what_it_does_not_know(make_ipc, make_inr):
    with pytest.raises(TypeError, match="Sine"):
        from_composer(make_ipc(inr=make_inr(activation=Sine())))
    with pytest.raises(TypeError, match="Linear"):
        from_composer(torch.nn.Linear(1, 1))


def test_main_measures_and_appends(tmp_path, capsys):
    path = tmp_path / "new" / "speed.csv"
    measured = [speed.main([*TINY, f"--csv={path}", f"--shared_coords={shared}"]) for shared in ("true", "false")]
    assert "largest difference of values" in capsys.readouterr().out
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["section"] for row in rows] == 2 * (2 * ["whole model"] + 2 * ["coordinate network"])
    assert [row["work"] for row in rows] == 4 * ["training step", "evaluation"]
    assert [float(row["ratio"]) for row in rows] == [one.ratio for found in measured for one in found]
    assert {row["size"] for row in rows} == {"8"}
    assert {row["torch"] for row in rows} == {torch.__version__}
    for one in (found[i] for found in measured for i in (0, 2)):
        assert 0 < one.ours_saved_mb < one.reference_saved_mb
        assert one.ratio_low <= one.ratio <= one.ratio_high


def test_other_columns_are_refused_before_anything_is_timed(monkeypatch, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("a,b\n1,2\n")
    monkeypatch.setattr(speed, "build", partial(pytest.fail, "was built"))
    with pytest.raises(ValueError, match="another --csv"):
        speed.main([*TINY, f"--csv={path}"])
    assert path.read_text() == "a,b\n1,2\n"


def double_gradient(self, layer, columns, original):
    weight = original(self, layer, columns)
    return 2 * weight - weight.detach()


def nothing(attention, tokens):
    return 0 * tokens


def not_a_number(self, coords, original):
    return original(self, coords) * float("nan")


@pytest.mark.parametrize(
    ("owner", "name", "disturbance"),
    [
        (reference, "_plain_attention", nothing),
        (reference.PlainIPC, "weight", double_gradient),
        (reference.PlainCoordinateMLP, "_encode", not_a_number),
    ],
)
def test_main_refuses_to_time_what_differs(monkeypatch, owner, name, disturbance):
    original = getattr(owner, name)

    def disturbed(*arguments):
        return disturbance(*arguments) if disturbance is nothing else disturbance(*arguments, original=original)

    monkeypatch.setattr(owner, name, disturbed)
    monkeypatch.setattr(speed, "duration", partial(pytest.fail, "was timed"))
    with pytest.raises(ValueError, match=r"formulations of the .* differ"):
        speed.main(TINY)


def test_sound_is_timed_too(capsys):
    found = speed.main([*TINY, "--axes=1", "--channels=1", "--size=40"])
    assert [one.work for one in found] == ["training step", "evaluation"] * 2
    assert "axes 1" in capsys.readouterr().out


def test_settings_are_checked():
    with pytest.raises(ValueError, match="axes is 3"):
        speed.SpeedSettings(axes=3)
    with pytest.raises(ValueError, match="steps 1"):
        speed.SpeedSettings(steps=1)


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    parameter = torch.ones(10, requires_grad=True)

    def evaluate():
        hidden = 2 * parameter
        return hidden * hidden * parameter  # keeps hidden, its square and the parameter

    contest = speed.Contest("", evaluate, evaluate, [parameter], torch.zeros(10))
    assert speed.saved_bytes(contest, evaluate) == 4 * 10 * 4  # and the values and the target for the loss


def test_quartiles_are_of_neighbouring_runs():
    found = speed.summarise("", "", [[1, 2, 4], [2, 8, 4]], [10**6, 3 * 10**6])
    assert (found.ours_seconds, found.reference_seconds) == (2, 4)
    assert (found.ratio_low, found.ratio, found.ratio_high) == (1.5, 2, 3)
    assert (found.ours_saved_mb, found.reference_saved_mb) == (1, 3)


@pytest.mark.slow
def test_decodings_are_measured_in_processes_of_their_own(tmp_path, capsys):
    table = tmp_path / "decode.csv"
    for _ in range(2):
        decode.main(["--size=256", "--limits=[200,5]", "--repeats=1", f"--csv={table}"])
    assert "256 x 256 pixels" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size"], row["limit [MB]"]) for row in rows] == [("256", "200"), ("256", "5")] * 2
    for row in rows:
        assert float(row["peak [MB]"]) < 300
        assert float(row["megapixels per second"]) > 0
    assert float(rows[0]["speed-up over the first"]) == 1
    with pytest.raises(ValueError, match="repeats 0"):
        decode.DecodeSettings(repeats=0)


def test_a_decoding_is_measured_and_the_plain_one_makes_the_same_image(monkeypatch):
    made = []
    monkeypatch.setattr(decode, "to_image", lambda *args: made.append(to_image(*args)))
    monkeypatch.setattr(decode, "render", lambda *args, **options: made.append(render(*args, **options)))
    for limit in (100.0, 0.0):
        torch.manual_seed(0)
        measured = decode.measure("photos_ipc", 48, limit)
        assert measured.seconds > 0
        assert measured.peak_mb >= 0
    small, limited, again, plain = (np.asarray(image).astype(int) for image in made)
    assert np.abs(small - again).max() <= 1
    assert limited.shape == plain.shape == (48, 48, 3)
    assert np.abs(limited - plain).max() <= 1


def test_loading_is_measured_with_and_without_the_cache(tmp_path, capsys):
    table = tmp_path / "loading.csv"
    arguments = ["--count=40", "--short_side=24", "--size=16", "--batch_size=4", "--epochs=2", "--uncached=12"]
    loading.main([*arguments, "--workers=[0]", f"--folder={tmp_path}", f"--csv={table}"])
    assert "40 JPEGs, crops of 16 pixels" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == [
        "building or verifying the cache",
        "with the cache",
        "without the cache",
    ]
    assert all(float(row["images/s"].replace(",", "")) > 0 for row in rows)
    data = loading.data_of(
        loading.LoadingSettings(count=40, short_side=24, size=16, batch_size=4), tmp_path / "images", None, 0
    )
    assert len(data.train_set) == 39
    assert all(min(data.train_set[index].values.shape[1:]) == 24 for index in range(39))
    assert len({data.train_set[index].values.shape for index in range(39)}) > 5
    with pytest.raises(ValueError, match="uncached 3"):
        loading.LoadingSettings(uncached=3)
