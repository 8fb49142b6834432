"""Text that can be printed and written as UTF-8."""

from __future__ import annotations

import unicodedata

_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """Escape lone surrogates, which represent bytes of file names that are not UTF-8.

    Example:
        >>> printable("caf" + chr(0xDCE9)) == "caf" + chr(92) + "udce9"
        True
    """
    return text.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    """Escape everything that can move a cursor or hide text, so that a name from a file can be printed on one line.

    These are control characters such as those of terminal sequences, line separators, lone surrogates, and marks that change
    the direction of text.

    Example:
        >>> visible("cat" + chr(27) + "[2J") == "cat" + chr(92) + "x1b[2J"
        True
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _is_hidden(character) else character for character in text
    )


def _is_hidden(character: str) -> bool:
    """Return whether a character is a control character, a line separator, a surrogate or a direction mark."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
