"""Import torchaudio with any build of torch."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def import_torchaudio() -> types.ModuleType:
    """Import torchaudio, without its compiled extension if that does not match the installed torch.

    The published wheel is compiled against one CUDA build, so its extension cannot be loaded with a CPU build of torch. The
    extension serves forced alignment, the RNN-T loss and two fast filters; resampling and spectrograms are pure Python.

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
    """Return a stand-in for ``torchaudio._extension`` that states that the extension is not available."""

    def unchanged(function: F) -> F:
        return function

    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension.fail_if_no_align = unchanged  # type: ignore[attr-defined]
    return extension
