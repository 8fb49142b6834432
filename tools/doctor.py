"""Check the machine and the environment: versions, devices, precision, threads, disks, data sets and optional packages.

Exit status: 0 if nothing prevents training, 1 if something does, 2 if the command line is invalid. Advice on what is slow or
optional and missing does not change the exit status.
"""

from __future__ import annotations

import contextlib
import json
import math
import netrc
import os
import platform
import re
import shutil
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, get_args

_ROOT = Path(__file__).resolve().parent.parent
_PYTHONS = ((3, 11), (3, 13))
_PIN = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)")
_GB = 1e9
_LEAST_FREE = 1.0  # GB; a run with a gallery and checkpoints of a small model takes less
_LEAST_INODES = 1_000
_LEAST_SHARED = 1.0  # GB; the default of containers, 0.064, is too small for the batches of a few loader workers
_SHARED = Path("/dev/shm")  # noqa: S108
_CGROUP = Path("/sys/fs/cgroup")
_INSTALL = "python -m pip install --requirement requirements.txt"
_OPTIONAL = {"pystoi": "STOI of audio", "pesq": "PESQ of audio"}


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        section: What was examined, such as ``disk``.
        name: Its part, such as a folder.
        value: What was found.
        advice: What to do about it; empty if nothing.
        fatal: Whether it prevents training.
    """

    section: str
    name: str
    value: str
    advice: str = ""
    fatal: bool = False


def main(args: list[str] | None = None) -> None:
    """Run the command line; exit with status 1 if something prevents training.

    Args:
        args: Arguments of the command line; ``sys.argv[1:]`` if None.
    """
    options = _parser().parse_args(args)
    findings = [*quick(options.runs, options.data)]
    if not options.quick:
        findings += thorough(options.data)
    sections = list(dict.fromkeys(finding.section for finding in findings))
    findings.sort(key=lambda finding: sections.index(finding.section))
    healthy = not any(finding.fatal for finding in findings)
    if options.json:
        print(json.dumps({"healthy": healthy, "findings": [finding._asdict() for finding in findings]}, indent=1))
    else:
        _print(findings, healthy)
    if not healthy:
        sys.exit(1)


def _parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser("python -m tools.doctor", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="omit what requires importing torch: devices, precision and data sets")
    add("--json", action="store_true", help="print JSON")
    add("--runs", type=Path, default=Path("runs"), help="folder of runs (runs)")
    add("--data", type=Path, default=Path("data"), help="folder of data sets (data)")
    return parser


def quick(runs: Path, data: Path) -> Iterator[Finding]:
    """Yield what can be examined without importing torch.

    Args:
        runs: Folder of runs.
        data: Folder of data sets.
    """
    yield from _versions()
    yield from _processors()
    yield _disk("runs", runs, fatal=True)
    yield _disk("data", data, fatal=False)
    yield _temporary()
    yield _home()
    yield from _shared_memory()
    yield _wandb()
    yield from _optional()


def thorough(data: Path) -> Iterator[Finding]:
    """Yield what requires importing torch; nothing if it cannot be imported, except the reason.

    Args:
        data: Folder of data sets.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "torch", f"cannot be imported: {error}", _INSTALL, fatal=True)
        return
    yield from _devices(torch)
    yield from _precision(torch)
    yield _threads(torch)
    yield _perceptual()
    yield from _data_sets(data)


def _pins(name: str) -> dict[str, str]:
    """Return the pinned versions in a requirements file; empty if there is none, as for test tools in a container."""
    path = _ROOT / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {match[1]: match[2] for line in lines if (match := _PIN.match(line))}


def _installed(package: str) -> str | None:
    """Return the version of an installed package without the suffix of its build; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    """Yield the versions of Python and of all required packages."""
    low, high = (".".join(map(str, version)) for version in _PYTHONS)
    supported = _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]
    advice = "" if supported else f"Tested with Python {low} to {high}."
    yield Finding("versions", "python", platform.python_version(), advice, fatal=sys.version_info[:2] < _PYTHONS[0])
    for package, pin in _pins("requirements-runtime.txt").items():
        version = _installed(package)
        if version is None:
            yield Finding("versions", package, "not installed", f"{package}=={pin} is required: {_INSTALL}", fatal=True)
        else:
            differs = version.partition("+")[0] != pin
            yield Finding("versions", package, version, f"Tested with {pin}: {_INSTALL}" if differs else "")
    tools = _pins("requirements.txt")
    missing = [package for package in tools if _installed(package) is None]
    if tools:
        value = f"{len(tools) - len(missing)} of {len(tools)} installed"
        advice = f"To run the tests, install {', '.join(missing)}: {_INSTALL}" if missing else ""
        yield Finding("versions", "tests and checks", value, advice)


def available_processors() -> float:
    """Return the processors that this process may use: by affinity, and by the quota of its control group."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return min(count, _quota())


