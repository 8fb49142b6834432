"""Measures of what a field can do and a grid of values cannot; `callbacks.field_measures` runs them in a test."""

from callbacks.fields.decoding import decoding_measures
from callbacks.fields.derivatives import derivative_measures
from callbacks.fields.scales import FieldItem, NotMeasurableError, ScalePair, item_of, reconstruct, scale_pair
from callbacks.fields.subsets import Fill, subset_measures

__all__ = [
    "FieldItem",
    "Fill",
    "NotMeasurableError",
    "ScalePair",
    "decoding_measures",
    "derivative_measures",
    "item_of",
    "reconstruct",
    "scale_pair",
    "subset_measures",
]
