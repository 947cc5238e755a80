"""Sizes of users' own modules in one program: stacked depth, attention heads, and sizes carried in the state."""

import functools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import sized_modules
from engine_helpers import CLASSES, INPUTS, pack_of, params_of, program, quick_jit, slow, summed_losses, trial_of
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import scalejax as sx
from scalejax.data import DataSet
from scalejax.models import architecture
from scalejax.models.architecture import Build
from scalejax.planning.packing import PROVEN, Capacity, Packing, Verdict, pack
from scalejax.planning.proof.prove import prove
from scalejax.planning.trial import Counted, Trial
from scalejax.train.cost import SPEEDS
from scalejax.train.lanes import blocks
from scalejax.train.padding import SOLO_TOLERANCE, initial_weights, pad
from scalejax.train.recipe import LaneProgram
from scalejax.train.step import Cursor, Examples, Learner, loss_and_metric, start, train

pytestmark = pytest.mark.usefixtures("compile_quickly")
CAPACITY = Capacity(devices=1, state_bytes=1e9, speed=SPEEDS["cpu"])
STEPS = 10
Weights = tuple[nnx.State, nnx.State]
LARGEST = {"heads": 8, "depth": 4, "width": 8}
MIDDLE = {"heads": 3, "depth": 3, "width": 7}


def sized(build: Build, knobs: dict[str, int], **changes) -> Trial:
    """Return a trial of a module of the user's own; `changes` as of `trial_of`."""
    built = architecture(build, knobs, shape=(INPUTS,), outputs=CLASSES)
    return trial_of(built, build.__name__, knobs, builder="source", **changes)


def judge(small: LaneProgram, large: LaneProgram) -> Verdict:
    proof = prove(small, large)
    return Verdict(PROVEN if proof.proven else "", proof.reason)


def packing_of(build: Build, sizes: Sequence[dict[str, int]]) -> Packing:
    return pack([Counted(sized(build, knobs)) for knobs in sizes], capacity=CAPACITY, judge=judge)


@functools.cache
def programs(constants: LaneProgram):
    """Compile the start and the training of one model: no lanes, and no padding unless the weights have it."""
    return quick_jit(functools.partial(start, constants.recipe)), quick_jit(functools.partial(train, constants))


def train_alone(
    each: Trial, weights: Weights, data: DataSet, *, padded_to: Trial | None = None
) -> tuple[list[float], Learner]:
    """Return the loss summed up to each of ten steps, and the learner after them."""
    starting, training = programs(program(padded_to or each))
    state = starting(each.settings.scalars(), weights)
    pool, losses = Examples(data.train.inputs, data.train.targets), []
    for step in range(STEPS):
        seen = divmod(step * each.recipe.batch_size, each.settings.train_examples)
        state = training(state, Cursor(*map(np.uint32, seen)), pool=pool, steps=np.int32(1))
        losses.append(float(state.learner.loss_sum))
    return losses, state.learner


def arrays(tree: nnx.State) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_zero_outside(wide: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> None:
    """Assert that nothing but zeros, to the last bit, lies beyond the true shapes."""
    for array, shape in zip(wide, shapes, strict=True):
        outside = array.copy()
        outside[tuple(slice(size) for size in shape)] = 0
        assert not outside.any()


def assert_inside(wide: Sequence[np.ndarray], own: Sequence[np.ndarray]) -> None:
    """Assert that `wide` hold `own`, relative to each array's scale."""
    for array, true in zip(wide, own, strict=True):
        inside = array[tuple(slice(size) for size in true.shape)]
        np.testing.assert_allclose(inside, true, rtol=0, atol=SOLO_TOLERANCE * np.abs(true).max())


def true_shapes(each: Trial) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(each.architecture.abstract[1])]


def assert_equal_to_solo(trials: Sequence[Trial], largest: Trial, data: DataSet, *, alone: Sequence[int]) -> None:
    """Train `trials` in one program of the size of `largest`, and those numbered in `alone` alone as well."""
    weights = {
        number: initial_weights(trials[number].architecture, trials[number].key("initialise")) for number in alone
    }
    with ThreadPoolExecutor(len(alone)) as threads:  # the programs are compiled side by side
        solo = [threads.submit(train_alone, trials[number], weights[number], data) for number in alone]
        packed = pack_of(trials, data, largest=largest)
    together = summed_losses(packed, STEPS)
    for number, each in enumerate(trials):
        assert_zero_outside(params_of(packed, number), true_shapes(each))
    for number, future in zip(alone, solo, strict=True):
        losses, learner = future.result()
        np.testing.assert_allclose(together[:, number], losses, rtol=SOLO_TOLERANCE)
        assert_inside(params_of(packed, number), arrays(learner.params))


def transformer(knobs: dict[str, int], *, seed: int = 0) -> Trial:
    return sized(sized_modules.Transformer, knobs, clip_norm=0.5, seed=seed)


def test_transformers_of_other_heads_depths_and_widths_share_a_bucket():
    packing = packing_of(sized_modules.Transformer, [MIDDLE, LARGEST])
    assert (len(packing.buckets), packing.notes) == (1, ())


