"""The contact figure: its geometry, its region, its labels, and what two processes draw."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from flat_images import FlatData
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from program import TESTS, run, run_two
from small_pairs import SmallImages, naive_bicubic, naive_psnr, shift_between, smooth_image

from callbacks.contact import ContactFigure, ContactRow, most_detailed, ordered
from callbacks.gallery import Gallery
from callbacks.summary import StartSummary
from composers import LIIF
from composers.encoders import EDSR
from composers.metrics import PSNR
from composers.networks import LocalMLP
from datamodules import SuperResolution
from datamodules.domain import CellGrid
from datamodules.images.sample_photos import Photographs

MARGIN, LABEL, SIDE = 8, 18, 256


def _interpolation():
    """Return a LIIF that is bilinear interpolation, as all with a bilinear skip connection before training."""
    network = LocalMLP(coord_dim=4, value_dim=3, feature_dim=4, hidden_dim=8, num_hidden=1, skip="bilinear")
    return LIIF(network, EDSR((3, -1, -1), width=4, num_blocks=1), metrics={"psnr": PSNR(clip=True)})


def _data(shapes=((230, 250),), detail=5, **changes):
    """Return pairs of smooth images of these shapes."""
    images = SmallImages()
    photographs = [(f"waves-{place}", smooth_image(shape, place, detail)) for place, shape in enumerate(shapes)]
    images.native_images = lambda split: Photographs(photographs)
    return SuperResolution(images, **{"size": 8, "num_queries": 16, "test_scales": (2.0, 4.0)} | changes)


def _test(folder, data, *callbacks, composer=None):
    """Test a model, and return the folder of the run."""
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="run", version=0),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(composer or _interpolation(), datamodule=data, verbose=False)
    return Path(folder, "run", "version_0")


def _panels(path, num_rows, side=SIDE, factor=2):
    """Return the images of a figure by row and column ``(rows, 4, 3, H, W)`` in [0, 1], at the pixels of the target."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1) / 255
    panels = []
    for row in range(num_rows):
        top = MARGIN + row * (side + MARGIN + LABEL) + LABEL
        lefts = [MARGIN + column * (side + MARGIN) for column in range(4)]
        panels.append([pixels[:, top : top + side : factor, left : left + side : factor] for left in lefts])
    assert pixels.shape[1:] == (top + side + MARGIN, lefts[-1] + side + MARGIN)
    return np.array(panels)


@pytest.mark.parametrize("scale", [2.0, 2.6, 4.0])
def test_columns_show_the_same_region_without_a_shift(tmp_path, scale):
    data = _data(test_scales=[scale])
    folder = _test(tmp_path, data, ContactFigure(scales=[scale]))
    [[given, bicubic, ours, truth]] = _panels(folder / "contact.png", 1)
    pair = data.test_set[0]
    rows, columns = most_detailed(pair.high.float() / 255, 128)
    assert np.abs(truth * 255 - pair.high[:, rows, columns].numpy()).max() < 0.01
    low, shape = pair.low.numpy() / 255, pair.high.shape[1:]
    expected = naive_bicubic(low, shape)[:, rows, columns]
    assert np.abs(bicubic - expected.clip(0, 1)).max() < 0.51 / 255
    sources = [
        ((np.arange(extent) + 0.5) * old / extent).astype(int)[span]
        for extent, old, span in zip(shape, low.shape[1:], (rows, columns), strict=True)
    ]
    assert np.abs(given - low[:, sources[0]][:, :, sources[1]]).max() < 1e-6
    for image in (bicubic, ours):  # a quarter of an observed pixel is 0.25 * scale
        assert shift_between(image[0], truth[0]) == pytest.approx([0, 0], abs=0.05 * scale)


class _Shifted(LIIF):
    """A model whose reconstructions lie a quarter of an observed pixel too low and too far to the right."""

    def reconstruct(self, modulations, coords):
        moved = coords.clone()
        moved[:, :2] -= coords[0, 2:] * self.scale / 4
        return super().reconstruct(modulations, moved)


