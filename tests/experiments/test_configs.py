"""Every bundled config builds the classes it names; merging of config files."""

import functools
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from program import REPOSITORY, TESTS, asked, assert_same, checkpoint, column, run

import cli
from composers import Composer
from datamodules import CoordinateDataModule
from datamodules.configuration import load_layers

CONFIGS = REPOSITORY / "configs"
# Arguments that make the data fit the patches of every composer, which are those for images of 178 x 178 pixels.
FITTING = {name: ["--data.init_args.size", 178] for name in ("sample_photos", "super_resolution_photos")}
HYPERNETWORKS = ("transformer_ipc", "transinr", "anr", "la_inr")
META_LEARNED = ("meta_ipc", "learned_init", "functa", "metasdf", "shapes_ipc")  # parts of names of experiments
DISTANCES = ("distance_maps", "shapes")  # modalities of signed distances, whose signals are sets of points
PATCH_WISE = (  # likewise; without blocks or inner steps
    *("patch_ipc", "meta_patches", "liif", "lte", "autodecoder"),
    *("voxels", "pixel_aligned"),
)
OF_VIEWS = ("voxel_codes", "pixel_aligned")  # composers that observe posed views
SHALLOW = ["--model.init_args.transformer.init_args.num_blocks", 1]  # further blocks only cost time
FEW = [  # for the same reason
    *("--model.init_args.inner.init_args.test_samples_per_step", 8),
    *("--model.init_args.inner.init_args.test_steps", 2),
]


@functools.cache
def _modality(data):
    """Return the modality of a config of data."""
    return Path(yaml.safe_load(data.read_text())["_base_"]).stem


def _named(folder):
    """Return the files in a folder of configs as named test parameters."""
    return [pytest.param(path, id=path.stem) for path in sorted((CONFIGS / folder).glob("*.yaml"))]


def _build(*args):
    """Return the `CLI` of ``fit`` after instantiation, without training."""
    programs = []
    with mock.patch.object(cli.CLI, "_run_subcommand", lambda self, name: programs.append(self)):
        run("fit", *args)
    return programs[0]


