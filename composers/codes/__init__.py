"""Instance codes: the latents of a signal in a file; ``python -m tools.codes`` renders and compares them."""

from composers.codes.code import MEASURED, InstanceCode, fingerprint, interpolate, read_code
from composers.codes.container import StoredSize, quantized, quantized_as, stored_size
from composers.codes.decoding import Axis, decode, decode_at
from composers.codes.encoding import encoded, steps_taken, takes_any_size
from composers.codes.header import MAX_SAMPLES
from composers.codes.quantization import BITS, LatentShape, check_bits, latent_shapes
from composers.codes.sensitivity import Example, sensitivities
from composers.codes.table import CodeTable

__all__ = [
    "BITS",
    "MAX_SAMPLES",
    "MEASURED",
    "Axis",
    "CodeTable",
    "Example",
    "InstanceCode",
    "LatentShape",
    "StoredSize",
    "check_bits",
    "decode",
    "decode_at",
    "encoded",
    "fingerprint",
    "interpolate",
    "latent_shapes",
    "quantized",
    "quantized_as",
    "read_code",
    "sensitivities",
    "steps_taken",
    "stored_size",
    "takes_any_size",
]
