"""Sweep files in the format of Weights & Biases: parameters with their distributions, and grid, random and Bayesian search."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy import stats

from datamodules.configuration import load_config
from datamodules.randomness import generator_at
from studies.hyperband import Hyperband

METHODS = ("grid", "random", "bayes")
_KEYS = (
    *("program", "method", "parameters", "metric", "early_terminate", "command", "run_cap"),
    *("project", "entity", "name", "description"),
)
_DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_DIGITS = 6  # significant digits of values of a continuous distribution
_FIRST_RANDOM = 5  # runs of a Bayesian search that are drawn at random
_NOISE = 1e-2  # variance of the losses between equal runs, relative to that between all runs
_CANDIDATES = 256  # points of the search space that a Bayesian search compares for each run


def _quantised(quantile: Callable[..., float]) -> Callable[..., float]:
    """Return a quantile function whose values are rounded to multiples of ``q``."""

    def rounded(position: float, q: float, **arguments: float) -> float:
        return round(quantile(position, **arguments) / q) * q

    return rounded


def _uniform(position: float, min: float, max: float) -> float:  # noqa: A002
    return min + position * (max - min)


def _log_uniform(position: float, min: float, max: float) -> float:  # noqa: A002
    return math.exp(_uniform(position, math.log(min), math.log(max)))


def _normal(position: float, mu: float, sigma: float) -> float:
    return float(stats.norm.ppf(position, loc=mu, scale=sigma))


def _log_normal(position: float, mu: float, sigma: float) -> float:
    return math.exp(_normal(position, mu, sigma))


def _beta(position: float, a: float, b: float) -> float:
    return float(stats.beta.ppf(position, a=a, b=b))


class _Distribution(NamedTuple):
    """A continuous distribution.

    Attributes:
        quantile: Quantile function: the value at a position in [0, 1], given the arguments of the distribution.
        required: Names of arguments without a default.
        defaults: Other arguments with their defaults.
    """

    quantile: Callable[..., float]
    required: tuple[str, ...] = ()
    defaults: Mapping[str, float] = {}


_RANGE, _SHAPE, _FORM = ("min", "max"), {"mu": 0.0, "sigma": 1.0}, {"a": 1.0, "b": 1.0}
_CONTINUOUS = {
    "uniform": _Distribution(_uniform, _RANGE),
    "log_uniform_values": _Distribution(_log_uniform, _RANGE),
    "inv_log_uniform_values": _Distribution(_log_uniform, _RANGE),  # uniform in the logarithm of the inverse: the same
    "normal": _Distribution(_normal, defaults=_SHAPE),
    "log_normal": _Distribution(_log_normal, defaults=_SHAPE),
    "beta": _Distribution(_beta, defaults=_FORM),
}
_CONTINUOUS |= {
    f"q_{name}": _Distribution(_quantised(kind.quantile), kind.required, {**kind.defaults, "q": 1.0})
    for name, kind in _CONTINUOUS.items()
    if not name.startswith("inv_")
}
_DISCRETE = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": _RANGE,
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep.

    Args:
        path: Keys of the parameter; several if it is nested in ``parameters`` of others.
        distribution: Name of the distribution.
        settings: Its arguments.
    """

    path: tuple[str, ...]
    distribution: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the command-line option, without hyphens."""
        return ".".join(self.path)

    @property
    def is_searched(self) -> bool:
        """Return whether the parameter has more than one value."""
        return self.distribution != "constant" and len(self.settings.get("values", (None, None))) > 1

    @property
    def is_logarithmic(self) -> bool:
        """Return whether the distribution is uniform in the logarithm."""
        return "log_" in self.distribution

    def value(self, position: float) -> Any:
        """Return the value of the quantile function of the distribution at a position in [0, 1)."""
        settings = self.settings
        if self.distribution in ("categorical", "int_uniform"):
            choices = self.choices()
            assert choices is not None
            return choices[min(int(position * len(choices)), len(choices) - 1)]
        if self.distribution == "categorical_w_probabilities":
            total = 0.0
            for choice, probability in zip(settings["values"], settings["probabilities"], strict=True):
                total += probability
                if position < total:
                    return choice
            return settings["values"][-1]
        if self.distribution == "constant":
            return settings["value"]
        value = float(f"{_CONTINUOUS[self.distribution].quantile(position, **settings):.{_DIGITS}g}")
        return int(value) if isinstance(settings.get("q"), int) else value

    def choices(self) -> list[Any] | None:
        """Return all values in order; None if the distribution is continuous."""
        settings = self.settings
        if self.distribution == "constant":
            return [settings["value"]]
        if self.distribution == "int_uniform":
            return list(range(settings["min"], settings["max"] + 1))
        if self.distribution == "q_uniform":
            first, last = (round(settings[name] / settings["q"]) for name in _RANGE)
            kind = int if isinstance(settings["q"], int) else float
            return [kind(f"{number * settings['q']:.{_DIGITS}g}") for number in range(first, last + 1)]
        return list(settings["values"]) if "values" in settings else None


class Metric(NamedTuple):
    """The metric of a sweep.

    Attributes:
        name: Name under which runs log it.
        goal: ``minimize`` or ``maximize``.
    """

    name: str
    goal: str = "minimize"


@dataclass(frozen=True)
class Sweep:
    """A sweep: what varies between its runs, and how a run is started.

    Args:
        method: ``grid``, ``random`` or ``bayes``.
        parameters: Parameters in the order of the file.
        program: Python file that a run executes.
        command: Template of the command of a run.
        metric: Metric by which runs are compared.
        hyperband: Early termination of runs.
        run_cap: Maximum number of runs.
    """

    method: str
    parameters: list[Parameter]
    program: str
    command: Sequence[str] = field(default=_DEFAULT_COMMAND)
    metric: Metric | None = None
    hyperband: Hyperband | None = None
    run_cap: int | None = None

    def num_runs(self) -> int | None:
        """Return the number of runs: the size of the grid, at most ``run_cap``; None if the search is unlimited."""
        if self.method != "grid":
            return self.run_cap
        total = math.prod(len(parameter.choices() or ()) for parameter in self.parameters)
        return total if self.run_cap is None else min(total, self.run_cap)

    def restricted(self, only: Mapping[str, Sequence[Any]]) -> Sweep:
        """Return the sweep restricted to some values of some parameters.

        Args:
            only: Values by name of the parameter.

        Raises:
            ValueError: If there is no such parameter, or it does not have a value.
        """
        parameters = {parameter.name: parameter for parameter in self.parameters}
        for name, values in only.items():
            if name not in parameters:
                raise ValueError(f"only contains {name}; the parameters of the sweep are {', '.join(parameters)}.")
            known = {
                str(value): value for value in parameters[name].choices() or []
            }  # quotes are lost on the command line
            if unknown := [value for value in values if str(value) not in known]:
                raise ValueError(f"only.{name} contains {unknown}; the values of the sweep are {', '.join(known)}.")
            settings = {"values": [known[str(value)] for value in values]}
            parameters[name] = replace(parameters[name], distribution="categorical", settings=settings)
        return replace(self, parameters=list(parameters.values()))

    def grid(self) -> list[dict[str, Any]]:
        """Return the values of all runs of a grid; the first parameter varies fastest, so that seeds belong last."""
        choices = [parameter.choices() or [] for parameter in reversed(self.parameters)]
        return [self._named(tuple(reversed(values))) for values in itertools.product(*choices)]

    def drawn(self, seed: int, number: int, candidate: int = 0) -> list[float]:
        """Return random positions of a run in the search space, which depend on the arguments alone."""
        generator = generator_at(seed, "sweep", number, candidate)
        return torch.rand(len(self.parameters), generator=generator, dtype=torch.float64).tolist()

    def values_at(self, positions: Sequence[float]) -> dict[str, Any]:
        """Return the values of all parameters at positions in [0, 1), by name."""
        return self._named([item.value(position) for item, position in zip(self.parameters, positions, strict=True)])

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return {parameter.name: value for parameter, value in zip(self.parameters, values, strict=True)}

    def proposed(self, seed: int, number: int, results: Sequence[tuple[Sequence[float], float]]) -> list[float]:
        """Return the positions of the next run of a Bayesian search: the candidate with the largest expected improvement.

        The loss is modelled by a Gaussian process with a Matern kernel. The first runs are drawn at random.

        Args:
            seed: Seed of the search.
            number: Number of the run.
            results: Positions and losses of earlier runs; lower is better.
        """
        if len(results) < _FIRST_RANDOM:
            return self.drawn(seed, number)
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern

        positions, losses = (np.asarray(column, dtype=float) for column in zip(*results, strict=True))
        scaled = (losses - losses.mean()) / (losses.std() or 1.0)
        kernel = Matern(length_scale=0.5, length_scale_bounds=(0.05, 5.0), nu=1.5)
        process = GaussianProcessRegressor(kernel, alpha=_NOISE, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is no concern of the user
            process.fit(positions, scaled)
        candidates = [self.drawn(seed, number, candidate) for candidate in range(_CANDIDATES)]
        mean, deviation = process.predict(np.asarray(candidates), return_std=True)
        gain = scaled.min() - mean
        improvement = gain * stats.norm.cdf(gain / deviation) + deviation * stats.norm.pdf(gain / deviation)
        return candidates[int(improvement.argmax())]

    def render(self, values: Mapping[str, Any]) -> list[str]:
        """Return the command of a run, with the macros of ``command`` replaced as the agent of W&B does."""
        nested = self._nested(values)
        pairs = [(name, _text(value)) for name, value in nested.items()]
        flags = [f"--{name}" if value is True else f"--{name}={_text(value)}" for name, value in nested.items()]
        replaced = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": [f"--{name}={value}" for name, value in pairs],
            "${args_no_equals}": [part for name, value in pairs for part in (f"--{name}", value)],
            "${args_no_hyphens}": [f"{name}={value}" for name, value in pairs],
            "${args_no_boolean_flags}": [
                flag for flag, value in zip(flags, nested.values(), strict=True) if value is not False
            ],
            "${args_json}": [json.dumps(nested)],
        }
        rendered = (replaced.get(part) or [_with_variables(part)] for part in map(str, self.command))
        return [argument for part in rendered for argument in part]

    def _nested(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values by the first key of every parameter, as mappings where parameters are nested."""
        nested: dict[str, Any] = {}
        for parameter in self.parameters:
            inner = nested
            for key in parameter.path[:-1]:
                inner = inner.setdefault(key, {})
            inner[parameter.path[-1]] = values[parameter.name]
        return nested


