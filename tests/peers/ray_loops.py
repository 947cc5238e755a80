"""Ray Tune peers: the expert's JAX loop inside a trial, as the documentation shows and with reused actors."""

import functools
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax_loops
import numpy as np
import ray
import workload
from ray import tune


def train_function(config: dict[str, Any], prepared: workload.Prepared) -> None:
    """Train one trial in a fresh actor, as in Ray's guide to Tune."""
    began = time.time()
    losses = jax_loops.train_one(prepared, config["position"], jax_loops.on_device(prepared))
    tune.report({"losses": losses, "began": began, "ended": time.time()})


class ReusedActor(tune.Trainable):
    """Trains one trial a step and is then handed the next; compiled programs and data stay in its process."""

    def setup(self, config: dict[str, Any], prepared: workload.Prepared) -> None:
        """Put the data on the device, once an actor."""
        self._position, self._prepared = config["position"], prepared
        self._began = time.time()
        self._examples = jax_loops.on_device(prepared)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._position = new_config["position"]
        return True

    def step(self) -> dict[str, Any]:
        """Train the trial to its end."""
        losses = jax_loops.train_one(self._prepared, self._position, self._examples)
        return {"losses": losses, "began": self._began, "ended": time.time(), "done": True}


def _tune(trainable: Any, prepared: workload.Prepared, chosen: Sequence[int], *, reuse: bool) -> workload.Result:
    """Run the chosen trials; Ray itself is started before the clock.

    The time until the first trial begins and after the last one has ended does not grow with the number of trials.
    """
    used = {prepared.trials[position].group for position in chosen}
    groups = {group: number for number, group in enumerate(sorted(used))}
    shipped = replace(
        prepared,
        rows=prepared.rows[sorted(used)],
        trials=tuple(replace(trial, group=groups.get(trial.group, 0)) for trial in prepared.trials),
    )
    tally = workload.Tally(prepared)
    with tempfile.TemporaryDirectory() as storage:
        ray.init(num_cpus=workload.cores(), include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        try:
            with workload.Clock() as clock:
                trainable = tune.with_resources(tune.with_parameters(trainable, prepared=shipped), {"cpu": 1})
                tuner = tune.Tuner(
                    trainable,
                    param_space={"position": tune.grid_search(list(chosen))},
                    tune_config=tune.TuneConfig(metric="ended", mode="min", reuse_actors=reuse),
                    # Nothing here can be saved, and an actor whose last checkpoint failed is not used again.
                    run_config=tune.RunConfig(
                        storage_path=storage,
                        verbose=0,
                        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if reuse else None,
                    ),
                )
                outcomes = list(tuner.fit())
        finally:
            ray.shutdown()
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise errors[0]
    reports = [outcome.metrics for outcome in outcomes]
    span = max(each["ended"] for each in reports) - min(each["began"] for each in reports)
    tally.fixed = clock.seconds - span
    # Trials of several widths ran side by side: the span is divided among the widths by their numbers of trials.
    losses = {each["config"]["position"]: each["losses"] for each in reports}
    for positions in prepared.by_width(chosen).values():
        own = np.transpose([losses[position] for position in positions])
        tally.add(positions, span * len(positions) / len(chosen), own)
    actors = len({each["pid"] for each in reports})
    threads = f"{workload.cores()} of {actors} actors at a time, each one JAX device, {workload.cores()} threads"
    return tally.result("ray_reused" if reuse else "ray_doc", threads=threads)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the driver itself computes nothing
    workload.contest(
        {
            "ray_doc": functools.partial(_tune, train_function, reuse=False),
            "ray_reused": functools.partial(_tune, ReusedActor, reuse=True),
        }
    )
