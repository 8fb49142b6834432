"""Many files at once: in order, a few ahead, and told to people on one process."""

import io
import threading
import time
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from rich.console import Console

from datamodules.storage import parallel, progress
from datamodules.storage.images import quiet, read_image
from datamodules.storage.parallel import in_order, processors
from datamodules.storage.progress import counting


def test_results_come_in_order_whoever_is_first(monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 4)

    def slow_first(number):
        time.sleep(0.02 * (number % 4 == 0))
        return number * number

    assert list(in_order(slow_first, range(20))) == [number * number for number in range(20)]


def test_only_a_few_are_computed_ahead(monkeypatch):
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


def test_threads_work_at_the_same_time(monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 3)
    meeting = threading.Barrier(3, timeout=5)
    assert sorted(in_order(lambda _: meeting.wait(), range(3))) == [0, 1, 2]


def test_an_error_comes_in_its_turn():
    stream = in_order(lambda number: 1 // number, [2, 1, 0, 1])
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_at_least_one_processor_is_used():
    assert processors() >= 1


@pytest.mark.parametrize(("rank", "terminal", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_the_bar_is_for_one_process_at_a_terminal(monkeypatch, rank, terminal, shown):
    written = io.StringIO()
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=terminal, width=120))
    with counting("a[b]", 4000, 1000) as show:
        show(1500)
    assert ("a[b]" in written.getvalue() and "1500/4000" in written.getvalue()) == shown
    assert bool(written.getvalue()) == shown


def test_images_read_by_threads_leave_the_filters_of_warnings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "processors", lambda: 4)
    for number in range(40):
        Image.new("RGB", (30 + number, 30)).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    for _ in range(5):
        assert len(list(in_order(read_image, sorted(tmp_path.iterdir())))) == 40
        assert warnings.filters == before


def test_the_last_of_two_threads_restores_the_filters():
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