def _text(value: Any) -> str:
    """Return a value as an argument; as in W&B, except that None is ``null``, which the program reads."""
    return "null" if value is None else str(value)


def _with_variables(part: str) -> str:
    """Return a part of a command with ``${envvar:NAME}`` replaced.

    Raises:
        ValueError: If the part contains another macro.
    """
    text = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda match: os.environ.get(match[1], match[1]), part)
    if match := re.search(r"\$\{\w+\}", text):
        raise ValueError(
            f"command contains {match[0]}; it may contain ${{env}}, ${{interpreter}}, ${{program}}, ${{envvar:NAME}}, "
            "${args}, ${args_no_equals}, ${args_no_hyphens}, ${args_no_boolean_flags} and ${args_json}."
        )
    return text


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a file.

    Raises:
        ValueError: If the file is not a sweep. The message names the file.
    """
    load_config(path)  # for its errors, which name the file
    # W&B reads YAML 1.1, in which 1e-3 is a string.
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return _sweep(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(content: Any) -> Sweep:
    """Return the sweep in the content of a file.

    Raises:
        ValueError: If a key or value is wrong.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a sweep is a mapping, not {type(content).__name__}.")
    _check_keys(content, _KEYS, "the sweep")
    for key in ("method", "parameters", "program"):
        if not content.get(key):
            raise ValueError(f"{key} is missing.")
    if content["method"] not in METHODS:
        raise ValueError(f"method is {content['method']!r}; it must be one of {', '.join(METHODS)}.")
    parameters = list(_parameters(_mapping(content["parameters"], "parameters")))
    metric = None if content.get("metric") is None else _metric(_mapping(content["metric"], "metric"))
    hyperband = None if content.get("early_terminate") is None else _hyperband(content["early_terminate"])
    continuous = [parameter.name for parameter in parameters if parameter.choices() is None]
    if content["method"] == "grid" and continuous:
        raise ValueError(
            f"method is grid, but {continuous[0]} has no finite set of values: use method random or bayes."
        )
    if metric is None and (content["method"] == "bayes" or hyperband is not None):
        reason = "early_terminate" if hyperband is not None else "method bayes"
        raise ValueError(f"{reason} needs a metric: set metric.name and metric.goal.")
    command = content.get("command") or _DEFAULT_COMMAND
    if not isinstance(command, (list, tuple)):
        raise ValueError(f"command is {command!r}; it must be a list of arguments.")
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise ValueError(f"run_cap is {cap!r}; it must be a positive number.")
    return Sweep(content["method"], parameters, str(content["program"]), command, metric, hyperband, cap)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping, or raise a `ValueError`."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{name} is {value!r}; it must be a mapping.")
    return value


