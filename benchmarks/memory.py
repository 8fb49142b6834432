"""Memory of the current process, as reported by the Linux kernel."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def memory(field: str) -> float:
    """Return a field of ``/proc/self/status``, such as ``VmRSS`` or ``RssAnon``, in MB (10^6 bytes)."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e6
