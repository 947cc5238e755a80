"""Modules of the user's own train as in a plain loop of Flax and Optax, or one sentence says before why they cannot."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_modules
import pytest
from engine_helpers import (
    CLASSES,
    EXACT_SOLO,
    INPUTS,
    finish,
    go_on,
    numbers,
    pack_of,
    program,
    quick_jit,
    slow,
    summed_losses,
    trial_of,
)
from flax import nnx

import scalejax as sx
from scalejax.builders import name_of
from scalejax.data import DataSet, Split
from scalejax.execute import modes
from scalejax.execute.pack import Pack
from scalejax.execute.probe import probe
from scalejax.execute.snapshot import bits, pack_up, unpack
from scalejax.execute.timing import timed
from scalejax.models import architecture
from scalejax.models.architecture import Build
from scalejax.planning.packing import Bucket
from scalejax.planning.plan import make_plan
from scalejax.planning.proof.prove import Proof, prove
from scalejax.planning.trial import Counted, Trial
from scalejax.train.lanes import abstract_lane
from scalejax.train.padding import initial_weights
from scalejax.train.step import Cursor, Examples, start, train, train_step

# Deprecated by Flax, and what modules are full of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning"),
    pytest.mark.usefixtures("compile_quickly"),
]
STEPS = 10
FLAGS = {own_modules.Train: ("train", True), own_modules.Training: ("training", True)}
FLAGS[own_modules.Deterministic] = ("deterministic", False)


def own(build: Build, knobs: Mapping[str, int] | None = None, **changes) -> Trial:
    """Return a trial of a module of the user's own; `changes` as of `trial_of`."""
    sizes = dict(knobs or {})
    changes = {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0, **changes}
    built = architecture(build, sizes, shape=(INPUTS,), outputs=CLASSES)
    return trial_of(built, name_of(build), sizes, builder="source", **changes)


def called(module: Any, x: Any, *, training: bool) -> jax.Array:
    """Call a module as its user would."""
    module.train() if training else module.eval()
    name, value = FLAGS.get(type(module), ("", False))
    return module(x, **({name: value == training} if name else {})).astype(jnp.float32)


def loss_of(logits: Any, labels: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def widened(tree: nnx.State) -> nnx.State:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def batches(data: DataSet) -> list[Examples]:
    train = data.train
    return [Examples(train.inputs[at : at + 16], train.targets[at : at + 16]) for at in range(0, 16 * STEPS, 16)]


def plain_losses(each: Trial, data: DataSet) -> tuple[list[float], np.ndarray]:
    """Return the training losses of ten steps and the logits of evaluation after them, of a plain loop."""
    key = jax.random.key(np.uint32(each.key("initialise")))
    module = each.architecture.build(**dict(each.architecture.arguments), rngs=nnx.Rngs(key))
    optimizer = optax.adamw(each.settings.learning_rate, weight_decay=0.0)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    state = optimizer.init(widened(params))

    @quick_jit
    def step(params, rest, state, batch):
        def loss(params):
            module = nnx.merge(graph, params, rest, copy=True)
            logits = called(module, batch.inputs, training=True)
            nnx.pop(module, nnx.Intermediate)
            return loss_of(logits, batch.targets), nnx.state(module, nnx.Not(nnx.Param))

        (found, rest_after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, state = optimizer.update(widened(gradient), state, widened(params))
        moved = optax.apply_updates(widened(params), update)
        return jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), moved, params), rest_after, state, found

    losses = []
    for batch in batches(data):
        params, rest, state, loss = step(params, rest, state, batch)
        losses.append(float(loss))
    inputs = data.validation.inputs
    evaluate = quick_jit(lambda *states: called(nnx.merge(graph, *states, copy=True), inputs, training=False))
    return losses, np.asarray(evaluate(params, rest))


def own_losses(each: Trial, data: DataSet) -> tuple[list[float], np.ndarray]:
    """Return the same of the training step that every program is made of."""
    constants, settings = program(each), each.settings.scalars()
    built = each.architecture
    learner = start(each.recipe, settings, initial_weights(built, each.key("initialise"))).learner
    step = quick_jit(functools.partial(train_step, constants, settings))
    losses = []
    for batch in batches(data):
        learner = step(replace(learner, loss_sum=np.float32(0)), batch)
        losses.append(float(learner.loss_sum))
    return losses, np.asarray(quick_jit(built.predict)(learner.params, learner.rest, data.validation.inputs))