def _check_keys(content: Mapping[str, Any], known: Sequence[str], owner: str) -> None:
    """Raise a `ValueError` if a mapping has other keys."""
    if unknown := sorted(str(key) for key in content if key not in known):
        raise ValueError(f"{owner} has {', '.join(unknown)}; it may have {', '.join(known)}.")


def _metric(content: dict[str, Any]) -> Metric:
    """Return the metric of a sweep."""
    _check_keys(content, ("name", "goal", "target", "impute", "impute_while_running"), "metric")
    if "name" not in content:
        raise ValueError("metric.name is missing.")
    goal = content.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise ValueError(f"metric.goal is {goal!r}; it must be minimize or maximize.")
    return Metric(str(content["name"]), goal)


def _hyperband(content: Any) -> Hyperband:
    """Return the early termination of a sweep."""
    names = [item.name for item in fields(Hyperband)]
    content = _mapping(content, "early_terminate")
    _check_keys(content, ("type", *names), "early_terminate")
    if content.get("type") != "hyperband":
        raise ValueError(f"early_terminate.type is {content.get('type')!r}; it must be hyperband.")
    for name in names:
        if isinstance(content.get(name), str):
            raise ValueError(f"early_terminate.{name} is {content[name]!r}; it must be a number.")
    try:
        return Hyperband(**{name: content[name] for name in names if name in content})
    except ValueError as error:
        raise ValueError(f"early_terminate: {error}") from error


