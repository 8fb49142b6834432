"""The plain inner loop equals ours, and the benchmark of inner loops measures what it says."""

import csv

import pytest
import torch

from benchmarks import inner_loop, reference
from benchmarks.inner_loop import Alive, InnerLoopSettings, main
from benchmarks.reference import from_meta_learned
from composers import Functa, InnerLoop, LearnedInit, MetaIPC
from composers.networks import Sine
from datamodules.domain import jitter

TINY = [
    *("--size=6", "--batch_size=2", "--hidden_dim=8", "--num_layers=3", "--num_frequencies=2"),
    *("--repeats=2", "--evaluation_batch_sizes=[2]"),
]
TIMED = [*TINY, "--parts=[training,evaluation]"]
METHODS = {
    "meta_ipc": lambda make_inr, **inner: MetaIPC(make_inr(modulated_layers=[1]), InnerLoop(**inner)),
    "meta_ipc_of_rank": lambda make_inr, **inner: MetaIPC(
        make_inr(modulated_layers=[0, 2]), InnerLoop(**inner), rank=3
    ),
    "learned_init": lambda make_inr, **inner: LearnedInit(make_inr(modulated_layers="all"), InnerLoop(**inner)),
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared_coords", "own_coords"])
@pytest.mark.parametrize("method", METHODS)
def test_the_plain_inner_loop_equals_ours(make_inr, tiny_batch, method, shared):
    composer = METHODS[method](make_inr, steps=3, lr=0.01)
    samples = tiny_batch.query
    if not shared:
        samples = samples._replace(coords=jitter(samples.coords.repeat(3, 1, 1), (0.1, 0.1), torch.Generator()))
    observation = tiny_batch.observation._replace(samples=samples)
    parameters, outcomes = list(composer.parameters()), []
    for model in (composer, from_meta_learned(composer)):
        values = model(observation, samples.coords)
        loss = (values - samples.values).square().mean()
        outcomes.append((values, torch.autograd.grad(loss, parameters)))
    (ours, our_gradients), (theirs, their_gradients) = outcomes
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for found, wanted in zip(our_gradients, their_gradients, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


def test_the_plain_inner_loop_evaluates_without_a_graph_and_keeps_a_history(make_inr, tiny_batch):
    composer = METHODS["meta_ipc"](make_inr, steps=2).eval()
    plain, bare = from_meta_learned(composer), from_meta_learned(composer, history=False)
    with torch.no_grad():
        wanted = composer.encode(tiny_batch.observation)["patterns.1"]
        found = plain.adapted(tiny_batch.observation)["1"]
        bare.adapted(tiny_batch.observation)
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert [values.shape for values, _ in plain.history] == 2 * [tiny_batch.query.values.shape]
    assert torch.equal(plain.history[-1][1]["1"], found)
    assert plain.history[-1][1]["1"].data_ptr() != found.data_ptr()
    assert bare.history == []


def test_the_plain_inner_loop_refuses_what_it_does_not_know(make_inr):
    with pytest.raises(TypeError, match="Functa"):
        from_meta_learned(Functa(make_inr(modulated_layers="hidden", modulates="biases")))
    with pytest.raises(TypeError, match="Sine"):
        from_meta_learned(MetaIPC(make_inr(activation=Sine())))
    for changes in ({"learned_lr": ["step"]}, {"first_order": True}, {"samples_per_step": 4}):
        with pytest.raises(ValueError, match="published inner loop only"):
            from_meta_learned(METHODS["meta_ipc"](make_inr, **changes))
    with pytest.raises(ValueError, match="normalize_weights true"):
        from_meta_learned(MetaIPC(make_inr(normalize_weights=False)))
    with pytest.raises(ValueError, match="adapt_biases false"):
        from_meta_learned(LearnedInit(make_inr(modulated_layers="all"), adapt_biases=True))


def test_main_times_and_appends(tmp_path, capsys):
    path = tmp_path / "new" / "inner_loop.csv"
    found = main([*TIMED, f"--csv={path}"])
    printed = capsys.readouterr().out
    assert printed.count("largest difference of a value") == 2
    assert "plain without history" in printed
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["part"], float(row["ratio"])) for row in rows] == [(one.part, one.ratio) for one in found]
    assert [row["part"] for row in rows] == 6 * ["training"] + 6 * ["evaluation"]
    assert [row["case"] for row in rows][6:8] == [
        "MetaIPC, batch of 2, an inner step",
        "MetaIPC, batch of 2, the first and its check",
    ]
    assert {(row["size"], row["unit"], row["torch"]) for row in rows} == {("6", "s", torch.__version__)}
    for one in found:
        assert one.other > 0
        assert one.ratio_low <= one.ratio <= one.ratio_high


