"""Whether a data set is there, whole and readable, and what mends it: ``python -m tools.check --config FILE``."""

from tools.check.pictures import Findings, Problem, SplitFindings, check_pictures

__all__ = ["Findings", "Problem", "SplitFindings", "check_pictures"]
