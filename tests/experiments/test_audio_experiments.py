"""Published experiments on speech: hyper-parameters, the overlay for audio, and a training step at full size."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from coordinates import grid
from program import REPOSITORY, asked, checkpoint, column, run

from benchmarks import cost
from composers.metrics import PSNR
from datamodules.base import CoordinateDataModule
from datamodules.batch import Observation
from datamodules.domain import Grid
from datamodules.spec import DataSpec, Modality
from modalities.audio_metrics import PESQ, SISDR, STOI, LogSpectralDistance, OverSilence, Silence

CONFIGS = REPOSITORY / "configs"
EXPERIMENTS = CONFIGS / "experiments"

# Columns: seconds, coordinate subset, data tokens.
PUBLISHED = {"librispeech1": (1.0, None, 80), "librispeech3": (3.0, 0.25, 240)}
# Columns: class, modulated layers, weight tokens, code size, parameters for 1 s (3 s: 160 more position embeddings).
METHODS = {
    "ipc": ("TransformerIPC", [1], 256, 65_536, 44_384_513),
    "transinr": ("TransINR", "all", 4 * 64 + 1, 311_552, 48_131_841),
}
NAMES = [f"{data}_{method}" for data in PUBLISHED for method in METHODS]


class EmptyAudio(CoordinateDataModule):
    """A data module of audio without data.

    Args:
        samples: Number of samples of a signal.
    """

    def __init__(self, samples: int = 16000) -> None:
        super().__init__()
        self.samples = samples

    @property
    def spec(self):
        """Mono audio."""
        return DataSpec(Grid.unit(1), 1, (1, self.samples), Modality())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _overlaid(composer, samples):
    """Return a composer with one transformer block and the overlay for audio, for signals with this number of samples."""
    bases = (f"composers/{composer}.yaml", "modalities/audio.yaml", "modalities/audio_tokens.yaml")
    lines = [f"_base_: [{', '.join(str(CONFIGS / base) for base in bases)}]"]
    lines += [f"data: {{class_path: {EmptyAudio.__module__}.EmptyAudio, init_args: {{samples: {samples}}}}}"]
    lines += ["model: {init_args: {transformer: {init_args: {num_blocks: 1}}}}"]
    Path("audio.yaml").write_text("\n".join(lines))
    model, data, _ = cost.build(Path("audio.yaml"))
    model.check_sizes(data)
    return model.eval()


@pytest.mark.parametrize(("samples", "tokens"), [(16000, 80), (15801, 80), (16100, 81)])
@pytest.mark.parametrize("composer", ["transformer_ipc", "transinr"])
def test_overlay_builds_composers_for_audio(composer, samples, tokens):
    model = _overlaid(composer, samples)
    assert model.start.encoder.num_tokens == tokens
    assert model.start.encoder.embed_dim == 200
    assert (model.network.coord_dim, model.network.value_dim, model.network.output_offset) == (1, 1, 0.0)
    assert model.network.layer_sizes == [(4096, 256), *[(256, 256)] * 3, (256, 1)]
    frequencies = model.network.encoding.frequencies
    assert (frequencies[0], len(frequencies), round(float(frequencies[-1]), 2)) == (1, 2048, 1024)
    with torch.no_grad():
        values = model(Observation(torch.randn(2, 1, samples)), grid((7,)))
    assert values.shape == (2, 7, 1)
    assert values.isfinite().all()


def test_overlay_sets_the_metrics_of_audio():
    measures = _overlaid("transformer_ipc", 16000).measures
    assert {name: type(metric) for name, metric in measures.items()} == {
        "psnr": PSNR,
        "silence": Silence,
        "over_silence": OverSilence,
        "si_sdr": SISDR,
        "lsd": LogSpectralDistance,
    } | {name: metric for name, metric in (("stoi", STOI), ("pesq", PESQ)) if not metric().missing}
    lsd = measures["lsd"]
    assert (lsd.window, lsd.hop, lsd.floor) == (512, 128, 1e-10)


@pytest.mark.parametrize(("metric", "package"), [("STOI", "pystoi"), ("PESQ", "pesq")])
def test_metric_without_its_package_is_left_out_with_one_sentence(metric, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    model = _overlaid("transformer_ipc", 16000)
    key = metric.lower()
    assert key not in model.measures
    assert (
        model.unmeasured[key] == f"{metric} needs the package {package}, which is not installed: pip install {package}."
    )


def test_every_published_experiment_exists():
    names = {path.stem for path in EXPERIMENTS.glob("librispeech*.yaml")}
    assert {name for name in names if name.partition("_")[2] in ("ipc", "transinr")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_match_the_paper(name):
    column_name, method = name.split("_")
    seconds, coordinates, _ = PUBLISHED[column_name]
    composer, modulated_layers, *_ = METHODS[method]
    config = yaml.safe_load(asked("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--print_config"))
    trainer, model, data = config["trainer"], config["model"], config["data"]
    assert config["seed_everything"] == 0
    assert trainer["logger"]["init_args"]["name"] == name
    assert {key: trainer[key] for key in ("max_epochs", "check_val_every_n_epoch", "precision", "devices")} == {
        "max_epochs": 1000,
        "check_val_every_n_epoch": 10,
        "precision": "32-true",
        "devices": 1,
    }
    assert trainer["accumulate_grad_batches"] == 1
    assert trainer["gradient_clip_val"] is None
    assert data["class_path"].endswith(".LibriSpeech")
    expected = {
        "seconds": seconds,
        "sample_rate": 16000,
        "batch_size": 16,
        "coordinate_subset": coordinates,
        "coordinate_noise": "none",
        "train_subset": "train-clean-100",
        "val_subset": "test-clean",
        "test_subset": "test-clean",
        "cropping": "whole",
        "partial": False,
    }
    assert {key: data["init_args"][key] for key in expected} == expected
    assert model["class_path"].endswith(f".{composer}")
    _check_model(model["init_args"], modulated_layers)


def _check_model(model, modulated_layers):
    """Check the arguments of a composer that all published experiments on speech share."""
    network = model["network"]["init_args"]
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 5, modulated_layers)
    assert (network["normalize_weights"], network["output_offset"], network["activation"]) == (True, 0.0, None)
    assert network["encoding"]["class_path"].endswith(".FourierFeatures")
    assert network["encoding"]["init_args"] == {
        "num_frequencies": 2048,
        "max_frequency": 1024,
        "use_pi": True,
        "min_frequency": 1.0,
    }
    assert model["encoder"]["class_path"].endswith(".Patches")
    encoder = model["encoder"]["init_args"]
    assert (encoder["patch_size"], encoder["padding"], encoder["remainder"]) == (200, 0, "reflect")
    assert model["transformer"]["init_args"] == {
        "embed_dim": 768,
        "num_blocks": 6,
        "num_heads": 12,
        "mlp_ratio": 4,
        "residual_dropout": 0.1,
        "qkv_bias": True,
        "head_dim": None,
    }
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], list(optimizer["betas"]), optimizer["weight_decay"]) == (1e-4, [0.9, 0.999], 0.0)
    assert (model["scheduler"], model["loss"], model["refinement"], model["renderer"]) == (None, None, None, None)
    if "num_groups" in model:
        assert model["num_groups"] == 64
    else:
        assert (model["rank"], model["factorized"], model["num_weight_tokens"]) == (None, True, None)
        assert model["base_weight"] is False
    assert list(model["metrics"]) == ["psnr", "silence", "over_silence", "si_sdr", "lsd", "stoi", "pesq"]


def test_every_experiment_states_its_cost():
    for name in NAMES:
        header = (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]
        for part in (
            "docs/experiments.md",
            "M parameters",
            "1.78 M steps of 16 recordings",
            "TFLOP",
            "EFLOP in total",
            "Disk:",
            "--data.init_args.cropping released",
            "--trainer.devices 4",
        ):
            assert part in header


def test_unit_of_coordinates_is_half_a_second():
    for name, seconds in (("librispeech1_ipc", 1.0), ("librispeech3_ipc", 3.0)):
        _, data, epochs = cost.build(EXPERIMENTS / f"{name}.yaml")
        assert (data.signal_shape, data.spec.domain, epochs) == (
            (1, int(16000 * seconds)),
            Grid(((-seconds, seconds),)),
            1000,
        )


def _utterances(folder, seconds):
    """Write noisy FLAC files with the names of LibriSpeech, one for training and one held out."""
    soundfile = pytest.importorskip("soundfile")
    generator = torch.Generator().manual_seed(0)
    for subset in ("train-clean-100", "test-clean"):
        path = folder / "librispeech" / subset / "19" / "198" / "19-198-0000.flac"
        path.parent.mkdir(parents=True)
        noise = 0.1 * torch.randn(int(16000 * seconds), generator=generator)
        soundfile.write(path, noise.clamp(-1, 1).numpy(), 16000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_experiment_trains_a_step_at_full_size(name, tmp_path):
    column_name, method = name.split("_")
    seconds, _, data_tokens = PUBLISHED[column_name]
    _, _, weight_tokens, _, parameters = METHODS[method]
    _utterances(tmp_path / "data", seconds + 0.5)
    settings = {
        "data.init_args.partial": "true",
        "data.init_args.batch_size": 1,
        "data.init_args.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
    }
    arguments = [part for option, value in settings.items() for part in (f"--{option}", value)]
    printed = run("fit", "--config", EXPERIMENTS / f"{name}.yaml", *arguments)
    assert f"{data_tokens} data + {weight_tokens} weight" in printed
    assert f"{METHODS[method][3]:,} numbers" in printed
    folder = tmp_path / "runs" / name / "version_0"
    [loss] = column(folder / "metrics.csv", "train/loss")
    assert 0 < loss < 1
    measured = {key: column(folder / "metrics.csv", f"val/{key}") for key in ("psnr", "silence", "over_silence", "lsd")}
    [psnr], [silence], [over_silence], [distance] = measured.values()
    assert silence == pytest.approx(20, abs=0.1)  # for noise with standard deviation 0.1
    assert over_silence == pytest.approx(psnr - silence, abs=1e-4)
    assert -40 < over_silence < 1  # after training on one recording
    assert 0 < distance < 100
    saved = checkpoint(folder)
    trained, moments = saved["state_dict"], saved["optimizer_states"][0]["state"]
    assert saved["global_step"] == 1
    assert all(tensor.isfinite().all() for tensor in trained.values())
    # after one step, the first moment is a tenth of the gradient
    gradients = [moment["exp_avg"] * 10 for moment in moments.values()]
    assert sum(gradient.numel() for gradient in gradients) == parameters + 768 * (data_tokens - 80)
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)
    # initially zero; the first Adam step has the length of the learning rate
    assert trained["network.biases.4"].abs().item() == pytest.approx(1e-4, rel=1e-2)