@pytest.mark.parametrize("scale", [2.0, 2.6, 4.0])
def test_a_shift_of_a_quarter_of_an_observed_pixel_is_detected(tmp_path, scale):
    composer = _interpolation()
    composer.__class__, composer.scale = _Shifted, scale
    folder = _test(tmp_path, _data(test_scales=[scale]), ContactFigure(scales=[scale]), composer=composer)
    [[_, bicubic, ours, truth]] = _panels(folder / "contact.png", 1)
    assert shift_between(bicubic[0], truth[0]) == pytest.approx([0, 0], abs=0.05 * scale)
    assert shift_between(ours[0], truth[0]) == pytest.approx([0.25 * scale] * 2, abs=0.05 * scale)


def test_labels_state_the_metric_of_the_whole_image(tmp_path, monkeypatch):
    labels = []
    grid = "callbacks.contact.image_grid"
    monkeypatch.setattr(grid, lambda rows: labels.extend([[cell[0] for cell in row] for row in rows]) or rows[0][0][1])
    data = _data(shapes=((90, 60),))
    folder = _test(tmp_path, data, ContactFigure(crop=16))
    composer = _interpolation().eval()
    for place, scale in enumerate((2, 4)):
        pair = data.test_set[place]
        batch = data.to_coordinates(data.collate([pair]))
        with torch.no_grad():
            values = composer(batch.observation, batch.query.coords)[0].mT.reshape(pair.high.shape).numpy()
        low, high = pair.low.numpy() / 255, pair.high.numpy() / 255
        bicubic = naive_psnr(naive_bicubic(low, high.shape[1:]), high, scale, luma=False)
        ours = naive_psnr(values, high, scale, luma=False)
        assert labels[place] == [f"waves-0-x{scale}", f"bicubic {bicubic:.2f} dB", f"prediction {ours:.2f} dB", "truth"]
    assert (folder / "contact.png").is_file()


def _naive_detail(image, crop):
    """Return the place of the window with the largest sum of squared differences of luminance, by loops over windows."""
    weights = np.array([65.738, 129.057, 25.064]) / 256
    grey = np.round(np.tensordot(weights, image.double().numpy(), 1) * 255)
    best, place = -1.0, (0, 0)
    for top in range(grey.shape[0] - crop + 1):
        for left in range(grey.shape[1] - crop + 1):
            window = grey[top : top + crop, left : left + crop]
            detail = (np.diff(window, axis=0) ** 2).sum() + (np.diff(window, axis=1) ** 2).sum()
            if detail > best:
                best, place = detail, (top, left)
    return place


@pytest.mark.parametrize(("shape", "crop"), [((20, 31), 8), ((31, 20), 5), ((12, 12), 12), ((9, 9), 1)])
def test_the_region_has_most_detail(shape, crop):
    image = torch.rand(3, *shape)
    rows, columns = most_detailed(image, crop)
    top, left = _naive_detail(image, crop)
    assert (rows, columns) == (slice(top, top + crop), slice(left, left + crop))


def test_the_first_of_equal_regions_is_chosen():
    assert most_detailed(torch.full((3, 40, 50), 0.3), 16) == (slice(0, 16), slice(0, 16))
    tiled = torch.rand(3, 8, 8).repeat(1, 4, 4)
    rows, columns = most_detailed(tiled, 8)
    assert rows.start < 8
    assert columns.start < 8


def test_images_smaller_than_the_crop_are_shown_completely(tmp_path):
    data = _data(shapes=((40, 64),), border="none", test_scales=[2.0])
    folder = _test(tmp_path, data, ContactFigure())
    with Image.open(folder / "contact.png") as figure:
        assert figure.size == (4 * (SIDE + MARGIN) + MARGIN, 160 + 2 * MARGIN + LABEL)


