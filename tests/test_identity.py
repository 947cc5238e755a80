"""An id is everything that determines a trial's result: the program that its model runs, and JAX's own settings."""

import functools
import gc
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_helpers import planned
from flax import nnx
from optax import contrib

import scalejax as sx
from scalejax.data import DataCard, describe
from scalejax.errors import SweepError
from scalejax.models.equations import _code_text
from scalejax.planning.packing import PROVEN, Capacity, Verdict, pack
from scalejax.planning.trial import Counted, expand
from scalejax.spec import DataSpec, ModelGrid, Sweep, TrainSpec
from scalejax.train import numerics
from scalejax.train.cost import SPEEDS
from scalejax.train.recipe import Recipe
from scalejax.train.task import CLASSIFICATION, Classification, Regression
from scalejax.train.traced import program_digest

pytestmark = pytest.mark.usefixtures("compile_quickly")
DATA = DataSpec(source="mnist1d", examples=60, train_examples=(20,), validation_examples=20, test_examples=20)
TRAIN = TrainSpec(learning_rate=(1e-2,), batch_size=(4,), steps=4, evaluate_every=2)

# Of version 0.1.0.
FIRST_IDS = ["69eb4c000ba7b311", "08921660de1d007d", "d9fd3537ca8d3cf0", "bd28165d03e3445c"]

SLOPE = 1.0  # that a module reads


class Base(nnx.Module):
    def outer(self, x: jax.Array) -> jax.Array:
        return x


def helper(x: jax.Array) -> jax.Array:
    return x


class Net(Base):
    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.hidden(x.reshape(x.shape[0], -1))) * SLOPE
        return self.outer(self.output(helper(h)))


def build(*, inputs: int, classes: int, width: int, rngs: nnx.Rngs) -> nnx.Module:
    return Net(inputs=inputs, classes=classes, width=width, rngs=rngs)


def sweep_of(builder, **changes) -> Sweep:
    knobs = {"width": 4, "depth": 1} if builder == "mlp" else {"width": 4}
    sweep = Sweep(name="ids", data=DATA, models=(ModelGrid(builder, knobs),), train=TRAIN)
    return replace(sweep, **changes)


def ids(sweep: Sweep) -> set[str]:
    return {counted.trial.trial_id for counted in expand(sweep, describe(sweep.data))}


def closing_over(number: float):
    def build(*, inputs: int, classes: int, width: int, rngs: nnx.Rngs) -> nnx.Module:
        module = Net(inputs=inputs, classes=classes, width=width, rngs=rngs)
        module.hidden.kernel[...] = module.hidden.kernel[...] * number
        return module

    return build


def other_forward(self: Net, x: jax.Array) -> jax.Array:
    return self.output(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))) * 0.0)