def _parameters(content: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[Parameter]:
    """Return the parameters, including nested ones."""
    parameters: list[Parameter] = []
    for key, value in content.items():
        path = (*prefix, str(key))
        value = _mapping(value, f"parameters.{'.'.join(path)}")
        if set(value) == {"parameters"}:
            parameters += _parameters(_mapping(value["parameters"], f"parameters.{'.'.join(path)}"), path)
        else:
            parameters.append(_parameter(path, value))
    return parameters


def _parameter(path: tuple[str, ...], content: dict[str, Any]) -> Parameter:
    """Return a parameter; its distribution may be implied by its arguments.

    Raises:
        ValueError: If the distribution is unknown, or an argument is missing, unknown or out of range.
    """
    owner = f"parameters.{'.'.join(path)}"
    settings = {key: value for key, value in content.items() if key != "distribution"}
    name = content.get("distribution") or _implied(settings)
    if name not in _CONTINUOUS and name not in _DISCRETE:
        known = ", ".join(sorted((*_CONTINUOUS, *_DISCRETE)))
        raise ValueError(f"{owner}.distribution is {content.get('distribution')!r}; it must be one of {known}.")
    kind = _CONTINUOUS.get(name)
    required = kind.required if kind else _DISCRETE[name]
    _check_keys(settings, (*required, *(kind.defaults if kind else ())), f"{owner} ({name})")
    if missing := [key for key in required if key not in settings]:
        raise ValueError(f"{owner} ({name}) needs {', '.join(missing)}.")
    settings = {**(kind.defaults if kind else {}), **settings}
    _check_settings(owner, name, settings)
    return Parameter(path, name, settings)


def _implied(settings: Mapping[str, Any]) -> str:
    """Return the distribution that is meant if none is named."""
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical_w_probabilities" if "probabilities" in settings else "categorical"
    return "int_uniform" if all(isinstance(settings.get(name), int) for name in _RANGE) else "uniform"


def _check_settings(owner: str, name: str, settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if an argument of a distribution is out of range."""
    if "values" in settings and (not isinstance(settings["values"], list) or not settings["values"]):
        raise ValueError(f"{owner}.values is {settings['values']!r}; it must be a list of at least one value.")
    if "probabilities" in settings:
        probabilities = settings["probabilities"]
        if len(probabilities) != len(settings["values"]) or not math.isclose(sum(probabilities), 1, rel_tol=1e-6):
            raise ValueError(
                f"{owner}.probabilities is {probabilities}; it must have one number per value, with sum 1."
            )
    for key, value in settings.items():
        if key not in ("value", "values", "probabilities") and (
            isinstance(value, bool) or not isinstance(value, (int, float))
        ):
            hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
            raise ValueError(f"{owner}.{key} is {value!r}; it must be a number{hint}.")
    if "min" in settings and settings["min"] >= settings["max"]:
        raise ValueError(f"{owner}.min is {settings['min']}, which is not less than max, {settings['max']}.")
    if "log_uniform" in name and settings["min"] <= 0:
        raise ValueError(f"{owner}.min is {settings['min']}; it must be greater than 0 for {name}.")
    if settings.get("q", 1) <= 0 or settings.get("sigma", 1) <= 0:
        raise ValueError(f"{owner}: q and sigma must be greater than 0.")
