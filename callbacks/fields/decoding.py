"""Decoding at a larger scale, against interpolation of values on a grid."""

from __future__ import annotations

from callbacks.fields.scales import ScalePair, psnr, rendered_grid
from composers.base import Composer
from composers.rendering import Reconstruction
from datamodules.domain import Domain
from modalities.resampling import Interpolation, upscaled


def decoding_measures(
    composer: Composer,
    pair: ScalePair,
    reconstruction: Reconstruction,
    domain: Domain,
    interpolation: Interpolation,
    max_memory: float = 500.0,
) -> dict[str, float]:
    """Return the PSNR in dB of a signal at the scale of its original, decoded from its code and interpolated.

    Args:
        composer: The model.
        pair: The signal and its original.
        reconstruction: Reconstruction of the signal.
        domain: Domain of the signal.
        interpolation: Filter of the interpolation.
        max_memory: Memory in MB for rendering, besides the model and the result.

    Returns:
        ``field``, the field at the original's samples; named after the filter, the reconstruction at the signal's samples and
        the signal itself (``..._of_input``), both interpolated; and ``gain``, the first minus the second.
    """
    shape, factor = pair.original.shape[2:], pair.factor
    decoded = rendered_grid(composer, reconstruction, domain, shape, max_memory)
    values = rendered_grid(composer, reconstruction, domain, pair.signal.shape[2:], max_memory)
    field = psnr(decoded, pair.original, pair.mask)
    grid = psnr(upscaled(values, factor, interpolation), pair.original, pair.mask)
    signal = psnr(upscaled(pair.signal.float().cpu(), factor, interpolation), pair.original, pair.mask)
    return {"field": field, interpolation: grid, f"{interpolation}_of_input": signal, "gain": field - grid}
