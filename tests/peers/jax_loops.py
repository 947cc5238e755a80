"""JAX peers: the tutorial's Flax NNX loop and an expert's compiled loop; and scalejax itself."""

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload
from flax import nnx

Params = list[tuple[Any, Any]]  # (kernel, bias) of every layer


class Network(nnx.Module):
    """The network as the Flax tutorial would write it."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(workload.INPUTS, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, workload.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def nnx_loss(model: Network, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()


@nnx.jit
def nnx_step(model: Network, optimizer: nnx.Optimizer, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Take one step; every new trial compiles it again, because the optimizer is a static part of its argument."""
    loss, gradient = nnx.value_and_grad(nnx_loss)(model, inputs, labels)
    optimizer.update(model, gradient)
    return loss


nnx_evaluate = nnx.jit(nnx_loss)


def run_nnx(prepared: workload.Prepared, chosen: Sequence[int]) -> workload.Result:
    """Train trial after trial with a Python loop over steps and batches from the host."""
    tally = workload.Tally(prepared)
    for position in chosen:
        trial, clock = prepared.trials[position], workload.Clock()
        model = Network(trial.width, rngs=nnx.Rngs(trial.seed))
        layers = (model.first, model.second, model.last)
        for layer, (kernel, bias) in zip(layers, prepared.initial(trial), strict=True):
            layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
        with clock:
            optimizer = nnx.Optimizer(model, optax.adamw(trial.learning_rate, weight_decay=0.0), wrt=nnx.Param)
            losses = []
            for rows in prepared.rows[trial.group]:
                losses.append(nnx_step(model, optimizer, prepared.inputs[rows], prepared.labels[rows]))
            held_out = nnx_evaluate(model, prepared.validation_inputs, prepared.validation_labels)
            final = float(np.mean(jax.device_get(losses))), float(held_out)
        tally.add([position], clock.seconds, final)
    return tally.result("nnx", threads=f"{jax.device_count()} JAX device, {workload.cores()} threads")


def loss_of(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    x = inputs
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels).mean()


@jax.jit
def train(params: Params, rate: Any, rows: Any, pool: Any, held_out: Any) -> tuple[jax.Array, jax.Array]:
    """Train one model on all its batches, `rows` [steps, batch]; return (mean training loss, validation loss)."""
    inputs, labels = pool
    adam = optax.scale_by_adam()

    def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
        params, state, total = carry
        loss, gradient = jax.value_and_grad(loss_of)(params, inputs[batch], labels[batch])
        update, state = adam.update(gradient, state)
        return (jax.tree.map(lambda p, u: p - rate * u, params, update), state, total + loss), None

    (params, _, total), _ = jax.lax.scan(step, (params, adam.init(params), jnp.float32(0)), rows)
    return total / rows.shape[0], loss_of(params, *held_out)


@functools.cache
def compiled(width: int, steps: int, batch: int, pool: int, held_out: int):
    """Return `train`, compiled for one shape."""

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    sizes = [workload.INPUTS] + [width] * workload.DEPTH + [workload.CLASSES]
    params = [(floats(one, other), floats(other)) for one, other in itertools.pairwise(sizes)]
    examples = [(floats(count, workload.INPUTS), integers(count)) for count in (pool, held_out)]
    return train.lower(params, floats(), integers(steps, batch), *examples).compile()


def program_for(prepared: workload.Prepared, width: int):
    """Return `train`, compiled for the shapes of a width; the second time it costs nothing."""
    return compiled(width, *prepared.rows.shape[1:], len(prepared.labels), len(prepared.validation_labels))


def train_one(prepared: workload.Prepared, position: int, examples: Sequence) -> tuple[float, float]:
    """Train one trial to its end; `examples` are the pool and the validation set, on the device."""
    trial = prepared.trials[position]
    rows, rate = prepared.rows[trial.group], np.float32(trial.learning_rate)
    losses = program_for(prepared, trial.width)(prepared.initial(trial), rate, rows, *examples)
    return tuple(map(float, jax.device_get(losses)))


def on_device(prepared: workload.Prepared) -> list:
    """Put the pool and the validation set on the device."""
    return jax.device_put(
        [(prepared.inputs, prepared.labels), (prepared.validation_inputs, prepared.validation_labels)]
    )


def run_scan(prepared: workload.Prepared, chosen: Sequence[int]) -> workload.Result:
    """Train trial after trial, each one call of a program compiled once a width."""
    tally = workload.Tally(prepared)
    examples = jax.block_until_ready(on_device(prepared))
    for width, positions in prepared.by_width(chosen).items():
        with workload.Clock() as clock:
            program_for(prepared, width)
        tally.fixed += clock.seconds
        with workload.Clock() as clock:
            losses = [train_one(prepared, position, examples) for position in positions]
        tally.add(positions, clock.seconds, np.transpose(losses))
    return tally.result("scan", threads=f"{jax.device_count()} JAX device, {workload.cores()} threads")


def run_scalejax(name: str, folder: Path, *, again: bool) -> workload.Result:
    """Carry out the workload as a sweep, from the plan to the drawn figure; `again` times the second time.

    Its `training` is what the rows say: the seconds of all calls of the programs, over the devices that had work. The
    first time they include the making of the programs.
    """
    import scalejax
    import scalejax.execute.scheduler  # as with the peers, the import is outside the clock
    import scalejax.planning.plan

    trials = workload.read(folder).trials
    sweep = workload.sweep_of(workload.WORKLOADS[name])
    if again:
        with tempfile.TemporaryDirectory() as out:
            scalejax.run_sweep(sweep, out=out, progress=False)
    with tempfile.TemporaryDirectory() as out:
        with workload.Clock() as clock:
            run = scalejax.run_sweep(sweep, out=out, progress=False)
        table = run.results().set_index("trial_id").loc[[trial.trial_id for trial in trials]]
    if not (table["status"] == "done").all():
        raise SystemExit(f"not all trials are done: {table['status'].value_counts().to_dict()}")
    training = float(table["seconds"].sum()) / min(jax.device_count(), len(trials))
    return workload.Result(
        contestant="scalejax",
        threads=f"{jax.device_count()} JAX devices, one thread each",
        seconds=clock.seconds,
        training=training,
        measured=clock.seconds,
        fixed=clock.seconds - training,
        ran=len(trials),
        train_loss=table["train_loss"].tolist(),
        validation_loss=table["validation_loss"].tolist(),
    )


def matmul_peak(size: int = 1536, seconds: float = 1.0) -> float:
    """Return the FLOP/s of the fastest of many float32 matrix products on all cores."""
    square = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        with workload.Clock() as clock:
            product(square, square).block_until_ready()
        best = min(best, clock.seconds)
    return 2 * size**3 / best


def main() -> None:
    """Run one of the jobs that need JAX: a peer, scalejax, the preparation, or the measurement of the peak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=("nnx", "scan", "scalejax", "scalejax-again", "prepare", "peak"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("sample", help="number of trials, or the workload's name for scalejax and prepare")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    if asked.job in ("nnx", "scan"):
        workload.contest({"nnx": run_nnx, "scan": run_scan})
    elif asked.job == "prepare":
        workload.prepare(workload.WORKLOADS[asked.sample], asked.folder)
    elif asked.job == "peak":
        asked.out.write_text(json.dumps(matmul_peak()))
    else:
        result = run_scalejax(asked.sample, asked.folder, again=asked.job == "scalejax-again")
        asked.out.write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
