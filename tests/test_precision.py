"""The precision of a sweep: what is multiplied in what, where it shows, and where it does not."""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_helpers import CLASSES, FIRST, INPUTS, RECIPE, slow, trial_of
from flax import nnx
from jax.extend import core
from own_modules import BatchNorm
from sized_modules import Transformer as CarriesFloat32
from test_predict import ALL, run_of

import scalejax as sx
from scalejax.data import DataCard, describe
from scalejax.data.features import resolve
from scalejax.errors import SweepError
from scalejax.execute import probe
from scalejax.models import FAMILIES, MLP, Architecture, architecture
from scalejax.models.equations import inner_programs
from scalejax.models.precision import PRECISIONS
from scalejax.planning.device_specs import device_spec_named
from scalejax.planning.lowering import abstract_data, abstract_lanes
from scalejax.planning.outline import outline
from scalejax.planning.placement import Placement
from scalejax.planning.plan import make_plan
from scalejax.planning.proof.prove import Proof, prove
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import expand
from scalejax.report.plan import plan_lines
from scalejax.train import lanes
from scalejax.train.cost import device_bytes, lane_bytes, step_flops
from scalejax.train.lanes import Commands, abstract_lane, advance, blocks, evaluate_one, train_steps, validate_lanes
from scalejax.train.padding import HASTY, fits_into, initial_weights, pad
from scalejax.train.recipe import LaneProgram
from scalejax.train.step import Cursor, Examples, accumulated, start, train_step
from scalejax.train.task import NextToken
from scalejax.train.traced import program_digest, traced_slope

pytestmark = pytest.mark.usefixtures("compile_quickly")
NARROW = "bfloat16", "bfloat16_parameters"
# Bfloat16 has eight significant bits: rounding moves a number by up to 2^-8 of itself. Numbers that are summed in
# another order may be rounded to the other side; a loss, a mean over a batch, is off by no more than one such rounding.
ONE_ROUNDING = 2.0**-8

VECTORS: dict[str, Any] = {"shape": (INPUTS,), "outputs": CLASSES}
IMAGES: dict[str, Any] = {"shape": (12, 12), "outputs": CLASSES}
TOKENS: dict[str, Any] = {"shape": (8,), "outputs": 20, "dtype": "int32", "vocabulary": 20}
# Family -> what its examples are, and the knobs of a small and of a large size.
SIZES: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, int]]] = {
    "logistic": (VECTORS, {}, {}),
    "mlp": (VECTORS, {"width": 5, "depth": 2}, {"width": 24, "depth": 2}),
    "cnn": (IMAGES, {"width": 2, "depth": 2}, {"width": 5, "depth": 2}),
    "transformer": (
        TOKENS,
        {"heads": 1, "depth": 1, "head_size": 4},
        {"heads": 3, "depth": 2, "head_size": 4},
    ),
}


def sized(family: str, knobs: dict[str, int], precision: str = "float32") -> Architecture:
    return architecture(FAMILIES[family], knobs, **SIZES[family][0], precision=precision)


def mlp(precision: str = "float32") -> Architecture:
    return sized("mlp", SIZES["mlp"][1], precision)


def own(build: Any, precision: str, **more: Any) -> Architecture:
    return architecture(build, {"width": 8}, **VECTORS, precision=precision, **more)


def products(program: core.Jaxpr) -> list[tuple[str, Any]]:
    """Return the type of each product's operands, and how it is multiplied, of a program and those inside it."""
    inside = [
        each for equation in program.eqns for inner in inner_programs(equation.params) for each in products(inner)
    ]
    own: list[Any] = [each for each in program.eqns if each.primitive.name in ("dot_general", "conv_general_dilated")]
    types = [" ".join(dict.fromkeys(str(operand.aval.dtype) for operand in each.invars)) for each in own]
    return [*zip(types, (each.params["precision"] for each in own), strict=True), *inside]


# ---- the key ----


def test_an_unknown_precision_is_refused_with_the_nearest_and_a_list_is_none():
    for wrong, says in (("bf16", "'bf16' is unknown; did you mean bfloat16?"), (["tf32"], "expected one of float32")):
        with pytest.raises(SweepError, match=re.escape(says)):
            sx.TrainSpec(learning_rate=(1.0,), batch_size=(1,), steps=1, precision=wrong)  # pyright: ignore


