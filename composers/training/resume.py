"""Resumed training: what a checkpoint was trained with, compared with the configuration that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composers.training.schedules import RunSchedule

KEY = "training"  # of a checkpoint
_COUNTERS = (
    "base_lrs",
    "_last_lr",
    "last_epoch",
    "_step_count",
    "_get_lr_called_within_step",
    "_is_initial",
    "verbose",
)
_RATES = ("base_lrs", "_last_lr")
_BATCHES = {
    "batch_size": "--data.init_args.batch_size",
    "devices": "--trainer.devices",
    "accumulate_grad_batches": "--trainer.accumulate_grad_batches",
}


class Change(NamedTuple):
    """A setting that differs between a checkpoint and the configuration.

    Attributes:
        name: What the configuration calls it.
        before: Its value in the checkpoint; None if it is not there.
        now: Its value in the configuration; likewise.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """Return both values in words."""
        return f"{self.name} {_told(self.before)} -> {_told(self.now)}"


def settings(optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Return what an optimizer and a schedule were made with, as plain data; to be called before the first step.

    Args:
        optimizer: As it was made.
        scheduler: Likewise, before a trainer tells it the length of the run; None if the rate is constant.

    Returns:
        The classes; the hyperparameters by group, the rate without schedule; and the arguments of the schedule.

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
    """Return what decides which instances the steps of an epoch see."""
    data = getattr(trainer, "datamodule", None)
    size = getattr(data, "batch_size", None) if isinstance(data, LightningDataModule) else None
    return {
        "batch_size": size,
        "devices": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def apply_configuration(trainer: Trainer, checkpoint: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Let the configuration of a resumed run take effect, in the state that the trainer is about to restore.

    Hyperparameters of the same optimizer get their new values, and its moments stay; rates are scaled as their base is, with
    and without a schedule. Where nothing changed, nothing is touched. What changed is printed in one line.

    Args:
        trainer: With a new optimizer, before states are restored.
        checkpoint: Its content; the states of optimizer and schedule are changed in place.
        now: `settings` of the new optimizer.

    Raises:
        ValueError: If the checkpoint has another optimizer or schedule, or arguments of a schedule that cannot be changed
            within a run; or if it lies within an epoch whose batches this configuration would cut otherwise.
    """
    if not {"optimizer_states", "lr_schedulers"} <= set(checkpoint):
        return  # which the trainer refuses
    path = trainer.ckpt_path
    stored = checkpoint.get(KEY)
    known = stored if isinstance(stored, Mapping) else {}
    _check_batches(batches(trainer), known.get("batches", {}), checkpoint, path)
    states, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    if len(states) != 1 or len(trainer.optimizers) != 1:
        return
    scheduler = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
    before = known.get("settings") or _guessed(states[0], schedules, now)
    changed = _arguments_changed(before, now, scheduler, path)
    changed += _hyperparameters_changed(before["groups"], now["groups"], path)
    if not changed:
        return
    _apply(states[0], schedules, before["groups"], now["groups"])
    if isinstance(scheduler, RunSchedule):
        _recompute(states[0], schedules[0], now["groups"], scheduler)
    _say(f"Resumed with changed settings: {', '.join(dict.fromkeys(map(str, changed)))}.")


def within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved before an epoch was over, and its rest is trained on first."""
    try:
        current = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        return bool(current["processed"] < current["ready"])
    except (KeyError, TypeError):
        return False


def _check_batches(now: Mapping[str, Any], before: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Any) -> None:
    """Refuse to finish an epoch with other batches than it was begun with."""
    known = [name for name in _BATCHES if None not in (before.get(name), now.get(name))]
    changed = [Change(name, before[name], now[name]) for name in known if before[name] != now[name]]
    if not changed or not within_epoch(checkpoint) or _cut(before) == _cut(now):
        return
    found = ", ".join(f"{name} {one} in the checkpoint, {other} here" for name, one, other in changed)
    fix = " ".join(f"{_BATCHES[name]} {one}" for name, one, _ in changed)
    raise ValueError(
        f"{path} lies within an epoch, the rest of which would be cut into other batches: {found}. Give {fix}, or resume from "
        "the end of an epoch, where they may change."
    )


def _cut(sizes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the items of a batch on all devices and the batches of a step; None where a checkpoint does not say."""
    found = [sizes.get(name) for name in ("batch_size", "devices", "accumulate_grad_batches")]
    return None if None in found else (found[0] * found[1], found[2])  # type: ignore[operator, return-value]


def _arguments_changed(
    before: Mapping[str, Any], now: Mapping[str, Any], scheduler: LRScheduler | None, path: Any
) -> list[Change]:
    """Return the arguments of a schedule that changed; refuse other classes, and arguments that it does not take."""
    for part, name in (("optimizer", "optimizer"), ("scheduler", "schedule")):
        if before[part] != now[part]:
            raise ValueError(
                f"The {name} of this configuration is {now[part] or 'none'}, that of {path} is {before[part] or 'none'}, "
                f"whose state it cannot take over: give the {name} of the checkpoint (--model.init_args.{part}), or start a "
                f"new run from its weights with --weights {path}."
            )
    changed = _compared(before["arguments"], now["arguments"])
    if changed and not isinstance(scheduler, RunSchedule):
        found = ", ".join(
            f"{name} {_told(one)} in the checkpoint, {_told(other)} in the configuration"
            for name, one, other in changed
        )
        raise ValueError(
            f"The arguments of {now['scheduler']} cannot change within a run, and {path} has others: {found}. Give those of "
            f"the checkpoint, or start a new run from its weights with --weights {path}."
        )
    return changed


def _hyperparameters_changed(before: list[dict[str, Any]], now: list[dict[str, Any]], path: Any) -> list[Change]:
    """Return the hyperparameters that changed, of all groups."""
    if len(before) != len(now):
        raise ValueError(
            f"The optimizer of this configuration has {len(now)} groups of parameters, that of {path} has {len(before)}: give "
            f"the optimizer of the checkpoint, or start a new run from its weights with --weights {path}."
        )
    return [change for one, other in zip(before, now, strict=True) for change in _compared(one, other)]


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return what differs of that which the configuration states."""
    return [Change(name, before.get(name), value) for name, value in now.items() if before.get(name) != value]


def _apply(
    state: dict[str, Any], schedules: list[dict[str, Any]], before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> None:
    """Write changed hyperparameters into the state of an optimizer, and changed rates into that of its schedule too."""
    ratios: list[tuple[float, float]] = []
    for saved, old, new in zip(state["param_groups"], before, now, strict=True):
        ratios.append((old["lr"], new["lr"]))
        for name in ("lr", "initial_lr"):
            if name in saved:
                saved[name] = _scaled(saved[name], old["lr"], new["lr"])
        for change in _compared(old, new):
            if change.name != "lr":
                saved[change.name] = tuple(change.now) if isinstance(change.now, list) else change.now
    for rates, name in ((found, name) for schedule in schedules for found in _nested(schedule) for name in _RATES):
        if isinstance(rates.get(name), list) and len(rates[name]) == len(ratios):
            rates[name] = [_scaled(rate, *ratio) for rate, ratio in zip(rates[name], ratios, strict=True)]


def _scaled(rate: Any, old: float, new: float) -> Any:
    """Return a rate as it is with another base."""
    if old == new:
        return rate
    return new if old in (0, rate) else rate * (new / old)


def _recompute(
    state: dict[str, Any], schedule: dict[str, Any], now: list[dict[str, Any]], scheduler: RunSchedule
) -> None:
    """Write the rates of the next step, of a schedule whose arguments may have changed."""
    rates = [group["lr"] * scheduler.factor(schedule["last_epoch"]) for group in now]
    schedule["_last_lr"] = rates
    for saved, rate in zip(state["param_groups"], rates, strict=True):
        saved["lr"] = rate


def _nested(schedule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state of a schedule, and those of the schedules that it is made of."""
    yield schedule
    for inner in schedule.get("_schedulers", ()):
        yield from _nested(inner)


def _guessed(state: Mapping[str, Any], schedules: list[Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint that does not state them, as far as its states tell; the rest as it is now."""
    groups = [_hyperparameters(group) for group in state["param_groups"]]
    known = [
        {name: one.get(name, value) for name, value in other.items()}
        for one, other in zip(groups, now["groups"], strict=False)
    ]
    scheduler = now["scheduler"] if bool(schedules) == (now["scheduler"] is not None) else "of unknown kind"
    if not schedules:
        scheduler = None
    return {**now, "groups": known if len(groups) == len(now["groups"]) else groups, "scheduler": scheduler}


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain hyperparameters of a group, with the rate that a schedule starts from."""
    found = {name: _plain(value) for name, value in group.items() if name not in ("params", "param_names")}
    found["lr"] = found.pop("initial_lr", found.get("lr"))
    return found


def _arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain state of a schedule that did not begin, without what counts and the rates."""
    return {str(name): _plain(value) for name, value in state.items() if name not in _COUNTERS}


def _plain(value: Any) -> Any:
    """Return a value as numbers, words, lists and dictionaries; other objects by their class."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return _arguments(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else _class_path(value)


def _class_path(value: object) -> str:
    """Return where a class is defined, and its name."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _told(value: Any) -> str:
    """Return a value as a message shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@rank_zero_only
def _say(line: str) -> None:
    """Print a line, on one process."""
    print(line)
