"""An optimizer of a user's own, through public doors: an optax transformation without its learning rate."""

import optax
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


def sign_momentum() -> optax.GradientTransformation:
    return optax.chain(optax.trace(decay=0.8), optax.scale_by_sign())


def sweep(optimizer) -> sx.Sweep:
    return sx.Sweep(
        name="signs",
        data=sx.DataSpec(source="mnist1d", examples=2000, train_examples=(200, 2000), test_examples=500),
        models=(sx.ModelGrid("mlp", width=[8, 16], depth=1),),
        train=sx.TrainSpec(learning_rate=(1e-3, 4e-3), batch_size=(32,), steps=300, optimizer=optimizer),
    )


@pytest.mark.slow
def test_an_optimizer_of_ones_own_trains_in_one_program(tmp_path):
    plan = sx.plan(sweep(sign_momentum))
    assert plan.facts["lane_programs"] == 1  # proven: signs of zero are zero
    run = sx.run_sweep(sweep(sign_momentum), tmp_path, progress=False)
    assert min(run.results()["train_loss"]) < 1.8  # guessing: 2.3
    adam = sx.run_sweep(sweep("adamw"), tmp_path / "adamw", progress=False).results()
    assert not set(adam["trial_id"]) & set(run.results()["trial_id"])
