"""Damaged files of every format are read or refused with one line that names them, in bounded time and memory."""

import pytest
from pool import problems_of
from readers import write_seeds


@pytest.mark.parametrize(
    "count", [pytest.param(7, id="quick"), pytest.param(120, id="thorough", marks=pytest.mark.slow)]
)
def test_damaged_files_are_read_or_refused_by_name(tmp_path, count):
    paths = write_seeds(tmp_path / "seeds")
    addresses = [(kind, index) for index in range(count) for kind in paths]
    assert len(addresses) >= (5000 if count > 100 else 300)
    (tmp_path / "copies").mkdir()
    problems = problems_of(paths, addresses, tmp_path / "copies")
    assert not problems, "\n".join(f"{address}: {problem}" for address, problem in problems.items())
