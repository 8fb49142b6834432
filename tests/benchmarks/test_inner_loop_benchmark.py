"""The plain inner loop equals that of the composers, and the benchmark of inner loops."""

import csv

import pytest
import torch

from benchmarks import inner_loop, reference
from benchmarks.inner_loop import Alive, InnerLoopSettings, main
from benchmarks.reference import PlainComposer
from composers import Functa, GradientSteps, LearnedInit, MetaIPC
from composers.inference import DifferentiableSGD
from composers.networks import Sine
from datamodules.domain import jitter

TINY = [
    *("--size=6", "--batch_size=2", "--hidden_dim=8", "--num_layers=3", "--num_frequencies=2"),
    *("--repeats=2", "--evaluation_batch_sizes=[2]"),
]
TIMED = [*TINY, "--parts=[training,evaluation]"]
METHODS = {
    "meta_ipc": lambda make_network, inner: MetaIPC(make_network(modulated_layers=[1]), inner),
    "meta_ipc_with_rank": lambda make_network, inner: MetaIPC(make_network(modulated_layers=[0, 2]), inner, rank=3),
    "learned_init": lambda make_network, inner: LearnedInit(make_network(modulated_layers="all"), inner),
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared_coords", "coords_per_instance"])
@pytest.mark.parametrize("method", METHODS)
def test_plain_inner_loop_equals_the_composer(make_network, tiny_batch, method, shared):
    composer = METHODS[method](make_network, GradientSteps(3, DifferentiableSGD(0.01)))
    samples = tiny_batch.query
    if not shared:
        samples = samples._replace(coords=jitter(samples.coords.repeat(3, 1, 1), (0.1, 0.1), torch.Generator()))
    observation = tiny_batch.observation._replace(samples=samples)
    results = []
    for model in (composer, PlainComposer(composer)):
        values = model(observation, samples.coords)
        loss = (values - samples.values).square().mean()
        results.append((values, torch.autograd.grad(loss, list(composer.parameters()))))
    (actual, actual_gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for actual, expected in zip(actual_gradients, expected_gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_plain_inner_loop_keeps_no_graph_in_evaluation_and_a_history_on_request(make_network, tiny_batch):
    composer = METHODS["meta_ipc"](make_network, GradientSteps(2)).eval()
    plain, without_history = PlainComposer(composer), PlainComposer(composer, keep_history=False)
    with torch.no_grad():
        expected = composer.encode(tiny_batch.observation)["patterns.1"]
        actual = plain.encode(tiny_batch.observation)["patterns.1"]
        without_history.encode(tiny_batch.observation)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    history = plain.inner.history
    assert [values.shape for values, _ in history] == 2 * [tiny_batch.query.values.shape]
    assert torch.equal(history[-1][1]["patterns.1"], actual)
    assert history[-1][1]["patterns.1"].data_ptr() != actual.data_ptr()
    assert without_history.inner.history == []


def test_other_inner_loops_raise_an_error(make_network):
    with pytest.raises(TypeError, match="Shifts"):
        PlainComposer(Functa(make_network(modulated_layers="hidden", modulates="shifts"), GradientSteps()))
    with pytest.raises(TypeError, match="Sine"):
        PlainComposer(MetaIPC(make_network(activation=Sine()), GradientSteps()))
    for inner in (
        GradientSteps(rule=DifferentiableSGD(learned_lr=["step"])),
        GradientSteps(rule=DifferentiableSGD(outer="first_order")),
        GradientSteps(samples_per_step=4),
    ):
        with pytest.raises(ValueError, match="published settings only"):
            PlainComposer(METHODS["meta_ipc"](make_network, inner))
    for changes in ({"normalize_weights": False}, {"modulates": "both"}):
        network = make_network(modulated_layers="all", **changes)
        with pytest.raises(ValueError, match="set normalize_weights to true and modulates to weights"):
            PlainComposer(LearnedInit(network, GradientSteps()))


def test_main_times_and_appends(tmp_path, capsys):
    path = tmp_path / "new" / "inner_loop.csv"
    measurements = main([*TIMED, f"--csv={path}"])
    printed = capsys.readouterr().out
    assert printed.count("largest difference of values") == 2
    assert "plain without history" in printed
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["part"], float(row["ratio"])) for row in rows] == [
        (measurement.part, measurement.ratio) for measurement in measurements
    ]
    assert [row["part"] for row in rows] == 6 * ["training"] + 6 * ["evaluation"]
    assert [row["case"] for row in rows][6:8] == [
        "MetaIPC, batch of 2, an inner step",
        "MetaIPC, batch of 2, the first step and the final loss",
    ]
    assert {(row["size"], row["unit"], row["torch"]) for row in rows} == {("6", "s", torch.__version__)}
    for measurement in measurements:
        assert measurement.other > 0
        assert measurement.ratio_low <= measurement.ratio <= measurement.ratio_high


def test_time_of_later_steps_excludes_the_first_step_and_the_final_loss(monkeypatch):
    seconds = {"forward": [1.0, 2.0], "1": [3.0, 5.0], "3": [7.0, 13.0]}
    monkeypatch.setattr(inner_loop, "alternate", lambda sides, settings: {name: seconds[name] for name in sides})
    settings = InnerLoopSettings(size=4, hidden_dim=8, num_layers=3, num_frequencies=2, evaluation_batch_sizes=(1,))
    step, first = inner_loop.compare_evaluation(settings, None)[:2]
    assert (step.amount, step.other, step.ratio) == (3, 1.5, 2)  # (7 - 3) / 2 and (13 - 5) / 2
    assert (first.amount, first.ratio) == (4, 2.75)


def wrong_step(latents, updated):
    return {name: latent - 1e-3 for name, latent in updated.items()}


def first_order(latents, updated):
    return {name: latents[name] + (latent - latents[name]).detach() for name, latent in updated.items()}


@pytest.mark.parametrize("disturb", [wrong_step, first_order])
def test_differing_formulations_raise_an_error_before_timing(monkeypatch, disturb):
    original = reference.PlainInnerLoop.step
    monkeypatch.setattr(
        reference.PlainInnerLoop,
        "step",
        lambda self, latents, *arguments: disturb(latents, original(self, latents, *arguments)),
    )
    monkeypatch.setattr(inner_loop, "duration", lambda *_: pytest.fail("was timed"))
    with pytest.raises(ValueError, match="formulations of the inner loop differ"):
        main([*TINY, "--parts=[training]"])


def test_alive_counts_every_storage_until_it_is_freed():
    excluded = torch.ones(10)
    with Alive([excluded]) as alive:
        first = excluded + 1
        view = first[:5]  # shares the storage
        assert (alive.bytes, excluded.view(2, 5).shape) == (40, (2, 5))
        second = first * 2
        assert alive.bytes == 80
        del first
        assert alive.bytes == 80
        del view
        assert alive.bytes == 40
        third = second.exp()
    assert (third.shape, alive.bytes, alive.peak) == ((10,), 80, 80)


def test_memory_grows_with_stored_steps():
    settings = InnerLoopSettings(size=8, hidden_dim=8, num_layers=3, num_frequencies=2)
    stored = [inner_loop.measure_memory(settings, steps, False) for steps in (1, 4)]
    assert all(memory.peak_mb >= 0 for memory in stored)
    assert 0 < stored[0].alive_mb < stored[1].alive_mb


def test_numbers_of_steps_are_compared_with_the_first(monkeypatch):
    memories = {2: inner_loop.Memory(10.0, 8.0), 8: inner_loop.Memory(30.0, 4.0)}
    monkeypatch.setattr(inner_loop, "_in_subprocess", lambda settings, steps, kind: memories[steps])
    measurements = inner_loop.compare_memory(InnerLoopSettings(memory_steps=(2, 8)), None)
    assert [measurement.case for measurement in measurements[:3]] == [
        "stored, 2 inner steps, peak",
        "stored, 2 inner steps, tensors alive",
        "stored, 8 inner steps, peak",
    ]
    assert [measurement.ratio for measurement in measurements] == 2 * [1, 1, 3, 0.5]


@pytest.mark.slow
def test_memory_grows_with_stored_steps_and_hardly_with_recomputed_ones(capsys):
    measurements = main(["--parts=[memory]", "--size=48", "--memory_steps=[2,8]", "--threads=1"])
    amounts = {measurement.case: measurement.amount for measurement in measurements}
    assert "recomputed, 8 inner steps" in capsys.readouterr().out
    for name in ("peak", "tensors alive"):
        assert amounts[f"stored, 8 inner steps, {name}"] > 2 * amounts[f"stored, 2 inner steps, {name}"] > 0
        assert 0 < amounts[f"recomputed, 8 inner steps, {name}"] < 1.2 * amounts[f"recomputed, 2 inner steps, {name}"]


@pytest.mark.parametrize("changes", [{"size": 0}, {"memory_steps": (2, 0)}, {"repeats": 1}, {"num_layers": 1}], ids=str)
def test_settings_out_of_range_raise_an_error(changes):
    with pytest.raises(ValueError, match="all other numbers must be positive"):
        InnerLoopSettings(**changes)


def test_empty_settings_raise_an_error():
    with pytest.raises(ValueError, match="none may be empty"):
        InnerLoopSettings(parts=())
