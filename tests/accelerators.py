"""The table of what accelerators' own compilers say of lane programs; needs the extras "tpu" and "cuda13".

    python tests/accelerators.py [KIND ...] [--models mlp cnn transformer] [--lanes 64 1024] [--csv]

Lanes are all on one device. Times are estimates, as `scalejax plan --compile` gives them. On two CPU cores all kinds
take about half an hour; TPUs' compilers need up to a minute a program.
"""

import argparse
import csv
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX comes up: it complains of accelerators that are not there

import numpy as np

import scalejax as sx
from scalejax.planning.compile_for import CompiledBucket, compile_for
from scalejax.planning.device_specs import devices_named
from scalejax.planning.plan import make_plan
from scalejax.spec import Sweep

KINDS = ("h200", "v5e", "v5p", "v6e")
COLUMNS = (
    "device", "model", "lanes", "arguments_mb", "temporaries_mb", "needed_share", "step_launches",
    "evaluation_launches", "test_launches", "step_us", "evaluation_us", "test_us", "measuring_share",
    "unknown_loops", "collectives", "compile_seconds",
)  # fmt: skip


def sweeps(folder: Path) -> dict[str, Sweep]:
    """Return a sweep of one model each; only the shapes of their data matter."""
    numbers = np.arange(10_000)
    images = np.zeros((10_000, 28, 28), np.uint8) + np.arange(28, dtype=np.uint8)
    tokens = folder / "tokens.bin"
    (np.arange(2_000_000) % 1000).astype(np.uint16).tofile(tokens)
    described = {"path": str(tokens), "vocabulary": 1000, "sequence_length": 64}
    asked = {
        "mlp": (
            sx.ModelGrid("mlp", width=64, depth=2),
            sx.DataSpec("mnist1d", examples=100_000, train_examples=(20_000,)),
            128,
        ),
        "cnn": (
            sx.ModelGrid("cnn", width=16, depth=3),
            sx.DataSpec(sx.arrays(images, numbers % 10), fractions=(1.0,)),
            64,
        ),
        "transformer": (
            sx.ModelGrid("transformer", heads=2, depth=2),
            sx.DataSpec("tokens", options=described, fractions=(1.0,)),
            16,
        ),
    }
    return {
        name: sx.Sweep(
            name=name,
            data=data,
            models=(grid,),
            train=sx.TrainSpec(learning_rate=(1e-3,), batch_size=(batch,), steps=2400),
        )
        for name, (grid, data, batch) in asked.items()
    }


def row(kind: str, name: str, sweep: Sweep, *, lanes: int) -> list[str]:
    """Ask the compiler of a kind about the programs of a sweep with so many seeds, each a lane of one device."""
    spec, shape = devices_named(kind)
    plan = make_plan(replace(sweep, seeds=tuple(range(lanes))), devices=1, spec=spec)
    buckets = tuple(replace(bucket, lanes=lanes) for bucket in plan.packing.buckets)
    (found,) = compile_for(replace(plan, packing=replace(plan.packing, buckets=buckets)), spec, shape=shape)
    return [kind, name, str(lanes), *numbers(found)]


def numbers(found: CompiledBucket) -> list[str]:
    """Return the other columns of a row; those of a program that the compiler refuses are empty."""
    if found.timing is None:
        print(found.refused, file=sys.stderr)
        return [""] * (len(COLUMNS) - 3)
    programs = {each.name: each for each in found.programs}
    longest, timing, together = found.programs[0], found.timing, found.lanes_together
    unknown = sum(loop.trips is None for each in found.programs for loop in each.reading.loops)
    return [
        f"{longest.memory.argument_bytes / 1e6:.1f}",
        f"{longest.memory.temporary_bytes / 1e6:.1f}",
        f"{found.needed_bytes / found.room_bytes:.4f}",
        f"{found.step_launches}",
        *(f"{programs[each].reading.work.launches}" for each in ("validate", "test")),
        *(f"{1e6 * each:.0f}" for each in (timing.step, together * timing.evaluation, together * timing.test)),
        f"{found.measuring_share:.3f}",
        f"{unknown}",
        f"{sum(sum(each.reading.collectives.values()) for each in found.programs)}",
        f"{sum(each.compile_seconds for each in found.programs):.0f}",
    ]


def main() -> None:
    """Print what the command line asks for, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"default: {' '.join(KINDS)}")
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn", "transformer"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")
    options = parser.parse_args()
    written = csv.writer(sys.stdout)

    def show(cells: list[str]) -> None:
        written.writerow(cells) if options.csv else print(f"| {' | '.join(cells)} |")
        sys.stdout.flush()

    show(list(COLUMNS))
    if not options.csv:
        show(["---"] * len(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        asked = sweeps(Path(folder))
        for kind in options.kinds:
            for name in options.models:
                for lanes in options.lanes:
                    show(row(kind, name, asked[name], lanes=lanes))


if __name__ == "__main__":
    main()
