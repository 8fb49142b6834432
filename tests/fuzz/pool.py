"""Read damaged files in subprocesses with limits of time and memory."""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path

from mutations import mutated

SECONDS = 10  # that an input may take
MEMORY = 10**9  # bytes that reading may take
_CONTEXT = multiprocessing.get_context("forkserver")


def problems_of(paths, addresses, folder, workers=2):
    """Return the problem of every address whose file is not read or refused as it should be.

    Args:
        paths: Valid file to damage by kind.
        addresses: Kinds and indices of `mutations.mutated`.
        folder: Empty folder for copies of the valid files, one per process.
        workers: Number of processes.
    """
    root = Path(os.path.commonpath([str(path) for path in paths.values()]))
    problems, running = {}, {}

    def start(number, rest):
        place = folder / str(number)
        if not place.exists():
            shutil.copytree(root, place)
        copies = {kind: place / path.relative_to(root) for kind, path in paths.items()}
        mine, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_read_all, args=(copies, rest, theirs))
        process.start()
        theirs.close()
        running[mine] = (number, process, rest, 0)
        assert mine.poll(120), "the valid files were not read in 120 s"
        assert mine.recv() == "ready"

    try:
        for number in range(workers):
            start(number, addresses[number::workers])
        while running:
            ready = wait(list(running), timeout=60)
            assert ready, f"no input was finished in 60 s: {[rest[done] for _, _, rest, done in running.values()]}"
            for pipe in ready:
                number, process, rest, done = running[pipe]
                try:
                    problem = pipe.recv()
                except EOFError:
                    del running[pipe]
                    process.join(60)
                    if done < len(rest):
                        problems[rest[done]] = f"ended the process, {_cause(process.exitcode)}"
                        start(number, rest[done + 1 :])
                    continue
                if problem:
                    problems[rest[done]] = problem
                running[pipe] = (number, process, rest, done + 1)
    finally:
        for _, process, _, _ in running.values():
            process.kill()
    return problems


def _cause(exitcode):
    """Return why a process ended."""
    if exitcode == -signal.SIGALRM:
        return f"after more than {SECONDS} s"
    return f"with exit status {exitcode}"


def _read_all(paths, addresses, pipe):
    """Read damaged files one after the other, and send the problem of each, an empty string if there is none."""
    import torch
    from readers import read

    torch.set_num_threads(1)
    os.sync = lambda: None  # which waits for the disks of the machine
    originals = {kind: path.read_bytes() for kind, path in paths.items()}
    for kind in paths:  # imports and caches do not count
        read(kind, paths[kind])
    pipe.send("ready")
    used = _resident()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, index in addresses:
        paths[kind].write_bytes(mutated(originals[kind], kind, index))
        signal.alarm(SECONDS)  # kills the process, because compiled code would not let Python raise
        problem = _problem(read, kind, paths[kind])
        signal.alarm(0)
        if not problem and _resident() - used > MEMORY:
            problem = "takes more than 1 GB"
        paths[kind].write_bytes(originals[kind])
        pipe.send(problem)


def _problem(read, kind, path):
    """Return what is wrong with the outcome of reading a file; an empty string for success and a clear error."""
    before = Path.cwd()
    try:
        read(kind, path)
    except (ValueError, FileNotFoundError) as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        if any(isinstance(cause, MemoryError) for cause in causes):
            return f"takes more than 1 GB: {error}"
        if str(path.parent) not in str(error) or "\n" in str(error):
            return f"does not name its file on one line: {error!r:.300}"
    except BaseException as error:
        return f"raises {error!r:.300}"
    finally:
        os.chdir(before)
        shutil.rmtree(path.with_name("unpacked"), ignore_errors=True)
    return ""


def _resident():
    """Return the largest resident size of this process so far in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
