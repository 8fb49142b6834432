"""Resume training with a changed configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composers.training.schedules import RunSchedule

KEY = "training"  # of the settings in a checkpoint
_STATE_KEYS = (  # of a schedule, which are not arguments of its constructor
    "base_lrs",
    "_last_lr",
    "last_epoch",
    "_step_count",
    "_get_lr_called_within_step",
    "_is_initial",
    "verbose",
)
_LR_KEYS = ("base_lrs", "_last_lr")
_BATCH_OPTIONS = {
    "batch_size": "--data.init_args.batch_size",
    "devices": "--trainer.devices",
    "accumulate_grad_batches": "--trainer.accumulate_grad_batches",
}


class Change(NamedTuple):
    """A setting that differs between a checkpoint and the configuration.

    Attributes:
        name: Name of the setting.
        before: Value in the checkpoint; None if it is missing.
        now: Value in the configuration; None if it is missing.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """Return the name and both values."""
        return f"{self.name} {_text(self.before)} -> {_text(self.now)}"


def settings(optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Return the classes and arguments of an optimizer and a schedule as plain data; call it before the first step.

    Args:
        optimizer: New optimizer.
        scheduler: New schedule, before the length of the run is set; None if the learning rate is constant.

    Returns:
        The class paths ``optimizer`` and ``scheduler``, the hyperparameters of every parameter group in ``groups``, where
        ``lr`` is the learning rate without schedule, and the ``arguments`` of the schedule.

    Example:
        >>> import torch
        >>> settings(torch.optim.SGD([torch.zeros(1)], lr=0.5), None)["groups"][0]["lr"]
        0.5
    """
    return {
        "optimizer": _class_path(optimizer),
        "groups": [_hyperparameters(group) for group in optimizer.param_groups],
        "scheduler": None if scheduler is None else _class_path(scheduler),
        "arguments": {} if scheduler is None else _arguments(scheduler.state_dict()),
    }


def batches(trainer: Trainer) -> dict[str, int | None]:
    """Return the settings that determine which instances every step of an epoch uses."""
    data = getattr(trainer, "datamodule", None)
    size = getattr(data, "batch_size", None) if isinstance(data, LightningDataModule) else None
    return {
        "batch_size": size,
        "devices": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def apply_configuration(trainer: Trainer, checkpoint: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Apply the configuration of a resumed run to the states that the trainer is about to restore.

    Changed hyperparameters of the optimizer are replaced, and its moments are kept. Learning rates are scaled by the ratio
    of the new to the old base learning rate, with and without a schedule. The changes are printed in one line. If nothing
    has changed, the states are not modified.

    Args:
        trainer: Trainer with the new optimizer, before it restores the states.
        checkpoint: Content of the checkpoint; the states of optimizer and schedule are modified in place.
        now: `settings` of the new optimizer and schedule.

    Raises:
        ValueError: If the checkpoint has another optimizer or schedule, or arguments of a schedule that cannot be changed
            within a run; or if it was saved within an epoch and the configuration would change its remaining batches.
    """
    if not {"optimizer_states", "lr_schedulers"} <= set(checkpoint):
        return  # the trainer raises an error
    path = trainer.ckpt_path
    stored = checkpoint.get(KEY)
    stored = stored if isinstance(stored, Mapping) else {}
    _check_batches(batches(trainer), stored.get("batches", {}), checkpoint, path)
    states, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    if len(states) != 1 or len(trainer.optimizers) != 1:
        return
    scheduler = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
    before = stored.get("settings") or _legacy_settings(states[0], schedules, now)
    changes = _changed_arguments(before, now, scheduler, path)
    changes += _changed_hyperparameters(before["groups"], now["groups"], path)
    if not changes:
        return
    _apply_hyperparameters(states[0], schedules, before["groups"], now["groups"])
    if isinstance(scheduler, RunSchedule):
        lrs = [group["lr"] * scheduler.factor(schedules[0]["last_epoch"]) for group in now["groups"]]
        schedules[0]["_last_lr"] = lrs
        for group, lr in zip(states[0]["param_groups"], lrs, strict=True):
            group["lr"] = lr
    rank_zero_only(print)(f"Resumed with changed settings: {', '.join(dict.fromkeys(map(str, changes)))}.")


def within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved within an epoch, whose remaining batches are trained on first."""
    try:
        current = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        return bool(current["processed"] < current["ready"])
    except (KeyError, TypeError):
        return False


def _check_batches(now: Mapping[str, Any], before: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Any) -> None:
    """Raise a `ValueError` if the checkpoint was saved within an epoch and the batches of its rest would change."""
    known = [name for name in _BATCH_OPTIONS if None not in (before.get(name), now.get(name))]
    changes = [Change(name, before[name], now[name]) for name in known if before[name] != now[name]]
    if not changes or not within_epoch(checkpoint) or _partition(before) == _partition(now):
        return
    differences = ", ".join(f"{change.name} {change.before} in the checkpoint, {change.now} here" for change in changes)
    fix = " ".join(f"{_BATCH_OPTIONS[change.name]} {change.before}" for change in changes)
    raise ValueError(
        f"{path} was saved within an epoch, and the configuration changes its remaining batches: {differences}. Set `{fix}`, "
        "or resume from a checkpoint saved at the end of an epoch."
    )


def _partition(sizes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the number of instances per batch on all devices and of batches per step; None if one is unknown."""
    batch_size, devices, accumulated = (
        sizes.get(name) for name in ("batch_size", "devices", "accumulate_grad_batches")
    )
    return None if batch_size is None or devices is None or accumulated is None else (batch_size * devices, accumulated)


def _changed_arguments(
    before: Mapping[str, Any], now: Mapping[str, Any], scheduler: LRScheduler | None, path: Any
) -> list[Change]:
    """Return the changed arguments of a schedule.

    Raises:
        ValueError: If the class of the optimizer or the schedule has changed, or arguments that cannot change within a run.
    """
    for part, name in (("optimizer", "optimizer"), ("scheduler", "schedule")):
        if before[part] != now[part]:
            raise ValueError(
                f"The {name} of this configuration is {now[part] or 'none'}, that of {path} is {before[part] or 'none'}; its "
                f"state cannot be restored: use the {name} of the checkpoint (`--model.init_args.{part}`), or start a new run "
                f"from its weights with `--weights {path}`."
            )
    changes = _compare(before["arguments"], now["arguments"])
    if changes and not isinstance(scheduler, RunSchedule):
        differences = ", ".join(
            f"{change.name} {_text(change.before)} in the checkpoint, {_text(change.now)} in the configuration"
            for change in changes
        )
        raise ValueError(
            f"The arguments of {now['scheduler']} cannot change within a run, but those of {path} differ: {differences}. Use "
            f"those of the checkpoint, or start a new run from its weights with `--weights {path}`."
        )
    return changes


def _changed_hyperparameters(before: list[dict[str, Any]], now: list[dict[str, Any]], path: Any) -> list[Change]:
    """Return the changed hyperparameters of all parameter groups; raise a `ValueError` if their number has changed."""
    if len(before) != len(now):
        raise ValueError(
            f"The optimizer of this configuration has {len(now)} parameter groups, that of {path} has {len(before)}: use the "
            f"optimizer of the checkpoint, or start a new run from its weights with `--weights {path}`."
        )
    return [change for old, new in zip(before, now, strict=True) for change in _compare(old, new)]


def _compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the entries of ``now`` that differ."""
    return [Change(name, before.get(name), value) for name, value in now.items() if before.get(name) != value]


def _apply_hyperparameters(
    state: dict[str, Any], schedules: list[dict[str, Any]], before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> None:
    """Replace the changed hyperparameters in the state of an optimizer, and scale the learning rates of its schedule."""
    base_lrs: list[tuple[float, float]] = []
    for group, old, new in zip(state["param_groups"], before, now, strict=True):
        base_lrs.append((old["lr"], new["lr"]))
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = _scale(group[name], old["lr"], new["lr"])
        for change in _compare(old, new):
            if change.name != "lr":
                group[change.name] = tuple(change.now) if isinstance(change.now, list) else change.now
    for schedule_state in (nested for schedule in schedules for nested in _nested(schedule)):
        for name in _LR_KEYS:
            if isinstance(lrs := schedule_state.get(name), list) and len(lrs) == len(base_lrs):
                schedule_state[name] = [_scale(lr, *base) for lr, base in zip(lrs, base_lrs, strict=True)]


def _scale(lr: Any, old: float, new: float) -> Any:
    """Return a learning rate scaled from the old to the new base learning rate."""
    if old == new:
        return lr
    return new if old in (0, lr) else lr * (new / old)


def _nested(schedule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state of a schedule and those of the schedules that it combines."""
    yield schedule
    for inner in schedule.get("_schedulers", ()):
        yield from _nested(inner)


def _legacy_settings(state: Mapping[str, Any], schedules: list[Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint that does not store them, from its states; unknown settings as they are now."""
    groups = [_hyperparameters(group) for group in state["param_groups"]]
    if len(groups) == len(now["groups"]):
        groups = [
            {name: old.get(name, value) for name, value in new.items()}
            for old, new in zip(groups, now["groups"], strict=True)
        ]
    scheduler = (now["scheduler"] or "of unknown kind") if schedules else None
    return {**now, "groups": groups, "scheduler": scheduler}


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a parameter group as plain data, with the learning rate without schedule."""
    hyperparameters = {name: _plain(value) for name, value in group.items() if name not in ("params", "param_names")}
    hyperparameters["lr"] = hyperparameters.pop("initial_lr", hyperparameters.get("lr"))
    return hyperparameters


def _arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a new schedule as plain data, from its state without counters and learning rates."""
    return {str(name): _plain(value) for name, value in state.items() if name not in _STATE_KEYS}


def _plain(value: Any) -> Any:
    """Return a value as numbers, strings, lists and dictionaries; other objects as their class path."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return _arguments(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else _class_path(value)


def _class_path(value: object) -> str:
    """Return the module and the name of the class of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _text(value: Any) -> str:
    """Return a value as text for messages."""
    return f"{value:g}" if isinstance(value, float) else str(value)
