"""Callbacks: what a run prints, draws, logs and saves."""