CHANGES = {
    "the class behind the builder": lambda patch: patch.setattr(Net, "__call__", other_forward),
    "a base class": lambda patch: patch.setattr(Base, "outer", lambda _, x: x * 2),
    "a helper": lambda patch: patch.setitem(globals(), "helper", lambda x: x + 1),
    "a number in the module": lambda patch: patch.setitem(globals(), "SLOPE", 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_is_computed_makes_other_trials(change: str, monkeypatch: pytest.MonkeyPatch):
    before = ids(sweep_of(build))
    assert ids(sweep_of(build)) == before
    CHANGES[change](monkeypatch)
    assert not ids(sweep_of(build)) & before
    monkeypatch.undo()
    assert ids(sweep_of(build)) == before


def test_a_closure_is_part_of_the_id():
    assert ids(sweep_of(closing_over(1.0))) == ids(sweep_of(closing_over(1.0)))
    assert not ids(sweep_of(closing_over(1.0))) & ids(sweep_of(closing_over(2.0)))


def test_what_only_evaluation_computes_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch):
    class Evaluated(Net):
        factor = 1.0

        def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
            super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
            self.deterministic = False  # Flax sets it in evaluation

        def outer(self, x: jax.Array) -> jax.Array:
            return x * (self.factor if self.deterministic else 1.0)

    before = ids(sweep_of(Evaluated))
    monkeypatch.setattr(Evaluated, "factor", 2.0)
    assert not ids(sweep_of(Evaluated)) & before


def test_tables_of_numbers_are_part_of_the_id():
    def with_table(table: np.ndarray):
        class Tabled(Net):
            def outer(self, x: jax.Array) -> jax.Array:
                return x * jnp.asarray(table)[None]

        return Tabled

    one = np.linspace(0, 1, 10, dtype=np.float32)
    other = one.copy()
    other[3] += 1e-6
    assert ids(sweep_of(with_table(one))) == ids(sweep_of(with_table(one.copy())))
    assert not ids(sweep_of(with_table(one))) & ids(sweep_of(with_table(other)))


def calling(function) -> type[Net]:
    """Return a module that calls a function on the host."""

    class Calling(Net):
        def outer(self, x: jax.Array) -> jax.Array:
            fixed = jax.lax.stop_gradient(x)
            return x + jax.pure_callback(function, fixed, fixed, vmap_method="sequential")

    return Calling


HOST_SCALE = 1.0


def scaled(x):
    return x * HOST_SCALE


class Scaling:
    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale


def closed_over(scale: float):
    return lambda x: x * scale


def closing_over_array(scale: np.ndarray):
    return lambda x: x * scale


HOSTS = {
    "code": lambda number: eval(f"lambda x: x * {number}"),
    "closure": closed_over,
    "partial": lambda number: functools.partial(np.multiply, number),
    "object": Scaling,
    "array": lambda number: closing_over_array(np.array([number], np.float32)),
}


@dataclass(frozen=True)
class Weighted:
    name: str = "weighted"
    metric: str = "loss"

    def outputs(self, card: DataCard) -> int:
        return CLASSIFICATION.outputs(card)

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return HOST_SCALE * CLASSIFICATION.loss(outputs, targets)

    score = loss

    def headline(self, mean: jax.Array) -> jax.Array:
        return mean


def test_the_program_of_a_family_is_that_of_todays_task(monkeypatch: pytest.MonkeyPatch):
    sweep = sweep_of("mlp", task=Weighted())

    def known() -> tuple[str, str]:
        trial = expand(sweep, describe(sweep.data))[0].trial
        return trial.trial_id, program_digest(trial.architecture, trial.recipe)

    before = known()
    assert known() == before
    monkeypatch.setitem(globals(), "HOST_SCALE", 5.0)
    assert not set(known()) & set(before)


@pytest.mark.parametrize("kind", HOSTS)
def test_code_that_a_model_calls_on_the_host_is_part_of_the_id(kind: str):
    assert ids(sweep_of(calling(HOSTS[kind](1)))) == ids(sweep_of(calling(HOSTS[kind](1))))
    assert not ids(sweep_of(calling(HOSTS[kind](1)))) & ids(sweep_of(calling(HOSTS[kind](2))))


def test_what_host_code_reads_has_its_own_text_and_the_same_every_time():
    def reads(number: int):
        first, second = closed_over(1), closed_over(number)
        return lambda x: first(x) + second(x)

    texts = [{_code_text(reads(number)) for _ in range(20)} for number in range(2, 12)]
    assert [len(each) for each in texts] == [1] * 10
    assert len(set().union(*texts)) == 10


def test_a_number_that_host_code_reads_from_its_module_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch):
    before = ids(sweep_of(calling(scaled)))
    monkeypatch.setitem(globals(), "HOST_SCALE", 5.0)
    assert not ids(sweep_of(calling(scaled))) & before


@pytest.mark.parametrize("where", ["built", "called"])
def test_a_module_that_draws_without_a_seed_is_refused(where: str):
    class Drawing(Net):
        def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
            super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
            if where == "built":
                self.hidden.kernel[...] = self.hidden.kernel[...] * np.random.default_rng().normal()

        def outer(self, x: jax.Array) -> jax.Array:
            return x * np.random.default_rng().normal() if where == "called" else x

    with pytest.raises(SweepError, match="computes something else each time it is built or called"):
        ids(sweep_of(Drawing))


def test_the_second_run_of_a_changed_model_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = sx.run_sweep(sweep_of(build), tmp_path / "run", progress=False).results()
    monkeypatch.setitem(globals(), "SLOPE", 0.0)
    second = sx.run_sweep(sweep_of(build), tmp_path / "run").results()
    assert set(second["status"]) == {"done"}
    said = "1 finished trial of an earlier form of this sweep or its code: kept, and left out of the tables"
    assert said in capsys.readouterr().err
    assert second["train_loss"].item() != first["train_loss"].item()
    fresh = sx.run_sweep(sweep_of(build), tmp_path / "fresh", progress=False).results()
    assert second["train_loss"].item() == fresh["train_loss"].item()
    monkeypatch.undo()
    third = sx.run_sweep(sweep_of(build), tmp_path / "run", progress=False).results()
    assert third["train_loss"].item() == first["train_loss"].item()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_identity import build, ids, sweep_of
