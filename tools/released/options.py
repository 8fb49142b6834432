"""Options of a released config. Every option is read exactly once; unread options raise an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Config = dict[str, Any]


class Options:
    """The options of a section of a released config, by dotted name. An option that is omitted or null has its default.

    Args:
        section_name: Name of the section, for error messages.
        section: The section as plain data.
    """

    def __init__(self, section_name: str, section: Mapping[str, Any]) -> None:
        self._section_name = section_name
        self._remaining = dict(_flatten(section))

    def read(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return an option of exactly this type; a float may be written as an integer."""
        value = self._take(name, default)
        converted: Any = float(value) if kind is float and type(value) is int else value
        if type(converted) is not kind:
            self.refuse(name, value, f"a value of type {kind.__name__}")
        return converted

    def count(self, name: str, default: int | None = None) -> int:
        """Return a positive integer."""
        number = self.read(name, int, default)
        return number if number >= 1 else self.refuse(name, number, "1 or more")

    def counts(self, name: str, length: int) -> list[int]:
        """Return ``length`` positive integers; a list of one in the config stands for all."""
        numbers = self.read(name, list)
        if len(numbers) not in (1, length) or any(type(number) is not int or number < 1 for number in numbers):
            self.refuse(name, numbers, f"a list of 1 or {length} integers, each 1 or more")
        return numbers * length if len(numbers) == 1 else numbers

    def choose(self, name: str, allowed: Iterable[T], default: T | None = None) -> T:
        """Return an option with one of the allowed values."""
        value: T = self._take(name, default)
        choices = list(allowed)
        if value not in choices:
            self.refuse(name, value, " or ".join(map(repr, choices)))
        return value

    def fix(self, values: Mapping[str, Any]) -> None:
        """Raise if an option differs from the only supported value."""
        for name, value in values.items():
            self.choose(name, [value], value)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raise if an option was not read, except for those that do not affect a trained model."""
        if unknown := self._remaining.keys() - set(ignored):
            raise ValueError(
                f"{self._section_name} has unknown options: {', '.join(sorted(unknown))}. Remove an option only if the "
                "code that trained the model does not read it either."
            )

    def refuse(self, name: str, value: object, allowed: str) -> NoReturn:
        """Raise an error that states an option, its value and the supported values."""
        raise ValueError(f"{self._section_name} option {name} is {value!r}; supported: {allowed}.")

    def _take(self, name: str, default: Any) -> Any:
        """Return the value of an option, and mark it as read."""
        value = self._remaining.pop(name, None)
        return default if value is None else value


def describe(name: str, **arguments: Any) -> Config:
    """Return the config of an object of `composers`."""
    return {"class_path": f"composers.{name}", "init_args": arguments}


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the options of a section and its subsections by dotted name."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