def test_rows_are_images_with_ascending_scales(tmp_path):
    figure, shapes = ContactFigure(crop=16, num_images=2), ((40, 48), (44, 40), (48, 40))
    data = _data(shapes, test_scales=(8, 2, 3, 4), border="none")
    shown = []
    figure_rows = "callbacks.contact.contact_figure"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_rows, lambda rows, modality: shown.extend(rows) or Image.new("RGB", (1, 1)))
        _test(tmp_path, data, figure)
    expected = [(f"waves-{image}", scale) for image in (0, 1) for scale in (2.0, 4.0, 8.0)]
    assert [(row.image, row.scale) for row in shown] == expected
    assert {cell.shape for row in shown for cell in row.cells} == {(16, 16)}


def test_rows_of_several_processes_are_ordered_by_their_place_in_the_test_set():
    names = [("a", 2.0), ("b", 2.0), ("c", 2.0), ("a", 4.0), ("b", 4.0), ("c", 4.0)]
    rows = [ContactRow(image, scale, place, []) for place, (image, scale) in enumerate(names)]
    chosen = ordered(rows[1::2] + rows[0::2], 2)
    assert [(row.image, row.scale) for row in chosen] == [("a", 2.0), ("a", 4.0), ("b", 2.0), ("b", 4.0)]


def test_other_data_and_other_scales_have_no_figure(make_ipc, tmp_path):
    assert not (_test(tmp_path / "a", _data(test_scales=[3.0]), ContactFigure()) / "contact.png").exists()
    data = FlatData(batch_size=3)
    assert not (_test(tmp_path / "b", data, ContactFigure(), composer=make_ipc()) / "contact.png").exists()


@pytest.mark.parametrize("changes", [{"crop": 0}, {"num_images": 0}, {"scales": []}])
def test_arguments_out_of_range_raise(changes):
    with pytest.raises(ValueError, match="crop and num_images must be at least 1, and scales must not be empty"):
        ContactFigure(**changes)


def test_gallery_has_the_input_bicubic_the_original_and_the_prediction(tmp_path):
    data = _data(shapes=((300, 280), (64, 128)), test_scales=[2.0], border="none")
    gallery = Gallery()
    _test(tmp_path, data, gallery)
    large, small = gallery.rows.values()
    labels = [cell.label for cell in large]
    assert labels[:3] == ["waves-0-x2", "bicubic", "original"]
    assert labels[3].startswith("predicted ")
    assert len(labels) == 4
    assert [cell.shape for cell in large] == [(150, 140), (300, 280), (300, 280), (300, 280)]
    assert [cell.shape for cell in small][:4] == [(32, 64), (64, 128), (64, 128), (64, 128)]
    assert all(cell.domain == CellGrid.unit(2) for cell in large)


def test_summary_states_the_size_of_the_input_that_a_code_belongs_to(tmp_path, capsys):
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[StartSummary()],
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(_interpolation(), datamodule=_data(shapes=((64, 48),) * 2, batch_size=2, val_scales=[2.0]))
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "5,376 numbers, 21.5 kB in float32, 224.00 bits per input pixel, for an input of 32 x 24" in printed


@pytest.mark.slow
def test_two_processes_measure_every_pair_once_and_draw_the_same_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["--config", TESTS / "configs" / "pairs.yaml"]
    name, weights = "--trainer.logger.init_args.name", ["--ckpt_path", "runs/fit/version_0/checkpoints/last.ckpt"]
    run("fit", *config, name, "fit")
    printed = {"one": run("test", *config, *weights, name, "one")}
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    printed["two"] = run_two([["test", *config, *weights, *two, name, "two"]], tmp_path)
    tables = []
    for processes, text in printed.items():
        assert text.count("Means over images, by scale") == 1
        with Path("runs", processes, "version_0", "test_scales.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["images"] for row in tables[0]] == ["3", "3", "3"]
    for one, other in zip(*tables, strict=True):
        for key, value in one.items():
            assert float(other[key]) == pytest.approx(float(value), abs=1e-4)
    figures = [Path("runs", processes, "version_0", "contact.png").read_bytes() for processes in printed]
    assert figures[0] == figures[1]
