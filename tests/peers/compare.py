"""Compare scalejax with what people run today, on the CPU: the same trials, data order and initial weights.

    pip install -e ".[peers]" && python tests/peers/compare.py --workload small --sample 3 --json small.json

Contestants: `nnx` (tutorial-style Flax NNX loop), `scan` (expert's JAX loop: one program a width, all steps of a trial
in one call), `torch_vmap` (torch.func over all trials of a width), `torch` (plain loop), `ray_doc` and `ray_reused`
(Ray Tune around `scan`, as documented and with reused actors), `sklearn` (MLPClassifier), and `scalejax` itself.

Every measurement is a process of its own. Cold: nothing compiled is kept from earlier, and scalejax's whole cache is
empty, data included. Warm: a process whose compiled programs lie in the persistent cache; for PyTorch and scikit-learn,
which compile nothing, it is the cold measurement. Hot: scalejax carries out the sweep a second time in one process, and
only the seconds in its programs count; of the peers, their time without what is counted once (compilation where it is
done once, Ray's start). The rounds are interleaved and the medians of the rounds are shown.

What favours the peers: imports, data, batches (the very rows that scalejax draws) and initial weights are ready before
their clock starts, and so is Ray; they write nothing down. Scalejax's clock spans all of `run_sweep`: plan, data,
batches, initial weights, ledger, a test evaluation that the peers do not have, and the figure.

OpenMP's threads wait asleep (OMP_WAIT_POLICY): spinning, PyTorch's small operations took a hundred times as long
whenever another process held a core, and asleep they took as long as ever.

Only --sample N trials of every width are run by the contestants in --sampled, and their time is scaled to all trials:
compilation that happens once, and Ray's start, are counted once. `torch_vmap` and `ray_reused` always run whole: their
trials share a batch, or the programs compiled in an actor. `bar` is the ratio that scalejax is to reach.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import workload
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "scalejax": "jax_loops.py",
    "nnx": "jax_loops.py",
    "scan": "jax_loops.py",
    "torch_vmap": "torch_loops.py",
    "torch": "torch_loops.py",
    "ray_doc": "ray_loops.py",
    "ray_reused": "ray_loops.py",
    "sklearn": "sklearn_loop.py",
}
WITHOUT_COMPILER = ("torch_vmap", "torch", "sklearn")
SLOW = ("nnx", "torch", "ray_doc", "sklearn")
PHASES = ("cold", "warm", "hot")
TOLERANCE = 0.03  # of the mean losses over all trials, relative to scalejax
Measured = dict[str, Any]  # a workload.Result as read from JSON, with phase, round and process_seconds


class Arena:
    """Runs contestants in processes of their own, in one temporary folder."""

    def __init__(self, asked: argparse.Namespace, folder: Path):
        self._asked = asked
        self._folder = folder
        self._filled: set[str] = set()
        self._caches = 0
        self._warm_cache: Path | None = None  # of scalejax

    def prepare(self) -> float:
        """Write down what the peers are given; return the FLOPs of all trials."""
        self._process("jax_loops.py", "prepare", self._asked.workload, {"SCALEJAX_CACHE": str(self._folder / "own")})
        return json.loads((self._folder / "trials.json").read_text())["flops"]

    def peak(self) -> float:
        """Return the FLOP/s of float32 matrix products on this machine, now."""
        return self._process("jax_loops.py", "peak", "", {})[0]

    def measure(self, contestant: str, phase: str) -> Measured:
        """Run a contestant, and before its first warm measurement fill the cache."""
        if contestant == "scalejax":
            return self._scalejax(phase)
        count = self._asked.sample if contestant in self._asked.sampled else 0
        if phase == "warm":
            self._fill("nnx" if contestant == "nnx" else "scan", count if contestant == "nnx" else 1)
        return self._run(contestant, str(count), phase, self._programs() if phase == "warm" else {})

    def _scalejax(self, phase: str) -> Measured:
        """Run scalejax; a warm or hot measurement uses the cache of the cold one before it."""
        if phase == "cold" or self._warm_cache is None:
            self._caches += 1
            self._warm_cache = self._folder / f"cache{self._caches}"
            if phase == "warm":
                self._scalejax_with(self._warm_cache, phase)
        return self._scalejax_with(self._warm_cache, phase)

    def _scalejax_with(self, cache: Path, phase: str) -> Measured:
        job = "scalejax-again" if phase == "hot" else "scalejax"
        return self._run(job, self._asked.workload, phase, {"SCALEJAX_CACHE": str(cache)})

    def _programs(self) -> dict[str, str]:
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def _fill(self, contestant: str, count: int) -> None:
        if contestant not in self._filled:
            self._process(SCRIPTS[contestant], contestant, str(count), self._programs())
            self._filled.add(contestant)

    def _run(self, job: str, count: str, phase: str, environment: dict[str, str]) -> Measured:
        result, seconds = self._process(SCRIPTS[job.split("-")[0]], job, count, environment)
        return {**result, "phase": phase, "process_seconds": seconds}

    def _process(self, script: str, job: str, count: str, environment: dict[str, str]) -> tuple[Any, float]:
        """Run a script and return what it wrote as JSON, and the seconds of the whole process."""
        out = self._folder / "out.json"
        out.unlink(missing_ok=True)
        own = {name: value for name, value in os.environ.items() if name not in self._programs()}
        own |= {
            "JAX_PLATFORMS": "cpu",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), own.get("PYTHONPATH")))),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        began = time.perf_counter()
        command = [sys.executable, str(HERE / script), job, str(self._folder), count, str(out)]
        done = subprocess.run(command, env=own | environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{job} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text()) if out.exists() else None, time.perf_counter() - began


def entries(contestants: Sequence[str], phases: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what one round measures: contestant and phase. The peers' hot time is part of their other measurements."""
    for contestant in contestants:
        for phase in phases:
            if contestant == "scalejax" or (
                phase != "hot" and (contestant not in WITHOUT_COMPILER or phase == phases[0])
            ):
                yield contestant, phase


