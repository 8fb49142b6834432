"""Augmentation of audio crops: every change against a naive reference, and the data modules that apply it."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from program import TESTS, run
from torch.utils.data import DataLoader

from datamodules import AudioFolder, LibriSpeech, SampleSpeech
from datamodules.audio.augmentation import AudioAugmentation
from datamodules.audio.base import AugmentedCrop, CropReader, RandomAudioCrop
from datamodules.batch import Signal
from datamodules.loading import Addressed, AddressSampler
from datamodules.storage.folders import NamedFile

SAMPLE_RATE = 16000
ALL = AudioAugmentation(gain=(-12, 6), polarity=0.5, mixing=0.5, speed=(0.9, 1.1))


def noise(samples, seed=0, peak=0.3):
    """Return a recording of noise ``(1, samples)`` with a given peak."""
    values = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    return peak * values / values.abs().max()


def sine(frequency, samples, peak=0.3):
    """Return a recording ``(1, samples)`` of one frequency in Hz."""
    return peak * torch.sin(2 * math.pi * frequency * torch.arange(samples) / SAMPLE_RATE)[None]


def augmented(augment, values, other=None, samples=1000, seed=0):
    """Return an augmented crop of a recording, with a second recording that is always the one mixed in."""
    first, second = Signal(values, "first"), Signal(values if other is None else other, "second")
    crop = AugmentedCrop(RandomAudioCrop(samples), [second], augment)
    return crop(first, torch.Generator().manual_seed(seed))


def test_nothing_changes_by_default():
    values = noise(1000)
    item = augmented(AudioAugmentation(), values)
    assert torch.equal(item.values, values)
    assert (item.name, item.length) == ("first", -1)


@pytest.mark.parametrize("decibels", [-20.0, -6.0, 0.0, 6.0])
def test_gain_is_exactly_its_factor(decibels):
    values = noise(1000)
    expected = values.double() * 10 ** (decibels / 20)
    actual = augmented(AudioAugmentation(gain=(decibels, decibels)), values).values
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


def test_gains_are_uniform_in_decibels():
    values = noise(1000, peak=0.1)
    augment = AudioAugmentation(gain=(-30.0, 10.0))
    ratios = [(augmented(augment, values, seed=seed).values / values)[0, 0] for seed in range(2000)]
    gains = 20 * torch.stack(ratios).log10()
    assert -30 <= float(gains.min()) < -29 < 9 < float(gains.max()) <= 10
    assert float(gains.mean()) == pytest.approx(-10, abs=1)
    assert float(gains.std()) == pytest.approx(40 / math.sqrt(12), abs=0.5)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_polarity_flips_the_sign_with_its_probability(probability):
    values = noise(1000)
    items = [augmented(AudioAugmentation(polarity=probability), values, seed=seed).values for seed in range(1000)]
    flipped = [torch.equal(item, -values) for item in items]
    assert all(flip or torch.equal(item, values) for flip, item in zip(flipped, items, strict=True))
    assert sum(flipped) / 1000 == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize("decibels", [-20.0, 0.0])
def test_mixing_adds_a_random_crop_of_another_recording_at_its_gain(decibels):
    values, other = noise(1000), noise(3000, seed=1)
    augment = AudioAugmentation(mixing=1.0, mixing_gain=(decibels, decibels))
    starts = set()
    for seed in range(5):
        added = (augmented(augment, values, other, seed=seed).values - values).double() / 10 ** (decibels / 20)
        errors = (other[0].double().unfold(0, 1000, 1) - added).abs().amax(1)
        assert float(errors.min()) < 1e-5
        starts.add(int(errors.argmin()))
    assert len(starts) == 5


def test_mixing_happens_with_its_probability():
    values, other = noise(100), noise(100, seed=1)
    items = [augmented(AudioAugmentation(mixing=0.25), values, other, 100, seed).values for seed in range(1000)]
    assert sum(not torch.equal(item, values) for item in items) / 1000 == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("speed", [0.5, 0.9, 0.97, 1.0, 1.03, 1.1, 2.0])
def test_speed_multiplies_the_frequency_of_a_sine(speed):
    crop = augmented(AudioAugmentation(speed=(speed, speed)), sine(1000, 60000), samples=SAMPLE_RATE)
    assert crop.length == -1
    time = 2 * np.pi * 1000 * speed * np.arange(SAMPLE_RATE) / SAMPLE_RATE
    basis = np.stack([np.sin(time), np.cos(time)], axis=1)
    actual = crop.values[0].double().numpy()
    coefficients, *_ = np.linalg.lstsq(basis, actual, rcond=None)
    assert np.hypot(*coefficients) == pytest.approx(0.3, rel=1e-3)
    assert np.abs(actual - basis @ coefficients).max() < 1e-3  # everywhere, including both ends


def test_speeds_are_all_multiples_of_a_hundredth_in_the_interval():
    lengths = set()

    def segment(length):
        lengths.add(length)
        return torch.zeros(1, length)

    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        assert AudioAugmentation(speed=(0.97, 1.02))(100, segment, segment, generator).shape == (1, 100)
    assert lengths == {percent + 2 * percent for percent in range(97, 103)}  # a block of the filter at each end


def test_high_frequencies_do_not_alias_at_higher_speeds():
    crop = augmented(AudioAugmentation(speed=(1.5, 1.5)), sine(7500, 60000), samples=SAMPLE_RATE)
    assert float(crop.values.abs().max()) < 0.005  # 11,250 Hz would be above half the sampling rate


@pytest.mark.parametrize("sign", [1, -1])
def test_peaks_above_one_are_scaled_to_one(sign):
    values = sign * noise(1000, peak=0.8)
    actual = augmented(AudioAugmentation(gain=(12.0, 12.0)), values).values
    torch.testing.assert_close(actual, values / 0.8)
    mixed = augmented(AudioAugmentation(mixing=1.0, mixing_gain=(0.0, 0.0)), values, values).values
    torch.testing.assert_close(mixed, values / 0.8)


def test_overshoot_of_the_speed_filter_is_scaled_and_not_clipped():
    values = noise(3000, peak=1.0).sign()
    crop = augmented(AudioAugmentation(speed=(0.93, 0.93)), values).values
    assert int((crop.abs() == 1).sum()) == 1
    assert float(crop.abs().max()) == 1


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_padding_of_short_recordings_stays_zero(speed):
    augment = AudioAugmentation((6.0, 6.0), 1.0, 1.0, (0.0, 0.0), (speed, speed))
    item = augmented(augment, noise(500), noise(5000, seed=1))
    assert item.values.shape == (1, 1000)
    assert item.length == math.ceil(500 / speed)
    assert not item.values[:, item.length :].any()
    assert item.values[:, : item.length].abs().gt(0).float().mean() > 0.9


def test_shorter_mixed_in_recording_is_added_to_the_beginning():
    values, other = noise(1000), noise(300, seed=1)
    item = augmented(AudioAugmentation(mixing=1.0, mixing_gain=(0.0, 0.0)), values, other)
    assert item.length == -1
    torch.testing.assert_close(item.values[:, :300], values[:, :300] + other)
    assert torch.equal(item.values[:, 300:], values[:, 300:])


@pytest.mark.parametrize(
    "lengths", list(pairwise((999, 1000, 1001, 1099, 1100, 1101, 1299, 1300, 1301, 1302))), ids=str
)
def test_any_length_of_recording_gives_a_crop_of_one_length(lengths):
    for seed in range(20):
        item = augmented(ALL, *(noise(length) for length in lengths), seed=seed)
        assert item.values.shape == (1, 1000)
        assert item.length == -1 or 900 < item.length < 1000
        assert float(item.values.abs().max()) <= 1


def test_empty_and_silent_recordings_are_kept():
    empty = augmented(ALL, torch.zeros(1, 0), noise(5000))
    assert (empty.values.shape, empty.length, bool(empty.values.any())) == ((1, 1000), 0, False)
    silent = augmented(AudioAugmentation((6.0, 6.0), 1.0, speed=(0.9, 0.9)), torch.zeros(1, 5000))
    assert not silent.values.any()


@pytest.mark.parametrize("channels", [1, 2])
def test_released_cropping_counts_padding_and_leaves_out_the_last_second(tmp_path, channels):
    files = [NamedFile(f"{length}", tmp_path / f"{length}.wav") for length in (12000, 20000)]
    for file in files:
        values = noise(2 * int(file.name)).view(-1, 2).numpy()
        soundfile.write(file.path, values, SAMPLE_RATE)
    crop = AugmentedCrop(CropReader(8000, SAMPLE_RATE, channels, released=True), files[:1], ALL)
    empty, short = (crop(file, torch.Generator().manual_seed(0)) for file in files)
    assert empty.values.shape == short.values.shape == (channels, 8000)
    assert empty.length == short.length == -1
    assert not empty.values.any()
    assert 3600 < int(short.values.abs().sum(0).nonzero().max()) < 4500  # 4,000 samples at a speed of 0.9 to 1.1


def test_files_and_recordings_in_memory_give_the_same_crops(tmp_path):
    recordings = [noise(length, seed) for seed, length in enumerate((700, 5000))]
    files = [NamedFile(f"{seed}", tmp_path / f"{seed}.wav") for seed in range(2)]
    for file, values in zip(files, recordings, strict=True):
        soundfile.write(file.path, values[0].numpy(), SAMPLE_RATE, subtype="FLOAT")
    signals = [Signal(values, file.name) for file, values in zip(files, recordings, strict=True)]
    in_memory = AugmentedCrop(RandomAudioCrop(1000), signals, ALL)
    from_files = AugmentedCrop(CropReader(1000, SAMPLE_RATE), files, ALL)
    for seed in range(10):
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        expected, actual = in_memory(signals[seed % 2], generators[0]), from_files(files[seed % 2], generators[1])
        assert torch.equal(actual.values, expected.values)
        assert (actual.name, actual.length) == (expected.name, expected.length)


def test_items_depend_on_seed_epoch_and_index_only():
    data = SampleSpeech(crops_per_epoch=24, augment=ALL)
    data.setup("fit")
    items = Addressed(data.train_set, data.augmentation, 0)
    expected = {index: items[3, index] for index in range(24)}
    for world_size, num_workers in ((1, 2), (2, 0)):
        loaded = {}
        for rank in range(world_size):
            sampler = AddressSampler(24, shuffle=False, seed=0, rank=rank, world_size=world_size)
            sampler.set_epoch(3)
            indices = [index for _, index in sampler]
            loaded |= zip(
                indices, DataLoader(items, batch_size=None, sampler=sampler, num_workers=num_workers), strict=True
            )
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[index].values, expected[index].values) for index in expected)
    assert not torch.equal(items[4, 0].values, expected[0].values)
    assert not torch.equal(Addressed(data.train_set, data.augmentation, 1)[3, 0].values, expected[0].values)


def _folder(root):
    """Write recordings of noise for `AudioFolder` and `LibriSpeech`, and return their data modules with augmentation."""
    for name in ("1-2-0000", "1-2-0001", "1-2-0002", "1-2-0003"):
        path = Path(root, "librispeech", "dev-clean", "1", "2", f"{name}.flac")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(30000, seed=int(name[-1]))[0].numpy(), SAMPLE_RATE)
    subsets = {f"{split}_subset": "dev-clean" for split in ("train", "val", "test")}
    return partial(AudioFolder, root=root), partial(LibriSpeech, root=root, download=False, **subsets)


def test_data_sets_of_files_augment_training_items_only(tmp_path):
    for kind in _folder(str(tmp_path)):
        data, plain = kind(augment=ALL), kind()
        data.setup("fit")
        plain.setup("fit")
        assert data.notes["augmentation"] == str(ALL)
        assert "augmentation" not in plain.notes
        assert torch.equal(data.val_set[0].values, plain.val_set[0].values)
        items = [Addressed(each.train_set, each.augmentation, 0)[0, 0] for each in (data, plain)]
        assert items[0].values.shape == items[1].values.shape == (1, SAMPLE_RATE)
        assert not torch.equal(items[0].values, items[1].values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"polarity": 1.5}, "polarity is 1.5; it is a probability"),
        ({"mixing": -0.1}, r"mixing is -0.1; .* \[0, 1\]"),
        ({"mixing": math.nan}, "mixing is nan"),
        ({"gain": (0.0, -3.0)}, r"gain is \[0.0, -3.0\]; .* the lower one first"),
        ({"gain": (-math.inf, 0.0)}, "gain is"),
        ({"mixing_gain": (0.0, math.nan)}, "mixing_gain is"),
        ({"speed": (0.4, 1.0)}, r"speed is \[0.4, 1.0\]; .* \[0.5, 2\]"),
        ({"speed": (1.1, 0.9)}, "speed is"),
        ({"speed": (0.991, 0.999)}, "include a multiple of 0.01"),
        ({"speed": (0.0, math.nan)}, "speed is"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        AudioAugmentation(**arguments)


def test_training_from_the_command_line_states_the_augmentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("augment.yaml").write_text(
        "data: {init_args: {extended: true, augment: {gain: [-12, 6], polarity: 0.5, mixing: 0.5, speed: [0.9, 1.1]}}}\n"
    )
    tiny = ["--config", TESTS / "configs" / "tiny_speech.yaml", "--config", "augment.yaml"]
    printed = run("fit", *tiny, "--data.init_args.crops_per_epoch", 200, "--data.init_args.augment.polarity", 0.25)
    flat = " ".join(printed.replace("│", " ").split())
    assert "gain -12 to 6 dB, polarity 0.25, mixing 0.5 at -20 to 0 dB, speed 0.9 to 1.1" in flat
    assert "528.0 s, 169 recordings: 89 English by Allison Smith, 80 Canadian French by June Wallack" in flat
    assert "12.0 s, 12 crops of 6 recordings: 7 English by Allison Smith, 5 Canadian French by June Wallack" in flat
