"""Image files for prediction, and encoding and rendering of images."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from coordinates import grid
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from composers import Refinement
from composers.codes import InstanceCode, fingerprint
from composers.encoders import Patches
from composers.inference import TorchOptimizer
from datamodules import ImageFiles
from datamodules.batch import Observation
from datamodules.domain import Grid
from datamodules.images.prediction import unique_names
from datamodules.storage.images import cut, read_image
from datamodules.tiles import boxes, whole
from modalities.images import encode, error_image, image_size, input_size, render

SHAPE = [3, 8, 8]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def square_ipc(make_ipc, make_network):
    """Return a tiny `TransformerIPC` for images of 8 x 8 pixels, wide enough to fit two colours."""
    return make_ipc(network=make_network(hidden_dim=48), encoder=Patches(SHAPE, patch_size=4)).eval()


def _write_image(path, shape=(6, 9), colour=(200, 30, 60)):
    """Write an image of a constant colour."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1], colour).save(path, format="PNG")


def _set_up(*images, **options):
    """Return a data module that is set up for prediction on images."""
    data = ImageFiles([str(image) for image in images], SHAPE, **options)
    data.setup("predict")
    return data


def _names(data):
    """Return the result names of a data module."""
    return [file.name for file in data.files]


def test_folders_are_searched_recursively_in_order():
    for name in (
        "b.png",
        "a.JPG",
        "sub/deep/c.tif",
        ".hidden.png",
        ".cache/d.png",
        "folder.png/e.png",
        "x/predictions.csv",
    ):
        _write_image(f"in/{name}")
    _write_image("in/x/reconstruction.png")
    Path("in/notes.txt").write_text("not an image")
    data = _set_up("in")
    assert _names(data) == ["a", "b", "folder.png/e", "sub/deep/c"]
    assert data.skipped == {}


def test_unreadable_images_are_skipped_with_the_reason():
    _write_image("in/good.png")
    Path("in/text.jpg").write_text("hello")
    Path("in/empty.gif").touch()
    Path("in/phone.HEIC").write_bytes(b"....ftypheic")
    Path("in/broken.png").symlink_to("nothing.png")
    data = _set_up("in", "missing.png")
    assert _names(data) == ["good"]
    reasons = {
        "text.jpg": "not an image",
        "empty.gif": "empty",
        "phone.HEIC": "convert",
        "broken.png": "does not exist",
    }
    assert data.skipped.keys() == {*(f"in/{name}" for name in reasons), "missing.png"}
    for name, reason in reasons.items():
        assert reason in data.skipped[f"in/{name}"]
        assert f"in/{name}" in data.skipped[f"in/{name}"]


def test_no_readable_image_raises_an_error_with_every_reason():
    Path("in").mkdir()
    with pytest.raises(ValueError, match="No readable image in in: pass image files"):
        _set_up("in")
    Path("in/text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"(?s)in in.*in/text.jpg is not an image"):
        _set_up("in")
    with pytest.raises(ValueError, match="in an empty list"):
        _set_up()
    with pytest.raises(ValueError, match="only predict, not fit"):
        ImageFiles([], SHAPE).setup("fit")


def test_results_have_unique_names():
    for name in ("a.png", "a.jpg", "a_png.gif", "b.png", "b.error.png", "other/b.png"):
        _write_image(f"in/{name}")
    assert _names(_set_up("in", "in/other/b.png")) == ["a_jpg", "a_png", "a_png_2", "b_error_png", "b", "other/b"]
    assert _names(_set_up("in/b.png", "in/other/b.png")) == ["b_png", "b_png_2"]  # from different folders


def test_duplicate_paths_are_read_once():
    for name in ("a.png", "b.png"):
        _write_image(f"in/{name}")
    assert _names(_set_up("in", "in/b.png", "./in", Path.cwd() / "in" / "a.png")) == ["a", "b"]


@given(
    st.lists(
        st.sampled_from(["a", "a.png", "a_png", "a.jpg", "a_png_2.gif", "a.error.png", "b/a.png", "é" * 200]),
        max_size=9,
    )
)
def test_unique_names_leave_room_for_extensions(names):
    unique = unique_names([(Path(name), Path(name)) for name in names])
    files = [f"{name}{extension}" for name in unique for extension in (".png", ".error.png", ".safetensors")]
    assert Counter(files).most_common(1)[:1] in ([], [(files[0] if files else "", 1)])
    assert all(len(Path(f"{name}.safetensors.part").name.encode()) <= 255 for name in unique)


def test_names_are_truncated_and_valid_utf8():
    for name in ("two words.png", "日本 [red].png", f"{'x' * 251}.png", os.fsdecode(b"caf\xe9.png")):
        _write_image(f"in/{name}")
    names = _names(_set_up("in"))
    assert set(names) == {"two words", "日本 [red]", "x" * 200, "caf?"}
    assert "".join(names).encode("utf-8")


def test_orientation_and_notes_are_recorded():
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (12, 5)).save("a.jpg", exif=exif)
    data = _set_up("a.jpg")
    assert data.files[0].shape == (12, 5)
    assert data.notes == {"a": "CMYK converted"}
    assert data.original("a").shape == (3, 12, 5)