def _assert_works(*args):
    """Check that a config builds a composer that fits its data, and return the `CLI`."""
    program = _build(*args)
    composer, data = program.model, program.datamodule
    assert isinstance(composer, Composer)
    assert isinstance(data, CoordinateDataModule)
    composer.check_sizes(data)
    batch = data.to_coordinates(data.random_items(2))
    coords = batch.query.coords[..., :: batch.query.coords.shape[-2] // 9, :]
    with torch.no_grad():
        values = composer.eval()(batch.observation, coords)
    assert values.shape == (2, coords.shape[-2], data.spec.value_dim)
    assert values.isfinite().all()
    return program


def _assert_prints_itself(*args):
    """Check that the printed config of a config is equivalent."""
    printed = asked("fit", *args, "--print_config")
    Path("printed.yaml").write_text(printed)
    assert asked("fit", "--config", "printed.yaml", "--print_config") == printed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_configs_of_every_kind_exist():
    for folder in ("composers", "data", "experiments"):
        assert _named(folder)


def _pairs():
    """Return pairs of composers and data sets that fit.

    These are all data sets for three composers, and one data set of every modality for the others. Pairs with the photographs
    are quick, and for the three one data set of every modality.
    """
    pairs = []
    for composer in _named("composers"):
        modalities = set()
        for data in sorted(_named("data"), key=lambda data: "sample" not in data.id):  # first the bundled data
            every = composer.id in ("functa", "liif", "transformer_ipc")
            modality = _modality(data.values[0])
            if _fits(composer.id, data) and (every or modality not in modalities):
                quick = data.id == "sample_photos" or (every and modality not in modalities)
                modalities.add(modality)
                marks = [] if quick else [pytest.mark.slow]
                pairs.append(
                    pytest.param(composer.values[0], data.values[0], id=f"{composer.id}-{data.id}", marks=marks)
                )
    return pairs


def _fits(composer, data):
    """Return whether a composer reads signals of some data."""
    distances = _modality(data.values[0]) in DISTANCES
    if composer in OF_VIEWS:
        return _modality(data.values[0]) == "views"
    if composer.startswith("metasdf") or composer == "autodecoder":
        return distances
    if composer in HYPERNETWORKS and distances:
        return _modality(data.values[0]) == "shapes"  # points in space
    if distances:
        return composer not in ("patch_ipc", "liif")  # whose encoders read grids
    pairs = data.id.startswith("super_resolution")  # of resolutions, at coordinates with sizes
    if composer == "liif" or (pairs and composer != "transformer_ipc"):
        return composer == "liif" and pairs
    if pairs:
        return data.id == "super_resolution_photos"
    return composer != "patch_ipc" or _modality(data.values[0]) != "views"  # patches divide signals on grids


@pytest.mark.parametrize(("composer", "data"), _pairs())
def test_every_composer_works_with_every_data_set(composer, data):
    layers = [composer, data]
    if composer.stem in HYPERNETWORKS:
        specific, *common = (
            CONFIGS / "modalities" / f"{_modality(data)}_{kind}.yaml" for kind in (composer.stem, "tokens", "points")
        )
        layers += [specific] if specific.is_file() else [path for path in common if path.is_file()]
    arguments = [part for layer in layers for part in ("--config", layer)]
    quick = (
        SHALLOW
        if composer.stem in HYPERNETWORKS
        else []
        if composer.stem in ("autodecoder", "liif", *OF_VIEWS)
        else FEW
    )
    program = _assert_works(*arguments, *([] if composer.stem == "liif" else FITTING.get(data.stem, [])), *quick)
    if composer.stem in ("transformer_ipc", "functa"):
        _assert_prints_itself(*arguments)
    configs = [load_layers(f"_base_: {path}")[key] for path, key in ((composer, "model"), (data, "data"))]
    for instance, config in zip((program.model, program.datamodule), configs, strict=True):
        assert type(instance).__name__ == config["class_path"].rpartition(".")[2]


def _experiments():
    """Return all experiments; most are slow."""
    quick = ("photos_ipc", "photos_meta_ipc", "speech_patch_ipc", "photos_liif", "digits_metasdf", "shapenet_core_ipc")
    return [
        pytest.param(path.values[0], id=path.id, marks=[] if path.id in quick else pytest.mark.slow)
        for path in _named("experiments")
    ]


@pytest.mark.parametrize("experiment", _experiments())
def test_every_experiment_works(experiment):
    meta_learned = any(kind in experiment.stem for kind in META_LEARNED)
    patch_wise = any(kind in experiment.stem for kind in PATCH_WISE)
    program = _assert_works("--config", experiment, *([] if patch_wise else FEW if meta_learned else SHALLOW))
    _assert_prints_itself("--config", experiment)
    assert program.trainer.logger.name == experiment.stem  # so that --ckpt_path last finds the runs of this experiment


def test_config_folder_has_no_other_files():
    known = {
        "default.yaml",
        "clusters",
        "composers",
        "data",
        "experiments",
        "modalities",
        "overlays",
        "predict.yaml",
        "sweeps",
    }
    assert {path.name for path in CONFIGS.iterdir()} <= known


def test_defaults_are_always_loaded():
    program = _build("--config", TESTS / "configs" / "tiny_ipc.yaml")
    names = [type(callback).__name__ for callback in program.trainer.callbacks]
    for name in ("StartSummary", "ProgressBar", "ResultsTable", "RefinementPlot", "BestCheckpoint", "Gallery"):
        assert names.count(name) == 1


def _write(**files):
    """Write YAML files, with ``__`` for ``/`` in names, and return the last one merged with its bases."""
    for name, text in files.items():
        path = Path(*name.split("__")).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load_layers(text)


def test_mappings_merge_and_later_files_override():
    merged = _write(
        low="a: {x: 1, y: {z: 2, w: 3}}\nb: 1\nc: [1, 2]",
        high="_base_: low.yaml\na: {y: {z: 5}, v: 6}\nc: [3]\nd: null",
    )
    assert merged == {"a": {"x": 1, "y": {"z": 5, "w": 3}, "v": 6}, "b": 1, "c": [3], "d": None}


def test_later_bases_override_earlier_ones():
    merged = _write(first="a: 1\nb: 1\nc: 1", second="b: 2\nc: 2", top="_base_: [first.yaml, second.yaml]\nc: 3")
    assert merged == {"a": 1, "b": 2, "c": 3}


def test_bases_are_nested_with_paths_relative_to_the_file():
    merged = _write(
        below__deep__root="a: 1\nb: 1",
        below__middle="_base_: deep/root.yaml\nb: 2\nc: 2",
        beside__other="d: 4",
        top="_base_: [below/middle.yaml, beside/other.yaml]\nc: 3",
    )
    assert merged == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_different_class_replaces_the_arguments():
    low = "model: {class_path: A, init_args: {x: 1, y: {class_path: B, init_args: {z: 2}}}}"
    same = _write(low=low, high="_base_: low.yaml\nmodel: {class_path: A, init_args: {x: 5}}")
    assert same["model"]["init_args"] == {"x": 5, "y": {"class_path": "B", "init_args": {"z": 2}}}
    silent = _write(low=low, high="_base_: low.yaml\nmodel: {init_args: {y: {init_args: {w: 3}}}}")
    assert silent["model"]["init_args"]["y"] == {"class_path": "B", "init_args": {"z": 2, "w": 3}}
    overlay = _write(
        low="model: {init_args: {x: 1}}", high="_base_: low.yaml\nmodel: {class_path: A, init_args: {w: 3}}"
    )
    assert overlay["model"] == {"class_path": "A", "init_args": {"x": 1, "w": 3}}
    other = _write(low=low, high="_base_: low.yaml\nmodel: {init_args: {y: {class_path: C, init_args: {w: 3}}}}")
    assert other["model"]["init_args"] == {"x": 1, "y": {"class_path": "C", "init_args": {"w": 3}}}


def test_lists_are_replaced_unless_appended():
    merged = _write(
        low="callbacks+: [1, 2]\nplain: [1, 2]",
        middle="_base_: low.yaml\ncallbacks+: [3]",
        high="_base_: middle.yaml\ncallbacks+: [4]\nplain: [5]\nnew+: [6]",
    )
    assert merged == {"callbacks+": [1, 2, 3, 4], "plain": [5], "new+": [6]}


def test_list_can_be_replaced_or_appended():
    replaced = "trainer: {callbacks: [{class_path: callbacks.results.ResultsTable}]}"
    added = "trainer: {callbacks+: [{class_path: callbacks.gallery.Gallery}]}"
    assert _write(low="a: [1]", high="_base_: low.yaml\na+: [2]") == {"a": [1, 2]}
    assert _write(low="a+: [1]", high="_base_: low.yaml\na: [2]") == {"a": [2]}
    tiny = ["--config", str(TESTS / "configs" / "tiny_ipc.yaml")]
    for low, high, expected in (
        (replaced, added, {"ResultsTable", "Gallery"}),
        (added, replaced, {"ResultsTable"}),
    ):
        _write(low=low, high=f"_base_: low.yaml\n{high}")
        callbacks = _build(*tiny, "--config", "high.yaml").trainer.callbacks
        names = [
            type(callback).__name__ for callback in callbacks if type(callback).__module__.startswith("callbacks.")
        ]
        assert sorted(names) == sorted(
            expected | {"ExactResume", "Heartbeat", "NonFinite", "StopOnSignal"}
        )  # of every command


def test_yaml_without_a_base_is_unchanged():
    assert load_layers("[1, 2]") == [1, 2]
    assert load_layers("1e-3") == 1e-3
    assert load_layers("{a: {_base_: x.yaml}}") == {"a": {"_base_": "x.yaml"}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"top": "_base_: missing.yaml"}, r"_base_ names missing\.yaml, but there is no file .*missing\.yaml"),
        ({"top": "_base_: [.]"}, "there is no file"),
        (
            {"low": "[1]", "top": "_base_: low.yaml"},
            r"low\.yaml, listed in _base_, contains a list; it must contain a mapping",
        ),
        ({"low": "", "top": "_base_: low.yaml"}, r"low\.yaml, listed in _base_, is empty; it must contain a mapping"),
        ({"low": "a: [1,", "top": "_base_: low.yaml"}, r"low\.yaml, listed in _base_, is not valid YAML"),
    ],
    ids=["missing", "a folder", "a list", "empty", "no YAML"],
)
def test_invalid_bases_raise(files, message):
    with pytest.raises(ValueError, match=message):
        _write(**files)


