"""Benchmarks of super-resolution: folder layouts, counts, published low resolutions, and evaluation through the program."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import NAME, REPOSITORY, column, refused, run

from datamodules import SRBenchmark, SuperResolution
from datamodules.storage.images import read_image

NAMES = ("baby", "bird", "butterfly", "head", "woman")
CONFIGS = REPOSITORY / "configs"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _write(path, size, seed):
    """Write a smooth image with ``size`` rows and columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


def _put(folder, high="HR", scales=(2, 3, 4), names=NAMES, suffix=".png"):
    """Write a benchmark whose images have 41 x 50 pixels and more into a folder."""
    for number, name in enumerate(names):
        _write(Path(folder, high, f"{name}{suffix}"), (41 + number, 50), number)
        for scale in scales:
            size = ((41 + number) // scale, 50 // scale)
            _write(Path(folder, "LR_bicubic", f"X{scale}", f"{name}x{scale}{suffix}"), size, 100 * scale + number)


def _data(**arguments):
    """Return the data module without a cache."""
    return SRBenchmark(**{"cache": None} | arguments)


@pytest.mark.parametrize("folder", ["data/Set5", "data/benchmark/Set5"])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_the_layout_of_edsr_is_read(folder, suffix):
    _put(folder, suffix=suffix)
    data = _data()
    for split in ("val", "test"):
        assert [file.name for file in data.files(split)] == [f"{name}{suffix}" for name in NAMES]
        images, small = data.native_images(split), data.low_resolution_images(split, 3.0)
        assert [small[index].name for index in range(5)] == [images[index].name for index in range(5)]
    for index, name in enumerate(NAMES):
        expected = read_image(Path(folder, "LR_bicubic", "X3", f"{name}x3{suffix}")).pixels
        assert torch.equal(small[index].values, expected)


def test_low_resolutions_may_have_another_suffix():
    _put("data/Set5", suffix=".bmp")
    for path in Path("data/Set5/LR_bicubic").rglob("*.bmp"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    assert len(_data().low_resolution_images("test", 2.0)) == 5


@pytest.mark.parametrize("high", ["HR", "."])
def test_folders_without_low_resolutions_use_pillow(high):
    _put("data/Set5", high=high, scales=())
    data = SuperResolution(_data(), size=8, num_queries=16, scales=(1, 4), test_scales=[2, 4])
    data.setup("test")
    assert len(data.test_set) == 10
    pair = data.test_set[5]
    assert (pair.name, pair.scale, pair.low.shape, pair.high.shape) == ("baby.png-x4", 4, (3, 10, 12), (3, 40, 48))
    expected = Image.open(Path("data/Set5", high, "baby.png")).crop((0, 0, 48, 40))
    expected = np.array(expected.resize((12, 10), Image.Resampling.BICUBIC))
    assert torch.equal(pair.low, torch.from_numpy(expected).permute(2, 0, 1))
    assert data.notes["low resolution at scale 4"] == "Pillow, bicubic"


def test_images_beside_the_low_resolutions_are_found():
    _put("data/Set5", high=".", scales=(2,))
    data = _data()
    assert len(data.native_images("test")) == 5
    assert len(data.low_resolution_images("test", 2.0)) == 5
    assert _data(low_resolution=False).low_resolution_images("test", 2.0) is None


@pytest.mark.parametrize("name", ["B100", "BSD100"])
def test_b100_is_also_called_bsd100(name, monkeypatch):
    monkeypatch.setattr(SRBenchmark, "counts", {"B100": 5})
    _put(f"data/{name}")
    assert len(_data(benchmark="B100").native_images("test")) == 5


def test_published_counts_are_checked_unless_partial(monkeypatch):
    assert [_data(benchmark=name).count("test") for name in ("Set5", "Set14", "B100", "Urban100")] == [5, 14, 100, 100]
    _put("data/Set5", names=NAMES[:4])
    with pytest.raises(ValueError, match=r"4 images for split test.*5 are expected.*partial true"):
        _data().native_images("test")
    assert len(_data(partial=True).native_images("test")) == 4
    _put("data/Mine", names=NAMES[:3])
    assert len(_data(benchmark="Mine").native_images("test")) == 3


def test_a_missing_benchmark_raises_an_error_that_says_how_to_get_it():
    with pytest.raises(ValueError, match="Urban100 was not found in sets") as raised:
        _data(benchmark="Urban100", root="sets").native_images("test")
    for part in ("sets/Urban100/HR", "sets/benchmark/Urban100/HR", "no official download", "EDSR", "babyx2.png"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", ["", "..", "data/Set5", "a\\b"])
def test_a_path_as_benchmark_raises_an_error(name):
    with pytest.raises(ValueError, match="give the name of a benchmark"):
        SRBenchmark(benchmark=name)


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_training_on_a_benchmark_raises_an_error(cache):
    _put("data/Set5")
    data = SuperResolution(_data(cache=cache), size=8, num_queries=16)
    call = (lambda: data.setup("fit")) if cache is None else data.prepare_data
    with pytest.raises(ValueError, match=r"Set5 is for evaluation and has no training images.*super_resolution_div2k"):
        call()


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_low_resolutions_raise_an_error_with_file_and_fix(cache, damage):
    _put("data/Set5")
    path = Path("data/Set5/LR_bicubic/X2/headx2.png")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"1 of 5 published images at scale 2 in data/Set5/LR_bicubic/X2") as raised:
        _data(cache=cache).low_resolution_images("val", 2.0)
    assert f"{path} is {'missing' if damage == 'missing' else 'corrupt or truncated'}" in str(raised.value)
    assert "move data/Set5/LR_bicubic/X2 away to use Pillow's bicubic filter" in str(raised.value)


def test_the_low_resolution_of_another_image_raises_an_error():
    _put("data/Set5")
    Path("data/Set5/LR_bicubic/X4/headx4.png").replace("data/Set5/LR_bicubic/X2/headx2.png")
    data = SuperResolution(_data(), size=8, num_queries=16, test_scales=[2])
    data.setup("test")
    with pytest.raises(ValueError, match=r"head\.png has 44 x 50 pixels.*11 x 12.*do not belong together"):
        data.test_set[3]


def test_published_sizes_that_do_not_divide_are_cropped():
    _put("data/Set5")
    data = SuperResolution(_data(), size=8, num_queries=16, test_scales=[3])
    data.setup("test")
    shapes = [(tuple(pair.low.shape), tuple(pair.high.shape)) for pair in map(data.test_set.__getitem__, range(5))]
    assert shapes[:2] == [((3, 13, 16), (3, 39, 48)), ((3, 14, 16), (3, 42, 48))]


def _liif():
    """Write a config that trains a tiny model on a folder of images."""
    for number in range(4):
        _write(Path("images", f"{number}.png"), (40, 48), number)
    Path("liif.yaml").write_text(
        f"""
_base_: [{CONFIGS}/composers/liif.yaml, {CONFIGS}/data/super_resolution_folder.yaml]
trainer: {{max_steps: 1, limit_val_batches: 1}}
data:
  init_args:
    images: {{init_args: {{root: images, cache: null}}}}
    size: 8
    num_queries: 16
    repeat: 1
    batch_size: 2
model:
  init_args:
    network: {{init_args: {{feature_dim: 4, hidden_dim: 8, num_hidden: 1}}}}
    encoder: {{init_args: {{width: 4, num_blocks: 1}}}}
"""
    )
    return ["--config", "liif.yaml"]


@pytest.mark.slow
def test_a_model_is_tested_on_the_luminance_of_a_benchmark_and_not_trained_on_it():
    experiment = _liif()
    benchmark = ["--config", CONFIGS / "data" / "super_resolution_set5.yaml"]
    benchmark += ["--data.init_args.images.init_args.cache", "null"]
    _put("data/Set5")
    run("fit", *experiment)
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    colours = ["--model.init_args.metrics.psnr.init_args.luma", "false"]
    psnr = {}
    for key, options in (("luma", []), ("colours", colours)):
        run("test", *experiment, *benchmark, *options, "--ckpt_path", checkpoint, NAME, key)
        [psnr[key]] = column(next(Path("runs", key).rglob("metrics.csv")), "test/psnr")
    assert 0 < psnr["colours"] < psnr["luma"] < 60
    message = refused("fit", *experiment, *benchmark)
    assert "Set5 is for evaluation and has no training images" in message
