"""torchaudio beside any build of torch."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def import_torchaudio() -> types.ModuleType:
    """Return torchaudio, without its compiled part where that does not fit the installed torch.

    The published wheel is compiled against one CUDA build; beside a CPU build of torch its extension cannot be loaded. It
    serves forced alignment, the RNN-T loss and two faster filters; resampling and spectrograms are pure Python.

    Raises:
        ImportError: If torchaudio is not installed.
    """
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError):
        if importlib.util.find_spec("torchaudio") is None:
            raise
        sys.modules["torchaudio._extension"] = _extension_without_binary()
        import torchaudio
    return torchaudio  # type: ignore[no-any-return]


def _extension_without_binary() -> types.ModuleType:
    """Return what torchaudio's Python code reads of its extension when that is absent."""

    def unchanged(function: F) -> F:
        return function

    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension.fail_if_no_align = unchanged  # type: ignore[attr-defined]
    return extension
