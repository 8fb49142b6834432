"""Commands beside cli.py: ``python -m tools.NAME --help``."""
