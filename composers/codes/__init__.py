"""Instance codes: the latents of a signal in a file; ``python -m tools.codes`` renders and compares them."""

from composers.codes.code import MEASURED, InstanceCode, fingerprint, interpolate, read_code
from composers.codes.decoding import Axis, decode, decode_at
from composers.codes.encoding import encoded, steps_taken, takes_any_size

__all__ = [
    "MEASURED",
    "Axis",
    "InstanceCode",
    "decode",
    "decode_at",
    "encoded",
    "fingerprint",
    "interpolate",
    "read_code",
    "steps_taken",
    "takes_any_size",
]
