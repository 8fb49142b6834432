"""The benchmark of patch-wise IPC."""

import csv
import math

import pytest
import torch

from benchmarks import patches
from benchmarks.patches import PatchSettings, main

IMAGES = ["--audio=null", "--sizes=[8,16]", "--zoomed_size=8"]
AUDIO = ["--images=null", "--seconds=[0.05]"]
FAST = ["--batch_size=2", "--matrix_size=8", "--repeats=2"]


def test_main_measures_every_job_and_appends(tmp_path, capsys):
    path = tmp_path / "patches.csv"
    measurements = main([*IMAGES, *FAST, f"--csv={path}"])
    cases = [("training step", "2 of 64 x 64")]
    cases += [(case, f"{size} x {size}") for size in (8, 16) for case in ("encode", "decode on the grid")]
    cases += [("decode at arbitrary coordinates", "8 x 8"), ("decode at 4x", "8 x 8")]
    assert [(row.case, row.signal) for row in measurements] == 2 * cases
    assert [row.precision for row in measurements] == 7 * ["float32"] + 7 * ["bfloat16"]
    printed = capsys.readouterr().out
    assert "float32: a matrix product has" in printed
    assert "decode at 4x" in printed
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["share"]) for row in rows] == [row.share for row in measurements]
    assert {(row["threads"], row["torch"]) for row in rows} == {(str(torch.get_num_threads()), torch.__version__)}
    for row in measurements:
        assert row.share_low <= row.share <= row.share_high
        assert min(row.gflop, row.seconds, row.peak_mb) > 0


def test_audio_is_measured_by_its_length():
    training, encoding, decoding = main([*AUDIO, *FAST, "--precisions=[float32]"])
    assert training.signal == "2 of 16000"
    assert (encoding.signal, decoding.signal) == ("0.05 s", "0.05 s")
    assert decoding.seconds_per_million == pytest.approx(decoding.seconds / 800 * 1e6)
    assert decoding.to_linear == 1
    assert math.isnan(training.to_linear)


def test_jobs_compute_what_the_composer_does():
    settings = PatchSettings(sizes=(12,), zoomed_size=12, audio=None, batch_size=2)
    _, encode, decode, scattered, fine = patches.image_jobs(settings)
    assert encode.run()["codes"].shape == (1, 2, 2, 24)  # a grid of 2 x 2 patches
    assert decode.run().shape == (1, 144, 3)
    assert scattered.run().shape == (1, 144, 3)
    assert fine.run().shape == (1, 48 * 48, 3)
    assert fine.samples == 48 * 48


def test_training_steps_change_the_trained_composer_only():
    settings = PatchSettings(batch_size=2)
    job, composer = patches.training_job(settings.images, settings)
    before = [parameter.clone() for parameter in composer.parameters()]
    job.run()
    assert job.samples == 2 * 64 * 64
    assert all(torch.equal(*pair) for pair in zip(before, composer.parameters(), strict=True))


def test_share_and_ratio_to_linear_equal_the_count_by_hand(monkeypatch):
    times = iter([1.0, 2.0, 0.5, 12.0, 1.0, 2.0, 0.5, 12.0])  # of product, job, product, job
    monkeypatch.setattr(patches, "duration", lambda function, device: next(times))
    monkeypatch.setattr(patches, "count", lambda job: (4000, 3.0))
    jobs = [patches.Job("encode", "1", 10, None, "a"), patches.Job("encode", "2", 20, None, "a")]
    small, large = patches.measure(jobs, "float32", PatchSettings(matrix_size=10, repeats=2))
    assert (small.share, small.to_linear) == (1.0, 1.0)  # 4000 / 2 against 2 * 10 ** 3 / 1
    assert (large.share, large.to_linear) == (pytest.approx(4000 / 12 / 4000), pytest.approx(3.0))
    assert (small.matrix_gflops, small.gflop, small.peak_mb) == (2e-6, 4e-6, 3.0)


@pytest.mark.parametrize("changes", [{"sizes": (0,)}, {"repeats": 1}, {"seconds": (0.0,)}, {"batch_size": 0}], ids=str)
def test_settings_out_of_range_raise_an_error(changes):
    with pytest.raises(ValueError, match="repeats must be at least 2, and all other numbers positive"):
        PatchSettings(**changes)


def test_settings_without_jobs_raise_an_error():
    with pytest.raises(ValueError, match="at least one precision, and one config"):
        PatchSettings(images=None, audio=None)
    with pytest.raises(ValueError, match="at least one precision, and one config"):
        PatchSettings(precisions=())
