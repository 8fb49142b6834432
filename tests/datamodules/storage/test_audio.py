"""Audio files: segments, headers, corrupt files and resampling."""

import math
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from datamodules.storage import audio
from datamodules.storage.audio import (
    RecordingFacts,
    audio_files,
    in_channels,
    read_recording,
    read_resampled,
    recording_facts,
    resampled,
    resampled_frames,
)
from datamodules.storage.torchaudio import import_torchaudio

SAMPLE_RATE = 16000


def chirp(frames, sample_rate=SAMPLE_RATE, channels=1):
    """Return a chirp per channel, ``(frames, channels)`` in [-0.5, 0.5]."""
    time = np.arange(frames) / sample_rate
    return np.stack([0.5 * np.sin(2 * np.pi * (200 + 300 * k + 400 * time) * time) for k in range(channels)], axis=1)


def write(path, values, sample_rate=SAMPLE_RATE, **options):
    """Write an audio file and return its path."""
    soundfile.write(path, values, sample_rate, **options)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """Return a list to which every call of soundfile appends the number of decoded frames."""
    counts, original = [], soundfile.SoundFile.read

    def read(self, frames=-1, *arguments, **keywords):
        counts.append(self.frames if frames < 0 else frames)
        return original(self, frames, *arguments, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    return counts


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("channels", [1, 2])
def test_segment_is_a_slice_of_the_recording(tmp_path, kind, channels):
    path = write(tmp_path / f"a.{kind}", chirp(40000, channels=channels))
    recording = read_recording(path)
    assert recording.sample_rate == SAMPLE_RATE
    assert recording.values.dtype == torch.float32
    assert recording_facts(path) == RecordingFacts(recording.values.shape[1], SAMPLE_RATE, channels)
    raw, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert np.array_equal(recording.values.T.numpy(), raw)
    assert recording.values[:, :29000].T.numpy() == pytest.approx(chirp(29000, channels=channels), abs=0.1)
    for start, frames in (
        (0, 1),
        (0, 16000),
        (1, 777),
        (4607, 5000),
        (20000, 10000),
        (12345, -1),
        (25001, 9000),
        (40000, 0),
    ):
        segment = read_recording(path, start, frames).values
        expected = recording.values[:, start:] if frames < 0 else recording.values[:, start : start + frames]
        assert segment.shape == expected.shape
        torch.testing.assert_close(segment, expected, atol=1e-6, rtol=0)


def test_integer_samples_are_scaled_exactly(tmp_path):
    levels = np.array([-32768, -16384, 0, 1, 32767], dtype=np.int16)
    for kind in ("wav", "flac"):
        values = read_recording(write(tmp_path / f"a.{kind}", levels)).values
        assert values.tolist() == [[-1.0, -0.5, 0.0, 1 / 32768, 32767 / 32768]]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_only_the_segment_is_decoded(tmp_path, decoded, kind):
    path = write(tmp_path / f"a.{kind}", chirp(200_000))
    read_recording(path, 100_000, 500)
    assert decoded == [500]
    recording_facts(path)
    assert decoded == [500]


def test_mp3_segment_is_decoded_with_preroll(tmp_path, decoded):
    path = write(tmp_path / "a.mp3", chirp(200_000))
    read_recording(path, 100_000, 500)
    assert decoded == [500 + 16384]


@pytest.mark.parametrize(("start", "frames"), [(90, 20), (101, -1), (-1, 5), (0, 101)])
def test_segment_outside_the_recording_raises(tmp_path, start, frames):
    path = write(tmp_path / "a.wav", chirp(100))
    with pytest.raises(ValueError, match=r"a\.wav has 100 samples; samples .* do not exist"):
        read_recording(path, start, frames)


def _patched(path, **patches):
    """Overwrite bytes of a file; the keyword ``at_<number>`` names the offset."""
    content = bytearray(path.read_bytes())
    for keyword, new in patches.items():
        offset = int(keyword.removeprefix("at_"))
        content[offset : offset + len(new)] = new
    path.write_bytes(content)
    return path


def _truncated(path, fraction=0.5):
    """Truncate a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    return path


def _text(path):
    path.write_text("Dear diary, " * 20)
    return path


def _bytes(path, content):
    path.write_bytes(content)
    return path


def _noise(frames=20000):
    """Return noise, which FLAC stores in many blocks."""
    return 0.1 * np.random.default_rng(0).standard_normal(frames)


BAD_FILES = {
    "missing": (lambda f: f / "a.flac", "The audio file .*a.flac does not exist: name another file"),
    "empty": (lambda f: _bytes(f / "a.flac", b""), "is empty: obtain a new copy"),
    "folder": (lambda f: f, "cannot be read: Is a directory"),
    "text": (lambda f: _text(f / "a.wav"), "is not an audio file of a supported format: convert it to FLAC or WAV"),
    "raw": (lambda f: _text(f / "a.raw"), "is not an audio file of a supported format: convert it to FLAC or WAV"),
    "m4a": (
        lambda f: _bytes(f / "a.m4a", b"\0\0\0 ftypM4A " + bytes(99)),
        "is not an audio file of a supported format: convert it to FLAC or WAV",
    ),
    "truncated header": (
        lambda f: _truncated(write(f / "a.flac", _noise()), 0.0005),
        "is not an audio file|is corrupt or truncated",
    ),
    "truncated flac": (lambda f: _truncated(write(f / "a.flac", _noise())), r"is corrupt or truncated \(.*lost sync\)"),
    "truncated wav": (
        lambda f: _truncated(write(f / "a.wav", _noise())),
        "is truncated: it holds 19,978 of 40,000 bytes",
    ),
    "truncated mp3": (
        lambda f: _truncated(write(f / "a.mp3", chirp(50000))),
        r"is truncated: it holds [\d,]+ of 50,000 samples",
    ),
    "longer length in header": (
        lambda f: _patched(write(f / "a.flac", _noise()), at_22=(60000).to_bytes(4, "big")),
        r"a\.flac is (corrupt or )?truncated",
    ),
    "no channels": (
        lambda f: _patched(write(f / "a.wav", _noise()), at_22=bytes(2)),
        "is corrupt or truncated .Channel count is zero.",
    ),
    "no samples": (lambda f: write(f / "a.wav", np.zeros(0)), "holds no samples"),
    "nan": (
        lambda f: write(f / "a.wav", np.array([0, np.nan, 0]), subtype="FLOAT"),
        "holds NaN or infinite samples",
    ),
    "inf": (
        lambda f: write(f / "a.wav", np.array([0, 0, -np.inf]), subtype="DOUBLE"),
        "holds NaN or infinite samples",
    ),
    "loud": (
        lambda f: write(f / "a.wav", np.array([0, -12000.0, 0]), subtype="FLOAT"),
        r"has a peak of 12000: scale its samples to \[-1, 1\]",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_error_of_a_bad_file_is_one_line_that_names_it(tmp_path, case):
    create, message = BAD_FILES[case]
    path = create(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_recording(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_without_read_permission_raises(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", chirp(10))

    def refuse(self, *arguments):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ValueError, match=r"a\.wav cannot be read: Permission denied\."):
        recording_facts(path)


def test_segment_before_the_corruption_is_readable(tmp_path):
    path = write(tmp_path / "a.flac", _noise(200_000))
    recording = read_recording(path).values
    _truncated(path, 0.6)
    assert torch.equal(read_recording(path, 20_000, 16_000).values, recording[:, 20_000:36_000])
    with pytest.raises(ValueError, match="truncated"):
        read_recording(path, 150_000, 16_000)


def test_streamed_wav_without_length_is_read_to_the_end(tmp_path):
    path = write(tmp_path / "a.wav", chirp(1000))
    expected = read_recording(path).values
    _patched(path, at_40=b"\xff\xff\xff\xff")
    assert torch.equal(read_recording(path).values, expected)


def test_streamed_wav_with_length_0_is_read_to_the_end(tmp_path):
    path = write(tmp_path / "a.wav", chirp(1000))
    expected = read_recording(path).values
    _patched(path, at_40=bytes(4))
    assert torch.equal(read_recording(path).values, expected)
    assert recording_facts(path).frames == 1000


def test_flac_without_length_is_read_to_the_end(tmp_path):
    path = write(tmp_path / "a.flac", _noise(300_000))
    expected = read_recording(path).values
    _patched(path, at_21=b"\xf0", at_22=bytes(4))
    assert recording_facts(path).frames == 300_000
    assert torch.equal(read_recording(path).values, expected)
    assert torch.equal(read_recording(path, 290_000, 5000).values, expected[:, 290_000:295_000])
    with pytest.raises(ValueError, match=r"a\.flac has 300,000 samples"):
        read_recording(path, 299_000, 2000)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "GSM610"), ("AU", "G721_32"), ("WAV", "NMS_ADPCM_16")])
def test_a_format_that_cannot_be_searched_is_read(tmp_path, kind, subtype):
    path = write(tmp_path / "a.wav", chirp(8000, 8000), 8000, format=kind, subtype=subtype)
    expected = soundfile.read(path, dtype="float32")[0]
    assert np.array_equal(read_recording(path).values[0].numpy(), expected)
    assert np.array_equal(read_recording(path, 3000, 500).values[0].numpy(), expected[3000:3500])


def test_small_overshoot_is_clipped(tmp_path):
    path = write(tmp_path / "a.wav", np.array([0.5, 1.25, -1.5]), subtype="FLOAT")
    assert read_recording(path).values.tolist() == [[0.5, 1.0, -1.0]]


def test_error_without_soundfile_names_the_command_to_install_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", chirp(10))
    monkeypatch.setitem(sys.modules, "soundfile", None)  # makes the import raise ImportError
    audio._soundfile.cache_clear()
    with pytest.raises(ValueError, match=r"soundfile, which cannot be imported .* pip install"):
        read_recording(path)


def test_audio_files_are_found_by_extension(tmp_path):
    for name in ("b.flac", "a/x.WAV", "a/y.mp3", "a/z.m4a", "c.ogg", "n.txt", ".d.wav", ".e/f.wav", "old/g.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "old" / "predictions.csv").write_text("")
    files = audio_files(tmp_path)
    assert [relative.as_posix() for _, relative in files] == ["a/x.WAV", "a/y.mp3", "a/z.m4a", "b.flac", "c.ogg"]
    assert all(tmp_path / relative == path for path, relative in files)
    assert [relative.name for _, relative in audio_files(tmp_path / "old")] == ["g.wav"]
    assert audio_files(tmp_path / "n.txt") == [(tmp_path / "n.txt", (tmp_path / "n.txt").relative_to(tmp_path))]


def _tone(sample_rate, seconds=0.5, hertz=440.0):
    return 0.8 * torch.sin(2 * math.pi * hertz * torch.arange(round(sample_rate * seconds)) / sample_rate)[None]


@pytest.mark.parametrize(
    ("sample_rate", "new_sample_rate"), [(44100, 16000), (8000, 16000), (48000, 22050), (16000, 16000)]
)
def test_resampling_keeps_the_pitch(sample_rate, new_sample_rate):
    result = resampled(_tone(sample_rate), sample_rate, new_sample_rate)
    assert (
        result.shape
        == (1, resampled_frames(sample_rate // 2, sample_rate, new_sample_rate))
        == (1, new_sample_rate // 2)
    )
    assert (result - _tone(new_sample_rate))[:, 300:-300].abs().max() < 2e-3


def test_resampling_clips_overshoot():
    steps = torch.where(torch.arange(4000) // 50 % 2 == 0, 1.0, -1.0)[None]
    assert import_torchaudio().functional.resample(steps, 16000, 44100).abs().max() > 1.05
    assert resampled(steps, 16000, 44100).abs().max() == 1


@pytest.mark.parametrize("sample_rate", [44100, 22050, 48000, 8000, 11025, 16000])
def test_resampled_segment_equals_slice_of_resampled_recording(tmp_path, decoded, sample_rate):
    path = write(
        tmp_path / "a.wav", 0.3 * np.random.default_rng(1).uniform(-1, 1, (2 * sample_rate + 17, 2)), sample_rate
    )
    recording = import_torchaudio().transforms.Resample(sample_rate, SAMPLE_RATE)(read_recording(path).values)
    facts = recording_facts(path)
    total = resampled_frames(facts.frames, sample_rate, SAMPLE_RATE)
    assert recording.shape == (2, total)
    for start, frames in (
        (0, 1),
        (0, 4000),
        (1, 333),
        (12_345, 4000),
        (total - 4000, 4000),
        (total - 1, 1),
        (0, total),
    ):
        decoded.clear()
        segment = read_resampled(path, facts, start, frames, SAMPLE_RATE)
        assert segment.shape == (2, frames)
        torch.testing.assert_close(segment, recording[:, start : start + frames], atol=1e-5, rtol=0)
        [count] = decoded
        assert count <= min(
            facts.frames,
            frames * sample_rate / SAMPLE_RATE + 8 * sample_rate // math.gcd(sample_rate, SAMPLE_RATE) + 60,
        )


def test_sampling_rates_with_small_common_divisor_raise(tmp_path):
    path = write(tmp_path / "a.wav", chirp(50, 44101), 44101)
    with pytest.raises(ValueError, match=r"a\.wav: cannot resample from 44,101 to 16,000 Hz") as caught:
        read_resampled(path, recording_facts(path), 0, 5, SAMPLE_RATE)
    assert "--data.init_args.sample_rate" in str(caught.value)


def test_channels_are_mixed_down_or_kept():
    values = torch.tensor([[0.5, 1.0], [0.0, -1.0]])
    assert in_channels(values, 1, "a.wav").tolist() == [[0.25, 0.0]]
    assert torch.equal(in_channels(values, 2, "a.wav"), values)
    assert in_channels(torch.ones(5, 3), 1, "a.wav").tolist() == [[1.0, 1.0, 1.0]]
    for count in (1, 5):
        with pytest.raises(ValueError, match=rf"a\.wav has {count} channel\(s\), not 2: .*channels 1"):
            in_channels(torch.zeros(count, 4), 2, "a.wav")


def test_file_names_may_be_unicode(tmp_path):
    path = write(tmp_path / "a.flac", chirp(100))
    copy = shutil.copy(path, tmp_path / "Grüße 語.flac")
    assert torch.equal(read_recording(copy).values, read_recording(path).values)