def _quota() -> float:
    """Return the processor quota of the control group of this process, of either version; infinity if there is none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf


def _processors() -> Iterator[Finding]:
    """Yield the available processors and their load."""
    available = available_processors()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    advice = ""
    if threads.isdigit() and int(threads) > available:
        advice = _fewer_threads(available)
    yield Finding("threads", "processors", f"{available:g} of {os.cpu_count()}", advice)
    load = os.getloadavg()[0]
    busy = "Other processes are busy: training is slower, and may be faster with a smaller OMP_NUM_THREADS."
    yield Finding("threads", "load", f"{load:.1f}", busy if load > available + 0.5 else "")


def _fewer_threads(available: float) -> str:
    """Return the advice for a process with more threads than processors."""
    return f"More threads than processors slow down training: set OMP_NUM_THREADS={max(1, int(available))}."


def _disk(name: str, folder: Path, *, fatal: bool) -> Finding:
    """Return the free space below a folder, which need not exist.

    Args:
        name: Name of the folder in the report.
        folder: The folder.
        fatal: Whether training must be able to write to it.
    """
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
        usage, system = shutil.disk_usage(place), os.statvfs(place)
    except OSError as error:
        advice = f"Pass a writable folder or volume as {folder}."
        if not fatal:
            advice = f"Downloads and caches need a writable {folder}; prepared data sets do not."
        return Finding("disk", name, f"{place} is not writable ({error.strerror})", advice, fatal=fatal)
    free = usage.free / _GB
    inodes = system.f_favail if system.f_files else math.inf  # some file systems have no fixed number
    value = f"{free:,.1f} GB free in {place}"
    if free < _LEAST_FREE or inodes < _LEAST_INODES:
        value += f", {inodes:,} inodes" if inodes < _LEAST_INODES else ""
        return Finding("disk", name, value, f"Free space, or use another disk for {folder}.", fatal=fatal)
    return Finding("disk", name, value)


def _temporary() -> Finding:
    """Return the free space for temporary files."""
    try:
        return _disk("temporary files", Path(tempfile.gettempdir()), fatal=True)
    except FileNotFoundError as error:  # no folder is writable
        advice = "Make /tmp writable, in a read-only container with --tmpfs /tmp, or set TMPDIR."
        return Finding("disk", "temporary files", str(error), advice, fatal=True)


def _home() -> Finding:
    """Return whether libraries can write their caches."""
    home = Path(os.environ.get("HOME") or "~").expanduser()
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        advice = "matplotlib, W&B and torch write caches there: set HOME to a writable folder."
        return Finding("disk", "home", f"{home} is not writable ({error.strerror})", advice)
    return Finding("disk", "home", str(home))


def _shared_memory() -> Iterator[Finding]:
    """Yield the size of the shared memory through which loader workers return batches, on Linux."""
    if not _SHARED.is_dir():
        return
    size = shutil.disk_usage(_SHARED).total / _GB
    advice = "Loader workers need more: start the container with --ipc=host or --shm-size=8g, or set num_workers to 0."
    yield Finding("disk", "shared memory", f"{size:,.2f} GB", advice if size < _LEAST_SHARED else "")


def _wandb() -> Finding:
    """Return whether runs can be logged to W&B, without contacting a server."""
    if mode := os.environ.get("WANDB_MODE"):
        return Finding("logging", "W&B", f"WANDB_MODE is {mode}")
    if os.environ.get("WANDB_API_KEY"):
        return Finding("logging", "W&B", "logged in by WANDB_API_KEY")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rpartition("//")[2].partition("/")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host.partition(":")[0]):
            return Finding("logging", "W&B", f"logged in to {host}")
    return Finding("logging", "W&B", "not logged in", "Runs are logged offline: run wandb login, or set WANDB_API_KEY.")


def _optional() -> Iterator[Finding]:
    """Yield optional packages and programs."""
    for package, use in _OPTIONAL.items():
        version = _installed(package)
        advice = "" if version else f"{use}: python -m pip install {package}"
        yield Finding("optional", package, version or "not installed", advice)
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    advice = "" if compiler else "torch.compile and exported programs (.pt2 of kind aot) need one, such as g++."
    yield Finding("optional", "C++ compiler", compiler or "not installed", advice)


def _cpu_flags() -> set[str]:
    """Return the instruction sets of the processor in Linux' names; empty elsewhere."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        return set(match[1].split()) if match else set()
    return set()


