"""Threads spin little while they wait, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest
from program import REPOSITORY


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "5"}, "5 None"), ({"OMP_WAIT_POLICY": "passive"}, "None passive")],
    ids=str,
)
def test_a_tool_limits_spinning_before_it_imports_torch(given, expected):
    code = (
        "import os, sys; sys.argv = ['-m']; import tools; assert 'torch' not in sys.modules; "
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, env=environment | given, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.strip() == expected, process.stderr
