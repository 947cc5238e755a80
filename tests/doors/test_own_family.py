"""A family of models of a user's own, through public doors: a gated network sized by width."""

import jax
import pytest
from flax import nnx

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


class Gated(nnx.Module):
    def __init__(self, *, inputs: int, outputs: int, width: int, rngs: nnx.Rngs):
        self.gate, self.value = (nnx.Linear(inputs, width, rngs=rngs) for _ in range(2))
        self.output = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.silu(self.gate(x)) * self.value(x))


def test_a_family_of_ones_own_is_packed_and_trained(tmp_path):
    sweep = sx.Sweep(
        name="gated",
        data=sx.DataSpec(source="mnist1d", examples=4000, train_examples=(200, 4000), test_examples=500),
        models=(sx.ModelGrid("logistic"), sx.ModelGrid(Gated, width=[8, 32])),
        train=sx.TrainSpec(learning_rate=(1e-2,), batch_size=(32,), steps=400),
    )
    assert sx.plan(sweep).facts["lane_programs"] == 2  # both widths in one, by proof
    table = sx.run_sweep(sweep, tmp_path, progress=False).curves()
    curves = dict(zip(zip(table["model"], table["train_examples"], strict=True), table["value"], strict=True))
    assert curves["Gated width 32", 4000] < curves["logistic", 4000]
