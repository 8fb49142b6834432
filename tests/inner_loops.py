"""Inner loops for tests, from settings of the loop and of its rule."""

from composers import GradientSteps
from composers.inference import DifferentiableSGD

RULE = ("lr", "learned_lr", "outer", "recompute")


def inner_loop(**settings):
    """Return an inner loop; settings of `DifferentiableSGD` are passed to its rule."""
    rule = {name: settings.pop(name) for name in RULE if name in settings}
    return GradientSteps(rule=DifferentiableSGD(**rule), **settings)