def test_a_precision_is_part_of_an_id_where_it_is_not_the_default():
    trials = {name: trial_of(mlp(name), "mlp", SIZES["mlp"][1]) for name in PRECISIONS}
    assert trials["float32"].trial_id == "62fef1ab1189f6f1"  # of version 0.3.0
    assert len({trial.trial_id for trial in trials.values()}) == len(PRECISIONS)
    assert len({trial.program.identity for trial in trials.values()}) == len(PRECISIONS)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_what_is_told_to_the_device_alone_is_no_part_of_a_traced_model(precision: str):
    size = own(BatchNorm, precision)
    assert {how for _, how in products(traced_slope(size, RECIPE).program.jaxpr)} == {None}
    assert program_digest(size, RECIPE) == program_digest(own(BatchNorm, "float32"), RECIPE)


def test_the_precision_of_a_file_is_that_of_its_trials_and_a_plan_says_it():
    data = sx.DataSpec((np.zeros((40, 3), np.float32), np.arange(40) % 2), fractions=ALL)
    given = sx.Sweep("s", data, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5, precision="bfloat16"))
    plan = make_plan(given)
    assert {each.architecture.precision for each in plan.trials} == {"bfloat16"}
    spec = device_spec_named("h200")
    simulation = simulate(plan, spec)
    assert "precision bfloat16" in plan_lines(outline(plan, simulation, device="cpu"))
    speeds = [spec.speed_in(name).products for name in PRECISIONS]
    assert speeds[0] == spec.speed.products < speeds[1] < speeds[2] == speeds[3]
    usual = make_plan(replace(given, train=replace(given.train, precision="float32")))
    assert "precision" not in str(plan_lines(outline(usual, simulation, device="cpu")))


# ---- what is multiplied in what ----


def lowered_for_cuda(size: Architecture, *, mode: str = "static") -> str:
    """Return what trains and measures a size as it is handed to the compiler of a GPU."""
    program, placement = LaneProgram(size, RECIPE, mode=mode), Placement(FIRST, 2)
    card = DataCard("t", size.shape, CLASSES, 64, 16, 16, "f")
    state, data = abstract_lanes(program, placement), abstract_data(card, placement, program=program)
    each, number = jax.ShapeDtypeStruct((2,), np.bool_), jax.ShapeDtypeStruct((), np.int32)
    place = jax.ShapeDtypeStruct((2,), np.uint32)
    cursor = Cursor(place, place)
    calls: list[Any] = [(advance, state, data, Commands(number, cursor, each, each, each))]
    if mode == "static":
        steps = functools.partial(train_steps, steps=1)
        calls = [
            (steps, state, data, cursor, number),
            (validate_lanes, state, data, each),
            (lanes.test_lanes, state, data),
        ]
    traced = [jax.jit(functools.partial(function, program)).trace(*given) for function, *given in calls]
    return "\n".join(each.lower(lowering_platforms=("cuda",)).as_text() for each in traced)


def told(text: str) -> set[tuple[str, str]]:
    """Return the type of operands and the precision of each product and convolution in a lowered program."""
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    assert lines
    how = [re.findall(r"HIGHEST|HIGH|DEFAULT", line) for line in lines]
    of = [re.findall(r"x(b?f[0-9]+)>", line.rpartition(": (")[2])[:2] for line in lines]
    return {
        (" ".join(dict.fromkeys(types)), " ".join(dict.fromkeys(names))) for types, names in zip(of, how, strict=True)
    }


def evaluation_for_cuda(size: Architecture) -> str:
    """Return the evaluation of a size as it is handed to the compiler of a GPU."""
    inputs = np.zeros((4, *size.shape), size.dtype)
    held_out = blocks(inputs, np.zeros(4, np.int32))
    task = RECIPE.task if size.dtype == "float32" else NextToken()
    traced = jax.jit(functools.partial(evaluate_one, size, task)).trace(*size.abstract[1:], blocks=held_out)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


MULTIPLIED = {
    "float32": {("f32", "HIGHEST")},
    "tf32": {("f32", "HIGH")},
    "bfloat16": {("bf16", "DEFAULT")},
    "bfloat16_parameters": {("bf16", "DEFAULT")},
}


