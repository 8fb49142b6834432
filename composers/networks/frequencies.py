"""Comparison of the frequencies of an encoding with those that the samples of a signal can hold."""

from __future__ import annotations

from composers.networks.network import CoordinateNetwork
from datamodules.spec import DataSpec, ranges

_LOWEST = 0.5  # of the highest frequency of the samples; published image models have 0.5 to 1.4
_TOLERANCE = 1e-6


def unreached_frequencies(network: CoordinateNetwork, spec: DataSpec) -> str:  # type: ignore[type-arg]
    """Return a warning if the encoding of a network ends more than an octave below half the sampling rate of the data.

    Half the sampling rate is the highest frequency that samples hold. The nonlinearities of a network add harmonics, of which
    the second, at twice the frequency, is the strongest; details above must be composed from weak ones.

    Args:
        network: Network of the field.
        spec: Specification of the data, with the domain of the field.

    Returns:
        A sentence with both frequencies, in Hz for audio and in periods per signal elsewhere, and the argument to change;
        empty if there is nothing to warn of, or the data is not on a grid of known size.
    """
    encoding, shape = network.encoding_of_signal, spec.signal_shape[1:]
    if encoding is None or len(ranges(spec) or ()) != len(shape) or min(shape) < 1:
        return ""
    highest = encoding.highest_frequencies(spec.domain.coord_dim)
    if highest is None:
        return ""
    axes = zip(highest, spec.domain.cell(shape), shape, strict=False)  # positions come before sizes
    reached, samples = min((2 * frequency * cell, samples) for frequency, cell, samples in axes)
    if reached >= _LOWEST * (1 - _TOLERANCE):
        return ""
    if spec.sample_rate is not None:
        limit, unit, of = spec.sample_rate / 2, "Hz", f"{spec.sample_rate:,} samples per second"
    else:
        limit, unit, of = samples / 2, "periods", f"the {samples:,} samples of an axis"
    return (
        f"{type(encoding).__name__} reaches {reached * limit:,.0f} {unit}, and {of} hold up to {limit:,.0f} {unit}: details "
        f"above may be lost. To reach them, raise {encoding.raised(1 / reached)}."
    )
