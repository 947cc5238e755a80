"""Sizes are packed by a proof or, by request, by a training that finds no difference; never if known to differ."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import scalejax as sx
from scalejax.execute.probe import probe, prober
from scalejax.execute.timing import timings_of
from scalejax.models import architecture
from scalejax.planning.forecast import forecast
from scalejax.planning.outline import outline
from scalejax.planning.plan import Plan, describe, make_plan
from scalejax.planning.trial import expand
from scalejax.report.plan import plan_lines
from scalejax.train.recipe import LaneProgram, Recipe, Settings
from scalejax.train.step import Examples

pytestmark = pytest.mark.usefixtures("compile_quickly")
DATA = sx.DataSpec(source="mnist1d", examples=200, train_examples=(100,), validation_examples=50, test_examples=50)
TRAIN = sx.TrainSpec(learning_rate=(1e-2, 3e-2), batch_size=(16,), steps=20, evaluate_every=10)

CONSTANT = Recipe(optimizer="adamw", schedule="constant", clip_norm=None, batch_size=16)


class Between(nnx.Module):
    """One hidden layer, what `inner` makes of it, and the output."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)
        self.width = width

    def inner(self, h: jax.Array) -> jax.Array:
        return h

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.inner(self.hidden(x.reshape(x.shape[0], -1))))


class Ceiling(Between):
    """Seen to train both sizes with the ceiling of the larger."""

    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.clip(h, 0, 8.0 if self.width < 10 else 1e9)


class Switch(nnx.Module):
    """Changes at a step that is another constant in each size; the first steps are the same."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.switch = 100 if width < 10 else 100_000

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] = self.calls[...] + 1
        h = self.hidden(x.reshape(x.shape[0], -1))
        return self.output(jnp.where(self.calls[...] > self.switch, nnx.tanh(h), nnx.relu(h)))


class ScaledByMaximum(Between):
    """Its largest unit is negative now and then, and no zero of the padding is."""

    def inner(self, h: jax.Array) -> jax.Array:
        return h * h.max(-1, keepdims=True)


class RectifiedMaximum(Between):
    """Safe, for the largest unit is never negative; a proof would have to know that."""

    def inner(self, h: jax.Array) -> jax.Array:
        h = nnx.relu(h)
        return h * h.max(-1, keepdims=True)


class EvaluatedOtherwise(Between):
    """Differs by a constant in evaluation alone."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
        self.deterministic = False

    def inner(self, h: jax.Array) -> jax.Array:
        return h * float(self.width) if self.deterministic else h


