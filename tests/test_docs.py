"""What the documentation names exists: class paths, modules, config files, and options of commands and of models."""

import importlib.util
import inspect
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from program import REPOSITORY, asked

import composers
import datamodules
from composers import encoders, inference, latents, losses, networks, rendering
from composers.metrics import InstanceMetric
from composers.training import schedules
from datamodules.images.base import ImageSet

PACKAGES = ("application", "benchmarks", "callbacks", "composers", "datamodules", "modalities", "studies", "tools")
REMOVED = (
    "inr",
    "tokenizer",
    "hypernet",
    "inner_loop",
    "InnerLoop",
    "adapt_biases",
    "MetaLearned",
    "first_order: true",
)
DOCUMENTS = sorted(
    {
        path
        for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "weights/**/*.md")
        for path in REPOSITORY.glob(pattern)
    }
)
CHANGELOG = REPOSITORY / "CHANGELOG.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def _current():
    """Return the documents that describe this version: all but the changelog, which also lists old names."""
    return [path for path in DOCUMENTS if path != CHANGELOG]


def _name(path):
    """Return the name of a document as the identifier of a test."""
    return path.relative_to(REPOSITORY).as_posix()


def _fragments(text):
    """Return the code of a document: fenced blocks, and inline code outside of them."""
    return [body for _, body in FENCED.findall(text)] + INLINE.findall(FENCED.sub("", text))


def _recipe_files():
    """Return the files that the recipes create, which are not part of this repository."""
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    return set(re.findall(r"^`([^`\n]+\.(?:py|yaml))`:$", text, re.MULTILINE))


def _is_recipe(path):
    """Return whether a dotted path is that of a recipe."""
    modules = {name.removesuffix(".py").replace("/", ".") for name in _recipe_files()}
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _resolves(path):
    """Return whether a dotted path names a module, or an object in one."""
    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return True


def _subclasses(*bases):
    """Return classes and all classes derived from them."""
    return {kind for base in bases for kind in (base, *_subclasses(*base.__subclasses__()))}


# The parts that an argument of a model takes, by its name, for options such as ``network.encoding.max_frequency``.
PARTS = {
    "model": _subclasses(composers.Composer),
    "data": _subclasses(datamodules.CoordinateDataModule) | set(datamodules.data_sets()),
    "images": _subclasses(ImageSet),
    "network": _subclasses(networks.CoordinateNetwork),
    "encoding": _subclasses(networks.Encoding),
    "activation": _subclasses(networks.Activation),
    "attention": {networks.TokenAttention},
    "encoder": _subclasses(encoders.Encoder),
    "readout": _subclasses(encoders.Readout),
    "transformer": {encoders.Transformer},
    "parametrization": _subclasses(latents.Parametrization),
    "codes": {latents.PatchCodes},
    "start": _subclasses(inference.Start),
    "inner": {inference.GradientSteps},
    "rule": _subclasses(inference.Rule),
    "refinement": {inference.Refinement},
    "renderer": _subclasses(rendering.Renderer),
    "loss": _subclasses(losses.Loss),
    "metrics": _subclasses(InstanceMetric),
    "optimizer": {torch.optim.Adam},
    "scheduler": {
        kind
        for module in (schedules, torch.optim.lr_scheduler)
        for kind in vars(module).values()
        if inspect.isclass(kind)
    },
}


def _arguments(kinds):
    """Return the names of the constructor arguments of classes and their bases."""
    return {
        name
        for kind in kinds
        for base in kind.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
    }


def unresolved(option):
    """Return the first name in a dotted option, such as ``model.network.hidden_dim``, that no part takes; None if all exist."""
    first, *names = [name for name in option.split(".") if name not in ("init_args", "class_path", "help")]
    kinds = PARTS[first]
    for name in names:
        if name not in _arguments(kinds):
            return name
        kinds = PARTS.get(name, set())
    return None


def _options(text):
    """Return the dotted options of models and data in a document, in full (``--model.init_args...``) or in short."""
    options = set()
    for fragment in _fragments(text):
        for path in re.findall(r"--((?:model|data)(?:\.\w+)+)", fragment):
            options.add(path)
        short = re.match(rf"((?:{'|'.join(PARTS)})(?:\.\w+)+)(?:: .*)?$", fragment)
        if short and not fragment.endswith((".csv", ".png")):
            options.add(short[1])
    return sorted(options)


