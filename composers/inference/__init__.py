"""Inference of latents: a start, an optional inner loop, and optional refinement."""

from composers.inference.gradient_steps import GradientSteps
from composers.inference.refinement import Refinement
from composers.inference.rules import DifferentiableSGD, Rule, TorchOptimizer, Trajectory
from composers.inference.starts import Hypernetwork, LearnedCode, LearnedStart, Start, ZeroStart

__all__ = [
    "DifferentiableSGD",
    "GradientSteps",
    "Hypernetwork",
    "LearnedCode",
    "LearnedStart",
    "Refinement",
    "Rule",
    "Start",
    "TorchOptimizer",
    "Trajectory",
    "ZeroStart",
]