def test_circular_base_raises():
    with pytest.raises(ValueError, match=r"top\.yaml.*itself"):
        _write(top="_base_: top.yaml")


def test_command_line_overrides_files_and_files_override_bases():
    tiny = ["--config", str(TESTS / "configs" / "tiny_ipc.yaml")]
    Path("over.yaml").write_text("data: {init_args: {batch_size: 3}}\nmodel: {init_args: {rank: 4}}\n")
    program = _build(*tiny, "--config", "over.yaml", "--model.init_args.rank", 2)
    assert program.datamodule.batch_size == 3
    assert program.model.parametrization.bases["1"].shape == (2, 8)
    assert program.datamodule.size == 16


@pytest.mark.parametrize("name", ["tiny_ipc", "tiny_objects"])
def test_a_command_is_parsed_once_with_the_result_of_the_parser_of_all_commands(name, monkeypatch):
    command = ["--config", TESTS / "configs" / f"{name}.yaml", "--data.init_args.batch_size", 2]
    with mock.patch.object(LightningCLI, "parse_arguments", side_effect=AssertionError):
        actual = _build(*command).config_dump
    monkeypatch.setattr(cli.CLI, "_parse", LightningCLI.parse_arguments)
    assert actual == _build(*command).config_dump


def test_sizes_are_filled_from_the_data():
    tiny = ["--config", str(TESTS / "configs" / "tiny_ipc.yaml")]
    saved = yaml.safe_load(asked("fit", *tiny, "--data.init_args.size", 24, "--print_config"))
    assert saved["model"]["init_args"]["network"]["init_args"]["coord_dim"] is None  # as in the config
    program = _build(*tiny, "--data.init_args.size", 24)
    assert program.model.start.encoder.signal_shape == (3, 24, 24)
    assert (program.model.network.coord_dim, program.model.network.value_dim) == (2, 3)
    arguments = program.model.config["init_args"]
    assert arguments["encoder"]["init_args"]["signal_shape"] == [3, 24, 24]  # so that a checkpoint can be loaded