def seconds_of(measured: Sequence[Measured], contestant: str, phase: str) -> list[float]:
    """Return all measurements of a contestant in a phase, in seconds; [NaN] if there is none."""
    own = [each for each in measured if each["contestant"] == contestant]
    phases = {each["phase"] for each in own}
    other = "warm" if "warm" in phases else "cold"
    source = phase if phase in phases else other  # the peers' hot, or a contestant that compiles nothing
    key = "training" if phase == "hot" else "seconds"
    return [each[key] for each in own if each["phase"] == source] or [float("nan")]


def speed_table(measured: Sequence[Measured], asked: argparse.Namespace) -> Table:
    """Return the table of medians and ratios."""
    goal = workload.WORKLOADS[asked.workload]
    table = Table(title=f"{goal.name}: seconds for all trials, medians of {asked.repeats}; ratio = peer / scalejax")
    table.add_column("contestant")
    for phase in asked.phases:
        for title in (f"{phase} s", f"min-max {phase}", f"ratio {phase}"):
            table.add_column(title, justify="right")
    for title in ("bar", "ran"):
        table.add_column(title, justify="right")
    table.add_column("threads")
    for contestant in asked.contestants:
        own = [each for each in measured if each["contestant"] == contestant]
        row = [contestant]
        for phase in asked.phases:
            seconds = seconds_of(measured, contestant, phase)
            ratio = statistics.median(seconds) / statistics.median(seconds_of(measured, "scalejax", phase))
            row += [f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}", f"{ratio:.2f}"]
        bar = goal.bars.get(contestant)
        row += [f"{bar:g}" if bar else "", f"{own[0]['ran']}/{len(own[0]['train_loss'])}", own[0]["threads"]]
        table.add_row(*row)
    return table