@pytest.fixture(scope="module")
def transformers() -> list[Trial]:
    sizes = {"heads": 1, "depth": 2, "width": 3}, {"heads": 2, "depth": 1, "width": 8}, MIDDLE
    return [transformer(size, seed=seed) for seed, size in enumerate(sizes)]


@pytest.mark.slow
def test_transformers_padded_to_eight_heads_and_four_blocks_equal_their_solo_runs(
    data: DataSet, transformers: list[Trial]
):
    assert_equal_to_solo(transformers, transformer(LARGEST), data, alone=[0, 2])


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(heads=st.integers(1, 3), depth=st.integers(1, 3), width=st.integers(1, 7), seed=st.integers(0, 99))
def test_how_far_a_size_is_padded_changes_no_loss(
    data: DataSet, transformers: list[Trial], heads: int, depth: int, width: int, seed: int
):
    # Padded to the program of its neighbours and, alone, to a smaller one: both are compiled above.
    each = transformer({"heads": heads, "depth": depth, "width": width}, seed=seed)
    generator = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), each.architecture.abstract[1]
    )
    rest = jax.device_get(jax.jit(lambda: each.architecture.initialise(jax.random.key(0))[1])())
    middle, packed = transformers[2], pack_of(transformers, data, largest=transformer(LARGEST))
    packed.place([(1, each, (params, rest))])
    like = middle.architecture.abstract[1:]
    losses, learner = train_alone(each, (pad(params, like[0]), pad(rest, like[1])), data, padded_to=middle)
    np.testing.assert_allclose(summed_losses(packed, STEPS)[:, 1], losses, rtol=SOLO_TOLERANCE)
    for found in (params_of(packed, 1), arrays(learner.params)):
        assert_zero_outside(found, true_shapes(each))


@pytest.mark.parametrize("optimizer", ["momentum", *slow("sgd", "lion")])
def test_sizes_carried_in_the_state_give_the_solo_run_with_every_optimizer(data: DataSet, optimizer: str):
    small, largest = (
        sized(sized_modules.Shallow, {"width": width}, optimizer=optimizer, clip_norm=0.5) for width in (3, 8)
    )
    assert_equal_to_solo([small, largest], largest, data, alone=[0])


def test_sizes_carried_in_the_state_share_a_bucket():
    packing = packing_of(sized_modules.Shallow, [{"width": 3}, {"width": 8}])
    assert (len(packing.buckets), packing.notes) == (1, ())


def test_statistics_of_single_units_over_the_batch_share_a_bucket():
    packing = packing_of(sized_modules.OverExamples, [{"width": 3}, {"width": 8}])
    assert (len(packing.buckets), packing.notes) == (1, ())


WIDTHS = {"width": 3}, {"width": 8}


@pytest.mark.parametrize(
    ("build", "sizes", "why"),
    [
        (sized_modules.PlainLayerNorm, WIDTHS, "`div` (sized_modules.py, line 126) uses the constant 3.0, and 8.0"),
        (sized_modules.PlainScale, WIDTHS, "`mul` (sized_modules.py, line 126) uses the constant 0.57"),
        (sized_modules.FusedGates, WIDTHS, "`split` (sized_modules.py, line 176) begins at another place"),
        (sized_modules.OutputBias, ({"width": 4, "depth": 1}, {"width": 4, "depth": 3}), "gradient.blocks.down.bias"),
        (sized_modules.OverUnitsInEvaluation, WIDTHS, "`div` (sized_modules.py, line 156) uses the constant 48.0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sizes_that_padding_would_change_keep_to_themselves_and_the_note_says_why(
    build: Build, sizes: Sequence[dict[str, int]], why: str
):
    packing = packing_of(build, sizes)
    assert len(packing.buckets) == len(sizes)
    (note,) = packing.notes
    assert note.startswith(f"{build.__name__}(")
    assert " is not packed with " in note
    assert why in note


def test_flax_s_own_scan_runs_inside_the_loops_of_an_evaluation(data: DataSet):
    own = sized(sized_modules.ScannedMLP, {"width": 3, "depth": 2}).program
    held_out = blocks(data.validation.inputs, data.validation.targets)
    measure = functools.partial(loss_and_metric, own.architecture, own.recipe.task, blocks=held_out)
    loss, error = jax.eval_shape(measure, *own.architecture.abstract[1:])
    assert loss.shape == error.shape == ()


@pytest.mark.slow
def test_a_sweep_over_depths_and_widths_of_a_residual_stack_is_one_program(tmp_path: Path):
    sweep = sx.Sweep(
        name="stack",
        data=sx.DataSpec("mnist1d", train_examples=(50,), examples=100, validation_examples=50, test_examples=50),
        models=(sx.ModelGrid(sized_modules.ResidualMLP, width=[3, 5], depth=[1, 2]),),
        train=sx.TrainSpec(learning_rate=(1e-2,), batch_size=(16,), steps=20, evaluate_every=10),
    )
    run = sx.run_sweep(sweep, out=tmp_path, progress=False)
    table = run.results()
    assert table[["width", "depth"]].to_numpy().tolist() == [[3, 1], [3, 2], [5, 1], [5, 2]]
    assert set(table["status"]) == {"done"}
    assert np.isfinite(table["test_loss"]).all()
    assert len(json.loads((tmp_path / "environment.json").read_text())["modes"]) == 1
