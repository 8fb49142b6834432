"""Options of a released config: each is read once, and what nobody read is refused, so that none is ever ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Config = dict[str, Any]


class Options:
    """The options of a section of a released config, by dotted name. One that is left out, or null, has its default.

    Args:
        where: The section, for messages.
        section: What it says, as plain data.
    """

    def __init__(self, where: str, section: Mapping[str, Any]) -> None:
        self._where = where
        self._left = dict(_flat(section))

    def read(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return an option of exactly this type; a float may be written as a whole number."""
        value = self._take(name, default)
        found: Any = float(value) if kind is float and type(value) is int else value
        if type(found) is not kind:
            self.refuse(name, value, f"a value of type {kind.__name__}")
        return found

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number, at least 1."""
        number = self.read(name, int, default)
        return number if number >= 1 else self.refuse(name, number, "1 or more")

    def counts(self, name: str, length: int) -> list[int]:
        """Return a list of ``length`` whole numbers, at least 1; where the config lists one, it holds for all."""
        numbers = self.read(name, list)
        if len(numbers) not in (1, length) or any(type(number) is not int or number < 1 for number in numbers):
            self.refuse(name, numbers, f"a list of 1 or {length} whole numbers, each 1 or more")
        return numbers * length if len(numbers) == 1 else numbers

    def choose(self, name: str, allowed: Iterable[T], default: T | None = None) -> T:
        """Return an option that has one of a few values."""
        value, readable = self._take(name, default), list(allowed)
        if value not in readable:
            self.refuse(name, value, " or ".join(map(repr, readable)))
        found: T = value
        return found

    def fix(self, values: Mapping[str, Any]) -> None:
        """Refuse options that have another value than the only one this version reads."""
        for name, value in values.items():
            self.choose(name, [value], value)

    def finish(self, unread: Iterable[str] = ()) -> None:
        """Refuse whatever is left, but for options without influence on a trained model."""
        if unknown := self._left.keys() - set(unread):
            raise ValueError(
                f"{self._where} has options that this version does not know: {', '.join(sorted(unknown))}. It reads configs "
                "as released: leave an option out only if the code that trained the model does not read it either."
            )

    def refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        """Raise a ValueError that names an option, its value and what this version reads."""
        raise ValueError(f"{self._where} option {name} is {value!r}; this version reads {wanted}.")

    def _take(self, name: str, default: Any) -> Any:
        value = self._left.pop(name, None)
        return default if value is None else value


def describe(name: str, **arguments: Any) -> Config:
    """Return the config of an object of `composers`."""
    return {"class_path": f"composers.{name}", "init_args": arguments}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the options of a section and of the sections in it, by dotted name."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
