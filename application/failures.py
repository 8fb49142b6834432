"""Messages for failures of a run: workers that load data, memory, and other ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning import Trainer

from callbacks.saving import resume_hint

_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: [\w /]+|exited unexpectedly[\w ]*)"
)
_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|bad_alloc|can't start new thread"
    r"|resource temporarily unavailable",
    re.IGNORECASE,
)
_PEER = re.compile(r"connection (closed|reset) by peer|broken pipe|timed out .*waiting|socket timeout", re.IGNORECASE)
_TRAINING, _EVALUATION = ("fit",), ("validate", "test", "predict")


class _Setting(NamedTuple):
    """A setting that reduces memory.

    Attributes:
        argument: Last part of the name of its option.
        advice: How to change it.
        commands: Commands that it affects.
        unless: Values with which it cannot be reduced further.
    """

    argument: str
    advice: str
    commands: tuple[str, ...] = _TRAINING + _EVALUATION
    unless: tuple[Any, ...] = ()


_SETTINGS = (
    _Setting("batch_size", "smaller", unless=(1,)),
    _Setting("accumulate_grad_batches", "larger, with a smaller batch_size", _TRAINING),
    _Setting("eval_batch_size", "smaller", unless=(1,)),
    _Setting("coordinate_subset", "a ratio such as 0.25", _TRAINING),
    _Setting("rays_per_view", "smaller", _TRAINING),
    _Setting("samples_per_step", "a number of samples"),
    _Setting("test_samples_per_step", "a number of samples"),
    _Setting("recompute", "true", _TRAINING, unless=(True,)),
    _Setting("chunk_size", "smaller"),
    _Setting("max_memory", "smaller"),
    _Setting("precision", "bf16-mixed", unless=("bf16-mixed", "16-mixed")),
    _Setting("num_workers", "smaller: every worker holds its own batches", unless=(0,)),
    _Setting("cache", "a folder, whose decoded data the workers share", unless=("data/cache",)),
)


def explain_failure(
    error: BaseException,
    command: str | None = None,
    config: Mapping[str, Any] | None = None,
    trainer: Trainer | None = None,
) -> str | None:
    """Return the message of a failure of a run, or None if the exception is of another kind.

    Args:
        error: The exception.
        command: ``fit``, ``validate``, ``test`` or ``predict``; None before it is known.
        config: Arguments of the command; None before they are parsed.
        trainer: Trainer that ran the command; None before it exists.
    """
    config = config or {}
    hint = "" if trainer is None or trainer.state.fn is None else f" {resume_hint(trainer)}"
    if matches := [match for part in _chain(error) if (match := _WORKER.search(str(part)))]:
        return _worker(matches[-1], config) + hint  # the innermost names the signal
    for part in _chain(error):
        if isinstance(part, MemoryError) or (isinstance(part, (RuntimeError, OSError)) and _MEMORY.search(str(part))):
            return out_of_memory(part, command, config) + hint
    for part in _chain(error):
        if (
            trainer is not None
            and trainer.world_size > 1
            and isinstance(part, RuntimeError)
            and _PEER.search(str(part))
        ):
            reason = " ".join(str(part).splitlines()[0].split())
            return f"The connection to another rank was lost ({reason}); see its log. All ranks stop.{hint}"
    return None


def out_of_memory(error: BaseException, command: str | None = None, config: Mapping[str, Any] | None = None) -> str:
    """Return a message with the settings that reduce memory, and their values.

    Args:
        error: The exception.
        command: ``fit``, ``validate``, ``test`` or ``predict``; None before it is known.
        config: Arguments of the command; None before they are parsed.
    """
    lines = [line for line in str(error).splitlines() if _MEMORY.search(line)] or [type(error).__name__]
    reason = lines[0].strip().partition("; See https")[0].removesuffix(".")
    settings = [
        f"\n  --{option} {_shown(value)} ({setting.advice})"
        for setting in _SETTINGS
        if command is None or command in setting.commands
        for option, value in _options(config or {}, setting.argument)
        if value not in setting.unless
    ]
    if not settings:
        return f"Out of memory: {reason}. Reduce the size, the batch size or the memory limit (see --help)."
    return f"Out of memory: {reason}. Settings that reduce memory use, with their current values:{''.join(settings)}\n"


def _worker(match: re.Match[str], config: Mapping[str, Any]) -> str:
    """Return the message of a worker process that ended."""
    names = ("num_workers", "batch_size", "eval_batch_size", "cache")
    settings = [f"--{option} {_shown(value)}" for name in names for option, value in _options(config, name)]
    current = f" Current values: {', '.join(settings)}." if settings else ""
    return (
        f"The data-loading worker process {match[1].strip()} {match[2].strip().removesuffix('.')}. It probably ran out of "
        f"memory, or of shared memory in /dev/shm. Reduce the number of workers or the batch size, or store decoded data in a "
        f"cache.{current}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    current: BaseException | None = error
    for _ in range(20):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _options(config: Mapping[str, Any] | Namespace, argument: str) -> Iterator[tuple[str, Any]]:
    """Yield the options whose last part is ``argument``, with their values."""
    for key, value in (vars(config) if isinstance(config, Namespace) else config).items():
        if isinstance(value, (dict, Namespace)):
            for option, inner in _options(value, argument):
                yield f"{key}.{option}", inner
        elif key == argument:
            yield key, value


def _shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
