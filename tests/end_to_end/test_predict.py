"""``cli.py predict`` and ``python -m tools.codes`` end to end: inputs, outputs, and one-line errors."""

import contextlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import REPOSITORY, asked, refused, rows, run, run_process, tiny

import composers
from composers.codes import decode, read_code
from datamodules.storage.images import cut, read_image
from datamodules.tiles import boxes, whole
from modalities.images import encode, render
from tools import codes

OPTIONS = ("images", "output", "size", "scale", "tile", "tile_size", "steps")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder with two images."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, shape in (("wide", (18, 40)), ("tall", (25, 12))):
        ramp = np.linspace(0, 200, shape[0] * shape[1]).reshape(*shape, 1)
        Image.fromarray((ramp + generator.uniform(0, 55, (*shape, 3))).astype(np.uint8)).save(f"{name}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the checkpoints of a tiny IPC and a tiny TransINR for images of 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        for composer in ("ipc", "transinr"):
            run("fit", *tiny(composer), "--trainer.logger.init_args.name", composer)
    return {name: folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("ipc", "transinr")}


def _pixels(path):
    """Return the pixels of an image file as floating point."""
    return np.asarray(Image.open(path)).astype(float)


def _psnr(prediction, target, peak=255):
    """Return the PSNR in dB."""
    return 10 * np.log10(peak**2 / np.mean((prediction - target) ** 2))


@pytest.mark.parametrize("kind", ["ipc", "transinr"])
def test_predict_writes_image_error_code_and_table(trained, kind):
    printed = run("predict", "--images", "wide.png", "--ckpt_path", trained[kind])
    assert {path.name for path in Path("predictions").iterdir()} == {
        "wide.png",
        "wide.error.png",
        "wide.safetensors",
        "predictions.csv",
    }
    composer = composers.load(trained[kind])
    prediction, target = _pixels("predictions/wide.png"), _pixels("wide.png")
    assert prediction.shape == target.shape == (18, 40, 3)
    expected = np.asarray(render(composer, encode(composer, "wide.png")))
    assert np.abs(prediction - expected).max() <= 1
    assert np.array_equal(_pixels("predictions/wide.error.png"), np.minimum(5 * np.abs(prediction - target), 255))
    [row] = rows("predictions/predictions.csv")
    assert float(row["psnr"]) == pytest.approx(_psnr(prediction, target), abs=6e-4)
    assert (row["name"], row["rows"], row["columns"], row["tiles"]) == ("wide", "18", "40", "1")
    resized = cut(read_image("wide.png").pixels, whole((18, 40)), 16).permute(1, 2, 0).double().numpy() / 255
    for key, steps in (("psnr predicted", 0), ("psnr refined", 3)):
        code = encode(composer, "wide.png", refinement=composer.refinement.with_steps(steps))
        field = torch.cat(list(decode(composer, code, (16, 16)))).double().numpy()
        assert float(row[key]) == pytest.approx(_psnr(field, resized, peak=1), abs=2e-3)
    assert "18 x 40" in printed
    assert re.search(r"Code size: (64|152) numbers, 0\.\d kB in float32, \d\.\d\d bits per pixel", printed)
    assert "PSNR in dB" in printed


@pytest.mark.slow
def test_unreadable_images_in_a_folder_are_skipped(trained):
    Path("in/sub").mkdir(parents=True)
    shutil.move("wide.png", "in/sub/wide [red].png")
    shutil.move("tall.png", "in/tall.png")
    Path("in/text.jpg").write_text("hello")
    Path("in/empty.png").touch()
    for _ in range(2):  # the second run ignores and overwrites the results of the first
        printed = run("predict", "--images", "in", "--output", "in/out", "--ckpt_path", trained["ipc"], "--scale", 0.5)
        table = rows("in/out/predictions.csv")
        assert [row["name"] for row in table] == ["sub/wide [red]", "tall"]
        assert _pixels("in/out/sub/wide [red].png").shape == (9, 20, 3)
        assert _pixels("in/out/tall.png").shape == (12, 6, 3)
        assert _pixels("in/out/tall.error.png").shape == (25, 12, 3)
        assert "Skipped 2:" in printed
        assert "in/text.jpg is not an image" in printed
        assert "in/empty.png is empty" in printed
        assert "[red]" in printed


@pytest.mark.slow
def test_size_and_steps_are_options(trained):
    weights = ["--ckpt_path", trained["ipc"]]
    run("predict", "--images", "wide.png", "tall.png", *weights, "--size", "80", "--steps", 0)
    assert _pixels("predictions/wide.png").shape == (36, 80, 3)
    assert _pixels("predictions/tall.png").shape == (80, 38, 3)
    for row in rows("predictions/predictions.csv"):
        assert row["refinement steps"] == "0"
        assert row["psnr predicted"] == row["psnr refined"]
    run("predict", "--images", "wide.png", *weights, "--size", "[7, 5]")
    assert _pixels("predictions/wide.png").shape == (7, 5, 3)


def test_tiles_are_predicted_as_by_encode(trained):
    run("predict", "--images", "wide.png", "tall.png", "--tile", "--tile_size", 10, "--ckpt_path", trained["ipc"])
    composer = composers.load(trained["ipc"])
    for name, shape in (("wide", (18, 40)), ("tall", (25, 12))):
        code = read_code(f"predictions/{name}.safetensors")
        assert code.boxes == boxes(shape, 10, 2)
        expected = render(composer, encode(composer, f"{name}.png", tile=True, tile_size=10))
        assert np.abs(_pixels(f"predictions/{name}.png") - np.asarray(expected)).max() <= 1
    assert [int(row["tiles"]) for row in rows("predictions/predictions.csv")] == [
        len(boxes(shape, 10, 2)) for shape in ((18, 40), (25, 12))
    ]


@pytest.mark.slow
def test_two_processes_write_the_same_results_as_one(trained, tmp_path):
    for index in range(2):
        Image.new("RGB", (9, 9), (index * 90, 0, 0)).save(f"extra{index}.png")
    images = ["wide.png", "tall.png", "extra0.png", "extra1.png", "text.jpg"]
    Path("text.jpg").write_text("hello")
    args = ["--images", *images, "--tile", "--tile_size", 9, "--ckpt_path", trained["ipc"], "--data.batch_size", 2]
    run("predict", *args, "--output", "one")
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    printed = run_process("predict", *args, "--output", "two", *ddp, cwd=tmp_path)
    assert printed.count("Skipped 1:") == 1
    assert printed.count("Images, error images, codes") == 1
    actual, expected = rows("two/predictions.csv"), rows("one/predictions.csv")
    assert [row["name"] for row in actual] == ["wide", "tall", "extra0", "extra1"]
    for row, expected_row in zip(actual, expected, strict=True):
        assert float(row["psnr"]) == pytest.approx(float(expected_row["psnr"]), abs=0.02)
        assert np.abs(_pixels(f"two/{row['name']}.png") - _pixels(f"one/{row['name']}.png")).max() <= 1
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}


