"""Tests that need several devices, run in a process that has them."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace


def inner_tests(file: Path) -> list[str]:
    """Return the names of the tests in a file that pytest does not collect by itself."""
    return [
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def told_by(file: Path, *, devices: int, seconds: float) -> SimpleNamespace:
    """Return what pytest says of the tests in a file, in a process with so many devices."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    found = subprocess.run(
        command, env=environment, cwd=file.parents[1], capture_output=True, text=True, timeout=seconds
    )
    return SimpleNamespace(lines=found.stdout.splitlines(), all=found.stdout + found.stderr)


def assert_passed(name: str, told: SimpleNamespace) -> None:
    """Check that a test was run there, with all its cases, and passed."""
    mine = [line for line in told.lines if f"::{name}" in line and line.split()[0] in ("PASSED", "FAILED", "ERROR")]
    assert mine, told.all
    assert all(line.startswith("PASSED") for line in mine), told.all
