"""Runs `process_control_suite.py` in an interpreter without threads, where the POSIX port can fork."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("port", ["posix", pytest.param("portable", marks=pytest.mark.portable)])
def test_the_suite_of_process_control(port: str) -> None:
    chosen = "not portable" if port == "posix" else "portable"
    suite = "tests/supervisor/process_control_suite.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, suite]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