def test_the_first_two_steps_are_taken_off_the_further_ones(monkeypatch):
    seconds = {"forward": [1.0, 2.0], "1": [3.0, 5.0], "3": [7.0, 13.0]}
    monkeypatch.setattr(inner_loop, "alternate", lambda sides, settings: {name: seconds[name] for name in sides})
    settings = InnerLoopSettings(size=4, hidden_dim=8, num_layers=3, num_frequencies=2, evaluation_batch_sizes=(1,))
    step, first = inner_loop.compare_evaluation(settings, None)[:2]
    assert (step.amount, step.other, step.ratio) == (3, 1.5, 2)  # (7 - 3) / 2 and (13 - 5) / 2
    assert (first.amount, first.ratio) == (4, 2.75)


def wrong_step(self, factors, coords, target, original):
    return {layer: factor - 1e-3 for layer, factor in original(self, factors, coords, target).items()}


def first_order(self, factors, coords, target, original):
    moved = original(self, factors, coords, target)
    return {layer: factors[layer] + (factor - factors[layer]).detach() for layer, factor in moved.items()}


@pytest.mark.parametrize("disturbance", [wrong_step, first_order])
def test_main_refuses_to_time_what_differs(monkeypatch, disturbance):
    original = reference.PlainMetaLearned._step
    monkeypatch.setattr(
        reference.PlainMetaLearned, "_step", lambda *arguments: disturbance(*arguments, original=original)
    )
    monkeypatch.setattr(inner_loop, "duration", lambda *_: pytest.fail("was timed"))
    with pytest.raises(ValueError, match="must agree before they are timed"):
        main([*TINY, "--parts=[training]"])


def test_alive_counts_each_storage_until_it_is_freed():
    owned = torch.ones(10)
    with Alive([owned]) as alive:
        first = owned + 1
        view = first[:5]  # no storage of its own
        assert (alive.bytes, owned.view(2, 5).shape) == (40, (2, 5))
        second = first * 2
        assert alive.bytes == 80
        del first
        assert alive.bytes == 80
        del view
        assert alive.bytes == 40
        third = second.exp()
    assert (third.shape, alive.bytes, alive.peak) == ((10,), 80, 80)


def test_memory_is_measured_in_this_process():
    settings = InnerLoopSettings(size=8, hidden_dim=8, num_layers=3, num_frequencies=2)
    stored = [inner_loop.measure_memory(settings, steps, False) for steps in (1, 4)]
    assert all(one.peak_mb >= 0 for one in stored)
    assert 0 < stored[0].alive_mb < stored[1].alive_mb


def test_a_number_of_steps_is_compared_with_the_first(monkeypatch):
    measured = {2: inner_loop.Memory(10.0, 8.0), 8: inner_loop.Memory(30.0, 4.0)}
    monkeypatch.setattr(inner_loop, "_in_own_process", lambda settings, steps, kind: measured[steps])
    found = inner_loop.compare_memory(InnerLoopSettings(memory_steps=(2, 8)), None)
    assert [one.case for one in found[:3]] == [
        "stored, 2 inner steps, peak",
        "stored, 2 inner steps, tensors alive",
        "stored, 8 inner steps, peak",
    ]
    assert [one.ratio for one in found] == 2 * [1, 1, 3, 0.5]


@pytest.mark.slow
def test_stored_steps_need_memory_and_recomputed_ones_hardly(capsys):
    found = main(["--parts=[memory]", "--size=48", "--memory_steps=[2,8]", "--threads=1"])
    amounts = {one.case: one.amount for one in found}
    assert "recomputed, 8 inner steps" in capsys.readouterr().out
    for name in ("peak", "tensors alive"):
        assert amounts[f"stored, 8 inner steps, {name}"] > 2 * amounts[f"stored, 2 inner steps, {name}"] > 0
        assert 0 < amounts[f"recomputed, 8 inner steps, {name}"] < 1.2 * amounts[f"recomputed, 2 inner steps, {name}"]


@pytest.mark.parametrize("changes", [{"size": 0}, {"memory_steps": (2, 0)}, {"repeats": 1}, {"num_layers": 1}], ids=str)
def test_what_cannot_be_measured_is_refused(changes):
    with pytest.raises(ValueError, match="must be at least 2, or another number is not positive"):
        InnerLoopSettings(**changes)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="give at least one of each"):
        InnerLoopSettings(parts=())
