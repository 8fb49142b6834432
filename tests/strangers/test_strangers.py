"""Five extensions by third parties, written against public contracts only, go through every command of the program."""

import ast
import importlib
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import NAME, SAVE_DIR, TESTS, column, refused, rows, run

import composers
from composers.codes import decode, read_code
from composers.rendering import Reconstruction
from datamodules import CoordinateDataModule
from datamodules.configuration import instantiate, load_layers
from datamodules.images.sample_photos import photograph
from modalities.images import encode, render
from tools import codes
from tools.export import export

FOLDER = TESTS / "strangers"
STRANGERS = ("attention", "backbone", "liif", "sdf", "video")
CONFIGS = (*STRANGERS, "attention_inner")
PUBLIC = (
    "composers",
    "composers.codes",
    "composers.encoders",
    "composers.inference",
    "composers.latents",
    "composers.losses",
    "composers.metrics",
    "composers.networks",
    "composers.rendering",
    "datamodules",
    "datamodules.batch",
    "datamodules.domain",
    "datamodules.loading",
    "datamodules.spec",
    "modalities",
)
MAX_LINES = 60


def _fit(name, *args):
    """Train a stranger in the working directory and return its checkpoint."""
    run("fit", "--config", FOLDER / f"{name}.yaml", SAVE_DIR, "runs", NAME, name, *args)
    return Path("runs", name, "version_0", "checkpoints", "last.ckpt")


def _evaluate(command, name, checkpoint, *args):
    """Validate or test a stranger and return the folder of the run."""
    run(command, "--config", FOLDER / f"{name}.yaml", SAVE_DIR, "runs", NAME, name, "--ckpt_path", checkpoint, *args)
    return max(Path("runs", name).iterdir())


def _predict(name, checkpoint, *args):
    """Predict test items and return the rows of the table by name."""
    run("predict", "--config", FOLDER / f"{name}.yaml", "--ckpt_path", checkpoint, "--output", "predictions", *args)
    return {row["name"]: row for row in rows("predictions/predictions.csv")}


def _data(name, monkeypatch):
    """Return the data module of a stranger, set up for testing."""
    with monkeypatch.context() as context:
        context.chdir(FOLDER)
        config = load_layers(Path(f"{name}.yaml").read_text())["data"]
    data = instantiate(CoordinateDataModule, config)
    data.setup("test")
    return data


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("sdf", "video") else [pytest.mark.slow]) for name in CONFIGS]
)
def test_every_command_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = _data(name, monkeypatch)
    headline = data.spec.modality.headline.metric
    metric = data.spec.modality.metrics()[headline]

    checkpoint = _fit(name)
    history = checkpoint.parents[1] / "metrics.csv"
    assert len(column(history, "train/loss")) == 2
    assert all(map(math.isfinite, column(history, "train/loss")))
    [fitted] = column(history, f"val/{headline}")

    [validated] = column(_evaluate("validate", name, checkpoint) / "metrics.csv", f"val/{headline}")
    assert validated == pytest.approx(fitted, rel=1e-5)

    folder = _evaluate("test", name, checkpoint)
    tested = {row["name"]: float(row[f"{headline}@2"]) for row in rows(folder / "test_instances.csv")}
    assert len(tested) == 3
    with Image.open(folder / "gallery.png") as gallery:
        assert gallery.width > 256
    assert (folder / "inner_steps.png").exists() == (name == "attention_inner")

    predicted = _predict(name, checkpoint)
    assert predicted.keys() == tested.keys()
    composer = composers.load(checkpoint)
    batch = data.to_coordinates(data.collate([data.test_set[0]]))
    [first] = batch.names
    for signal, row in predicted.items():
        assert float(row[f"{headline} refined"]) == pytest.approx(tested[signal], abs=1e-3)

    code = read_code(Path("predictions", f"{first}.safetensors"))
    code.check(composer)
    values = torch.cat(list(decode(composer, code))).flatten(0, -2)
    [measured] = metric.measure(Reconstruction.of_values(values[None]), batch.query, batch.shape).tolist()
    assert measured == pytest.approx(tested[first], abs=1e-3)
    doubled = torch.cat(list(decode(composer, code, [2 * extent for extent in code.shape])))
    assert doubled.shape == (*(2 * extent for extent in code.shape), data.spec.value_dim)
    assert doubled.isfinite().all()


