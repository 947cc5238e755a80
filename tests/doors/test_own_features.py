"""Features of a user's own, through public doors: what examples look like beside the mean of a trial's own."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


def circle(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, (x**2).sum(1, keepdims=True)], axis=1)


@dataclass(frozen=True)
class Centre:
    def arrays(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {"mean": shape}

    def fit(self, inputs: np.ndarray, seed: int) -> Mapping[str, np.ndarray]:  # noqa: ARG002
        return {"mean": inputs.mean(0)}

    def apply(self, fitted: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
        return inputs - fitted["mean"][None]


def test_features_of_ones_own_decide_with_few_examples(tmp_path):
    x = np.random.default_rng(0).normal(3, 1, size=(4000, 2))
    data = sx.DataSpec(source=sx.arrays(x, ((x - 3) ** 2).sum(1) > 1.4), train_examples=(50,))
    models = (sx.ModelGrid("logistic", features=["none", [Centre(), circle]]),)
    train = sx.TrainSpec(learning_rate=(3e-2,), batch_size=(50,), steps=400)
    run = sx.run_sweep(sx.Sweep("circle", data, models, train, seeds=(0, 1)), tmp_path, progress=False)
    curves = run.curves().set_index("model")["value"].to_dict()
    assert curves["logistic features Centre + circle"] < 0.1 < 0.3 < curves["logistic features none"]
