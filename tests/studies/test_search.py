"""Parameters of sweeps: distributions and commands as in W&B, grid, random and Bayesian search, and errors in files."""

import json
from pathlib import Path

import pytest
import yaml

from studies.search import Parameter, read_sweep

MEASURED = json.loads(Path(__file__).with_name("wandb_sweeps.json").read_text())["distributions"]


def sweep_of(folder, **content):
    """Return the sweep of a file with some content."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"program": "cli.py", "method": "random"} | content))
    return read_sweep(path)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case["settings"].get("distribution", "implied"))
def test_distributions_equal_those_of_wandb(case, tmp_path):
    [parameter] = sweep_of(tmp_path, parameters={"x": case["settings"]}).parameters
    actual = [parameter.value(position) for position in case["positions"]]
    for value, expected in zip(actual, case["values"], strict=True):
        assert type(value) is type(expected)
        assert value == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)
    choices = parameter.choices()
    assert choices is None or set(actual) <= set(choices)


def test_first_parameter_of_a_grid_varies_fastest(tmp_path):
    parameters = {"a": {"values": [1, 2]}, "seed_everything": {"min": 0, "max": 1}, "c": {"value": "x"}}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"program": "p", "method": "grid", "parameters": parameters}, sort_keys=False)
    )
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert [tuple(values.values()) for values in sweep.grid()] == [(1, 0, "x"), (2, 0, "x"), (1, 1, "x"), (2, 1, "x")]
    assert sweep.num_runs() == 4
    assert [parameter.is_searched for parameter in sweep.parameters] == [True, True, False]


def test_random_runs_depend_on_seed_and_number_only(tmp_path):
    sweep = sweep_of(tmp_path, parameters={"a": {"min": 0.0, "max": 1.0}, "b": {"min": 0.0, "max": 1.0}})
    draws = [tuple(sweep.drawn(seed, number)) for seed in range(3) for number in range(20)]
    assert len(set(draws)) == 60
    assert sweep.drawn(1, 7) == list(draws[27])
    assert 0.4 < sum(first for first, _ in draws) / 60 < 0.6


def test_bayesian_search_finds_a_better_value_than_random_search(tmp_path):
    sweep = sweep_of(
        tmp_path,
        method="bayes",
        metric={"name": "m"},
        parameters={name: {"min": 0.0, "max": 1.0} for name in ("a", "b")},
    )

    def loss(positions):
        return sum((position - 0.3) ** 2 for position in positions)

    results = []
    for number in range(1, 16):
        positions = sweep.proposed(0, number, results)
        results.append((positions, loss(positions)))
    assert sweep.proposed(0, 16, results) == sweep.proposed(0, 16, results)
    random = [loss(sweep.drawn(0, number)) for number in range(1, 16)]
    assert [value for _, value in results[:5]] == random[:5]
    assert min(value for _, value in results) < 0.3 * min(random)


COMMANDS = [
    ["${env}", "python", "${program}", "fit", "${args}"],
    ["${env}", "A=1", "python", "${program}", "${args_no_equals}", "--x=${envvar:SOME_NAME}/y"],
    ["python", "${program}", "${args_no_hyphens}", "${args_json}"],
    ["python", "${program}", "${args_no_boolean_flags}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_commands_equal_those_of_the_agent_of_wandb(command, tmp_path, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # takes seconds

    monkeypatch.setenv("SOME_NAME", "somewhere")
    values = {"a.b": 1e-5, "c": "text", "flag": True, "off": False, "list": ["x", 2], "outer": {"inner": {"d": 3}}}
    parameters = {name: {"value": value} for name, value in values.items()}
    parameters["outer"] = {"parameters": {"inner": {"parameters": {"d": {"value": 3}}}}}
    path = tmp_path / "sweep.yaml"
    content = {"program": "cli.py", "method": "random", "command": command, "parameters": parameters}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    sweep = read_sweep(path)
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros = {f"${{{name}}}": value for name, value in arguments.items() if isinstance(value, list)}
    macros |= {"${env}": ["/usr/bin/env"], "${program}": ["cli.py"]}
    expected = [part for item in create_sweep_command(list(command)) for part in macros.get(item, [item])]
    assert sweep.render(sweep.values_at([0.5] * len(values))) == expected


def test_null_is_written_as_the_program_reads_it(tmp_path):
    sweep = sweep_of(tmp_path, parameters={"a": {"values": [None]}})
    assert sweep.render({"a": None})[-1] == "--a=null"


def test_sweep_is_restricted_to_some_values(tmp_path):
    sweep = sweep_of(tmp_path, method="grid", parameters={"a": {"values": [1, 2, 3]}, "b": {"values": ["x", "y"]}})
    assert sweep.restricted({"a": [3], "b": ["y"]}).grid() == [{"a": 3, "b": "y"}]
    with pytest.raises(ValueError, match=r"only contains c; the parameters of the sweep are a, b\."):
        sweep.restricted({"c": [1]})
    with pytest.raises(ValueError, match=r"only\.a contains \[4\]; the values of the sweep are 1, 2, 3\."):
        sweep.restricted({"a": [4]})


def test_logarithmic_parameters_are_named():
    assert Parameter(("a",), "log_uniform_values", {"min": 1, "max": 2}).is_logarithmic
    assert not Parameter(("a",), "uniform", {"min": 1, "max": 2}).is_logarithmic


A = {"a": {"values": [1, 2]}}
INVALID = [
    ({"parameters": A, "method": "best"}, r"method is 'best'; it must be one of grid, random, bayes\."),
    ({}, r"parameters is missing\."),
    ({"parameters": A, "metrics": []}, r"the sweep has metrics; it may have program, "),
    ({"parameters": {"a": {"vales": [1]}}}, r"parameters\.a \(uniform\) has vales; it may have min, max\."),
    ({"parameters": {"a": {"values": []}}}, r"parameters\.a\.values is \[\]; it must be a list"),
    ({"parameters": {"a": {"min": 1}}}, r"parameters\.a \(uniform\) needs max\."),
    ({"parameters": {"a": {"min": 2, "max": 1}}}, r"parameters\.a\.min is 2, which is not less than max, 1\."),
    ({"parameters": {"a": {"min": "1e-4", "max": 1}}}, r"parameters\.a\.min is '1e-4'; it must be a number \(YAML"),
    (
        {"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
        r"parameters\.a\.min is 0; it must be greater than 0",
    ),
    (
        {"parameters": {"a": {"distribution": "logunif", "min": 0, "max": 1}}},
        r"parameters\.a\.distribution is 'logunif'; it must be",
    ),
    (
        {"parameters": {"a": {"values": [1, 2], "probabilities": [1.0]}}},
        r"parameters\.a\.probabilities is \[1\.0\]; it must have one",
    ),
    ({"parameters": {"a": 3}}, r"parameters\.a is 3; it must be a mapping\."),
    ({"parameters": {"a": {"min": 0.0, "max": 1.0}}, "method": "grid"}, r"method is grid, but a has no finite set"),
    ({"parameters": A, "method": "bayes"}, r"method bayes needs a metric"),
    ({"parameters": A, "early_terminate": {"type": "hyperband", "min_iter": 1}}, r"early_terminate needs a metric"),
    (
        {"parameters": A, "metric": {"name": "m"}, "early_terminate": {"type": "envelope"}},
        r"early_terminate\.type is 'envelope'; it must be hyperband\.",
    ),
    (
        {"parameters": A, "metric": {"name": "m"}, "early_terminate": {"type": "hyperband", "eta": 2}},
        r"early_terminate: exactly one of min_iter and max_iter must be set, and max_iter needs s\.",
    ),
    (
        {"parameters": A, "metric": {"name": "m", "goal": "max"}},
        r"metric\.goal is 'max'; it must be minimize or maximize",
    ),
    ({"parameters": A, "run_cap": 0}, r"run_cap is 0; it must be a positive number\."),
    ({"parameters": A, "command": "python"}, r"command is 'python'; it must be a list of arguments\."),
]


@pytest.mark.parametrize(("content", "message"), INVALID, ids=[message[:24] for _, message in INVALID])
def test_errors_name_file_and_key(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"sweep\.yaml: {message}"):
        sweep_of(tmp_path, **content)


def test_unknown_macros_raise(tmp_path):
    sweep = sweep_of(tmp_path, parameters=A, command=["${args_append_hydra}"])
    with pytest.raises(ValueError, match=r"command contains \$\{args_append_hydra\}; it may contain \$\{env\}"):
        sweep.render({"a": 1})


@pytest.mark.parametrize(("content", "message"), [(b"a: [1", "not valid YAML"), (b"\xff\xfe\xfa", "not text in UTF-8")])
def test_files_that_are_no_yaml_raise(content, message, tmp_path):
    (tmp_path / "sweep.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"sweep\.yaml is {message}"):
        read_sweep(tmp_path / "sweep.yaml")
