"""LIIF as published: the sizes of the model, and training steps at full size."""

import pytest
import torch
from program import REPOSITORY, checkpoint, column, run

import composers
from datamodules import SamplePhotos, SuperResolution

CONFIGS = REPOSITORY / "configs"
PUBLISHED = f"""
_base_: [{CONFIGS / "composers" / "liif.yaml"}, {CONFIGS / "modalities" / "super_resolution.yaml"}]
data:
  class_path: datamodules.SuperResolution
  init_args:
    images:
      class_path: datamodules.SamplePhotos
    repeat: 2
trainer:
  accelerator: cpu
  max_epochs: -1
  max_steps: 2
  limit_val_batches: 0
  log_every_n_steps: 1
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_published_training_step_runs(tmp_path):
    (tmp_path / "published.yaml").write_text(PUBLISHED)
    run("fit", "--config", "published.yaml")
    losses = column("runs/unnamed/version_0/metrics.csv", "train/loss")
    assert len(losses) == 2
    assert all(0 < loss < 1 for loss in losses)
    saved = checkpoint("runs/unnamed/version_0")
    [group] = saved["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0)
    assert saved["data"]["scales"] == [1.0, 4.0]
    assert saved["data"]["signal_shape"] == [3, 48, 48]
    composer = composers.load("runs/unnamed/version_0/checkpoints/last.ckpt")
    sizes = [sum(part.numel() for part in module.parameters()) for module in (composer.start, composer.network)]
    assert sizes == [1_220_416, 346_883]


def test_the_published_batch_has_the_published_sizes():
    data = SuperResolution(SamplePhotos())
    batch = data.to_coordinates(data.random_items(data.batch_size), training=True)
    assert batch.observation.signal.shape == (16, 3, 48, 48)
    assert batch.query.coords.shape == (16, 2304, 4)
    assert batch.query.values.shape == (16, 2304, 3)
    torch.testing.assert_close(batch.query.coords[..., 2:], torch.full((16, 2304, 2), 2 / 192))
