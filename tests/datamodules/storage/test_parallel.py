"""Parallel processing in order, with bounded memory and one progress bar."""

import io
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from program import REPOSITORY
from rich.console import Console

from datamodules.storage import parallel, progress
from datamodules.storage.images import quiet, read_image
from datamodules.storage.parallel import in_order, processors
from datamodules.storage.progress import counting


def test_results_are_in_order(monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 4)

    def slow_first(number):
        time.sleep(0.02 * (number % 4 == 0))
        return number * number

    assert list(in_order(slow_first, range(20))) == [number * number for number in range(20)]


def test_few_results_are_computed_ahead(monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 2)
    computed = []
    stream = in_order(computed.append, iter(range(1000)))
    for done in range(1, 31):
        next(stream)
        time.sleep(0.002)
        assert done <= len(computed) <= done + 4
    stream.close()
    time.sleep(0.01)
    assert len(computed) <= 34


def test_threads_run_concurrently(monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 3)
    barrier = threading.Barrier(3, timeout=5)
    assert sorted(in_order(lambda _: barrier.wait(), range(3))) == [0, 1, 2]


def test_error_is_raised_in_place_of_its_result():
    stream = in_order(lambda number: 1 // number, [2, 1, 0, 1])
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.slow
def test_quota_of_a_container_limits_the_processors():
    unlimited = processors()
    assert unlimited >= 1
    program = "from datamodules.storage.parallel import processors; print(processors())"
    quota = "mount -t tmpfs none /sys/fs/cgroup && echo 50000 100000 > /sys/fs/cgroup/cpu.max"
    space = ["unshare", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*space, quota], capture_output=True).returncode:
        pytest.skip("cannot replace the control group")
    command = f'{quota} && exec {shlex.quote(sys.executable)} -c "{program}"'
    result = subprocess.run([*space, command], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert int(result.stdout) == 1


@pytest.mark.parametrize(("rank", "terminal", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_progress_bar_is_shown_by_the_first_process_on_a_terminal(monkeypatch, rank, terminal, shown):
    written = io.StringIO()
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=terminal, width=120))
    with counting("a[b]", 4000, 1000) as show:
        show(1500)
    assert ("a[b]" in written.getvalue() and "1500/4000" in written.getvalue()) == shown
    assert bool(written.getvalue()) == shown


def test_reading_images_in_threads_keeps_the_warning_filters(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 4)
    for number in range(40):
        Image.new("RGB", (30 + number, 30)).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    for _ in range(5):
        assert len(list(in_order(read_image, sorted(tmp_path.iterdir())))) == 40
        assert warnings.filters == before


def test_last_thread_restores_the_warning_filters():
    before = list(warnings.filters)
    quiet.__enter__()
    quiet.__enter__()
    quiet.__exit__()
    warnings.warn("silenced", stacklevel=1)
    assert warnings.filters != before
    quiet.__exit__()
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
