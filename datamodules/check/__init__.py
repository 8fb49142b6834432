"""Whether a data set is there, whole and readable, and what mends it: ``python -m datamodules.check --config FILE``."""

from datamodules.check.pictures import Findings, Problem, Row, check_pictures

__all__ = ["Findings", "Problem", "Row", "check_pictures"]
