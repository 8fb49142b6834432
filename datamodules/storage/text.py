"""Text that any terminal and any file takes."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with lone surrogates, which stand for bytes of a file name that are no UTF-8, written out.

    Example:
        >>> printable("caf" + chr(0xDCE9)) == "caf" + chr(92) + "udce9"
        True
    """
    return text.encode("utf-8", "backslashreplace").decode()