TRAINED = [
    own_modules.Everything,
    own_modules.Dropout,
    own_modules.Train,
    own_modules.Deterministic,
    own_modules.Recurrent,
]
TRAINED_TOO = [
    own_modules.BatchNorm,
    own_modules.ConvBatchNorm,
    own_modules.LayerNorm,
    own_modules.RMSNorm,
    own_modules.InBfloat16,
    own_modules.PartlyBfloat16,
    own_modules.Bfloat16Logits,
    own_modules.Sows,
    own_modules.Training,
    own_modules.Table,
    own_modules.NumpyTable,
    own_modules.ReplacesTable,
    own_modules.GRU,
    own_modules.Attention,
    own_modules.Embeds,
    own_modules.Listed,
    own_modules.Tied,
    own_modules.Counts,
    own_modules.FloatVariable,
    own_modules.FloatParameter,
    own_modules.Float64Parameter,
    own_modules.Frozen,
    own_modules.CallsBack,
    own_modules.NoParameters,
    own_modules.Rematerialised,
    own_modules.Branches,
    own_modules.Repeats,
    own_modules.Stacked,
]


@pytest.mark.parametrize("build", [*TRAINED, *slow(*TRAINED_TOO)], ids=name_of)
def test_a_module_trains_and_is_evaluated_as_in_a_plain_loop(data: DataSet, build: Build):
    each, labels = own(build), data.validation.targets
    each.architecture.check(outputs=(CLASSES,), task="classification")
    (losses, logits), (plain, plain_logits) = own_losses(each, data), plain_losses(each, data)
    np.testing.assert_allclose(losses, plain, rtol=EXACT_SOLO)
    np.testing.assert_allclose(loss_of(logits, labels), loss_of(plain_logits, labels), rtol=EXACT_SOLO)


