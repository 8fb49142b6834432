"""Refinement curves: codes to start from, results of a test, and the plot."""

import copy
import csv
import io
import math

import numpy as np
import pytest
import torch
from coordinates import grid
from flat_images import SHAPE, FlatData, FlatImages
from inner_loops import inner_loop
from lightning import Trainer
from PIL import Image
from rich.console import Console

from callbacks.curves import Point, RefinementPlot, curve, draw, shown
from callbacks.results import Column, ResultsTable, inner_table, results_table
from callbacks.summary import StartSummary
from composers import GradientSteps, LearnedInit, MetaIPC, Refinement
from composers.evaluation import CodeStatistics, mean_start, measure_codes, random_start
from composers.metrics import PSNR, SSIM, Gain
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.randomness import generator_at

STEPS = (0, 1, 4)
CODE = ["code size", "kB", "bits per pixel", "linear code"]  # columns that follow the metrics
STARTS = ("prediction", "mean", "random")


class _WithoutTraining(FlatData):
    """Data whose training images are missing."""

    def setup(self, stage):
        super().setup("test")
        if stage == "fit":
            raise FileNotFoundError("There is no folder\nphotos/train.")


class _Codes(torch.nn.Module):
    """Stand-in for a composer: its codes are the values of the signal, in two latents."""

    device = torch.device("cpu")

    def encode(self, observation):
        assert not torch.is_grad_enabled()
        assert not self.training
        return {"signal": observation.signal, "row": observation.signal[:, 0, 0]}


def _batches(signals, sizes):
    """Yield signals in batches of the given sizes."""
    for part in torch.split(signals, sizes):
        samples = Samples(grid(SHAPE[1:]), part.flatten(2).mT)
        yield CoordinateBatch(Observation(part, samples), samples, SHAPE[1:], [str(i) for i in range(len(part))])


@pytest.fixture
def refined(make_ipc):
    """Return a composer that refines for four steps, with statistics of its training codes."""
    composer = make_ipc(refinement=Refinement(4, report=(1,)), metrics={"gain": Gain(), "psnr": PSNR()}).eval()
    composer.training_codes = measure_codes(composer, FlatData(eval_batch_size=4).training_batches())
    return composer


