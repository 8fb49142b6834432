"""Instance codes: what one signal is to a model, in a file; ``python -m composers.codes`` renders and compares them."""

from composers.codes.code import InstanceCode, fingerprint, interpolate, read_code
from composers.codes.decoding import decode

__all__ = ["InstanceCode", "decode", "fingerprint", "interpolate", "read_code"]