@pytest.mark.parametrize("family", ["logistic", *slow("mlp", "cnn")])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", *slow("bfloat16_parameters")])
@pytest.mark.parametrize("mode", ["static", *slow("vmap", "map")])
def test_a_gpu_is_told_how_to_multiply(family: str, precision: str, mode: str):
    assert told(lowered_for_cuda(sized(family, SIZES[family][1], precision), mode=mode)) == MULTIPLIED[precision]


@pytest.mark.parametrize("family", ["logistic", *slow("cnn", "transformer")])
def test_a_kept_model_is_evaluated_with_the_same_products(family: str):
    for precision, wanted in MULTIPLIED.items():
        assert told(evaluation_for_cuda(sized(family, SIZES[family][1], precision))) == wanted


class Told(nnx.Module):
    """A module that says of one of its products how it is multiplied."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, precision="tensorfloat32", rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.hidden(x))


def test_what_a_module_says_of_a_product_stays_and_so_does_the_setting_of_jax():
    assert told(lowered_for_cuda(own(Told, "float32"))) == {("f32", "HIGHEST"), ("f32", "HIGH")}
    with jax.default_matmul_precision("bfloat16"):
        assert told(lowered_for_cuda(sized("logistic", {}))) == {("f32", "DEFAULT")}


def test_what_batch_statistics_make_float32_again_is_multiplied_fast():
    found = products(traced_slope(own(BatchNorm, "bfloat16"), RECIPE).program.jaxpr)
    assert {types for types, _ in found} == {"bfloat16", "float32"}
    assert {how if isinstance(how, tuple) else (how,) * 2 for _, how in found} == {(jax.lax.Precision.DEFAULT,) * 2}


def test_features_are_float32_and_the_model_behind_them_computes_in_bfloat16():
    size = architecture(
        FAMILIES["logistic"], {}, **VECTORS, features=resolve(("standardise", "pca(4)")), precision="bfloat16"
    )
    found = products(size.forward_program(4).jaxpr)
    assert [types for types, _ in found] == ["float32", "bfloat16"]
    assert found[0][1] is None


# ---- what is stored, and what it takes ----


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parameters_are_stored_as_the_precision_says_and_the_optimizer_in_float32(precision: str):
    each = trial_of(mlp(precision), "mlp")
    weights = initial_weights(each.architecture, 3)
    batch = Examples(jnp.ones((16, INPUTS)), jnp.zeros(16, jnp.int32))
    begun = start(each.recipe, each.settings.scalars(), weights)
    step = functools.partial(train_step, each.program, each.settings.scalars())
    assert jax.eval_shape(step, begun.learner, batch) == jax.eval_shape(lambda: begun.learner)
    stored = jnp.dtype(PRECISIONS[precision].stores)
    assert {leaf.dtype for leaf in jax.tree.leaves((begun.learner.params, begun.best.params))} == {stored}
    moments = {leaf.dtype for leaf in jax.tree.leaves(begun.learner.optimizer)}
    assert moments == {jnp.dtype("float32"), jnp.dtype("int32")}  # and the step
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), weights) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), each.architecture.abstract[1:]
    )
    drawn = initial_weights(mlp(), 3)  # in float32, then rounded
    for leaf, before in zip(jax.tree.leaves(weights), jax.tree.leaves(drawn), strict=True):
        np.testing.assert_array_equal(leaf, before.astype(stored))


def test_memory_counts_what_is_stored_and_the_copy_that_is_rounded():
    size = mlp()
    of = {name: lane_bytes(LaneProgram(mlp(name), RECIPE)) for name in PRECISIONS}
    # A parameter, its best value and its gradient in the type of the parameters; two moments of four bytes.
    count, rest = size.parameter_count, of["float32"] - (3 * 4 + 2 * 4) * size.parameter_count
    assert 0 < rest < 100
    assert of["tf32"] == of["float32"]
    assert of["bfloat16"] == rest + (3 * 4 + 2 * 4 + 2) * count
    assert of["bfloat16_parameters"] == rest + (3 * 2 + 2 * 4) * count
    assert len({step_flops(mlp(name), RECIPE) for name in PRECISIONS}) == 1
    # What is spread over devices counts the same, and what the forward pass keeps, which is half as much in bfloat16.
    kept = {name: device_bytes(LaneProgram(mlp(name), RECIPE), lanes=1) - of[name] for name in PRECISIONS}
    assert kept["float32"] == 2 * kept["bfloat16"] == 2 * kept["bfloat16_parameters"] > 0


def test_gradients_of_parts_of_a_batch_are_added_up_in_float32():
    each = trial_of(mlp("bfloat16_parameters"), "mlp")
    parts = replace(each.program, microbatches=4)
    learner = abstract_lane(parts).learner
    batch = jax.tree.map(lambda array: array[0], batches())
    added = jax.eval_shape(functools.partial(accumulated, parts), learner, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(added.gradient)} == {jnp.dtype("float32")}
    count, whole_bytes = each.architecture.parameter_count, lane_bytes(each.program)
    assert lane_bytes(parts) == whole_bytes + 2 * count


# ---- that sizes share a program ----


@pytest.mark.parametrize(
    ("family", "precision"),
    [(family, name) for family in ("logistic", "mlp", "cnn", "transformer") for name in ("tf32", *NARROW)],
)
def test_sizes_are_proven_to_share_a_program_and_the_same_parameters_decay(family: str, precision: str):
    recipe = replace(RECIPE, clip_norm=1.0, task=NextToken() if family == "transformer" else RECIPE.task)
    programs = [LaneProgram(sized(family, knobs, precision), recipe) for knobs in SIZES[family][1:]]
    assert prove(*programs) == Proof(True, "")
    plain = LaneProgram(sized(family, SIZES[family][1]), recipe)
    assert {each.decayed for each in programs} == {plain.decayed}


def test_another_precision_never_shares_a_program():
    small, large = (sized("mlp", knobs, name) for knobs, name in zip(SIZES["mlp"][1:], NARROW, strict=True))
    same = replace(large, precision=small.precision)
    assert fits_into(small, same)
    assert not fits_into(small, large)
    assert not fits_into(replace(small, precision="tf32"), replace(large, precision="float32"))


def batches(count: int = 10) -> Examples:
    """Return batches of 16 examples that a network can learn, [count, 16, ...]."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, 16, INPUTS)).astype(np.float32)
    return Examples(jnp.asarray(inputs), jnp.asarray(np.abs(inputs[..., :CLASSES]).argmax(-1).astype(np.int32)))


