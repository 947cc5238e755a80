"""The table of what accelerators' own compilers say of the lane programs; needs the extras "tpu" and "cuda13".

usage: python tests/accelerators.py [KIND ...]      default: h200 v5e v5p v6e
"""

import sys
from dataclasses import replace

import numpy as np

import scalejax as sx
from scalejax.planning.compile_for import compile_for, prepare_compilers, topology
from scalejax.planning.device_specs import device_spec_named
from scalejax.planning.plan import make_plan

KINDS = ("h200", "v5e", "v5p", "v6e")
MNIST1D = sx.DataSpec(source="mnist1d", examples=100_000, train_examples=(20_000,))
IMAGES = sx.DataSpec(
    source=sx.arrays(np.zeros((10_000, 28, 28), np.uint8) + np.arange(28, dtype=np.uint8), np.arange(10_000) % 10),
    fractions=(1.0,),
)
MODELS = {
    "mlp": (sx.ModelGrid("mlp", width=64, depth=2), MNIST1D, 128),
    "cnn": (sx.ModelGrid("cnn", width=16, depth=3), IMAGES, 64),
}


def main(kinds: tuple[str, ...]) -> None:
    names = (
        "device",
        "model",
        "lanes",
        "arguments MB",
        "temporaries MB",
        "launches a step",
        "step us",
        "validation us",
    )
    print(f"| {' | '.join((*names, 'test us'))} |")
    print("|---" * (1 + len(names)) + "|")
    for kind in kinds:
        spec, devices = device_spec_named(kind), topology(kind, devices=1)
        for name, (grid, data, batch) in MODELS.items():
            for lanes in (64, 1024):
                train = sx.TrainSpec(learning_rate=(1e-3,), batch_size=(batch,), steps=2400)
                seeds = tuple(range(lanes))
                sweep = sx.Sweep(name=name, data=data, models=(grid,), train=train, seeds=seeds)
                plan = make_plan(sweep, devices=1, spec=spec)
                buckets = tuple(replace(bucket, lanes=lanes) for bucket in plan.packing.buckets)
                plan = replace(plan, packing=replace(plan.packing, buckets=buckets))
                (found,) = compile_for(plan, devices, spec)
                longest, timing = found.programs[0], found.timing
                sizes = (longest.argument_bytes / 1e6, longest.temporary_bytes / 1e6)
                micro = (1e6 * each for each in (timing.step, lanes * timing.evaluation, lanes * timing.test))
                numbers = " | ".join(f"{each:,.1f}" for each in sizes)
                times = " | ".join(f"{each:,.0f}" for each in micro)
                print(f"| {kind} | {name} | {lanes} | {numbers} | {found.step_launches} | {times} |", flush=True)
                unknown = [part.name for part in found.programs for loop in part.reading.loops if loop.trips is None]
                if unknown:
                    print(f"loops of unknown length in {', '.join(unknown)}", file=sys.stderr)


if __name__ == "__main__":
    prepare_compilers()
    main(tuple(sys.argv[1:]) or KINDS)
