"""Data sets of shapes: signed distances, and points on surfaces."""