def quick(function: Any, *operands: Any) -> Any:
    """Run a function as one program that is not optimised: it would take longer to compile than to run."""
    return jax.device_get(jax.jit(function).lower(*operands).compile(HASTY)(*operands))


def losses(size: Architecture, weights: Any, given: Examples) -> np.ndarray:
    """Return the training loss of each of some batches, one step each, at a constant learning rate of 0.01."""
    program = LaneProgram(size, replace(RECIPE, schedule="constant"))
    own = trial_of(program.architecture, learning_rate=1e-2, weight_decay=0.1, warmup_steps=0).settings.scalars()

    def step(learner: Any, batch: Examples) -> tuple[Any, jax.Array]:
        after = train_step(program, own, replace(learner, loss_sum=jnp.float32(0)), batch)
        return after, after.loss_sum

    def run(weights: Any, given: Examples) -> jax.Array:
        return jax.lax.scan(step, start(program.recipe, own, weights).learner, given)[1]

    return quick(run, weights, given)


@pytest.mark.parametrize("precision", ["bfloat16", *slow("bfloat16_parameters")])
def test_ten_steps_equal_a_plain_loop_of_flax_and_optax_with_the_same_casts(precision: str):
    size, given = mlp(precision), batches()
    params, rest = initial_weights(size, 1)
    graph = nnx.graphdef(MLP(inputs=INPUTS, classes=CLASSES, **SIZES["mlp"][1], rngs=nnx.Rngs(0)))
    rule = optax.adamw(1e-2, weight_decay=0.1, mask=jax.tree.map(lambda leaf: leaf.ndim >= 2, params))

    def cast(tree: Any, dtype: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def loss_of(params: Any, batch: Examples) -> jax.Array:
        logits = nnx.merge(graph, cast(params, jnp.bfloat16), rest)(batch.inputs.astype(jnp.bfloat16))
        of_each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch.targets)
        return of_each.mean()

    def step(carried: tuple[Any, Any], batch: Examples) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carried
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        wide = cast(params, jnp.float32)
        update, state = rule.update(cast(gradient, jnp.float32), state, wide)
        moved = optax.apply_updates(wide, update)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, params)
        return (after, state), loss

    begun = params, rule.init(cast(params, jnp.float32))
    wanted = quick(lambda begun, given: jax.lax.scan(step, begun, given)[1], begun, given)
    np.testing.assert_allclose(losses(size, (params, rest), given), wanted, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", *slow("bfloat16_parameters")])
def test_packed_equals_solo_up_to_a_rounding(precision: str):
    small, large = (sized("mlp", knobs, precision) for knobs in SIZES["mlp"][1:])
    weights, given = initial_weights(small, 1), batches()
    padded: Any = pad(weights, large.abstract[1:])
    found = losses(large, padded, given)
    np.testing.assert_allclose(found, losses(small, weights, given), rtol=ONE_ROUNDING)


def test_a_probe_is_made_in_float32(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(probe, "_side_by_side", lambda small, large, *_: seen.extend((small, large)) or 1 / 0)
    given = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), batches())
    small, large = (LaneProgram(sized("mlp", knobs, "bfloat16"), RECIPE) for knobs in SIZES["mlp"][1:])
    assert "division by zero" in probe.probe(small, large, jax.device_get(given))
    assert {each.architecture.precision for each in seen} == {"float32"}