@pytest.fixture
def run_test(tmp_path, capsys):
    """Return a function that tests a composer in ``tmp_path`` and returns the printed text."""

    def run_test(composer, data, *callbacks):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks) or [ResultsTable(), RefinementPlot()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.test(composer, datamodule=data, verbose=False)
        return capsys.readouterr().out

    return run_test


def _table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 4], [5, 1, 1]], ids=str)
def test_code_statistics_do_not_depend_on_the_batches(sizes):
    signals = torch.randn(7, *SHAPE) * torch.rand(SHAPE) + 1000
    statistics = measure_codes(_Codes(), _batches(signals, sizes))
    assert statistics.items == 7
    for name, codes in (("signal", signals.double().numpy()), ("row", signals[:, 0, 0].double().numpy())):
        np.testing.assert_allclose(statistics.mean[name], codes.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.deviation[name], codes.std(0), rtol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_measure_codes_restores_the_mode_and_keeps_the_weights(make_ipc, training):
    composer = make_ipc().train(training)
    weights = copy.deepcopy(composer.state_dict())
    statistics = measure_codes(composer, _batches(torch.rand(4, *SHAPE), [2, 2]))
    assert composer.training == training
    assert all(torch.equal(weight, weights[name]) for name, weight in composer.state_dict().items())
    codes = composer.eval().encode(Observation(torch.rand(4, *SHAPE)))
    expected = {name: code.shape[1:] for name, code in codes.items()}
    assert {name: mean.shape for name, mean in statistics.mean.items()} == expected


def test_measure_codes_without_items_raises():
    composer = _Codes().train()
    with pytest.raises(ValueError, match="no training items"):
        measure_codes(composer, [])
    assert composer.training


def test_mean_start_is_the_mean_code_for_every_instance():
    statistics = CodeStatistics({"code": torch.tensor([1.0, 2.0, 3.0]).double()}, {"code": torch.zeros(3).double()}, 5)
    for dtype in (torch.float32, torch.bfloat16):
        codes = mean_start(statistics, {"code": torch.rand(2, 3, dtype=dtype)})["code"]
        assert codes.dtype == torch.float32
        assert codes.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_random_start_has_the_mean_and_deviation_over_all_elements():
    codes = np.random.default_rng(0).normal(3, 0.5, (6, 50, 40)) + np.linspace(-2, 2, 40)
    statistics = CodeStatistics({"code": torch.tensor(codes.mean(0))}, {"code": torch.tensor(codes.std(0))}, 6)
    start = random_start(statistics, ["a", "b"], seed=3)["code"]
    for instance, name in enumerate(("a", "b")):
        normal = torch.randn(50, 40, generator=generator_at(3, "random start", name))
        np.testing.assert_allclose(start[instance], codes.mean() + codes.std() * normal, atol=1e-5)
    assert abs(start.mean().item() - codes.mean()) < 0.1
    assert abs(start.std().item() - codes.std()) < 0.1
    assert start.mean(1).std() < 0.3  # without the slope of the mean code, 1.2


def test_random_start_depends_on_seed_and_name_only():
    shapes = {"matrix": (4, 3), "vector": (5,)}
    statistics = CodeStatistics(
        {name: torch.rand(shape).double() for name, shape in shapes.items()},
        {name: torch.rand(shape).double() for name, shape in shapes.items()},
        2,
    )
    together = random_start(statistics, ["a", "b", "c"], seed=1)
    permuted = random_start(statistics, ["c", "a"], seed=1)
    other_seed = random_start(statistics, ["a", "b", "c"], seed=2)
    for name, shape in shapes.items():
        assert together[name].shape == (3, *shape)
        assert torch.equal(permuted[name], together[name][[2, 0]])
        assert len({tuple(code.flatten().tolist()) for code in (*together[name], *other_seed[name])}) == 6


def test_training_batches_hold_the_first_training_items(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    data = FlatData(batch_size=9, eval_batch_size=4, coordinate_noise="per_instance", coordinate_subset=0.5)
    batches = list(data.training_batches(count=7))
    trained = next(iter(data.train_dataloader()))
    assert [len(batch.names) for batch in batches] == [4, 3]
    assert [name for batch in batches for name in batch.names] == list(trained.name[:7])
    assert torch.equal(torch.cat([batch.observation.signal for batch in batches]), trained.values[:7])
    for batch in batches:
        assert batch.shape == SHAPE[1:]
        assert torch.equal(batch.query.coords, grid(SHAPE[1:]))
    names = [name for batch in data.training_batches() for name in batch.names]
    assert sorted(names) == [f"set 1 image {index}" for index in range(9)]


def test_training_batches_are_the_same_on_every_process(monkeypatch):
    class SecondProcess:
        global_rank, world_size, training = 1, 2, False

    single, second = FlatData(eval_batch_size=5), FlatData(eval_batch_size=5)
    second.trainer = SecondProcess()
    for expected, actual in zip(single.training_batches(), second.training_batches(), strict=True):
        assert actual.names == expected.names
        assert torch.equal(actual.observation.signal, expected.observation.signal)


def test_training_batches_without_training_items_raise():
    class TestOnly(FlatData):
        def setup(self, stage):
            self.test_set = FlatImages(2, seed=2)

    with pytest.raises(ValueError, match="TestOnly has no training items"):
        next(TestOnly().training_batches())


def _expected_psnr(composer, signal, name):
    """Return the PSNR of one image by start and step, from the parts of a composer and naive formulas."""
    observation = Observation(signal.unsqueeze(0), Samples(grid(SHAPE[1:]), signal.flatten(1).mT.unsqueeze(0)))
    predicted = composer.encode(observation)
    starts = {"prediction": predicted, "mean": {}, "random": {}}
    for key, mean in composer.training_codes.mean.items():
        deviation = composer.training_codes.deviation[key]
        scale = math.sqrt((deviation**2 + mean**2).mean() - mean.mean() ** 2)
        normal = torch.randn(mean.shape, generator=generator_at(0, "random start", name))
        starts["mean"][key] = mean.float().unsqueeze(0)
        starts["random"][key] = (mean.mean() + scale * normal).float().unsqueeze(0)
    psnr = {}
    for start, latents in starts.items():
        for step, refined_latents in composer.refine(latents, observation.samples).items():
            values = composer.render(composer.compose(refined_latents), grid(SHAPE[1:]))
            psnr[start, step] = -10 * math.log10((values - observation.samples.values).square().mean().item())
    return psnr


@pytest.mark.parametrize("sizes", [[5], [2, 3]], ids=str)
def test_test_step_measures_every_start(refined, monkeypatch, sizes):
    monkeypatch.setattr(refined, "log", lambda *args, **kwargs: None)
    signals = torch.rand(5, *SHAPE)
    with torch.no_grad():
        for batch in _batches(signals, sizes):
            evaluation = refined.test_step(batch, 0)
            assert list(evaluation["starts"]) == ["mean", "random"]
            for index, name in enumerate(batch.names):
                expected = _expected_psnr(refined, batch.observation.signal[index], name)
                for (start, step), psnr in expected.items():
                    metrics = evaluation["metrics"] if start == "prediction" else evaluation["starts"][start]
                    assert list(metrics) == list(STEPS)
                    assert metrics[step]["psnr"][index].item() == pytest.approx(psnr, abs=1e-3)
                    assert metrics[step]["gain"].shape == (len(batch.names),)


def test_curve_from_a_mean_code_equal_to_the_prediction_is_the_curve_of_the_prediction(refined, monkeypatch):
    monkeypatch.setattr(refined, "log", lambda *args, **kwargs: None)
    [batch] = _batches(torch.rand(1, *SHAPE), [1])
    with torch.no_grad():
        refined.training_codes = measure_codes(refined, [batch])
        evaluation = refined.test_step(batch, 0)
    for step in STEPS:
        for metric in ("psnr", "gain"):
            assert torch.equal(evaluation["starts"]["mean"][step][metric], evaluation["metrics"][step][metric])
    assert not torch.equal(evaluation["starts"]["random"][0]["psnr"], evaluation["metrics"][0]["psnr"])


def test_validation_and_prediction_refine_from_the_prediction_only(refined, tiny_batch, monkeypatch):
    monkeypatch.setattr(refined, "log", lambda *args, **kwargs: None)
    refined.refinement.stages = ("val", "test", "predict")
    with torch.no_grad():
        for step in (refined.validation_step, refined.predict_step):
            evaluation = step(tiny_batch, 0)
            assert list(evaluation["metrics"]) == list(STEPS)
            assert evaluation["starts"] == {}


def test_results_table_has_every_start(make_ipc, run_test, tmp_path):
    composer = make_ipc(refinement=Refinement(4, report=(1,)), metrics={"gain": Gain(), "psnr": PSNR()})
    printed = run_test(composer, FlatData(eval_batch_size=2))
    rows = _table(tmp_path / "test_instances.csv")
    columns = [f"{metric}@{step}" for step in STEPS for metric in ("gain", "psnr")]
    other_starts = [f"{column} from {start}" for start in ("mean", "random") for column in columns]
    assert list(rows[0]) == ["name", *columns, *other_starts, *CODE, "gain linear", "psnr linear"]
    composer.eval()
    statistics = measure_codes(composer, FlatData(eval_batch_size=9).training_batches())
    for name in statistics.mean:
        torch.testing.assert_close(composer.training_codes.mean[name], statistics.mean[name], atol=1e-6, rtol=0)
    for image, row in zip(FlatImages(5, seed=2), rows, strict=True):
        assert row["name"] == image.name
        for (start, step), psnr in _expected_psnr(composer, image.values, image.name).items():
            column = f"psnr@{step}" if start == "prediction" else f"psnr@{step} from {start}"
            assert float(row[column]) == pytest.approx(psnr, abs=1e-3)
    assert "PSNR [dB]" in printed


def test_refinement_plot_writes_curves_and_values(make_ipc, run_test, tmp_path):
    composer = make_ipc(refinement=Refinement(4, report=(1,)), metrics={"gain": Gain(), "psnr": PSNR()})
    printed = run_test(
        composer, FlatData(eval_batch_size=2), ResultsTable(), RefinementPlot(), RefinementPlot("gain.svg", "gain")
    )
    rows = _table(tmp_path / "test_instances.csv")
    for path, metric in (("refinement.csv", "psnr"), ("gain.csv", "gain")):
        points = _table(tmp_path / path)
        assert [(p["start"], int(p["step"])) for p in points] == [(start, step) for start in STARTS for step in STEPS]
        for point in points:
            suffix = "" if point["start"] == "prediction" else f" from {point['start']}"
            numbers = np.array([float(row[f"{metric}@{point['step']}{suffix}"]) for row in rows])
            assert (point["metric"], point["instances"]) == (metric, "5")
            actual = [float(point[key]) for key in ("mean", "lower quartile", "upper quartile")]
            np.testing.assert_allclose(actual, [numbers.mean(), *np.quantile(numbers, [0.25, 0.75])], rtol=1e-9)
    image = Image.open(tmp_path / "refinement.png").convert("RGB")
    assert image.size == (720, 450)
    colours = {colour for _, colour in image.getcolors(720 * 450)}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours  # the line of every start
    assert "Refinement curves: " in printed
    assert (tmp_path / "gain.svg").read_text().count("<svg") == 1


def test_curves_from_training_codes_are_skipped_without_training_data(make_ipc, run_test, tmp_path):
    composer = make_ipc(refinement=Refinement(4, report=(1,)))
    printed = run_test(composer, _WithoutTraining(eval_batch_size=2))
    [line] = [line for line in printed.splitlines() if "training data is not available" in line]
    assert line.endswith("There is no folder photos/train.")
    assert list(_table(tmp_path / "test_instances.csv")[0]) == ["name", *(f"psnr@{step}" for step in STEPS), *CODE]
    assert "No linear code: There is no folder photos/train." in printed
    assert {point["start"] for point in _table(tmp_path / "refinement.csv")} == {"prediction"}
    assert "from the" not in printed.replace(line, "")


def test_curve_from_the_prediction_needs_no_training_data(make_ipc, run_test, tmp_path):
    weights = make_ipc().state_dict()
    tables = []
    for starts, data in ((["prediction"], _WithoutTraining), (STARTS, FlatData)):
        composer = make_ipc(refinement=Refinement(4, report=(1,), starts=starts))
        composer.load_state_dict(weights)
        assert "not available" not in run_test(
            composer, data(eval_batch_size=2), ResultsTable(linear=False), RefinementPlot()
        )
        tables.append(_table(tmp_path / "test_instances.csv"))
    assert list(tables[0][0]) == ["name", *(f"psnr@{step}" for step in STEPS), *CODE[:-1]]
    assert tables[0] == [{key: row[key] for key in tables[0][0]} for row in tables[1]]


def test_no_plot_without_refinement(make_ipc, run_test, tmp_path, monkeypatch):
    monkeypatch.setattr(FlatData, "training_batches", lambda self: pytest.fail("training data was read"))
    for refinement in (Refinement(0), Refinement(4, stages=("val",))):
        callbacks = ResultsTable(linear=False), RefinementPlot()
        assert "Refinement curves" not in run_test(make_ipc(refinement=refinement), FlatData(), *callbacks)
        assert {path.name for path in tmp_path.iterdir()} == {"test_instances.csv"}


def _rows(numbers, metrics=("psnr",), steps=(0, 10)):
    """Return rows of instances with these values at step 0; every start is lower by 1 than the previous one."""
    return {
        str(index): {
            Column(metric, step, start): number + step - position
            for position, start in enumerate(STARTS)
            for step in steps
            for metric in metrics
        }
        for index, number in enumerate(numbers)
    }


def test_curve_has_mean_and_quartiles_of_one_and_several_instances():
    assert [point[2:] for point in curve(_rows([7.0]), "psnr")][:2] == [(7, 7, 7, 1), (17, 17, 17, 1)]
    points = curve(_rows([1.0, 2.0, 4.0, 10.0]), "psnr")
    assert points[0] == ("prediction", 0, 4.25, 1.75, 5.5, 4)
    assert [(point.start, point.step, point.mean) for point in points[2:]] == [
        ("mean", 0, 3.25),
        ("mean", 10, 13.25),
        ("random", 0, 2.25),
        ("random", 10, 12.25),
    ]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (("ssim", "psnr"), ["SSIM", "PSNR [dB]", "from the mean code", "from a random code"]),
        (("other", "ssim"), ["other", "from the mean code", "from a random code", "SSIM"]),
    ],
    ids=str,
)
def test_results_table_compares_the_starts_by_the_main_metric(metrics, expected):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table(_rows([1.0, 2.0], metrics), metrics={"psnr": PSNR(), "ssim": SSIM()}))
    lines = console.export_text().splitlines()
    assert [cell.strip() for cell in lines[2].split("┃")[2:-1]] == expected
    cells = dict(zip(expected, lines[4].split("│")[2:-1], strict=True))
    assert float(cells["from the mean code"]) == 0.5
    assert float(cells["from a random code"]) == -0.5