def _has_gpu() -> bool:
    """Return whether the system has an NVIDIA driver."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _devices(torch: Any) -> Iterator[Finding]:
    """Yield the devices that torch can use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int((_CGROUP / "memory.max").read_text(encoding="ascii")) / _GB)
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("devices", "CPU", f"{platform.machine()}, {capability}, {memory:,.1f} GB")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("devices", f"CUDA {index}", f"{device.name}, {device.total_memory / _GB:,.1f} GB")
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
        advice = ""
        if _has_gpu() and torch.version.cuda is None:
            advice = f"There is a GPU, but torch {torch.__version__} cannot use it: install a CUDA build."
        elif torch.version.cuda:
            advice = "Training uses the CPU: check nvidia-smi; in a container, pass --gpus all."
        yield Finding("devices", "CUDA", f"not available ({build} build of torch)", advice)
    if torch.backends.mps.is_available():
        yield Finding("devices", "MPS", "available")


def _precision(torch: Any) -> Iterator[Finding]:
    """Yield whether bf16 is fast, and whether TF32 exists."""
    flags = _cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"}
    value = f"in hardware ({', '.join(sorted(flags))})" if flags else "emulated"
    advice = "" if flags else "On this CPU, --trainer.precision bf16-mixed is slower than 32-true."
    yield Finding("precision", "bf16 on CPU", value, advice)
    for index in range(torch.cuda.device_count()):
        ampere = torch.cuda.get_device_capability(index) >= (8, 0)  # of both
        yield Finding("precision", f"bf16, TF32 on CUDA {index}", "in hardware" if ampere else "no")


def _threads(torch: Any) -> Finding:
    """Return the threads of torch."""
    threads, available = torch.get_num_threads(), available_processors()
    return Finding("threads", "torch", str(threads), _fewer_threads(available) if threads > max(1, available) else "")


def _perceptual() -> Finding:
    """Return the networks for which weights of LPIPS are present."""
    from modalities.perceptual import Backbone, how_to_get_weights, weights_file

    paths = {network: weights_file(network) for network in get_args(Backbone)}
    present = [network for network, path in paths.items() if path.is_file()]
    network, path = next(iter(paths.items()))
    advice = "" if present else f"LPIPS of images and views: {how_to_get_weights(network, path)}"
    return Finding("optional", "weights of LPIPS", ", ".join(present) or "none", advice)


def _data_sets(folder: Path) -> Iterator[Finding]:
    """Yield which data sets of ``configs/data`` are present.

    Args:
        folder: Folder of data sets, instead of ``data`` in the configs.
    """
    from datamodules import CoordinateDataModule, data_sets
    from datamodules.configuration import instantiate, load_config

    data_sets()
    base: Any = CoordinateDataModule  # abstract; the config names a subclass
    for path in sorted((_ROOT / "configs" / "data").glob("*.yaml")):
        section = load_config(path)["data"]
        try:
            yield Finding("data", path.stem, _presence(instantiate(base, _below(section, folder))))
        except Exception:  # a split file or folder that is missing, with an error of its constructor
            yield Finding("data", path.stem, "not present")


def _below(value: Any, folder: Path) -> Any:
    """Return nested arguments of a data set with its root below another folder than ``data``."""
    if isinstance(value, dict):
        return {name: _below(item, folder) for name, item in value.items()}
    if isinstance(value, str) and Path(value).parts[:1] == ("data",):
        return str(Path(folder, *Path(value).parts[1:]))
    return value


def _presence(data: Any) -> str:
    """Return how many files a data set has for training; its errors are raised if they are missing."""
    data = getattr(data, "images", data) if not hasattr(data, "files") else data  # what super-resolution reads
    files = getattr(data, "files", None) or getattr(data, "scenes", None)
    if files is None:
        return "bundled"
    count = len(files("train"))
    return f"{count:,} for training" if count else "not present"


def _print(findings: list[Finding], healthy: bool) -> None:
    """Print the report as text."""
    width = max(len(finding.name) for finding in findings)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(section)
        print(f"  {finding.name:{width}}  {finding.value}")
        if finding.advice:
            print(f"  {'':{width}}  {'error' if finding.fatal else 'advice'}: {finding.advice}")
    errors = sum(finding.fatal for finding in findings)
    print("Nothing prevents training." if healthy else f"{errors} {'error' if errors == 1 else 'errors'}, see above.")


if __name__ == "__main__":
    main()
