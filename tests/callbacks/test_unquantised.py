"""Signals whose codes cannot be quantised are skipped by ``cli.py predict --bits`` and named; the others are written."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import refused, run

from callbacks import predictions


@pytest.fixture
def diverged(monkeypatch, tmp_path):
    """Work in a folder of two images, and return a set of names of signals whose latents diverge."""
    names, quantized = set(), predictions.quantized

    def with_diverged(code, *arguments):
        latents = {name: latent * (float("nan") if code.name in names else 1) for name, latent in code.latents.items()}
        return quantized(replace(code, latents=latents), *arguments)

    monkeypatch.setattr(predictions, "quantized", with_diverged)
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        Image.fromarray(pixels.numpy()).save(f"{name}.png")
    return names


def test_a_diverged_signal_is_named_and_the_table_is_written(diverged):
    predict = ["predict", "--images", "first.png", "second.png", "--bits", 8, "--steps", 0, "--output", "out"]
    diverged.add("first")
    printed = run(*predict)
    assert "Skipped 1:\n  first: " in printed
    assert "holds numbers that are not finite" in printed
    with Path("out", "predictions.csv").open(encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["second"]
    assert sorted(path.name for path in Path("out").glob("*.inr")) == ["second.inr"]
    diverged.add("second")
    assert "No prediction was written. first: " in refused(*predict)