def test_refinement_plot_of_an_unknown_metric_raises(make_ipc, run_test):
    with pytest.raises(ValueError, match=r"metric of RefinementPlot is psnrr; this model measures psnr\."):
        run_test(make_ipc(), FlatData(), RefinementPlot(metric="psnrr"))


@pytest.mark.parametrize("filename", ["refinement.csv", "refinement", "curve.txt"])
def test_refinement_plot_with_an_unknown_suffix_raises(filename):
    with pytest.raises(ValueError, match=rf"filename is {filename}; .* \.png, \.svg, \.pdf"):
        RefinementPlot(filename)


def _meta(make_network, refinement=None, **settings):
    """Return a tiny MetaIPC, trained with two inner steps and tested with three."""
    settings = {"steps": 2, "test_steps": 3, "lr": 0.05, "report": (0, 1, 2, 3, 6)} | settings
    return MetaIPC(make_network(), inner_loop(**settings), refinement=refinement)


def test_meta_learned_model_writes_the_curve_of_its_inner_loop(make_network, run_test, tmp_path):
    printed = run_test(_meta(make_network), FlatData(eval_batch_size=2))
    rows = _table(tmp_path / "test_instances.csv")
    columns = ["psnr@0", *(f"psnr@{step} of the inner loop" for step in (0, 1, 2, 3, 6))]
    assert list(rows[0]) == ["name", *columns, *CODE, "psnr linear"]
    for row in rows:  # the result is that of the inner loop after the steps of the test
        assert float(row["psnr@0"]) == pytest.approx(float(row["psnr@3 of the inner loop"]), abs=1e-4)
        assert abs(float(row["psnr@0"]) - float(row["psnr@2 of the inner loop"])) > 1e-3
    points = _table(tmp_path / "refinement.csv")
    starts = [("prediction", 0), *(("inner", step) for step in (0, 1, 2, 3, 6))]
    assert [(point["start"], int(point["step"])) for point in points] == starts
    for point in points[1:]:
        numbers = [float(row[f"psnr@{point['step']} of the inner loop"]) for row in rows]
        assert float(point["mean"]) == pytest.approx(np.mean(numbers), rel=1e-9)
    with Image.open(tmp_path / "refinement.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(720 * 450)}
    assert {(230, 159, 0), (0, 114, 178)} <= colours  # the curve, and the ring of the result
    assert "Curves: " in printed
    assert "Refinement curves" not in printed
    labels = ("0 (after 3 inner steps)", "0 (learned start)", "2 (trained with)", "3 (tested with)")
    assert all(f"│ {label} " in printed for label in labels)
    assert "predicted" not in printed


def test_inner_loop_without_report_writes_the_result_only(make_network, run_test, tmp_path):
    printed = run_test(_meta(make_network, report=()), FlatData(eval_batch_size=5))
    assert {path.name for path in tmp_path.iterdir()} == {"test_instances.csv"}
    assert "The inner loop" not in printed


def _points(start, means, spread=0.5):
    """Return a curve from its means by step."""
    return [Point(start, step, mean, mean - spread, mean + spread, 4) for step, mean in means.items()]


def _lines(figure):
    """Return the coordinates of every line by its label in the legend."""
    lines = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_result_is_drawn_at_the_last_inner_step_of_the_test():
    points = _points("prediction", {0: 22.0}) + _points("inner", {0: 10.0, 2: 20.0, 30: 25.0})
    figure = draw(points, "psnr", GradientSteps(2, test_steps=4))
    lines = _lines(figure)
    assert lines == {
        "result of the test, after 4 inner steps": ([4], [22.0]),
        "inner loop, from the learned start": ([0, 2, 30], [10.0, 20.0, 25.0]),
        "trained with 2 inner steps": ([2, 2], [0, 1]),
    }
    assert figure.axes[0].get_xlabel() == "inner steps"


def test_refinement_is_drawn_after_the_inner_steps_of_the_test():
    points = _points("prediction", {0: 20.0, 10: 24.0}) + _points("mean", {0: 9.0, 10: 19.0})
    points += _points("network", {0: 20.0, 5: 30.0}) + _points("inner", {0: 10.0, 1: 20.0})
    figure = draw(points, "psnr", GradientSteps(1))
    lines = _lines(figure)
    assert lines["refined, after 1 inner step"] == ([1, 11], [20.0, 24.0])
    assert lines["all weights, after 1 inner step"] == ([1, 6], [20.0, 30.0])
    assert lines["from the mean code"] == ([0, 10], [9.0, 19.0])
    assert lines["inner loop, from the learned start"] == ([0, 1], [10.0, 20.0])
    assert figure.axes[0].get_xlabel() == "steps"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1", "11"]


def test_divergence_beyond_the_steps_of_training_does_not_flatten_the_plot():
    inner = {0: 10.0, 2: 20.0, 10: 25.0, 30: -70.0, 100: math.nan, 300: -math.inf}
    points = _points("prediction", {0: 20.0}) + _points("inner", inner)
    figure = draw(points, "psnr", GradientSteps(2))
    figure.savefig(io.BytesIO())
    bottom, top = figure.axes[0].get_ylim()
    assert (bottom, top) == pytest.approx(
        (9.5 - 16, 25.5 + 1.6)
    )  # as far below the first point as the best point is above it
    expected = "inner steps\nnot shown: -70.0 after 30, no number after 100, no number after 300"
    assert figure.axes[0].get_xlabel() == expected
    means = _lines(figure)["inner loop, from the learned start"][1]
    assert means[:4] == [10.0, 20.0, 25.0, -70.0]
    assert all(math.isnan(mean) for mean in means[4:])


@pytest.mark.parametrize(("last", "expected"), [(40.0, None), (-5.0, None), (-7.0, (-6.5, 27.1))])
def test_axis_is_cut_only_if_the_inner_loop_diverges(last, expected):
    points = _points("inner", {0: 10.0, 2: 20.0, 10: 25.0, 30: last})
    assert shown(points, 2) == (None if expected is None else pytest.approx(expected))
    assert shown(points, 30) is None  # never for steps of training or test


def test_values_that_are_not_finite_are_written(make_network, run_test, tmp_path):
    composer = _meta(make_network, report=(0, 3, 40), test_steps=2, lr=0.05)
    composer.parametrization.step_scales = lambda latents: {name: 1e25 * latent**2 for name, latent in latents.items()}
    composer._infer = lambda observation: 2 * (composer.start(observation, composer.layout(observation)),)
    printed = run_test(composer, FlatData(eval_batch_size=2))
    points = _table(tmp_path / "refinement.csv")
    assert [math.isfinite(float(point["mean"])) for point in points] == [True, True, False, False]
    assert (tmp_path / "refinement.png").stat().st_size > 0
    assert "nan" in printed


def _cells(table):
    """Return the rows of a table."""
    return list(zip(*([*column.cells] for column in table.columns), strict=True))


def test_tables_of_an_inner_loop():
    loop = GradientSteps(1)
    rows = {
        name: {
            Column("psnr", 0): 20.0 + offset,
            Column("ssim", 0): 0.5,
            Column("psnr", 9): 30.0,
            Column("ssim", 9): 0.75,
        }
        | {Column(metric, step, "inner"): step + offset for step in (0, 1, 1000) for metric in ("psnr", "ssim")}
        for name, offset in (("a", 0.0), ("b", 1.0))
    }
    expected = [
        ("0 (after 1 inner step)", "20.500 ±0.707", "0.500 ±0.000"),
        ("9", "30.000 ±0.000", "0.750 ±0.000"),
    ]
    assert _cells(results_table(rows, loop)) == expected
    assert _cells(inner_table(rows, loop)) == [
        ("0 (learned start)", "0.500 ±0.707", "0.500 ±0.707"),
        ("1 (trained and tested with)", "1.500 ±0.707", "1.500 ±0.707"),
        ("1,000", "1000.500 ±0.707", "1000.500 ±0.707"),
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "2 inner steps; step size 0.003; second order; all samples per step"),
        (
            {"steps": 1, "test_steps": 5, "outer": "first_order", "recompute": True},
            "1 inner step in training, 5 at test; step size 0.003; first order; all samples per step",
        ),
        (
            {"learned_lr": ["step", "parameter"], "samples_per_step": 1024, "test_samples_per_step": "all"},
            "2 inner steps; step size 0.003, factors learned per step and parameter; second order; 1,024 random samples per "
            "step, all samples at test",
        ),
        (
            {"samples_per_step": 7, "choose": "error", "recompute": True},
            "2 inner steps; step size 0.003; second order; recomputed in the backward pass; the 7 samples of largest error "
            "per step",
        ),
    ],
    ids=["plain", "first_order", "learned", "by_error"],
)
def test_summary_describes_the_inner_loop(make_network, settings, expected):
    composer = MetaIPC(make_network(), inner_loop(**settings))
    facts = _summary(composer, Trainer(logger=False, max_steps=1, accelerator="cpu"))
    assert facts["inner loop"] == expected


def test_summary_of_reptile_has_no_order(make_network):
    network = make_network(modulated_layers="all", modulates="both", normalize_weights=False)
    composer = LearnedInit(network, inner_loop(outer="reptile"))
    facts = _summary(composer, Trainer(logger=False, max_steps=1, accelerator="cpu"))
    assert facts["inner loop"] == "2 inner steps; step size 0.003; Reptile; all samples per step"


def _summary(composer, trainer):
    """Return the rows of the summary for a trainer that has not started."""
    trainer.strategy.connect(composer)
    trainer.fit_loop.setup_data = lambda: None
    return StartSummary()._facts(trainer, composer)