# ---- modules of one's own ----


@pytest.mark.parametrize("precision", NARROW)
def test_batch_statistics_stay_float32_and_right(precision: str):
    size = own(BatchNorm, precision)
    params, rest = initial_weights(size, 0)
    x = np.random.default_rng(0).normal(size=(64, INPUTS)).astype(np.float32)
    after = quick(size.forward, params, rest, x)[1]
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, rest)
    plain = quick(own(BatchNorm, "float32").forward, params, rest, x)[1]
    for found, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.1 * ONE_ROUNDING, atol=0.1 * ONE_ROUNDING)


class Remembers(nnx.Module):
    """A module that keeps a statistic in whatever type it is made."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden, self.output = nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, classes, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.hidden(x)
        self.mean[...] = h.mean(0)
        return self.output(h)


def test_a_statistic_of_bfloat16_is_kept_in_float32():
    size = own(Remembers, "bfloat16")
    size.check(outputs=(CLASSES,), task="classification")
    after = jax.eval_shape(size.forward, *size.abstract[1:], size.inputs(4))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_a_loop_that_carries_float32_is_refused_in_a_sentence():
    knobs = {"heads": 1, "depth": 2, "width": 4}
    size = architecture(CarriesFloat32, knobs, **VECTORS, precision="bfloat16")
    with pytest.raises(SweepError, match=r"in bfloat16 fails .* but not in float32; give what its loops carry .* scan"):
        size.check(outputs=(CLASSES,), task="classification")


def test_all_products_of_a_decoder_are_of_bfloat16():
    narrow = sized("transformer", SIZES["transformer"][1], "bfloat16")
    types = {types for types, _ in products(traced_slope(narrow, replace(RECIPE, task=NextToken())).program.jaxpr)}
    assert types == {"bfloat16"}


@pytest.mark.slow
def test_a_decoder_in_bfloat16_is_that_of_float32_up_to_roundings():
    knobs = SIZES["transformer"][1]
    tokens = np.random.default_rng(0).integers(0, 20, (4, 8)).astype(np.int32)
    plain, narrow = (sized("transformer", knobs, name) for name in ("float32", "bfloat16"))
    params, rest = initial_weights(plain, 0)
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: (leaf + noise.normal(0, 0.3, leaf.shape)).astype(np.float32), params)
    found, wanted = (quick(size.predict, params, rest, tokens) for size in (narrow, plain))
    assert 0 < np.abs(found - wanted).max() < 8 * ONE_ROUNDING * np.abs(wanted).max()


# ---- models that are kept ----


@pytest.mark.parametrize("precision", NARROW)
def test_a_kept_model_predicts_in_the_precision_that_it_was_trained_in(precision: str, tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    data = sx.DataSpec((x, x[:, 0]), fractions=ALL)
    run, trial_id, sweep = run_of(data, tmp_path, precision=precision)
    (each,) = (one.trial for one in expand(sweep, describe(sweep.data)))
    assert each.trial_id == trial_id
    weights = initial_weights(each.architecture, each.key("initialise"))
    module = run.model(trial_id)
    stored = jnp.dtype(PRECISIONS[precision].stores)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))} == {stored}
    wanted = quick(each.architecture.predict, *weights, x)[:, 0]
    np.testing.assert_allclose(run.predict(trial_id, x), wanted, rtol=1e-6)