def test_batches_contain_tiles_image_by_image():
    shapes = {"a": (20, 12), "b": (5, 30), "c": (8, 8)}
    for index, (name, shape) in enumerate(shapes.items()):
        _write_image(f"in/{name}.png", shape, (10 * index, 0, 0))
    data = _set_up("in", tile=True, tile_size=10, batch_size=4)
    batches = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    pieces = [piece for batch in batches for piece in batch.pieces]
    assert [piece.name for piece in pieces] == ["a"] * 6 + ["b"] * 4 + ["c"]
    for name, shape in shapes.items():
        assert [piece.box for piece in pieces if piece.name == name] == boxes(shape, 10, 2)
    assert [len(batch.names) for batch in batches] == [4, 4, 3]
    assert len({name for batch in batches for name in batch.names}) == len(pieces)
    assert batches[0].observation.signal.shape == (4, 3, 8, 8)


def test_detail_raises_the_resolution_of_the_query_only():
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save("a.png")
    data = _set_up("a.png", detail=2)
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    assert torch.equal(batch.query.values[0], pixels.float().flatten(1).mT / 255)
    assert torch.allclose(batch.query.coords, grid((16, 16)))
    means = pixels.float().view(3, 8, 2, 8, 2).mean((2, 4)) / 255
    assert torch.allclose(batch.observation.signal[0], means, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detail": 0}, "detail is 0"),
        ({"tile": True, "tile_size": 1}, "tile_size is 1"),
        ({"tile_size": 9}, "add --tile"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_arguments_out_of_range_raise_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFiles([], SHAPE, **options)


@pytest.mark.parametrize("shape", [None, [1, 8, 8], [3, 8, 12], [3, 8]])
def test_models_of_other_signals_raise_an_error(shape):
    with pytest.raises(ValueError, match="square colour images"):
        _ = ImageFiles([], shape).spec


def test_encode_predicts_from_the_resized_image(square_ipc):
    pixels = torch.randint(0, 256, (3, 20, 12), dtype=torch.uint8)
    code = encode(square_ipc, pixels, refinement=Refinement(steps=0))
    resized = cut(pixels, whole((20, 12)), 8).float()[None] / 255
    with torch.no_grad():
        expected = square_ipc.encode(Observation(resized))
    assert code.latents.keys() == expected.keys()
    for name, latent in expected.items():
        assert torch.allclose(code.latents[name], latent, atol=1e-6)
    assert (code.shape, code.boxes) == ((20, 12), [((0, 20), (0, 12))])


def test_tiles_are_encoded_independently(square_ipc):
    pixels = torch.randint(0, 256, (3, 20, 12), dtype=torch.uint8)
    code = encode(square_ipc, pixels, tile=True, refinement=Refinement(steps=2), batch_size=4)
    assert code.boxes == boxes((20, 12), 8, 2)
    for index, ((top, bottom), (left, right)) in enumerate(code.boxes):
        single = encode(square_ipc, pixels[:, top:bottom, left:right], refinement=Refinement(steps=2))
        for name, latent in single.latents.items():
            assert torch.allclose(code.latents[name][index], latent[0], atol=1e-5)


def test_encoding_a_file_equals_encoding_its_pixels(square_ipc):
    pixels = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save("cat.png")
    code, other = encode(square_ipc, "cat.png"), encode(square_ipc, pixels)
    assert code.name == "cat"
    assert all(torch.equal(latent, other.latents[name]) for name, latent in code.latents.items())
    with pytest.raises(ValueError, match=r"dog\.png does not exist"):
        encode(square_ipc, "dog.png")


def test_render_evaluates_the_field(square_ipc):
    code = encode(square_ipc, torch.randint(0, 256, (3, 30, 90), dtype=torch.uint8), refinement=Refinement(steps=0))
    image = render(square_ipc, code, size=30)
    assert image.size == (30, 10)
    with torch.no_grad():
        field = square_ipc.render(square_ipc.compose(code.latents), grid((10, 30)))[0]
    expected = (field.clamp(0, 1) * 255).view(10, 30, 3).double().numpy()
    assert np.abs(np.asarray(image) - expected).max() <= 0.501


def test_render_restores_the_aspect_ratio(square_ipc):
    """The colour of the left half stays left of the centre of an oblong image."""
    pixels = torch.zeros(3, 30, 90, dtype=torch.uint8)
    pixels[0, :, :45], pixels[2, :, 45:] = 255, 255
    rule = TorchOptimizer(lambda latents: torch.optim.Adam(latents, lr=0.1))
    code = encode(square_ipc, pixels, refinement=Refinement(150, rule))
    actual = np.asarray(render(square_ipc, code)).astype(int)
    assert actual.shape == (30, 90, 3)
    redness = (actual[..., 0] - actual[..., 2]).mean(0)
    threshold = (redness[:30].mean() + redness[60:].mean()) / 2
    assert redness[:30].mean() > redness[60:].mean() + 20
    assert 36 <= np.flatnonzero(redness < threshold)[0] <= 54  # a network this small cannot fit a sharp edge


def test_tiles_of_a_smooth_image_have_no_seams(square_ipc):
    """At tile edges, neighbouring pixels differ no more than elsewhere."""
    ramp = torch.linspace(60, 190, 40).round().to(torch.uint8).expand(3, 24, 40).contiguous()
    code = encode(square_ipc, ramp, tile=True, refinement=Refinement(steps=60))
    jumps = np.abs(np.diff(np.asarray(render(square_ipc, code, scale=2)).astype(int), axis=1)).max((0, 2))
    edges = sorted({2 * edge for _, span in code.boxes for edge in span} - {0, 80})
    at_edges = np.isin(np.arange(1, 80), edges)
    assert at_edges.sum() == len(edges) > 4
    assert jumps[at_edges].max() <= jumps[~at_edges].max() + 1


def test_image_size_accepts_size_or_scale():
    assert image_size((30, 90)) == (30, 90)
    assert image_size((30, 90), size=45) == (15, 45)
    assert image_size((90, 30), size=45) == (45, 15)
    assert image_size((30, 90), size=(7, 8)) == (7, 8)
    assert image_size((30, 90), scale=2.5) == (75, 225)
    assert image_size((5000, 1), size=100) == (100, 1)


@pytest.mark.parametrize(
    ("size", "scale", "message"),
    [
        (4, 2.0, "pass only one of them"),
        (0, None, "positive"),
        (-3, None, "positive"),
        ((0, 4), None, "at least 1"),
        (None, 0.0, "positive"),
        (None, float("nan"), "finite"),
        (None, float("inf"), "finite"),
    ],
)
def test_image_sizes_out_of_range_raise_an_error(size, scale, message):
    with pytest.raises(ValueError, match=message):
        image_size((30, 90), size, scale)


def test_rendering_more_than_fits_into_memory_raises_an_error(square_ipc):
    code = encode(square_ipc, torch.zeros(3, 8, 8, dtype=torch.uint8), refinement=Refinement(steps=0))
    with pytest.raises(ValueError, match="10000000 x 10000000 pixels does not fit into memory"):
        render(square_ipc, code, size=10**7)


def test_codes_of_other_models_and_signals_raise_an_error(square_ipc, tiny_ipc, make_ipc):
    code = encode(square_ipc, torch.zeros(3, 8, 8, dtype=torch.uint8), refinement=Refinement(steps=0))
    with pytest.raises(ValueError, match="can only be decoded by its own model"):
        render(tiny_ipc, code)
    with pytest.raises(ValueError, match="not an image"):
        render(square_ipc, InstanceCode(code.latents, [((0, 8),)], (8,), fingerprint(square_ipc), domain=Grid.unit(1)))
    with pytest.raises(ValueError, match="not square colour images"):
        encode(tiny_ipc, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert input_size(square_ipc) == 8


def test_error_image_scales_the_difference_by_5():
    generator = np.random.default_rng(0)
    prediction, target = (generator.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(2))
    error, psnr = error_image(Image.fromarray(prediction), Image.fromarray(target))
    difference = prediction.astype(float) - target.astype(float)
    assert np.array_equal(np.asarray(error), np.minimum(5 * np.abs(difference), 255))
    assert psnr == pytest.approx(10 * np.log10(255**2 / np.mean(difference**2)), abs=1e-4)


def test_the_data_module_resizes_images_as_encode_does():
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 13, 3), dtype=np.uint8)).save("a.png")
    data = _set_up("a.png")
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    expected = cut(read_image("a.png").pixels, whole((21, 13)), 8)
    assert torch.equal(batch.observation.signal[0], expected.float() / 255)
