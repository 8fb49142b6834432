"""Experiments about the method: ``python -m studies.NAME --help``."""
