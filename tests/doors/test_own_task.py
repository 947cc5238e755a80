"""A task of a user's own, through public doors: ordered grades, by cumulative logits (McCullagh 1980)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


@dataclass(frozen=True)
class Ordinal:
    name: str = "ordinal"
    metric: str = "distance"  # mean number of grades that a prediction is off

    def outputs(self, card):
        return card.classes - 1  # logits of "above grade 0", "above grade 1", ...

    def loss(self, outputs, targets):
        above = targets[:, None] > jnp.arange(outputs.shape[-1])[None]
        return optax.sigmoid_binary_cross_entropy(outputs, above).sum(-1)

    def score(self, outputs, targets):
        return jnp.abs((outputs > 0).sum(-1) - targets).astype(jnp.float32)

    def headline(self, mean):
        return mean


def test_a_task_of_ones_own_is_trained_and_shown(tmp_path):
    x = np.random.default_rng(0).normal(size=(3000, 4))
    data = sx.DataSpec(source=sx.arrays(x, np.digitize(x[:, 0], [-1, 0, 1])), train_examples=(50, 2000))
    train = sx.TrainSpec(learning_rate=(1e-2,), batch_size=(32,), steps=300)
    sweep = sx.Sweep("grades", data, (sx.ModelGrid("mlp", width=[4, 16], depth=1),), train, task=Ordinal())
    run = sx.run_sweep(sweep, tmp_path, progress=False)
    assert run.curves()["metric"].unique().tolist() == ["test_distance"]
    assert max(run.results()["test_metric"]) < 0.4  # always the median grade: 0.75
    assert "distance" in " ".join(run.summary())
