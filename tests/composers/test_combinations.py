"""Methods that are YAML files only: parts combined as no preset does, from training to prediction."""

import contextlib

import pytest
import torch
from PIL import Image
from program import NAME, TESTS, checkpoint, column, keep_every, rows, run
from scene_cameras import cameras
from scene_folders import write_scene

import composers
from composers.codes import read_code
from composers.encoders import view_voxels
from composers.inference import LearnedCode
from composers.networks import voxel_mlp
from composers.networks.interpolation import gathered
from datamodules import SamplePhotos
from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from datamodules.domain import Rays

COMBINATIONS = TESTS / "configs" / "combinations"
ADAPTED = (  # by an inner loop
    *("meta_transinr", "meta_anr", "adapted_ipc", "meta_patches", "adapted_patches"),
    *("meta_la_inr", "adapted_la_inr"),
)
OF_SCENES = ("adapted_voxels",)
OF_PHOTOS = (*ADAPTED, "predicted_functa", "auto_decoder", "la_inr_auto_decoder")
NAMES = (*OF_PHOTOS, *OF_SCENES)
FIXED = ("frequencies", "readout.means", "readout.directions", "readout.scales")  # ends of keys of buffers
STEPS = 12  # of training, in four epochs
OUTER = "--model.init_args.inner.init_args.rule.init_args.outer"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function from the name of a combination to the folder of its run, trained once."""
    folder = tmp_path_factory.mktemp("combinations")

    def train(name, *options):
        run_folder = folder / "runs" / "_".join((name, *map(str, options[1::2]))) / "version_0"
        if not run_folder.exists():
            with contextlib.chdir(folder):
                config = ["--config", COMBINATIONS / f"{name}.yaml"]
                run("fit", *config, *options, *keep_every(3), NAME, run_folder.parent.name)
        return run_folder

    return train


def _weights(run_folder):
    """Return the checkpoint of a run, as an option."""
    return ["--ckpt_path", run_folder / "checkpoints" / "last.ckpt"]


def _fast(*fast, names=OF_PHOTOS):
    """Return names of combinations as parameters, of which all but some are slow."""
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


def _training_batch(size=4):
    """Return training instances as a batch, with their indices."""
    data = SamplePhotos(size=16, scales=[1.0], crops_per_epoch=12, batch_size=size)
    data.setup("fit")
    return data.to_coordinates(next(iter(data.train_dataloader())), training=True)


def test_every_combination_is_tested():
    assert {path.stem for path in COMBINATIONS.glob("*.yaml")} == {*NAMES, "photos"}


@pytest.mark.parametrize("name", _fast("adapted_ipc", "adapted_patches", "auto_decoder", "meta_anr", names=NAMES))
def test_training_lowers_the_loss_and_changes_every_weight(trained, name):
    losses = column(trained(name) / "metrics.csv", "train/loss")
    assert len(losses) == STEPS
    assert all(0 < loss < 10 for loss in losses)
    assert sum(losses[-3:]) < sum(losses[:3])
    epochs = [checkpoint(trained(name), saved)["state_dict"] for saved in ("step-3", "last")]
    for key, weight in epochs[1].items():
        assert weight.isfinite().all()
        assert torch.equal(weight, epochs[0][key]) == key.endswith(FIXED)


def test_every_code_of_an_auto_decoder_is_trained(trained):
    first, last = (
        checkpoint(trained("auto_decoder"), saved)["state_dict"]["start.codes.patterns_1"]
        for saved in ("step-3", "last")
    )
    assert first.shape == (12, 8, 4)
    assert (first != last).flatten(1).any(1).all()


@pytest.mark.parametrize("name", _fast("adapted_ipc", "adapted_patches"))
def test_test_follows(trained, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("test", "--config", COMBINATIONS / f"{name}.yaml", *_weights(trained(name)), NAME, "tested")
    instances = rows("runs/tested/version_0/test_instances.csv")
    assert len(instances) == 34
    assert all(0 < float(row["psnr@0"]) < 60 for row in instances)
    if name in ADAPTED:
        for row in instances:
            assert float(row["psnr@2 of the inner loop"]) == pytest.approx(float(row["psnr@0"]), abs=1e-3)
            assert float(row["psnr@2 of the inner loop"]) > float(row["psnr@0 of the inner loop"])


@pytest.mark.parametrize("name", [part for part in _fast("adapted_ipc") if part.values != ("adapted_patches",)])
def test_prediction_follows(trained, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = _weights(trained(name))
    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save("noise.png")
    run("predict", *weights, "--images", "noise.png", "--scale", 2)
    [row] = rows("predictions/predictions.csv")
    assert float(row["psnr"]) > 0
    with Image.open("predictions/noise.png") as image:
        assert image.size == (60, 40)
    composer = composers.load(weights[1])
    code = read_code("predictions/noise.safetensors")
    code.check(composer)
    latents = composer.parametrization.latents
    shapes = {key: (1, *code.layout.shape(spec.shape)) for key, spec in latents.items()}
    assert {key: tuple(latent.shape) for key, latent in code.latents.items()} == shapes


# IPC, predicted and then adapted


def _hypernetwork_gradients(composer, batch):
    """Return the gradients of the hypernetwork in a training step, flattened."""
    composer.train().zero_grad()
    composer._evaluate(batch, "train")["losses"].mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in composer.start.parameters()])


def test_the_gradient_reaches_the_hypernetwork_through_the_steps(trained):
    composer = composers.load(_weights(trained("adapted_ipc"))[1])
    batch = _training_batch()
    second_order = _hypernetwork_gradients(composer, batch)
    composer.inner.rule.outer = "first_order"
    first_order = _hypernetwork_gradients(composer, batch)
    assert second_order.isfinite().all()
    assert all(parameter.grad.any() for parameter in composer.start.parameters())
    assert (second_order - first_order).norm() > 1e-3 * second_order.norm()


def test_second_order_gradients_are_those_of_finite_differences(trained):
    composer = composers.load(_weights(trained("adapted_ipc"))[1]).double()
    batch = _training_batch(2)
    signal, samples = batch.observation.signal.double(), Samples(*(part.double() for part in batch.query[:2]))
    batch = batch._replace(observation=Observation(signal, samples), query=samples)

    def loss():
        return composer._evaluate(batch, "train")["losses"].mean()

    _hypernetwork_gradients(composer, batch)
    bias = composer.start.readout.heads["patterns_1"][1].bias
    direction, length = torch.randn_like(bias), 1e-5
    slope = (bias.grad * direction).sum().item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * length * direction
            values.append(loss().item())
            bias -= sign * length * direction
    assert slope == pytest.approx((values[0] - values[1]) / (2 * length), rel=1e-4)


def test_the_order_of_the_gradient_is_an_option(trained):
    second, first = (trained("adapted_ipc", *options) for options in ((), (OUTER, "first_order")))
    losses = [column(run_folder / "metrics.csv", "train/loss") for run_folder in (second, first)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)  # the same weights before the first step
    assert losses[0][-1] != losses[1][-1]


# Voxel codes of scenes, predicted and then adapted


@pytest.mark.slow
def test_test_and_prediction_of_scenes_follow(trained, tmp_path, monkeypatch):
    run_folder = trained("adapted_voxels")
    monkeypatch.chdir(run_folder.parents[2])  # with the rendered objects
    run("test", "--config", COMBINATIONS / "adapted_voxels.yaml", *_weights(run_folder), NAME, "tested")
    instances = rows("runs/tested/version_0/test_instances.csv")
    assert len(instances) == 4
    for row in instances:
        assert float(row["psnr@2 of the inner loop"]) == pytest.approx(float(row["psnr@0"]), abs=1e-3)
        assert float(row["psnr@2 of the inner loop"]) != float(row["psnr@0 of the inner loop"])
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "scene", size=16)
    for support, steps in (((0, 3), 3), ((1,), 1)):
        options = ["--support", *support, "--frames", 2, "--steps", steps]
        run("predict", *_weights(run_folder), "--views", "scene", *options)
        [row] = rows("predictions/predictions.csv")
        assert (row["support views"], row["inner steps"]) == (str(len(support)), str(steps))
        read_code("predictions/scene.safetensors").check(composers.load(_weights(run_folder)[1]))


def _scene_batch():
    """Return two scenes of two views of 6 x 6 pixels, whose rays are observed and rendered."""
    images = torch.rand(2, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    poses, intrinsics = (tensor.expand(2, *tensor.shape) for tensor in cameras(2, 6))
    samples = Samples(Rays().coords((2, 6, 6), cameras=(poses, intrinsics)), images.flatten(3).mT.flatten(1, 2))
    return CoordinateBatch(Observation(Views(images, poses, intrinsics), samples), samples, (2, 6, 6), ["a", "b"])


def test_gradients_through_steps_on_voxels_are_those_of_finite_differences(trained, monkeypatch):
    """Compare gradients in float32 with differences in float64, where voxels are read by a sum over cells."""
    composer = composers.load(_weights(trained("adapted_voxels"))[1])
    composer.inner.samples_per_step = "all"
    composer.inner.rule.lr = 20_000.0  # gradients per voxel are small
    batch, bias = _scene_batch(), composer.start.readout.heads["voxels"].bias
    gradients = {}
    for outer in ("first_order", "second_order"):
        composer.inner.rule.outer = outer
        assert _hypernetwork_gradients(composer, batch).isfinite().all()
        gradients[outer] = bias.grad.double()
    direction = torch.nn.functional.normalize(gradients["second_order"], dim=0)
    slopes = {outer: (gradient * direction).sum().item() for outer, gradient in gradients.items()}
    assert abs(slopes["first_order"] - slopes["second_order"]) > 0.01 * slopes["second_order"]

    for module in (voxel_mlp, view_voxels):
        monkeypatch.setattr(module, "interpolate", gathered)
    composer.double()
    observed, samples = (map(torch.Tensor.double, part) for part in (batch.observation.signal, batch.query[:2]))
    samples = Samples(*samples)
    batch = batch._replace(observation=Observation(Views(*observed), samples), query=samples)
    values, length = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * length * direction
        values.append(composer._evaluate(batch, "train")["losses"].mean().item())
        with torch.no_grad():
            bias -= sign * length * direction
    assert slopes["second_order"] == pytest.approx((values[0] - values[1]) / (2 * length), rel=5e-3)


# Auto-decoder


def test_codes_get_gradients_only_from_their_instances(trained):
    composer = composers.load(_weights(trained("auto_decoder"))[1]).train()
    batch = _training_batch()
    composer._evaluate(batch, "train")["losses"].mean().backward()
    index = batch.observation.index
    assert len(set(index.tolist())) == 4
    codes = composer.start.codes["patterns_1"]
    assert codes.shape == (12, 8, 4)
    changed = codes.grad.flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(index.tolist())


def test_training_uses_the_code_of_each_instance(trained):
    composer = composers.load(_weights(trained("auto_decoder"))[1])
    observation = _training_batch().observation
    codes = composer.start.codes["patterns_1"]
    assert torch.equal(composer.train().encode(observation)["patterns.1"], codes[observation.index])
    mean = composer.eval().encode(observation)["patterns.1"]
    torch.testing.assert_close(mean, codes.mean(0).expand(4, -1, -1))


def test_refinement_finds_the_code_of_a_new_instance(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder = trained("auto_decoder")
    run("test", "--config", COMBINATIONS / "auto_decoder.yaml", *_weights(run_folder), NAME, "tested")
    for row in rows("runs/tested/version_0/test_instances.csv"):
        assert float(row["psnr@20"]) > float(row["psnr@0"])
    [*_, predicted], [*_, refined] = (
        column(run_folder / "metrics.csv", f"val/{key}") for key in ("psnr", "refined_psnr")
    )
    assert refined > predicted


def test_more_instances_than_codes_are_rejected(trained):
    composer = composers.load(_weights(trained("auto_decoder"))[1]).train()
    observation = _training_batch().observation
    with pytest.raises(ValueError, match="Instance 12 has no code: num_instances of LearnedCode is 12"):
        composer.encode(observation._replace(index=torch.tensor([0, 12, 1, 2])))


@pytest.mark.parametrize("arguments", [{}, {"num_instances": 0}, {"num_instances": 3, "std": -1.0}], ids=str)
def test_learned_codes_require_the_number_of_instances(arguments):
    with pytest.raises(ValueError, match=r"num_instances of LearnedCode is .* and std .*; they must be at least 1"):
        LearnedCode(**arguments)