@pytest.mark.slow
@pytest.mark.parametrize("composer", ["transformer_ipc", "transinr"])
def test_published_sizes_train_a_step(composer):
    arguments = [
        "--config",
        CONFIGS / "composers" / f"{composer}.yaml",
        "--config",
        CONFIGS / "data/sample_photos.yaml",
    ]
    settings = {
        "size": 178,
        "batch_size": 4,
        "crops_per_epoch": 4,
        "coordinate_noise": "per_instance",
        "scales": "[1.0]",
    }
    arguments += [part for name, value in settings.items() for part in (f"--data.init_args.{name}", value)]
    printed = run(
        "fit", *arguments, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1, "--trainer.log_every_n_steps", 1
    )
    tokens = {"transformer_ipc": 256, "transinr": 4 * 64 + 3}[composer]
    assert f"400 data + {tokens} weight" in printed
    folder = Path("runs/unnamed/version_0")
    [loss] = column(folder / "metrics.csv", "train/loss")
    assert 0 < loss < 1
    start = _build(*arguments).model.state_dict()
    trained = checkpoint(folder)["state_dict"]
    assert start.keys() == trained.keys()
    assert not torch.equal(start["start.readout.positions"], trained["start.readout.positions"])
    assert_same(trained["network.encoding.frequencies"], start["network.encoding.frequencies"])