class Activated(nnx.Module):
    def __init__(self, *, inputs: int, classes: int, width: int, activation: str, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        activation: Callable[[jax.Array], jax.Array] = {"relu": nnx.relu, "tanh": lax.tanh}[self.activation]
        return self.output(activation(self.hidden(x.reshape(x.shape[0], -1))))


def plan_of(sweep: sx.Sweep) -> Plan:
    return make_plan(sweep, probe=prober(sweep))


def sweep_of(build: Callable[..., nnx.Module], packing: str = "proven", **knobs) -> sx.Sweep:
    grid = sx.ModelGrid(build, knobs or {"width": [8, 16]})
    return sx.Sweep(name="probe", data=DATA, models=(grid,), train=TRAIN, seeds=(0, 1), packing=packing)


def buckets(plan: Plan) -> list[int]:
    """Return the number of sizes in each bucket."""
    return sorted(len(bucket.architectures) for bucket in plan.packing.buckets)


@pytest.mark.parametrize("packing", ["proven", "probed"])
@pytest.mark.parametrize("build", [Ceiling, Switch, ScaledByMaximum, EvaluatedOtherwise])
def test_what_computes_something_else_is_never_packed(build: Callable[..., nnx.Module], packing: str):
    plan = plan_of(sweep_of(build, packing))
    assert buckets(plan) == [1, 1]
    (note,) = plan.packing.notes
    assert "test_probe.py, line" in note


@pytest.mark.slow
def test_what_is_safe_without_a_proof_is_packed_by_request_and_the_plan_says_so():
    apart, together = (plan_of(sweep_of(RectifiedMaximum, packing)) for packing in ("proven", "probed"))
    assert buckets(apart) == [1, 1]
    assert "`reduce_max` (test_probe.py" in apart.packing.notes[0]
    assert buckets(together) == [2]
    assert together.packing.notes == ()
    facts = outline(together, forecast(together, timings_of(together, patience_seconds=0)), device="cpu")
    lines = plan_lines(facts)
    assert sum("(probed)" in line for line in lines) == 1
    assert facts["programs"][0]["packing"] == "probed"


def test_what_is_proven_is_not_probed():
    plan = make_plan(sweep_of(Between, "probed"), probe=lambda *_: pytest.fail("it was probed"))
    assert buckets(plan) == [2]
    assert plan.packing.buckets[0].grounds == "proven"


@pytest.mark.slow
def test_probed_and_packed_apart_train_the_same(tmp_path):
    packed, solo = (
        sx.run_sweep(sweep_of(RectifiedMaximum, packing), tmp_path / packing, progress=False).results()
        for packing in ("probed", "proven")
    )
    assert list(packed["trial_id"]) == list(solo["trial_id"])
    np.testing.assert_allclose(packed["train_loss"], solo["train_loss"], rtol=1e-4)


def test_one_static_knob_does_not_undo_the_packing_of_everything():
    plan = plan_of(sweep_of(Activated, width=[4, 5, 6, 7], activation=["relu", "tanh"]))
    assert buckets(plan) == [4, 4]
    for bucket in plan.packing.buckets:
        assert len({dict(size.arguments)["activation"] for size in bucket.architectures}) == 1
        assert bucket.grounds == "proven"


def test_a_refused_size_leaves_the_others_together():
    """Of three sizes the smallest has another constant: the other two share a program all the same."""
    plan = plan_of(replace(sweep_of(Ceiling), models=(sx.ModelGrid(Ceiling, width=[8, 16, 20]),)))
    assert buckets(plan) == [1, 2]


# ---- the probe itself ----


@pytest.mark.parametrize(
    ("train", "numbers"),
    [
        ({"b2": [0.95, 0.999]}, (0.9, 0.95, 1e-8)),
        ({"schedule": "wsd"}, (0.2,)),
        ({"optimizer": "momentum", "momentum": 0.5}, (0.5,)),
        ({}, ()),
    ],
)
def test_the_probe_trains_with_the_numbers_of_the_sweep(train: dict, numbers: tuple, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def started(recipe: Recipe, settings: Settings, _weights: object) -> None:
        seen.append((tuple(settings.named(recipe)), [float(number) for number in settings.numbers]))
        raise ValueError("enough")

    monkeypatch.setattr("scalejax.execute.probe.start", started)
    sweep = sx.Sweep("probe", DATA, (sx.ModelGrid("logistic"),), replace(TRAIN, **train))
    (first, *_), card = expand(sweep, describe(DATA)), describe(DATA)
    examples = Examples(np.zeros((20, *card.shape), np.float32), np.zeros(20, np.int32))
    monkeypatch.setattr("scalejax.execute.probe.load", lambda _: SimpleNamespace(train=examples))
    program = first.trial.program
    assert prober(sweep)(program, program) == "padded, the module fails: enough"
    assert seen == [(program.recipe.numbers, pytest.approx(numbers))]


class OverUnitsInEvaluation(Between):
    """Training is the same for all sizes; evaluation counts the padded units."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
        self.deterministic = False

    def inner(self, h: jax.Array) -> jax.Array:
        return h - jnp.cos(h).sum(-1, keepdims=True) if self.deterministic else h


class Growing(Between):
    """A parameter gets a gradient in all of its entries, padded ones too, and changes nothing."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
        self.drift = nnx.Param(jnp.ones(width))

    def inner(self, h: jax.Array) -> jax.Array:
        push = self.drift[...].sum()
        return h + push - lax.stop_gradient(push)


def probed(build: Callable[..., nnx.Module]) -> str:
    small, large = (
        LaneProgram(architecture(build, {"width": width}, shape=(40,), outputs=10), CONSTANT) for width in (4, 8)
    )
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(200, 40)), generator.integers(0, 10, 200)
    return probe(small, large, Examples(inputs.astype(np.float32), labels.astype(np.int32)))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Between, ""),
        pytest.param(RectifiedMaximum, "", marks=pytest.mark.slow),
        (ScaledByMaximum, r"padded and solo differ by \S+ in the loss within 10 steps"),
        pytest.param(
            OverUnitsInEvaluation,
            r"padded and solo differ by \S+ in the outputs of evaluation within 10 steps",
            marks=pytest.mark.slow,
        ),
        (Growing, r"padding grows to \S+ in params.drift within 10 steps"),
    ],
)
def test_the_probe_says_what_padding_changes(build: Callable[..., nnx.Module], says: str):
    found = probed(build)
    assert re.fullmatch(says, found), found