def deviations(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Compare every contestant's losses with scalejax's on the trials that both ran; the worst of all measurements.

    `mean` is the relative deviation of the mean over trials, `worst` the largest of a single trial.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for kind in ("train_loss", "validation_loss"):
        reference = next((np.array(each[kind]) for each in measured if each["contestant"] == "scalejax"), None)
        if reference is None:
            return []
        for each in measured:
            losses = np.array(each[kind], float)
            both = np.isfinite(losses) & np.isfinite(reference)
            mean = losses[both].mean() / reference[both].mean() - 1
            worst = np.abs(losses[both] / reference[both] - 1).max()
            entry = found.setdefault((each["contestant"], kind), {"mean": 0.0, "worst": 0.0})
            if both.sum() < each["ran"]:  # a loss that is not finite on one side only
                mean = worst = float("inf")
            if abs(mean) >= abs(entry["mean"]):
                entry |= {"mean": float(mean), "loss": float(losses[both].mean())}
            entry["worst"] = max(entry["worst"], float(worst))
    return [{"contestant": name, "kind": kind, **entry} for (name, kind), entry in found.items()]


def loss_table(found: Sequence[dict[str, Any]]) -> Table:
    """Return the table of losses."""
    table = Table(title=f"losses against scalejax, on the trials that ran; tolerance {TOLERANCE:.0%} of the mean")
    for title in ("contestant", "loss", "mean over trials", "deviates", "largest of one trial"):
        table.add_column(title, justify="left" if title in ("contestant", "loss") else "right")
    for each in found:
        kind = {"train_loss": "training, mean of all steps", "validation_loss": "validation, at the end"}[each["kind"]]
        table.add_row(each["contestant"], kind, f"{each['loss']:.5f}", f"{each['mean']:+.2%}", f"{each['worst']:.2%}")
    return table


def arguments() -> argparse.Namespace:
    """Return what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=workload.WORKLOADS, default="small")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; default 3")
    parser.add_argument("--contestants", nargs="+", choices=SCRIPTS, help="default: all; single: scalejax and scan")
    parser.add_argument("--phases", nargs="+", choices=PHASES, help="default: cold and warm; single: all")
    parser.add_argument("--sample", type=int, default=0, help="trials of every width that are run; default 0, all")
    parser.add_argument(
        "--sampled", nargs="+", choices=(*SLOW, "scan"), default=SLOW, help=f"default: {' '.join(SLOW)}"
    )
    parser.add_argument("--json", type=Path, help="write all measurements there, after each of them")
    asked = parser.parse_args()
    asked.contestants = asked.contestants or (["scalejax", "scan"] if asked.workload == "single" else list(SCRIPTS))
    asked.phases = asked.phases or (PHASES if asked.workload == "single" else PHASES[:2])
    asked.phases = [phase for phase in PHASES if phase in asked.phases]
    if asked.phases == ["hot"]:
        parser.error("--phases: hot needs cold or warm too, of which the peers' hot time is a part")
    if asked.repeats < 1 or asked.sample < 0:
        parser.error("--repeats must be at least 1 and --sample at least 0")
    return asked


def main() -> None:
    """Measure, print the tables, and fail if the losses do not agree."""
    asked, console = arguments(), Console(width=None if sys.stdout.isatty() else 180)
    measured: list[Measured] = []
    peaks: list[float] = []
    report: dict[str, Any] = {"workload": asked.workload, "sample": asked.sample, "cores": workload.cores()}
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(asked, Path(folder))
        report["flops"] = arena.prepare()
        for number in range(asked.repeats):
            peaks.append(arena.peak())
            for contestant, phase in entries(asked.contestants, asked.phases):
                each = {**arena.measure(contestant, phase), "round": number}
                measured.append(each)
                console.print(
                    f"round {number + 1} {contestant} {phase}: {each['seconds']:.2f} s ({each['measured']:.2f} s on"
                    f" {each['ran']} trials, whole process {each['process_seconds']:.1f} s)"
                )
                if asked.json:
                    asked.json.write_text(json.dumps({**report, "peaks": peaks, "measured": measured}))
    found = deviations(measured)
    console.print(speed_table(measured, asked))
    console.print(loss_table(found))
    scaled = sorted({each["contestant"] for each in measured if each["ran"] < len(each["train_loss"])})
    if scaled:
        console.print(f"Scaled from a sample of {asked.sample} trials a width: {', '.join(scaled)}.")
    peak, own = statistics.median(peaks), statistics.median(seconds_of(measured, "scalejax", asked.phases[-1]))
    console.print(
        f"{workload.cores()} cores; matrix products {' '.join(f'{each / 1e9:.0f}' for each in peaks)} GFLOP/s; scalejax"
        f" {asked.phases[-1]}: {report['flops'] / own / 1e9:.1f} GFLOP/s, {report['flops'] / own / peak:.0%} of them."
    )
    off = max((abs(each["mean"]) for each in found), default=0.0)
    console.print(f"Largest deviation of a mean loss: {off:.2%} (tolerance {TOLERANCE:.0%}).")
    if not off <= TOLERANCE:
        raise SystemExit("The contestants do not agree on the losses: somebody does other work.")


if __name__ == "__main__":
    main()