@pytest.mark.slow
def test_invalid_image_options_raise_one_line_errors(trained):
    weights = ["--ckpt_path", trained["ipc"]]
    Path("text.jpg").write_text("hello")
    Path("in").mkdir()
    message = refused("predict", "--images", "text.jpg", "in", *weights)
    assert "No readable image in text.jpg, in" in message
    assert "text.jpg is not an image" in message
    assert "in an empty list" in refused("predict", *weights)
    assert "add --tile" in refused("predict", "--images", "wide.png", *weights, "--tile_size", 9)
    message = refused("predict", "--images", "wide.png", *weights, "--size", 9, "--scale", 2)
    assert message.startswith("error: size is 9 and scale is 2.0: pass only one of them.\n(")
    assert "positive" in refused("predict", "--images", "wide.png", *weights, "--scale", -1)
    assert "steps is -1" in refused("predict", "--images", "wide.png", *weights, "--steps", -1)
    assert "pictur" in refused("predict", "--pictur", "wide.png", *weights)
    assert not Path("predictions").exists()


@pytest.mark.slow
def test_unusable_output_folders_raise_one_line_errors(trained):
    args = ["--images", "wide.png", "--ckpt_path", trained["ipc"], "--output"]
    assert "The folder . is not empty" in refused("predict", *args, ".")
    assert "The output folder tall.png cannot be written: it is a file" in refused("predict", *args, "tall.png")
    message = refused("predict", *args, "tall.png/in")
    assert "The output folder tall.png/in cannot be written: it is a file" in message
    assert "choose another folder with --output" in message
    assert {path.name for path in Path().iterdir()} >= {"wide.png", "tall.png"}


def test_unusable_checkpoints_raise_one_line_errors(trained):
    args = ["--images", "wide.png", "--ckpt_path"]
    assert "There is no checkpoint no.ckpt" in refused("predict", *args, "no.ckpt")
    assert "wide.png is truncated or not a checkpoint" in refused("predict", *args, "wide.png")
    content = torch.load(trained["ipc"], weights_only=True)
    del content["composer"]
    torch.save(content, "bare.ckpt")
    refused("predict", *args, "bare.ckpt")
    message = refused("predict", *args, trained["ipc"], *tiny("ipc"))
    assert "--images sets an argument of datamodules.ImageFiles" in message
    assert "omit the config" in message


def test_help_lists_the_short_options():
    printed = asked("predict", "--help")
    assert all(f"--{name} " in printed or f"--{name}\n" in printed for name in OPTIONS)
    assert "Options for images" in printed


def _run_codes(capsys, *args):
    """Run ``python -m tools.codes`` and return what it printed."""
    codes.main([str(argument) for argument in args])
    return capsys.readouterr().out


def _codes_error(*args):
    """Run a failing command of ``python -m tools.codes`` and return its error message."""
    with pytest.raises(SystemExit) as exited:
        codes.main([str(argument) for argument in args])
    message = exited.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.fixture
