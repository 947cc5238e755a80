"""Mutate sweep files and run directories, and see that each ends in order: no traceback, no hang, no lost row.

    python tests/fuzz.py --sweeps 500 --directories 200      # the long form, some twenty minutes on one core

Hypothesis draws the mutations, the same ones each time; `--seed` draws others. A sweep file is edited as a tree (values
replaced, keys dropped, doubled, misspelt, moved) and as bytes, and goes through `plan`. A run directory, finished or
interrupted, has its files cut, flipped, removed or replaced by something else, and goes through `status`, `export` and
`run`. All that goes wrong is printed with what it takes to see it again.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before anything imports JAX: a cache of its own
    os.environ.setdefault("SCALEJAX_CACHE", tempfile.mkdtemp(prefix="scalejax-fuzz-"))

from fuzz_commands import LONG_SECONDS, Ran
from fuzz_directories import Directories, mutations, try_directory
from fuzz_sweeps import Case, sweep_files, try_sweep
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


@dataclass
class Tally:
    """How cases ended, and all that went wrong."""

    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def note(self, code: object, fault: str, case: object) -> None:
        """Count a case."""
        self.codes[str(code) if code in (0, 1, 2, "0", "1", "2") else "fault"] += 1
        if fault:
            self.faults.append(f"{fault}\n    {case}")


def repeated(
    strategy: st.SearchStrategy[Any],
    cases: int,
    start: int,
    told: Callable[[Tally], object],
    attempt: Callable[..., Any],
) -> Tally:
    """Attempt so many different cases of a strategy, the same ones for the same `start`."""
    tally = Tally()

    @seed(start)
    @settings(
        max_examples=10 * cases,  # the same one drawn again does not count
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(strategy)
    def each(case: Any) -> None:
        key = repr(case)
        if key in tally.seen or len(tally.seen) >= cases:
            return
        tally.seen.add(key)
        code, fault = attempt(case)
        tally.note(code, fault, case)
        told(tally)

    each()
    return tally


def mutate_sweeps(
    folder: Path,
    cases: int,
    *,
    start: int = 0,
    elsewhere: bool = False,
    told: Callable[[Tally], object] = lambda _: None,
) -> Tally:
    """Plan so many mutated sweep files."""

    def attempt(case: Case) -> tuple[object, str]:
        ran, fault = try_sweep(case, folder)
        return ran.code, f"{fault}\n{ran.err[-2000:]}" if fault else ""

    return repeated(sweep_files(elsewhere=elsewhere), cases, start, told, attempt)


def mutate_directories(
    made: Directories, cases: int, *, start: int = 0, told: Callable[[Tally], object] = lambda _: None
) -> Tally:
    """Look at and run so many mutated run directories."""
    return repeated(mutations(), cases, start, told, lambda case: try_directory(made, *case))


def mutate_processes(folder: Path, cases: int, *, start: int = 0) -> Tally:
    """Plan mutated sweep files in processes of their own, for what only the end of a process shows."""

    def attempt(case: Case) -> tuple[object, str]:
        path = folder / "mutated.toml"
        path.write_bytes(case.content)
        code = "from scalejax.cli import entry; entry()"
        arguments = [each.replace("\x00", "") for each in case.arguments]
        command = [sys.executable, "-c", code, "plan", str(path), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=LONG_SECONDS)
        ran = Ran(done.returncode, "", done.stderr.decode("utf-8", "replace"), [])
        return ran.code, f"{ran.fault}\n{ran.err[-2000:]}" if ran.fault else ""

    return repeated(sweep_files(elsewhere=False), cases, start, lambda _: None, attempt)


def main() -> int:
    """Run the long form; return how many cases went wrong, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--directories", type=int, default=200)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def told(tally: Tally) -> None:
        if sum(tally.codes.values()) % 50 == 0:
            print(f"{sum(tally.codes.values())} cases so far: {dict(tally.codes)}", flush=True)

    folder = Path(tempfile.mkdtemp())
    try:
        tallies = {
            "sweep files": mutate_sweeps(folder, options.sweeps, start=options.seed, told=told),
            "files in processes of their own": mutate_processes(folder, options.processes, start=options.seed + 1),
            "run directories": mutate_directories(
                Directories(folder), options.directories, start=options.seed, told=told
            ),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for what, tally in tallies.items():
        for fault in tally.faults:
            print(f"\n{what}: {fault}")
        codes = ", ".join(f"{count} with exit code {code}" for code, count in sorted(tally.codes.items()))
        print(f"{len(tally.seen)} mutated {what}: {codes or 'none'}; {len(tally.faults)} faults")
    return min(100, sum(len(tally.faults) for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
