"""Text that can be printed and written as UTF-8."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape lone surrogates, which represent bytes of file names that are not UTF-8.

    Example:
        >>> printable("caf" + chr(0xDCE9)) == "caf" + chr(92) + "udce9"
        True
    """
    return text.encode("utf-8", "backslashreplace").decode()