@pytest.mark.slow
def test_tokens_of_patches_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = _fit("attention_per_token")
    [name, *_] = _predict("attention_per_token", checkpoint)
    code = read_code(Path("predictions", f"{name}.safetensors"))
    assert code.latents["tokens"].shape == (1, 16, 4)
    assert code.layout.grid == (2, 2)


def test_a_super_resolver_predicts_files_and_decodes_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = _fit("liif")
    pixels = photograph("astronaut")[:, :48, :32]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save("photo.png")
    run("predict", "--ckpt_path", checkpoint, "--images", "photo.png", "--output", "out", "--steps", 2)
    composer, code = composers.load(checkpoint), read_code("out/photo.safetensors")
    encoded = encode(composer, "photo.png")
    assert (code.domain, code.layout, code.boxes) == (encoded.domain, encoded.layout, encoded.boxes)
    assert torch.allclose(code.latents["map"], encoded.latents["map"], atol=1e-5)
    with Image.open("out/photo.png") as image:
        assert image.size == (32, 48)
        assert image.tobytes() == render(composer, code).tobytes()
    codes.main(["render", "out/photo.safetensors", "--checkpoint", str(checkpoint), "--scale", "2"])
    assert "out/photo.96x64.png: 96 x 64 pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_codes_without_a_decoder_in_the_program_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = _fit("video")
    [name, *_] = _predict("video", checkpoint)
    with pytest.raises(SystemExit, match="which cannot be decoded on its own"):
        codes.main(["render", f"predictions/{name}.safetensors", "--checkpoint", str(checkpoint)])


def test_a_loss_that_differentiates_the_field_is_refused_in_inference_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", FOLDER / "sdf.yaml", SAVE_DIR, "runs", "--ckpt_path", _fit("sdf")]
    message = refused("validate", *arguments, "--trainer.inference_mode", "true")
    assert "set trainer.inference_mode to false" in message


def test_learned_tokens_without_a_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("any_number.yaml").write_text("model: {init_args: {network: {init_args: {num_tokens: null}}}}")
    configs = ["--config", FOLDER / "attention_inner.yaml", "--config", "any_number.yaml"]
    assert "use a start whose encoder states the grid" in refused("fit", *configs, SAVE_DIR, "runs")


def test_a_frozen_backbone_is_not_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = _fit("backbone")
    torch.manual_seed(0)
    composer = composers.load(checkpoint)
    encoder = composer.train().start.encoder
    assert not encoder.training
    assert int(encoder.backbone[1].num_batches_tracked) == 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_export(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    differences = export(composers.load(_fit(name)), "exported")
    is_encoded = name not in ("attention_inner", "sdf")
    assert differences.keys() == {"decoder.pt2", *(["encoder.pt2"] if is_encoded else [])}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_short_and_uses_public_names_only(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert _private_uses(text) == []


def _private_uses(text):
    """Return the imports and attributes in a source text that are not public."""
    uses = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            uses += [alias.name for alias in node.names if _is_ours(alias.name) and alias.name not in PUBLIC]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            uses += [
                f"{node.module}.{name}" for name in names if _is_ours(node.module) and not _is_public(node.module, name)
            ]
        elif (
            isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in ("__init__", "_replace")
        ):
            uses.append(ast.unparse(node))
    return uses


def _is_ours(module):
    """Return whether a module belongs to this repository."""
    return module.split(".")[0] in ("application", "callbacks", "composers", "datamodules", "modalities", "tools")


def _is_public(module, name):
    """Return whether a public module exports a name, or defines it where it does not list its exports."""
    if module not in PUBLIC or name.startswith("_"):
        return False
    imported = importlib.import_module(module)
    if hasattr(imported, "__all__"):
        return name in imported.__all__
    statements = ast.parse(Path(imported.__file__).read_text(encoding="utf-8")).body
    defined = {getattr(statement, "name", None) for statement in statements}
    for statement in statements:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            defined |= {getattr(target, "id", None) for target in targets}
    return name in defined


@pytest.mark.parametrize(
    "text",
    [
        "from composers.base import Composer",
        "from composers.networks import _private",
        "from composers.metrics import Tensor",
        "from composers.latents.direct import Direct",
        "import composers.base",
        "composer._infer(observation)",
    ],
)
def test_private_uses_are_found(text):
    assert len(_private_uses(text)) == 1