def test_a_linen_module_trains_as_in_a_plain_loop_of_linen(data: DataSet):
    """Statistics are updated, keys of dropout are those of the trial's stream, the flag is set in both modes."""
    each = own(own_modules.linen_module)
    each.architecture.check(outputs=(CLASSES,), task="classification")
    losses, logits = own_losses(each, data)

    rngs = nnx.Rngs(jax.random.key(np.uint32(each.key("initialise"))))
    streams = nnx.Rngs(params=rngs.params(), dropout=rngs.dropout()).fork()  # as flax.nnx.bridge does
    module = own_modules.Linen(8, CLASSES)
    keys = {"params": streams.params(), "dropout": streams.dropout()}
    variables = module.init(keys, jnp.zeros((1, INPUTS)), train=False)
    params, statistics = variables["params"], variables["batch_stats"]
    optimizer = optax.adamw(each.settings.learning_rate, weight_decay=0.0)
    state = optimizer.init(params)

    @quick_jit
    def step(params, statistics, state, key, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": statistics}
            logits, updated = module.apply(
                variables, batch.inputs, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return loss_of(logits, batch.targets), updated["batch_stats"]

        (found, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), statistics, state, found

    plain = []
    for batch in batches(data):
        params, statistics, state, loss = step(params, statistics, state, streams.dropout(), batch)
        plain.append(float(loss))
    np.testing.assert_allclose(losses, plain, rtol=EXACT_SOLO)
    variables = {"params": params, "batch_stats": statistics}
    expected = module.apply(variables, data.validation.inputs, train=False)
    labels = data.validation.targets
    np.testing.assert_allclose(loss_of(logits, labels), loss_of(expected, labels), rtol=EXACT_SOLO)


def test_a_module_of_whole_numbers_trains_as_in_a_plain_loop(data: DataSet):
    vocabulary = 9

    def tokens(split: Split) -> Split:
        return Split(np.clip(np.round(2 * split.inputs) + 4, 0, vocabulary - 1).astype(np.int32), split.targets)

    whole = DataSet(data.card, *map(tokens, (data.train, data.validation, data.test)))
    changes = {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
    given = {"shape": (INPUTS,), "outputs": CLASSES, "dtype": "int32", "vocabulary": vocabulary}
    each = trial_of(architecture(own_modules.Tokens, {}, **given), "Tokens", {}, builder="source", **changes)
    each.architecture.check(outputs=(CLASSES,), task="classification")
    (losses, _), (plain, _) = own_losses(each, whole), plain_losses(each, whole)
    np.testing.assert_allclose(losses, plain, rtol=EXACT_SOLO)
    wide = architecture(own_modules.Tokens, {"width": 9}, **given)
    assert prove(program(each), replace(program(each), architecture=wide)) == Proof(True, "")


PROVEN = [
    *(own_modules.ConvBatchNorm, own_modules.BatchNorm, own_modules.InBfloat16, own_modules.Recurrent),
    own_modules.Rematerialised,
]
# Norms divide by the length of an axis, masks are drawn in another shape, gates are one kernel cut into three, and all
# places of all units are one axis.
APART = [own_modules.LayerNorm, own_modules.RMSNorm, own_modules.linen_module, own_modules.GRU, own_modules.Embeds]


def proof_of(build: Build) -> Proof:
    small, large = (own(build, {"width": width}) for width in (3, 7))
    return prove(program(small), program(large))


@pytest.mark.parametrize("build", PROVEN, ids=name_of)
def test_sizes_of_usual_modules_are_proven(build: Build):
    assert proof_of(build) == Proof(True, "")


@pytest.mark.parametrize("build", APART, ids=name_of)
def test_sizes_that_compute_something_else_are_not_proven_and_the_equation_is_named(build: Build):
    proof = proof_of(build)
    assert not proof.proven
    assert "`" in proof.reason


REFUSED = {
    "Mask": "its __call__ asks for mask beside its inputs; expected __call__(self, x), or a flag beside x: train",
    "Prints": "prints or calls Python (jax.debug.print, jax.debug.callback or io_callback)",
    "NoMethod": 'give jax.pure_callback vmap_method="sequential"',
    "PlainList": "put lists of modules or arrays in nnx.List",
    "Tables": "the list tables holds arrays; put lists of modules or arrays in nnx.List",
    "HiddenArray": "hides an array that was made in __init__ from Flax, such as in a function; make it an attribute",
    "IntegerParameter": "has the parameter offsets of int32, which gradients do not train; make it an nnx.Variable",
    "ComplexParameter": "has the parameter phases of complex64, which gradients do not train; make it two real",
    "CountsFloat": "changes its variable calls from int32[] to float32[] when it is called",
    "Grows": "changes its variable seen from float32[1] to float32[2] when it is called",
    "AppendsParameter": "makes the variable late when it is called; make it in __init__",
    "ChangesParameter": "changes its parameter output.kernel when it is called; keep what a call changes in an nnx.Va",
    "PythonCounter": "changes attributes when it is called; keep what a call changes in an nnx.Variable",
    "Tuple": "to tuple; expected outputs of (2, 3) for the task classification; return one array",
    "SingleLogit": "(2, 3) for the task classification; take outputs (or classes) in your builder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_sentence_that_says_what_to_write(name: str):
    with pytest.raises(sx.SweepError) as raised:
        own(getattr(own_modules, name)).architecture.check(outputs=(CLASSES,), task="classification")
    assert REFUSED[name] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"the model {name}(")


def test_a_model_of_one_output_a_text_is_told_that_the_next_token_needs_one_a_position():
    with pytest.raises(sx.SweepError) as raised:
        own(own_modules.SingleLogit).architecture.check(outputs=(64, 256), task="next_token")
    remedy = "take the family transformer, or return one output a position"
    assert f"expected outputs of (2, 64, 256) for the task next_token; {remedy}" in str(raised.value)


def sweep_of(build: Build, **knobs: Any) -> sx.Sweep:
    return sx.Sweep(
        name="own",
        data=sx.DataSpec("mnist1d", train_examples=(50,), examples=100, validation_examples=50, test_examples=50),
        models=(sx.ModelGrid(build, **knobs),),
        train=sx.TrainSpec(learning_rate=(1e-2, 1e-3), batch_size=(16,), steps=4, evaluate_every=2),
    )


def test_a_module_without_a_gradient_is_refused_by_the_plan():
    with pytest.raises(sx.SweepError, match=r"NoGradient\(.*\) cannot be trained on inputs of shape \(2, 40\)"):
        make_plan(sweep_of(own_modules.NoGradient))


def test_a_module_that_starts_at_nan_diverges_at_its_first_step(data: DataSet):
    each = own(own_modules.Nan)
    constants, settings = program(each), each.settings.scalars()
    learner = start(each.recipe, settings, initial_weights(each.architecture, 0)).learner
    after = quick_jit(functools.partial(train_step, constants, settings))(learner, batches(data)[0])
    assert int(after.diverged_step) == 1


def test_moments_of_parameters_in_few_bits_have_float32():
    learner = abstract_lane(program(own(own_modules.InBfloat16))).learner
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(learner.params)} == {"bfloat16"}
    moments = [leaf for leaf in jax.tree.leaves(learner.optimizer) if leaf.ndim > 0]
    assert {str(leaf.dtype) for leaf in moments} == {"float32"}


# ---- builders ----


def test_a_partial_is_a_builder_with_the_name_of_its_function():
    (trial, *_) = make_plan(sweep_of(own_modules.gentle, width=[4])).trials
    assert trial.family == "loose"
    assert trial.architecture.title == "loose(inputs=40, classes=10, width=4)"


def test_partials_that_fill_in_other_numbers_are_other_trials():
    def first_id(build: Build) -> str:
        return make_plan(sweep_of(build, width=[4])).trials[0].trial_id

    again = functools.partial(own_modules.loose, gain=0.1)
    other = functools.partial(own_modules.loose, gain=0.2)
    assert first_id(own_modules.gentle) == first_id(again) != first_id(other)


def test_what_a_partial_fills_in_is_a_default_that_a_knob_overrides():
    build = functools.partial(own_modules.Hidden, width=3, classes=10)
    plain, wider = make_plan(sweep_of(build)), make_plan(sweep_of(build, width=[5]))
    assert [each.trials[0].architecture.parameter_count for each in (plain, wider)] == [163, 265]
    with pytest.raises(sx.SweepError, match="unknown knob of Hidden; did you mean width"):
        sweep_of(build, wdith=[5])


# ---- lanes ----


def losses_alone(each: Trial, data: DataSet) -> list[float]:
    """Return the loss summed up to each of ten steps, of one model without lanes or padding."""
    state = start(each.recipe, each.settings.scalars(), initial_weights(each.architecture, each.key("initialise")))
    training = quick_jit(functools.partial(train, program(each)))
    losses = []
    for step in range(STEPS):
        seen = divmod(step * each.recipe.batch_size, each.settings.train_examples)
        pool = Examples(data.train.inputs, data.train.targets)
        state = training(state, Cursor(*map(np.uint32, seen)), pool=pool, steps=np.int32(1))
        losses.append(float(state.learner.loss_sum))
    return losses


LANES = [own_modules.InBfloat16, own_modules.Sows, own_modules.BatchNorm, own_modules.Table]


@pytest.mark.parametrize("mode", ["vmap", *slow("map")])
@pytest.mark.parametrize("build", [own_modules.Everything, *slow(own_modules.Dropout, *LANES)], ids=name_of)
def test_lanes_equal_their_solo_runs(data: DataSet, build: Build, mode: str):
    # Masks are drawn for all units of a program, so dropout is compared at one size.
    widths = (8, 8, 8) if build is own_modules.Dropout else (3, 8, 3)
    trials = [own(build, {"width": width}, seed=seed) for seed, width in enumerate(widths)]
    together = summed_losses(pack_of(trials, data, mode=mode, largest=trials[1]), STEPS)
    for number, each in enumerate(trials[:2]):
        np.testing.assert_allclose(together[:, number], losses_alone(each, data), rtol=EXACT_SOLO)


def masks(pack: Pack, number: int) -> np.ndarray:
    """Return which units of the hidden layer are kept for 16 examples in the next step of a lane."""
    rest = jax.tree.map(lambda leaf: leaf[number], pack.lanes.learner.rest)
    drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    nnx.update(drop, rest["drop"])
    return np.asarray(drop(jnp.ones((16, 8)))) > 0


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_masks_are_the_seeds_own_in_every_step_and_the_same_in_any_lane(data: DataSet, mode: str):
    trials = [own(own_modules.Dropout, {"width": 8}, seed=seed) for seed in range(3)]
    pack, turned = (pack_of(some, data, mode=mode) for some in (trials, trials[::-1]))
    seen = []
    for _ in range(3):
        found = [masks(pack, number) for number in range(3)]
        for number, mine in enumerate(found):
            np.testing.assert_array_equal(mine, masks(turned, 2 - number))
        seen += found
        for each in (pack, turned):
            each.call(1, due=[], ending=[])
            each.moved(1)
    assert len({mask.tobytes() for mask in seen}) == 9


def test_masks_are_the_same_after_a_checkpoint_in_another_lane(data: DataSet):
    trials = [own(own_modules.Dropout, {"width": 8}, seed=seed, steps=20) for seed in range(3)]
    whole = finish(pack_of(trials, data))
    begun = pack_of(trials, data)
    go_on(begun)
    arrays, manifest = pack_up(begun.snapshot())
    homes = {each.trial_id: (each, begun.bucket.program) for each in trials}
    fresh = pack_of([None, None, None], data, largest=trials[0])
    for number, paused in enumerate(reversed(unpack(arrays, manifest, homes=homes))):
        fresh.resume(number, paused)
    resumed = finish(fresh)
    assert {name: numbers(end) for name, end in whole.items()} == {name: numbers(end) for name, end in resumed.items()}


class OwnKind(own_modules.Hidden):
    """Draws its noise from a generator that is not JAX's usual one."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.noise = nnx.Variable(jax.random.key(jax.random.bits(rngs.params()), impl="rbg"))

    def between(self, x: jax.Array) -> jax.Array:
        self.noise[...], key = jax.random.split(self.noise[...])
        return x + jax.random.normal(key, x.shape)


def test_random_keys_of_another_kind_survive_idle_lanes_and_a_checkpoint(data: DataSet):
    each = own(OwnKind, steps=20)
    pack = pack_of([each, None], data)
    go_on(pack)
    arrays, manifest = pack_up(pack.snapshot())
    (paused,) = unpack(arrays, manifest, homes={each.trial_id: (each, pack.bucket.program)})
    for saved, lane in zip(jax.tree.leaves(paused.state), jax.tree.leaves(pack.lanes), strict=True):
        assert saved.dtype == lane.dtype
        np.testing.assert_array_equal(bits(saved), bits(lane)[0])


# ---- timings and probes ----


def bucket_of(each: Trial, lanes: int) -> Bucket:
    return Bucket(program(each), (Counted(each),) * lanes, lanes, 1.0, 1, 50)


def test_a_module_with_random_keys_is_timed(data: DataSet):
    found = timed(bucket_of(own(own_modules.Dropout), 3), data.card)
    assert found is not None
    assert min(found.step, found.evaluation, found.test) > 0


@pytest.mark.slow
def test_a_long_run_of_a_module_with_random_keys_is_timed_and_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    measured = []
    monkeypatch.setattr(modes, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(modes, "remembered", lambda *_: None)
    monkeypatch.setattr(modes, "timed", lambda *each: measured.append(timed(*each)) or measured[-1])
    run = sx.run_sweep(replace(sweep_of(own_modules.Dropout), seeds=(0, 1, 2, 3)), out=tmp_path, progress=False)
    assert len(measured) == len(modes.MODES)
    assert None not in measured
    assert set(run.results()["status"]) == {"done"}


@pytest.mark.slow
def test_a_module_that_fails_when_it_runs_has_no_timing_and_a_probe_says_why(data: DataSet):
    small, large = (own(own_modules.RaisesInCallback, {"width": width}) for width in (3, 8))
    assert timed(bucket_of(large, 2), data.card) is None
    why = probe(program(small), program(large), Examples(data.train.inputs, data.train.targets))
    assert why == "padded, the module fails: RuntimeError: the table has no such row"


def test_trials_of_a_module_that_fails_when_it_runs_say_why(tmp_path: Path):
    run = sx.run_sweep(sweep_of(own_modules.RaisesInCallback), out=tmp_path, progress=False)
    table = run.results()
    assert set(table["status"]) == {"failed"}
    assert set(table["reason"]) == {"JaxRuntimeError: RuntimeError: the table has no such row"}
