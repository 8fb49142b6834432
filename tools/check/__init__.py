"""Whether a data set is there, whole and readable, and what fixes it: ``python -m tools.check --config FILE``."""

from tools.check.images import Findings, Problem, SplitFindings, check_images

__all__ = ["Findings", "Problem", "SplitFindings", "check_images"]