print(*sorted(ids(sweep_of(build)) | ids(sweep_of("mlp"))))
"""


def test_ids_are_the_same_in_every_process():
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    (printed,) = found
    assert set(printed.split()) == ids(sweep_of(build)) | ids(sweep_of("mlp"))


# ---- JAX's own settings ----


def test_settings_of_jax_that_change_numbers_are_part_of_the_id():
    plain = ids(sweep_of("mlp"))
    with jax.default_matmul_precision("bfloat16"):
        lower = ids(sweep_of("mlp"))
    with jax.default_prng_impl("rbg"):
        drawn = ids(sweep_of("mlp"))
    jax.config.update("jax_random_seed_offset", 1)
    try:
        offset = ids(sweep_of("mlp"))
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    assert len(plain | lower | drawn | offset) == 4
    assert ids(sweep_of("mlp")) == plain


@pytest.mark.slow
def test_what_is_set_for_a_block_of_code_holds_in_the_threads_of_its_run(tmp_path: Path):
    def weights(directory: Path) -> float:
        return sx.run_sweep(sweep_of("mlp"), directory, progress=False).results()["train_loss"].item()

    plain = weights(tmp_path / "plain")
    with jax.default_prng_impl("rbg"):  # draws other initial weights
        other = weights(tmp_path / "rbg")
    assert other != plain
    assert weights(tmp_path / "again") == plain


def test_the_ids_of_the_families_are_those_of_the_first_version():
    """Finished trials of version 0.1.0 are found again, whatever fields a trial has got since."""
    data = replace(DATA, train_examples=(20, 60))
    models = (ModelGrid("logistic"), ModelGrid("mlp", width=[4, 8], depth=1))
    train = TrainSpec(
        learning_rate=(1e-2,), weight_decay=(0.0, 0.1), batch_size=(4,), epochs=3, clip_norm=1.0, patience=2,
        warmup_fraction=0.1,
    )  # fmt: skip
    found = expand(Sweep(name="ids", data=data, models=models, train=train), describe(data))
    assert [counted.trial.trial_id for counted in found][::3] == FIRST_IDS
    plain = planned(knobs={})
    assert plain.trial_id == "d4140535216e05c4"
    assert replace(plain, numerics=(("a", "b"),)).trial_id != plain.trial_id
    assert planned(knobs={}, weight_decay_on=("a",)).trial_id != plain.trial_id


# A recipe's fields, each with another value than that of the trials in these tests.
OTHER_CONSTANTS = {
    "optimizer": "sgd",
    "schedule": "constant",
    "clip_norm": 1.0,
    "batch_size": 32,
    "weight_decay_on": ("*",),
    "task": Regression(),
    "target": ("int8", ()),
    "numbers": {"b1": 0.8, "b2": 0.999, "eps": 1e-8},
}


def test_each_constant_of_a_recipe_divides_buckets():
    assert OTHER_CONSTANTS.keys() == {each.name for each in fields(Recipe)}, "give a new field another value here"
    capacity = Capacity(devices=1, state_bytes=1e9, speed=SPEEDS["cpu"])

    def buckets(**constant) -> list[int]:
        """Return how many trials each program has: three of the usual recipe, and three with another constant."""
        trials = [planned(seed=seed, **changes) for changes in ({}, constant) for seed in range(3)]
        packing = pack(list(map(Counted, trials)), capacity=capacity, judge=lambda *_: Verdict(PROVEN))
        return [bucket.count for bucket in packing.buckets]

    assert buckets() == [6]
    for name, other in OTHER_CONSTANTS.items():
        assert buckets(**{name: other}) == [3, 3], name


@pytest.mark.parametrize("part", ["trial", "recipe", "settings"])
def test_a_new_field_with_a_default_leaves_every_id_as_it_was(part: str):
    trial = planned()
    old = trial if part == "trial" else getattr(trial, part)
    later = make_dataclass("Later", [("later", int, field(default=3))], bases=(type(old),), frozen=True)
    values = {each.name: getattr(old, each.name) for each in fields(old)}

    def trial_id(**changes: int) -> str:
        new = later(**values, **changes)
        return (new if part == "trial" else replace(trial, **{part: new})).trial_id

    assert trial_id() == trial_id(later=3) == trial.trial_id
    assert trial_id(later=4) != trial.trial_id


def test_settings_hold_in_one_thread_for_as_long_as_it_lives():
    wanted = (("jax_default_matmul_precision", "float32"),)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(numerics.hold, wanted).result()
        gc.collect()
        assert threads.submit(numerics.current).result() == wanted
    assert numerics.current() == ()


# ---- a known id whose program differs ----


def test_results_of_another_program_are_not_served_in_silence(tmp_path: Path):
    directory = tmp_path / "run"
    sx.run_sweep(sweep_of("mlp"), directory, progress=False)
    with closing(sqlite3.connect(directory / "results.sqlite")) as ledger, ledger:
        (program,) = ledger.execute("SELECT program FROM trials").fetchone()
        assert len(program) == 16
        ledger.execute("UPDATE trials SET program = 'another'")
    with pytest.warns(UserWarning, match="1 finished trial came from another program than these versions") as caught:
        sx.run_sweep(sweep_of("mlp"), directory, progress=False)
    assert len(caught) == 1


def test_the_same_program_is_served_without_a_word(tmp_path: Path):
    sx.run_sweep(sweep_of("mlp"), tmp_path / "run", progress=False)
    table = sx.run_sweep(sweep_of("mlp"), tmp_path / "run", progress=False).results()  # a warning would be an error
    assert table["program"].str.fullmatch("[0-9a-f]{16}").all()


def ids_of(*, task: Any = None, optimizer: Any = "adamw") -> set[str]:
    return ids(sweep_of("mlp", task=task, train=replace(TRAIN, optimizer=optimizer)))


class Halves:
    """A task of a user's own, whose parts tests replace."""

    name, metric = "halves", "misses"

    def outputs(self, card):
        return card.classes

    def loss(self, outputs, targets):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def score(self, outputs, targets):
        return (outputs.argmax(-1) != targets).astype(jnp.float32)

    def headline(self, mean):
        return mean