def encoded(trained):
    """Write the codes of both images, and return the model that encoded them."""
    composer = composers.load(trained["ipc"])
    for name in ("wide", "tall"):
        encode(composer, f"{name}.png").save(f"{name}.safetensors")
    return composer


def test_codes_are_rendered_without_the_original_image(encoded, trained, capsys):
    Path("wide.png").unlink()
    args = ["wide.safetensors", "--checkpoint", trained["ipc"]]
    assert "wide.18x40.png: 18 x 40 pixels" in _run_codes(capsys, "render", *args)
    assert np.array_equal(_pixels("wide.18x40.png"), _rendered(encoded, (18, 40)))
    _run_codes(capsys, "render", *args, "--size", "20x10", "--output", "new/out.png")
    assert np.array_equal(_pixels("new/out.png"), _rendered(encoded, (20, 10)))
    assert "wide.45x100.png" in _run_codes(capsys, "render", *args, "--size", 100)
    assert "wide.9x20.png" in _run_codes(capsys, "render", *args, "--scale", 0.5)


def _rendered(composer, size):
    """Return the pixels of the wide image's code, rendered at a size."""
    return np.asarray(render(composer, read_code("wide.safetensors"), size)).astype(float)


def test_interpolation_writes_frames_between_two_codes(encoded, trained, capsys):
    args = ["wide.safetensors", "tall.safetensors", "--checkpoint", trained["ipc"], "--frames", 3, "--size", 20]
    assert "Wrote 3 frames of 9 x 20 pixels" in _run_codes(capsys, "interpolate", *args)
    first, middle, last = (_pixels(f"interpolation/{frame:03d}.png") for frame in range(3))
    assert np.array_equal(first, _rendered(encoded, (9, 20)))
    ends = [read_code(f"{name}.safetensors").latents for name in ("wide", "tall")]
    halfway = {name: (latent + ends[1][name]) / 2 for name, latent in ends[0].items()}
    code = read_code("wide.safetensors")
    code.latents.update(halfway)
    assert np.abs(middle - np.asarray(render(encoded, code, (9, 20))).astype(float)).max() <= 1
    assert np.array_equal(last, np.asarray(render(encoded, read_code("tall.safetensors"), (9, 20))))
    with Image.open("interpolation/frames.gif") as animation:
        assert animation.n_frames == 3
    assert "--frames is 1" in _codes_error("interpolate", *args[:5], 1)


def test_info_prints_the_properties_of_a_code(encoded, trained, capsys):
    printed = _run_codes(capsys, "info", "wide.safetensors")
    assert "18 x 40" in printed
    size = "64 numbers, 0.3 kB in float32, 2.84 bits per pixel"  # 64 * 32 / (18 * 40)
    assert printed.count("code size") == printed.count(size) == 1
    assert read_code("wide.safetensors").facts["bits per pixel"] == "2.844"
    assert f"decoded from {size}." in _run_codes(capsys, "render", "wide.safetensors", "--checkpoint", trained["ipc"])
    assert read_code("wide.safetensors").model in printed
    assert "that of" in _run_codes(capsys, "info", "wide.safetensors", "--checkpoint", trained["ipc"])
    assert "is another model" in _run_codes(capsys, "info", "wide.safetensors", "--checkpoint", trained["transinr"])


def test_unusable_codes_raise_one_line_errors(encoded, trained, capsys):
    weights = ["--checkpoint", trained["ipc"]]
    assert "can only be decoded by its own model" in _codes_error(
        "render", "wide.safetensors", "--checkpoint", trained["transinr"]
    )
    assert "no.safetensors does not exist" in _codes_error("render", "no.safetensors", *weights)
    assert "wide.png is damaged or not an instance code" in _codes_error("info", "wide.png")
    assert "There is no checkpoint no.ckpt" in _codes_error("render", "wide.safetensors", "--checkpoint", "no.ckpt")
    assert "must be positive" in _codes_error("render", "wide.safetensors", *weights, "--scale", 0)
    for size in ("axb", "-4", "0", "3x4x5"):
        with pytest.raises(SystemExit):
            codes.main(["render", "wide.safetensors", "--checkpoint", "x", f"--size={size}"])
        assert "is not a size: pass pixels of the longer side, or ROWSxCOLUMNS" in capsys.readouterr().err


def test_predict_runs_on_a_data_set(trained):
    config = REPOSITORY / "configs" / "data" / "sample_photos.yaml"
    args = ["--config", config, "--data.init_args.size", 16, "--data.init_args.eval_batch_size", 3, "--steps", 1]
    run("predict", "--ckpt_path", trained["ipc"], *args, "--trainer.limit_predict_batches", 1)
    table = rows("predictions/predictions.csv")
    assert [row["name"] for row in table] == ["astronaut", "astronaut-00", "astronaut-01"]
    assert all(float(row["psnr"]) > float(row["psnr refined"]) - 0.05 for row in table)  # clipping only helps
    assert not Path("config.yaml").exists()  # which could overwrite a file of the user
