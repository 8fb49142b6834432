"""The table of results states the size of the codes and the results of linear codes of the same size."""

import csv
import math
import re
import statistics

import pytest
import torch
from flat_images import FlatData, FlatImages
from hums import Hums, ipc_config
from lightning import Trainer
from objects import Balls, Scenes, scene_batch
from rich.console import Console

from callbacks.baseline import CodeRow, code_rows
from callbacks.results import Column, ResultsTable, results_table
from composers.construction import build
from composers.metrics import PSNR, SSIM
from datamodules.batch import Signal
from datamodules.code_size import CodeSize
from datamodules.loading import InMemory
from datamodules.spec import LinearPatch
from modalities import Audio, Images
from modalities.linear import LinearCode, training_signals


@pytest.fixture
def run_test(tmp_path, capsys):
    """Return a function that tests a composer, and returns the rows of the CSV file and the printed text."""

    def run_test(composer, data):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            callbacks=[ResultsTable()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.test(composer, datamodule=data, verbose=False)
        with (tmp_path / "test_instances.csv").open(newline="") as file:
            return list(csv.DictReader(file)), capsys.readouterr().out

    return run_test


def _psnr(actual, expected):
    return -10 * math.log10((actual - expected).square().mean())


def test_images_are_compared_with_a_linear_code_of_the_same_size(make_ipc, run_test):
    composer = make_ipc(metrics={"psnr": PSNR(), "ssim": SSIM()})
    rows, printed = run_test(composer, FlatData(eval_batch_size=2))
    numbers = sum(latent.numel() for latent in composer.encode(_observation(composer)).values())
    code = LinearCode.fit(training_signals(FlatData()), (8, 8))
    components = min(numbers // 2, code.components.shape[1])  # two patches
    for row, image in zip(rows, FlatImages(5, seed=2).values, strict=True):
        assert float(row["psnr linear"]) == pytest.approx(_psnr(code.reconstruct(image, components), image), abs=1e-3)
        assert (row["code size"], row["linear code"]) == (str(numbers), f"PCA, {components} per 8 x 8 pixels")
        assert float(row["kB"]) == pytest.approx(numbers * 4 / 1000)
        assert float(row["bits per pixel"]) == pytest.approx(numbers * 32 / 96, abs=1e-3)
    for column in ("psnr@0", "psnr linear"):
        values = [float(row[column]) for row in rows]
        assert f"{statistics.mean(values):.3f} ±{statistics.stdev(values):.3f}" in printed
    assert f"Code size: {numbers} numbers, " in printed


def _observation(composer):
    [batch] = FlatData(eval_batch_size=1).training_batches(1)
    return batch.observation


class _Noises(Hums):
    """Recordings of noise of different loudness in a band; every other one is shorter and padded with large values."""

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(12, 1, 200, generator=generator).cumsum(-1) * 0.05
        values[1::2, :, 150:] = 9.0
        items = [Signal(part, f"noise{index}", length=150 if index % 2 else -1) for index, part in enumerate(values)]
        self.train_set, self.test_set = InMemory(items[2:]), InMemory(items[:2])


def test_padding_of_audio_counts_nowhere(run_test, monkeypatch):
    monkeypatch.setattr(Audio, "linear", LinearPatch("KLT", (20,), "samples"))
    data = _Noises(eval_batch_size=2)
    rows, _ = run_test(build(ipc_config((1, 200))), data)
    code = LinearCode.fit(training_signals(data), (20,))
    assert code.mean.abs().max() < 2
    for row, item, length in zip(rows, data.test_set.items, (200, 150), strict=True):
        numbers, patches = int(row["code size"]), math.ceil(length / 20)
        assert numbers // patches < 20
        assert float(row["kbit/s"]) == pytest.approx(numbers * 32 / (length / 400) / 1000, abs=1e-3)
        assert row["linear code"] == f"KLT, {numbers // patches} per 20 samples"
        signal = item.values[:, :length]
        expected = _psnr(code.reconstruct(signal, numbers // patches), signal)
        assert float(row["psnr linear"]) == pytest.approx(expected, abs=1e-3)
        assert expected < 60


def test_code_as_large_as_the_signal_has_no_linear_code(make_ipc, run_test, monkeypatch):
    monkeypatch.setattr(FlatData, "training_batches", lambda *_: pytest.fail("training data was read"))
    encode = make_ipc().encode
    composer = make_ipc()
    composer._infer = lambda observation: (
        2 * ({name: torch.cat([code] * 5, -1) for name, code in encode(observation).items()},)
    )
    composer.compose = lambda latents, layout=None: make_ipc().compose(
        {k: v[..., : v.shape[-1] // 5] for k, v in latents.items()}
    )
    rows, printed = run_test(composer, FlatData())
    assert {row["linear code"] for row in rows} == {">= signal"}
    assert "psnr linear" not in rows[0]
    assert re.search(r"│ linear code +│ +>= signal │", printed)


def test_scenes_have_no_linear_code(tmp_path):
    batch, composer, scenes = scene_batch((0.8, 0.6)), Balls(), Scenes()
    rows = code_rows(composer.predict_step(batch, 0), batch, composer.measures, scenes.spec, None)
    assert {row.linear for row in rows.values()} == {""}
    assert {row.size for row in rows.values()} == {CodeSize(1)}


def _text(codes):
    rows = {name: {Column("psnr", 0): 20.0, Column("ssim", 0): 0.5} for name in codes}
    console = Console(width=160)
    with console.capture() as captured:
        console.print(results_table(rows, codes=codes))
    return captured.get()


def test_instances_of_different_size_are_told_apart():
    size = Images().code_size(24, (8, 8))
    small = CodeRow(size, "PCA, 24 per 8 x 8 pixels", {"psnr": 30.0, "ssim": math.nan})
    other, large = (
        small._replace(linear="PCA, 12 per 8 x 8 pixels", metrics={"psnr": 20.0, "ssim": 0.5}),
        CodeRow(size, ">= signal"),
    )
    assert "PCA, 24 per 8 x 8 pixels (2 instances; others >= signal)" in _text({"a": small, "b": small, "c": large})
    printed = _text({"a": small, "b": other})
    assert "linear codes of equal size" in printed
    assert "25.000 ±7.071" in printed
    assert "linear" not in _text({"a": CodeRow(size)})