@dataclass
class Unhashable(Halves):
    pass


def another_structure() -> Any:
    def update(updates, state, params=None):
        del updates, params
        return 1.0, state

    return optax.GradientTransformation(optax.identity().init, update)  # pyright: ignore[reportArgumentType]


def changed_task(**parts):
    return type("Changed", (Halves,), parts)()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (changed_task(score=lambda _, outputs, _targets: outputs.sum()), "as score for two examples ()"),
        (changed_task(loss=lambda _, outputs, _targets: outputs), "as loss for two examples (2, 10)"),
        (changed_task(headline=lambda _, mean: mean[None]), "as headline of a mean (1,); expected the shape ()"),
        (changed_task(outputs=lambda _, _card: "two"), "asks for 'two' outputs of a model"),
    ],
)
def test_a_task_of_ones_own_that_returns_something_else_is_refused(task, message: str):
    with pytest.raises(SweepError) as refusal:
        ids_of(task=task)
    assert message in str(refusal.value)


def test_tasks_that_cannot_be_told_apart_by_name_or_hash_are_refused():
    with pytest.raises(SweepError, match="Unhashable cannot be hashed"):
        ids_of(task=Unhashable())
    with pytest.raises(SweepError, match=r"object with the attributes of scalejax\.Task"):
        ids_of(task=changed_task(name=3))


def test_what_a_task_or_an_optimizer_of_ones_own_computes_is_part_of_the_id():
    twice = changed_task(loss=lambda _, outputs, targets: 2 * Halves().loss(outputs, targets))
    again = changed_task(score=lambda _, outputs, targets: 2 * Halves().score(outputs, targets))
    optimizers = [functools.partial(optax.trace, decay=decay) for decay in (0.8, 0.9)]
    sets = [ids_of(), ids_of(task=Halves()), ids_of(task=twice), ids_of(task=again)]
    sets += [ids_of(optimizer=each) for each in optimizers]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert ids_of(task=Halves()) == ids_of(task=Halves())


class Smoothed(Classification):
    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return 0.9 * super().loss(outputs, targets)


def test_a_class_that_derives_from_a_task_here_is_ones_own():
    assert not ids_of(task=Smoothed()) & ids_of(task=Classification())


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: 3, "fails: AttributeError"),
        (another_structure, "of another structure"),
        (contrib.reduce_on_plateau, "fails: TypeError"),
    ],
)
def test_an_optimizer_of_ones_own_that_is_none_is_refused(optimizer, message: str):
    with pytest.raises(SweepError) as refusal:
        ids_of(optimizer=optimizer)
    assert message in str(refusal.value)


def test_what_an_optimizer_of_ones_own_does_by_rank_name_or_shape_is_part_of_the_id():
    def on_biases(weight: float):
        def biases(params):
            return jax.tree.map(lambda leaf: leaf.ndim == 1, params)

        decay = optax.masked(optax.add_decayed_weights(weight), biases)
        return lambda: optax.chain(optax.scale_by_adam(), decay)

    def on_wide(factor: float):
        def update(updates, state, params=None):
            del params
            scaled = jax.tree.map(lambda u: u * (factor if u.shape[-1] == 10 else 1.0), updates)
            return scaled, state

        return lambda: optax.GradientTransformation(optax.identity().init, update)

    for rule in (on_biases, on_wide):
        found = [ids_of(optimizer=rule(number)) for number in (0.5, 50.0)]
        assert not set.intersection(*found)


def test_a_class_in_place_of_an_object_is_refused():
    with pytest.raises(SweepError, match=r"expected an object, found the class Halves; write Halves\(\)"):
        ids_of(task=Halves)
    with pytest.raises(SweepError, match=r"the optimizer .* fails: TypeError"):
        ids_of(optimizer=optax.adam)


def test_the_name_of_a_metric_is_part_of_the_id():
    assert ids_of(task=changed_task(metric="hits")) != ids_of(task=Halves())