def _commands(text):
    """Return the commands of ``sh`` blocks as lists of arguments."""
    blocks = [body for language, body in FENCED.findall(text) if language == "sh"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [arguments for line in lines if (arguments := shlex.split(line, comments=True))]


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_class_paths_and_modules_exist(document):
    text = document.read_text(encoding="utf-8")
    paths = {
        path
        for fragment in _fragments(text)
        for path in re.findall(rf"(?<![\w./@-])((?:{'|'.join(PACKAGES)}|torch\.optim)(?:\.\w+)+)(?![\w/])", fragment)
        if not path.endswith((".py", ".yaml", ".md", ".csv"))
    }
    assert [path for path in sorted(paths) if not _is_recipe(path) and not _resolves(path)] == []


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_config_files_exist(document):
    text = document.read_text(encoding="utf-8")
    names = {name for fragment in _fragments(text) for name in re.findall(r"configs/[\w/.]+\.yaml", fragment)}
    assert [name for name in sorted(names - _recipe_files()) if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_options_of_models_and_data_exist(document):
    options = _options(document.read_text(encoding="utf-8"))
    assert {option: name for option in options if (name := unresolved(option)) is not None} == {}


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=_name)
def test_options_in_comments_of_configs_exist(config):
    comments = "\n".join(re.findall(r"#.*", config.read_text(encoding="utf-8")))
    options = re.findall(r"--((?:model|data)(?:\.\w+)+)", comments)
    assert {option: name for option in options if (name := unresolved(option)) is not None} == {}
    names = re.findall(r"(?:configs|docs)/[\w/.]+\.(?:yaml|md)", comments)
    assert [name for name in names if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_removed_names_are_gone(document):
    text = document.read_text(encoding="utf-8")
    code = "\n".join(_fragments(text))
    assert [name for name in REMOVED if re.search(rf"(?<![\w./-]){re.escape(name)}(?!\w)", code)] == []


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_modules_of_commands_exist(document):
    for arguments in _commands(document.read_text(encoding="utf-8")):
        if "-m" in arguments:
            module = arguments[arguments.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("document", _current(), ids=_name)
def test_options_of_tools_exist(document):
    for arguments in _commands(document.read_text(encoding="utf-8")):
        module = arguments[arguments.index("-m") + 1] if "-m" in arguments else ""
        if module.split(".")[0] in ("tools", "benchmarks", "studies"):
            root = REPOSITORY / module.replace(".", "/")
            files = root.rglob("*.py") if root.is_dir() else [root.with_suffix(".py")]
            source = "\n".join(path.read_text(encoding="utf-8") for path in files)
            source += "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "modalities").glob("*.py"))
            options = [option[2:].split("=")[0] for option in arguments if re.match(r"--\w", option)]
            assert [option for option in options if not re.search(rf"\b{option}\b", source)] == [], arguments


def _program_commands():
    """Return the arguments of the program in all documents, without repetitions."""
    commands = {}
    for document in _current():
        for arguments in _commands(document.read_text(encoding="utf-8")):
            at = next((index for index, argument in enumerate(arguments) if Path(argument).name == "cli.py"), None)
            if at is not None and at + 1 < len(arguments) and not set(arguments) & _recipe_files():
                commands.setdefault(tuple(arguments[at + 1 :]), _name(document))
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("arguments", _program_commands(), ids=" ".join)
def test_commands_of_the_program_are_parsed(arguments, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments = list(arguments)
    for option in ("--ckpt_path", "--weights"):  # files of runs that a test does not have
        if option in arguments and arguments[arguments.index(option) + 1].endswith(".ckpt"):
            arguments[arguments.index(option) + 1] = "photos_ipc"
    if "--print_config" not in arguments and not any(argument.endswith(".help") for argument in arguments):
        arguments.append("--print_config")
    assert "model:" in (printed := asked(*arguments)) or "usage" in printed.lower() or "Help for" in printed


@pytest.mark.parametrize(
    "option",
    ["model.inr", "model.init_args.network.init_args.depth", "data.rate", "inner.lr", "network.encoding.omega"],
)
def test_options_that_do_not_exist_are_found(option):
    assert unresolved(option) is not None


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license"} <= citation.keys()
    assert any("Instance Pattern Composers" in reference["title"] for reference in citation["references"])
