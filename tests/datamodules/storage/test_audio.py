"""Sound files: pieces of them, their headers, every way in which they are damaged, and resampling."""

import math
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from datamodules.storage import audio as sound
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
    """Return tones that rise, one of another pitch in every channel, ``(frames, channels)`` within 0.5."""
    time = np.arange(frames) / sample_rate
    return np.stack([0.5 * np.sin(2 * np.pi * (200 + 300 * k + 400 * time) * time) for k in range(channels)], axis=1)


def write(path, values, sample_rate=SAMPLE_RATE, **options):
    """Write a sound file and return its path."""
    soundfile.write(path, values, sample_rate, **options)
    return path


@pytest.fixture
def asked(monkeypatch):
    """Return the frames that are asked of soundfile, a number per call."""
    frames, original = [], soundfile.SoundFile.read

    def read(self, wanted=-1, *arguments, **keywords):
        frames.append(self.frames if wanted < 0 else wanted)
        return original(self, wanted, *arguments, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    return frames


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_piece_is_a_slice_of_the_whole(tmp_path, kind, channels):
    path = write(tmp_path / f"a.{kind}", chirp(40000, channels=channels))
    whole = read_recording(path)
    assert whole.sample_rate == SAMPLE_RATE
    assert whole.values.dtype == torch.float32
    assert recording_facts(path) == RecordingFacts(whole.values.shape[1], SAMPLE_RATE, channels)
    raw, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert np.array_equal(whole.values.T.numpy(), raw)
    assert whole.values[:, :29000].T.numpy() == pytest.approx(chirp(29000, channels=channels), abs=0.1)
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
        piece = read_recording(path, start, frames).values
        wanted = whole.values[:, start:] if frames < 0 else whole.values[:, start : start + frames]
        assert piece.shape == wanted.shape
        torch.testing.assert_close(piece, wanted, atol=1e-6, rtol=0)


def test_whole_numbers_become_parts_of_one_exactly(tmp_path):
    levels = np.array([-32768, -16384, 0, 1, 32767], dtype=np.int16)
    for kind in ("wav", "flac"):
        values = read_recording(write(tmp_path / f"a.{kind}", levels)).values
        assert values.tolist() == [[-1.0, -0.5, 0.0, 1 / 32768, 32767 / 32768]]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_no_more_is_decoded_than_is_wanted(tmp_path, asked, kind):
    path = write(tmp_path / f"a.{kind}", chirp(200_000))
    read_recording(path, 100_000, 500)
    assert asked == [500]
    recording_facts(path)
    assert asked == [500]


def test_of_an_mp3_a_second_more_is_decoded(tmp_path, asked):
    path = write(tmp_path / "a.mp3", chirp(200_000))
    read_recording(path, 100_000, 500)
    assert asked == [500 + 16384]


@pytest.mark.parametrize(("start", "frames"), [(90, 20), (101, -1), (-1, 5), (0, 101)])
def test_a_piece_that_is_not_there_is_refused(tmp_path, start, frames):
    path = write(tmp_path / "a.wav", chirp(100))
    with pytest.raises(ValueError, match=r"a\.wav has 100 samples, not those from"):
        read_recording(path, start, frames)


def _changed(path, **places):
    """Write other bytes at places of a file, named ``at_<number>``."""
    content = bytearray(path.read_bytes())
    for place, new in places.items():
        at = int(place.removeprefix("at_"))
        content[at : at + len(new)] = new
    path.write_bytes(content)
    return path


def _cut(path, part=0.5):
    """Cut a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    return path


def _text(path):
    path.write_text("Dear diary, " * 20)
    return path


def _bytes(path, content):
    path.write_bytes(content)
    return path


def _noise(frames=20000):
    """Return noise, of which FLAC makes many blocks of bytes."""
    return 0.1 * np.random.default_rng(0).standard_normal(frames)


BAD = {
    "missing": (lambda f: f / "a.flac", "There is no sound file .*a.flac: name another file"),
    "empty": (lambda f: _bytes(f / "a.flac", b""), "is empty: take it from its source again"),
    "folder": (lambda f: f, "cannot be read: Is a directory"),
    "text": (lambda f: _text(f / "a.wav"), "is no sound of a kind that can be read: convert it to FLAC or WAV"),
    "raw": (lambda f: _text(f / "a.raw"), "is no sound of a kind that can be read: convert it to FLAC or WAV"),
    "m4a": (
        lambda f: _bytes(f / "a.m4a", b"\0\0\0 ftypM4A " + bytes(99)),
        "is no sound of a kind that can be read: convert it to FLAC or WAV",
    ),
    "cut header": (lambda f: _cut(write(f / "a.flac", _noise()), 0.0005), "is no sound|is damaged or cut off"),
    "cut flac": (lambda f: _cut(write(f / "a.flac", _noise())), r"is damaged or cut off \(.*lost sync\)"),
    "cut wav": (lambda f: _cut(write(f / "a.wav", _noise())), "is cut off: 19,978 of 40,000 bytes came"),
    "cut mp3": (lambda f: _cut(write(f / "a.mp3", chirp(50000))), r"is cut off: [\d,]+ of 50,000 samples came"),
    "longer header": (
        lambda f: _changed(write(f / "a.flac", _noise()), at_22=(60000).to_bytes(4, "big")),
        r"a\.flac is (damaged or )?cut off",
    ),
    "no length": (
        lambda f: _changed(write(f / "a.flac", _noise()), at_21=b"\xf0", at_22=bytes(4)),
        "does not say how long it is: convert it",
    ),
    "no channels": (
        lambda f: _changed(write(f / "a.wav", _noise()), at_22=bytes(2)),
        "is damaged or cut off .Channel count is zero.",
    ),
    "no samples": (lambda f: write(f / "a.wav", np.zeros(0)), "holds no samples"),
    "nan": (
        lambda f: write(f / "a.wav", np.array([0, np.nan, 0]), subtype="FLOAT"),
        r"samples that are no numbers \(NaN or infinite\)",
    ),
    "inf": (
        lambda f: write(f / "a.wav", np.array([0, 0, -np.inf]), subtype="DOUBLE"),
        r"samples that are no numbers \(NaN or infinite\)",
    ),
    "loud": (
        lambda f: write(f / "a.wav", np.array([0, -12000.0, 0]), subtype="FLOAT"),
        r"samples up to 12000, where 1 is the loudest: scale it to \[-1, 1\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_told_in_one_line_that_names_the_file(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_recording(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_permission_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", chirp(10))

    def refuse(self, *arguments):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ValueError, match=r"a\.wav cannot be read: Permission denied\."):
        recording_facts(path)


def test_damage_elsewhere_does_no_harm_to_a_piece(tmp_path):
    path = write(tmp_path / "a.flac", _noise(200_000))
    whole = read_recording(path).values
    _cut(path, 0.6)
    assert torch.equal(read_recording(path, 20_000, 16_000).values, whole[:, 20_000:36_000])
    with pytest.raises(ValueError, match="cut off"):
        read_recording(path, 150_000, 16_000)


def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.wav", chirp(1000))
    whole = read_recording(path).values
    _changed(path, at_40=b"\xff\xff\xff\xff")
    assert torch.equal(read_recording(path).values, whole)


def test_what_overshoots_a_little_is_cut(tmp_path):
    path = write(tmp_path / "a.wav", np.array([0.5, 1.25, -1.5]), subtype="FLOAT")
    assert read_recording(path).values.tolist() == [[0.5, 1.0, -1.0]]


def test_without_soundfile_it_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", chirp(10))
    monkeypatch.setitem(sys.modules, "soundfile", None)  # what Python raises ImportError for
    sound._library.cache_clear()
    with pytest.raises(ValueError, match=r"soundfile, which cannot be imported .* pip install"):
        read_recording(path)


def test_files_are_those_with_the_endings_of_sound(tmp_path):
    for place in ("b.flac", "a/x.WAV", "a/y.mp3", "a/z.m4a", "c.ogg", "n.txt", ".d.wav", ".e/f.wav", "old/g.wav"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "old" / "predictions.csv").write_text("")
    found = audio_files(tmp_path)
    assert [place.as_posix() for _, place in found] == ["a/x.WAV", "a/y.mp3", "a/z.m4a", "b.flac", "c.ogg"]
    assert all(tmp_path / place == path for path, place in found)
    assert [place.name for _, place in audio_files(tmp_path / "old")] == ["g.wav"]
    assert audio_files(tmp_path / "n.txt") == [(tmp_path / "n.txt", (tmp_path / "n.txt").relative_to(tmp_path))]


def _tone(sample_rate, seconds=0.5, hertz=440.0):
    return 0.8 * torch.sin(2 * math.pi * hertz * torch.arange(round(sample_rate * seconds)) / sample_rate)[None]


@pytest.mark.parametrize(("sample_rate", "wanted"), [(44100, 16000), (8000, 16000), (48000, 22050), (16000, 16000)])
def test_a_tone_keeps_its_pitch(sample_rate, wanted):
    found = resampled(_tone(sample_rate), sample_rate, wanted)
    assert found.shape == (1, resampled_frames(sample_rate // 2, sample_rate, wanted)) == (1, wanted // 2)
    assert (found - _tone(wanted))[:, 300:-300].abs().max() < 2e-3


def test_resampling_stays_in_range():
    steps = torch.where(torch.arange(4000) // 50 % 2 == 0, 1.0, -1.0)[None]
    assert import_torchaudio().functional.resample(steps, 16000, 44100).abs().max() > 1.05
    assert resampled(steps, 16000, 44100).abs().max() == 1


@pytest.mark.parametrize("sample_rate", [44100, 22050, 48000, 8000, 11025, 16000])
def test_a_piece_of_a_resampled_file_is_a_piece_of_the_whole_resampled(tmp_path, asked, sample_rate):
    path = write(
        tmp_path / "a.wav", 0.3 * np.random.default_rng(1).uniform(-1, 1, (2 * sample_rate + 17, 2)), sample_rate
    )
    whole = import_torchaudio().transforms.Resample(sample_rate, SAMPLE_RATE)(read_recording(path).values)
    facts = recording_facts(path)
    total = resampled_frames(facts.frames, sample_rate, SAMPLE_RATE)
    assert whole.shape == (2, total)
    for start, frames in (
        (0, 1),
        (0, 4000),
        (1, 333),
        (12_345, 4000),
        (total - 4000, 4000),
        (total - 1, 1),
        (0, total),
    ):
        asked.clear()
        piece = read_resampled(path, facts, start, frames, SAMPLE_RATE)
        assert piece.shape == (2, frames)
        torch.testing.assert_close(piece, whole[:, start : start + frames], atol=1e-5, rtol=0)
        [decoded] = asked
        assert decoded <= min(
            facts.frames,
            frames * sample_rate / SAMPLE_RATE + 8 * sample_rate // math.gcd(sample_rate, SAMPLE_RATE) + 60,
        )


def test_rates_without_a_common_divisor_are_refused_with_the_file(tmp_path):
    path = write(tmp_path / "a.wav", chirp(50, 44101), 44101)
    with pytest.raises(ValueError, match=r"a\.wav: 44,101 samples a second cannot be made 16,000") as caught:
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


def test_names_need_no_latin_letters(tmp_path):
    path = write(tmp_path / "a.flac", chirp(100))
    other = shutil.copy(path, tmp_path / "Grüße 語.flac")
    assert torch.equal(read_recording(other).values, read_recording(path).values)
