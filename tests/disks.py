"""Inject disk faults: small, full and read-only file systems, and limits on file sizes and open files."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "win32":
    import resource

_LIMIT = 20  # seconds for a command of the system


def _run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=_LIMIT, check=False)


@contextlib.contextmanager
def small_disk(folder, size="1m"):
    """Mount an empty file system of a given size on a folder, created if missing; skip where this is not allowed."""
    folder = Path(folder)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("requires root on Linux to mount a file system")
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
    if mounted.returncode:
        pytest.skip(f"requires the right to mount a file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        _run("umount", "-l", folder)


def protect(folder):
    """Make a file system mounted with `small_disk` read-only; skip where files are open for writing."""
    remounted = _run("mount", "-o", "remount,ro", folder)
    if remounted.returncode:
        pytest.skip(f"requires the right to mount a file system read-only: {remounted.stderr.strip()}")


def fill(folder, name="ballast"):
    """Fill the file system of a folder to the last block, and return the file that fills it."""
    path = Path(folder, name)
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return path


@contextlib.contextmanager
def limited(kind, value):
    """Set a soft limit of this process, such as ``RLIMIT_FSIZE``, and restore it at the end."""
    number = getattr(resource, kind)
    before = resource.getrlimit(number)
    resource.setrlimit(number, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)
