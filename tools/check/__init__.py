"""Check that a data set is complete and readable: ``python -m tools.check --config FILE``."""

from tools.check.images import Findings, Problem, SplitFindings, check_images

__all__ = ["Findings", "Problem", "SplitFindings", "check_images"]
