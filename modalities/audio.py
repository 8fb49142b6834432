"""Sound in and out: a clip to a code, a code to a clip at any rate."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from composers.base import Composer
from composers.codes import Axis, InstanceCode, decode_at, encoded, fingerprint, stated_shape, steps_taken
from composers.inference.refinement import Refinement
from composers.metrics import psnr_of_mse
from datamodules.batch import Observation, Samples
from datamodules.domain import Domain, Grid
from datamodules.storage.files import written_whole
from datamodules.storage.recordings import clip_tiles, cut_clip, measured, read_seen
from datamodules.tiles import Box

_LARGEST_WAV = 2**32 - 64  # bytes of samples; its header counts them in 32 bits


def encode(
    composer: Composer,
    source: str | Path | Tensor,
    rate: int = 16000,
    *,
    refinement: Refinement | None = None,
    batch_size: int = 16,
) -> InstanceCode:
    """Return the code of a clip: predicted, then refined, in overlapping tiles if it is longer than the model's signals.

    Args:
        composer: A model of sound.
        source: A file of sound, resampled and mixed as the model needs it; or ``(C, n)`` in [-1, 1] at ``rate``.
        rate: Samples per second of the signals that the model was trained with.
        refinement: Steps and rate; the model's own if None, ``Refinement(steps=0)`` for the prediction alone.
        batch_size: Tiles at a time.

    Raises:
        ValueError: If the clip cannot be read, or the model takes no sound.

    Example:
        ``code = encode(composer, "speech.wav")``
    """
    channels, length = input_shape(composer)
    if isinstance(source, Tensor):
        values, facts, name = source, own_facts(rate, source.shape[-1]), ""
    else:
        seen = read_seen(source, channels, rate)
        values, facts, name = seen.values, own_facts(seen.rate, seen.samples), Path(source).stem
    if values.dim() != 2 or len(values) != channels or not values.shape[1]:
        raise ValueError(f"The clip has shape {tuple(values.shape)}: this model takes ({channels}, n), n at least 1.")
    steps, domain = refinement or composer.refinement, Grid(((-length / rate, length / rate),))
    places = clip_tiles(values.shape[1], length)
    parts = (places[start : start + batch_size] for start in range(0, len(places), batch_size))
    latents = encoded(composer, (_observation(values, some, domain, composer.device) for some in parts), steps)
    latents = {key: latent.cpu() for key, latent in latents.items()}
    facts |= steps_taken(composer, steps.steps)
    return InstanceCode(latents, places, (values.shape[1],), fingerprint(composer), name, facts, domain=domain)


def render(composer: Composer, code: InstanceCode, rate: int | None = None, max_memory: float = 500.0) -> Tensor:
    """Return the sound of a code at any rate, ``(C, n)`` on the CPU, unclipped.

    Sample 0 stands at the same time at every rate, as resampling has it: of twice the rate, every other sample is the same.

    Args:
        composer: The model of the code.
        code: Of a clip.
        rate: Samples per second; those of the clip that was encoded if None.
        max_memory: MB that decoding may take above the model and the sound.

    Raises:
        ValueError: If the code is of another model or no sound, or the rate is out of range.

    Example:
        ``save_wav(render(composer, code, 48000), 48000, Path("speech.wav"))``
    """
    if len(code.shape) != 1:
        raise ValueError(f"This code stands for a signal of shape {code.shape}, not for sound.")
    wanted = own_rate(code) if rate is None else rate
    if wanted < 1:
        raise ValueError(f"rate is {wanted}; it must be at least 1.")
    seen = code_rate(code)
    axis = Axis(_count(code, wanted), Fraction(seen, wanted), Fraction(wanted, 2 * seen))
    try:
        values = torch.empty(composer.inr.value_dim, axis.number)
    except RuntimeError as error:
        raise ValueError(f"{axis.number:,} samples do not fit into memory: ask for a lower rate.") from error
    done = 0
    for band in decode_at(composer, code, [axis], max_memory):
        values[:, done : done + len(band)] = band.mT
        done += len(band)
    return values


def save_wav(values: Tensor, rate: int, path: Path, bits: int = 16) -> None:
    """Write audio as an integer PCM WAV file, whole or not at all.

    Args:
        values: ``(C, n)``, clipped to [-1, 1].
        rate: Samples per second.
        path: The file.
        bits: Bits per sample, 16 or 24.

    Raises:
        ValueError: If the audio is longer than a WAV file can be, or ``bits`` is another number.
    """
    import soundfile  # here, because images and scenes do not need it

    check_bits(bits)
    if values.numel() * bits // 8 > _LARGEST_WAV:
        raise ValueError(f"{path} would be longer than a WAV can be, 4 GB: ask for a lower rate.")
    full = 2 ** (bits - 1)
    levels = (values.detach().cpu().double() * full).round().clamp(-full, full - 1).to(torch.int32)
    content = io.BytesIO()  # a full disk is an OSError of the write below, not an error of libsndfile
    left_aligned = (levels << (32 - bits)).mT.contiguous().numpy()  # soundfile keeps the upper bits
    soundfile.write(content, left_aligned, rate, subtype=f"PCM_{bits}", format="WAV")
    with written_whole(path) as part:
        part.write_bytes(content.getbuffer())


def check_bits(bits: int) -> None:
    """Refuse bits of a sample that no WAV is written with."""
    if bits not in (16, 24):
        raise ValueError(f"bits is {bits}; a WAV is written with 16 or 24.")


def sound_psnr(seen: Tensor, true: Tensor) -> float:
    """Return the PSNR in dB, peak 1, of sound ``(C, n)`` as a WAV has it, clipped to [-1, 1].

    Example:
        >>> round(sound_psnr(torch.tensor([[3.0, 0.2]]), torch.tensor([[1.0, 0.0]])), 2)
        16.99
    """
    return psnr_of_mse((seen.clamp(-1, 1) - true).double().square().mean()).item()


def sampling_rate(samples: int, coord_range: tuple[float, float]) -> int:
    """Return the samples per second of signals whose coordinates are 2 units per second, as published.

    Example:
        >>> sampling_rate(48000, (-3.0, 3.0))
        16000
    """
    low, high = coord_range
    return round(2 * samples / (high - low))


def code_rate(code: InstanceCode) -> int:
    """Return the rate of the signals that the model of a code sees."""
    [(start, stop)] = code.boxes[0]
    return round(2 / code.domain.cell((stop - start,))[0])  # 2 units of a coordinate are a second


def own_rate(code: InstanceCode) -> int:
    """Return the rate of the clip that was encoded; where it is not known, that of the model."""
    return int(code.facts.get("rate", code_rate(code)))


def own_facts(rate: int, samples: int) -> dict[str, str]:
    """Return what a code notes of a clip as it was before it got the rate of a model."""
    return {"rate": str(rate), "samples": str(samples)}


def input_shape(composer: Composer) -> tuple[int, int]:
    """Return the channels and samples of the signals that a model takes; of a meta-learned model, those of its training.

    Raises:
        ValueError: If it takes something else, or does not say.
    """
    found = stated_shape(composer)
    if found is None:
        raise ValueError(
            f"This {type(composer).__name__} does not say which sound it takes: it has no tokenizer and no signal_shape."
        )
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"This model takes signals of shape {found}, not sound of a known length.")
    return found[0], found[1]


def _observation(values: Tensor, places: list[Box], domain: Domain, device: torch.device) -> Observation:
    """Return tiles of a clip ``(C, n)`` as a model sees them, with their padding masked."""
    signal = torch.stack([cut_clip(values, box) for box in places]).to(device)  # (B, C, length)
    lengths = torch.tensor([[measured(box, values.shape[1])] for box in places], device=device)
    mask = torch.arange(signal.shape[-1], device=device) < lengths
    samples = Samples(domain.coords(signal.shape[2:], device=device), signal.mT, None if bool(mask.all()) else mask)
    return Observation(signal, samples)


def _count(code: InstanceCode, rate: int) -> int:
    """Return how many samples a clip has at a rate."""
    own = own_rate(code)
    samples = int(code.facts.get("samples", code.shape[0]))
    return samples if rate == own else max(1, round(Fraction(samples * rate, own)))
