"""Kill a run again and again, and compare what it leaves in the end with an untouched run.

    python tests/chaos.py --kills 50      # the long form, some eight minutes on two cores

A third of the kills falls at a random moment, a third while a checkpoint is being written, a third while the ledger is.
Should a run end before all kills are used up, the next one begins in a new directory.
"""

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scalejax import Run, SweepError

QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.toml"
REDUCED = ("seeds=1", "train.steps=4800")  # about twenty seconds
CHECKPOINT_SECONDS = 0.3
LONGEST_LIFE = 12.0  # seconds; a kill that waits for its moment in vain comes then
PATIENCE = 300.0  # seconds after which a run that is not killed counts as hanging
LEAVES = {"environment.json", "figures", "results.sqlite", "sweep.toml"}
TIMINGS = ("seconds",)  # the columns that differ between any two runs


@dataclass
class Toll:
    """What happened: kills by what they hit, and the runs that ended all the same."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("moment", "save", "commit"), 0))
    runs: int = 0

    @property
    def total(self) -> int:
        """Number of kills."""
        return sum(self.kills.values())


def scalejax(*arguments: object, **named) -> "subprocess.Popen[str]":
    """Start a command."""
    code = "import sys; from scalejax.cli import entry; entry()"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **named)


def run(directory: Path, overrides: Sequence[str]) -> "subprocess.Popen[str]":
    """Start or resume the sweep in a directory, its output in a file beside it."""
    sets = [part for each in overrides for part in ("--set", each)]
    with directory.with_suffix(".log").open("a") as log:
        return scalejax(
            *("run", QUICKSTART, "--out", directory, "--checkpoint-seconds", CHECKPOINT_SECONDS, "--no-report", *sets),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def saving(directory: Path) -> bool:
    """Say whether a checkpoint is half written at this moment."""
    return any(directory.glob("checkpoints/*/*orbax-checkpoint-tmp*"))


def committed(directory: Path) -> int:
    """Return a number that changes whenever the ledger is written."""
    try:
        return (directory / "results.sqlite-wal").stat().st_mtime_ns
    except OSError:
        return 0


def strike(process: "subprocess.Popen[str]", directory: Path, aim: str, *, rng: random.Random) -> bool:
    """Kill a run, as near as can be at what is aimed at; return whether it was killed before it ended."""
    began, delay = time.monotonic(), rng.uniform(0.0, LONGEST_LIFE)
    before, chances = committed(directory), rng.randint(1, 8)
    while process.poll() is None:
        elapsed = time.monotonic() - began
        if aim == "save" and saving(directory):
            chances -= 1
            time.sleep(rng.uniform(0.0, 0.02))
        elif aim == "commit" and committed(directory) != before:
            before = committed(directory)
            chances -= 1
        if chances <= 0 or elapsed > (delay if aim == "moment" else LONGEST_LIFE):
            process.kill()
            process.wait()
            return True
        time.sleep(0.0005)
    return False


def finished(directory: Path) -> dict[str, float]:
    """Return the seconds that each ended trial has taken, by id."""
    try:
        table = Run(directory).results()
    except SweepError:  # it was killed before there was any
        return {}
    ended = table[table["status"].isin(["done", "diverged"])]
    return dict(zip(ended["trial_id"], ended["seconds"], strict=True))


def exported(directory: Path, *further: str) -> list[dict[str, str]]:
    """Return a table of a run as its export has it."""
    found = scalejax("export", directory, *further, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = found.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    return list(csv.DictReader(out.splitlines())) if found.returncode == 0 else []


def complete(directory: Path, overrides: Sequence[str]) -> None:
    """Let a run come to its end."""
    assert run(directory, overrides).wait(timeout=PATIENCE) == 0, directory.with_suffix(".log").read_text()


def compare(killed: Path, untouched: Path) -> None:
    """Assert that two runs have left the same, timings apart."""
    for further in ((), ("--measurements",)):
        tables = [exported(directory, *further) for directory in (killed, untouched)]
        one, other = ([{k: v for k, v in row.items() if k not in TIMINGS} for row in table] for table in tables)
        assert other
        assert one == other
    assert len({row["trial_id"] for row in exported(killed)}) == len(exported(untouched))
    assert {path.name for path in killed.iterdir()} == LEAVES
    names = {f"learning_curves.{kind}" for kind in ("png", "svg", "csv")}
    assert {path.name for path in (killed / "figures").iterdir()} == names
    assert "Traceback" not in killed.with_suffix(".log").read_text()


def wreak(
    folder: Path,
    kills: int,
    *,
    overrides: Sequence[str] = REDUCED,
    seed: int = 0,
    report: Callable[[str], object] = print,
) -> Toll:
    """Kill runs `kills` times and assert that each ends as if nothing had happened."""
    rng, toll = random.Random(seed), Toll()
    untouched = folder / "untouched"
    complete(untouched, overrides)
    while toll.total < kills:
        directory, known = folder / f"killed{toll.runs}", dict[str, float]()
        while toll.total < kills:
            aim = rng.choice(tuple(toll.kills))
            if not strike(run(directory, overrides), directory, aim, rng=rng):
                break
            toll.kills[aim] += 1
            now = finished(directory)
            assert now.items() >= known.items(), "a trial that had ended was lost, or trained again"
            known = now
            report(f"kill {toll.total} ({aim}): {len(known)} trials have ended")
        complete(directory, overrides)
        compare(directory, untouched)
        toll.runs += 1
        report(f"run {toll.runs} ended as if nothing had happened")
    return toll


def main() -> None:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.environ["SCALEJAX_CACHE"] = str(folder / "cache")
    try:
        toll = wreak(folder, options.kills, seed=options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{toll.total} kills ({toll.kills}) in {toll.runs} runs: each left what an untouched run leaves")


if __name__ == "__main__":
    main()
