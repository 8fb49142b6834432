"""Experiments at published sizes for LA-INR, ANR and patch-wise IPC: settings, code sizes, and a training step."""

import math
import re

import pytest
import torch
import yaml
from program import REPOSITORY, asked, refused

from benchmarks import cost
from composers.latents import Layout

EXPERIMENTS = REPOSITORY / "configs" / "experiments"
METHODS = ("la_inr", "anr", "patch_ipc")
IMAGES = ("celeba178", "imagenette178", "ffhq178", "ffhq256", "ffhq512", "ffhq1024")
AUDIO = ("librispeech1", "librispeech3")
NAMES = [f"{data}_{method}" for data in (*IMAGES, *AUDIO) for method in METHODS]
NAMES += [
    "celeba128_anr",
    "chairs_la_inr",
    "chairs_anr",
]  # views have no patches of rays that a patch-wise code could belong to
CODE_SIZES = {  # numbers per instance
    "la_inr": dict.fromkeys((*IMAGES, "chairs"), 65_536) | {"librispeech1": 10_240, "librispeech3": 30_720},
    "anr": dict.fromkeys((*IMAGES, "celeba128"), 131_072)
    | {"librispeech1": 10_240, "librispeech3": 30_720, "chairs": 65_536},
    "patch_ipc": dict.fromkeys(IMAGES[:3], 63_480)
    | dict.fromkeys(IMAGES[3:], 65_536)
    | {"librispeech1": 10_240, "librispeech3": 30_720},
}
# One of every method and kind of data computes a step; all others are counted on fake tensors (tests/benchmarks/test_cost.py).
COMPUTED = ["celeba178_la_inr", "librispeech1_la_inr", "chairs_la_inr"]
COMPUTED += ["celeba128_anr", "librispeech1_anr", "chairs_anr", "celeba178_patch_ipc", "librispeech1_patch_ipc"]


def _parts(name):
    """Return the data set and the method of an experiment."""
    data, _, method = name.partition("_")
    return data, method


def test_every_experiment_exists():
    patterns = ("celeba", "imagenette", "ffhq", "librispeech", "chairs", "cars", "lamps")
    names = {path.stem for pattern in patterns for path in EXPERIMENTS.glob(f"{pattern}*.yaml")}
    assert {name for name in names if _parts(name)[1] in METHODS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_heads_state_cost_code_and_where_settings_are_from(name):
    data, method = _parts(name)
    head = (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]
    published = name in ("celeba128_anr", "chairs_anr")
    assert ("with the released settings" if published else "ours") in head
    assert f"{CODE_SIZES[method][data]:,} " in head
    for part in ("docs/experiments.md", "M parameters", "TFLOP", *(["EFLOP in total"] if data != "chairs" else [])):
        assert part in head
    if data == "librispeech1" and method != "patch_ipc":
        assert "stayed at silence" in head.replace("\n# ", " ")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("celeba", "librispeech3", "chairs"))])
def test_code_sizes_are_those_of_the_heads(name):
    data_name, method = _parts(name)
    with torch.device("meta"):
        composer, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    shape = data.spec.signal_shape[1:]
    encoder = composer.start.encoder
    layout = Layout()
    if any(-1 in spec.shape for spec in composer.parametrization.latents.values()):
        layout = encoder.layout(torch.empty(1, data.spec.signal_shape[0], *shape))
    sizes = [math.prod(layout.shape(spec.shape)) for spec in composer.parametrization.latents.values()]
    assert sum(sizes) == CODE_SIZES[method][data_name]


def test_anr_has_the_released_settings():
    config = yaml.safe_load(asked("fit", "--config", EXPERIMENTS / "celeba128_anr.yaml", "--print_config"))
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["gradient_clip_val"] == 1.0
    assert (data["size"], data["batch_size"]) == (128, 18)
    assert config["trainer"]["max_epochs"] * (162_770 // 18) == pytest.approx(200_000, rel=0.01)
    optimizer = model["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert (optimizer["init_args"]["lr"], list(optimizer["init_args"]["betas"])) == (5e-5, [0.9, 0.99])
    encoder, network = model["encoder"]["init_args"], model["network"]["init_args"]
    assert (encoder["patch_size"], encoder["padding"]) == (10, 1)
    transformer = model["transformer"]["init_args"]
    expected = {"embed_dim": 512, "num_blocks": 6, "num_heads": 6, "head_dim": 64, "mlp_ratio": 6}
    assert transformer == expected | {"qkv_bias": False, "residual_dropout": 0.0}
    assert model["num_decoder_layers"] == 6
    assert (network["num_tokens"], network["token_dim"], network["hidden_dim"], network["num_hidden"]) == (
        256,
        512,
        512,
        4,
    )
    attention = network["attention"]["init_args"]
    assert (attention["num_heads"], attention["head_dim"], attention["threshold"]) == (6, 64, 0.0015)
    encoding = network["encoding"]["init_args"]
    assert (encoding["num_frequencies"], encoding["max_frequency"]) == (128, 1024)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "celeba178_la_inr",
            {"num_heads": 11},
            "num_heads 11 does not divide embed_dim 768: choose a divisor of embed_dim",
        ),
        (
            "photos_anr",
            {"num_heads": 5},
            "num_heads 5 does not divide embed_dim 128: choose a divisor of embed_dim, or set head_dim",
        ),
    ],
)
def test_widths_that_heads_do_not_divide_are_refused(name, options, message):
    arguments = [
        part for key, value in options.items() for part in (f"--model.init_args.transformer.init_args.{key}", value)
    ]
    assert message in refused("fit", "--config", EXPERIMENTS / f"{name}.yaml", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTED)
def test_experiment_trains_a_step_at_full_size(name):
    torch.manual_seed(0)
    composer, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    for parameter in composer.parameters():
        if (
            not parameter.any()
        ):  # some layers begin at zero, so that what precedes them has no gradient in the first step
            torch.nn.init.normal_(parameter, std=0.02)
    if data.coordinate_subset is None and not name.startswith("chairs"):
        data.coordinate_subset = 0.1
    loss, latents = cost.TrainingStep(composer)(cost.random_batch(data, 1))
    loss.backward()
    assert math.isfinite(loss.item())
    data_name, method = _parts(name)
    assert sum(latent[0].numel() for latent in latents.values()) == CODE_SIZES[method][data_name]
    gradients = {name: parameter.grad for name, parameter in composer.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients.values())
    head = (EXPERIMENTS / f"{name}.yaml").read_text()
    [parameters] = re.findall(r"# ([\d.]+) M parameters", head)
    assert sum(gradient.numel() for gradient in gradients.values()) / 1e6 == pytest.approx(float(parameters), rel=5e-3)
