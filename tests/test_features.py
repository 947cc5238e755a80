"""Features: each step against scikit-learn, fitted on a trial's own examples alone, and a part of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import EXACT_SOLO, changed, finish, pack_of, summed_losses, trial_of
from sklearn.decomposition import PCA
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import scalejax as sx
from scalejax.data import DataSet, Split, describe, load, own_examples
from scalejax.data.features import Chain, Function, fit, listed_steps, resolve, shapes, title, transform
from scalejax.data.host_shuffle import own_rows
from scalejax.data.own_examples import FeatureFits, OwnExamples
from scalejax.execute.initial_weights import behind_features
from scalejax.models import FAMILIES, architecture
from scalejax.models.own import named_leaves
from scalejax.planning.older import expand_older
from scalejax.planning.proof.prove import prove
from scalejax.planning.trial import Trial, expand
from scalejax.spec import FeaturesSpec
from scalejax.spec.file import load_sweep, sweep_to_toml
from scalejax.spec.sweep import UNTRAINED
from scalejax.train.padding import initial_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")
SEED = 7
INPUTS = np.random.default_rng(0).normal(1, 2, (50, 12)).astype(np.float32)


def chain_of(text: str) -> Chain:
    return resolve(listed_steps(text))


def features_of(text: str, fitted_on: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    chain = chain_of(text)
    return transform(chain, fit(chain, fitted_on, SEED), inputs)


# The steps


def test_standardise_is_that_of_scikit_learn_and_what_is_constant_stays_zero():
    fitted_on, unseen = INPUTS[:20].copy(), INPUTS[20:]
    fitted_on[:, 3] = 0.1
    found = features_of("standardise", fitted_on, unseen)
    expected = np.asarray(StandardScaler().fit(fitted_on.astype(np.float64)).transform(unseen))
    assert np.all(found[:, 3] == 0)
    others = np.delete(np.arange(12), 3)
    np.testing.assert_allclose(found[:, others], expected[:, others], rtol=1e-5, atol=1e-5)
    assert np.all(features_of("standardise", INPUTS[:1], unseen) == 0)


def test_polynomial_is_that_of_scikit_learn():
    expected = PolynomialFeatures(2, include_bias=False).fit_transform(INPUTS)
    np.testing.assert_allclose(features_of("polynomial", INPUTS[:5], INPUTS), expected, rtol=1e-6)


@pytest.mark.parametrize("examples", [5, 12, 13, 40])
def test_pca_is_that_of_scikit_learn_up_to_sign_and_zero_beyond_the_examples(examples):
    fitted_on = INPUTS[:examples]
    found = features_of("pca(8)", fitted_on, INPUTS)
    kept = min(8, examples - 1)
    expected = PCA(kept, svd_solver="full").fit(fitted_on.astype(np.float64)).transform(INPUTS)
    np.testing.assert_allclose(np.abs(found[:, :kept]), np.abs(expected), rtol=1e-4, atol=1e-4)
    assert np.all(found[:, kept:] == 0)


def test_random_fourier_features_approach_the_gaussian_kernel():
    found = features_of("fourier(20000, 0.7)", INPUTS[:1], INPUTS[:10]).astype(np.float64)
    squares = ((INPUTS[:10, None] - INPUTS[None, :10]) ** 2).sum(-1)
    np.testing.assert_allclose(found @ found.T / 20_000, np.exp(-squares / (2 * 0.7**2 * 12)), atol=0.03)


def test_the_spectrum_does_not_see_a_circular_shift():
    found = features_of("spectrum", INPUTS[:1], INPUTS)
    assert found.shape == (50, 7)
    np.testing.assert_allclose(found, features_of("spectrum", INPUTS[:1], np.roll(INPUTS, 5, axis=1)), atol=1e-5)
    np.testing.assert_allclose(found, np.abs(np.fft.rfft(INPUTS)) / np.sqrt(12), atol=1e-5)


def test_each_step_is_fitted_on_what_those_before_it_make():
    scaler = StandardScaler().fit(INPUTS[:20].astype(np.float64))
    pca = PCA(4, svd_solver="full").fit(scaler.transform(INPUTS[:20]))
    found = features_of("standardise + pca(4)", INPUTS[:20], INPUTS)
    np.testing.assert_allclose(np.abs(found), np.abs(pca.transform(scaler.transform(INPUTS))), rtol=1e-3, atol=1e-4)


def test_more_examples_than_a_block_are_fitted_and_transformed_alike():
    many = np.random.default_rng(1).normal(3, 2, (2500, 5)).astype(np.float32)
    expected = StandardScaler().fit_transform(many.astype(np.float64))
    np.testing.assert_allclose(features_of("standardise", many, many), expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Centred:
    factor: float = 1.0

    def arrays(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {"mean": shape}

    def fit(self, inputs: np.ndarray, seed: int) -> Mapping[str, np.ndarray]:
        del seed
        return {"mean": self.factor * inputs.mean(0)}

    def apply(self, fitted, inputs):
        return inputs - fitted["mean"][None]


POWER, COLUMNS = 1, 2


def powered(x):
    return x**POWER


def first_columns(x):
    return x[:, :COLUMNS]


def test_a_step_computes_what_its_function_reads_by_now(data, monkeypatch: pytest.MonkeyPatch):
    chain, own = (Function(powered), *chain_of("standardise")), OwnExamples(20, 1, 2)
    before = FeatureFits(data)
    first = before.transformed(chain, own)["test"]
    assert shapes((Function(first_columns),), (12,))[-1] == (2,)
    monkeypatch.setitem(globals(), "POWER", 2)
    monkeypatch.setitem(globals(), "COLUMNS", 3)
    mean, scale = (FeatureFits(data).fitted(chain, own)[1][name] for name in ("mean", "scale"))
    made = FeatureFits(data).transformed(chain, own)["test"]
    np.testing.assert_allclose(made, (data.test.inputs**2 - mean) * scale, rtol=1e-4, atol=1e-5)
    assert shapes((Function(first_columns),), (12,))[-1] == (3,)
    assert np.array_equal(before.transformed(chain, own)["test"], first)  # within one run it is one program


class FailsAt(Centred):
    """Fails on seven examples, which no check looks at where there are fewer and more."""

    def fit(self, inputs: np.ndarray, seed: int) -> Mapping[str, np.ndarray]:
        if len(inputs) == 7:
            raise ValueError("seven")
        return super().fit(inputs, seed)


class NoMapping(Centred):
    def fit(self, inputs, seed):
        del seed
        return inputs.mean(0)


def fails_at_once(x):
    return jax.pure_callback(lambda _: 1 / 0, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def test_what_a_step_raises_is_one_sentence(data):
    fits, chain = FeatureFits(data), (FailsAt(),)
    fits.check((chain, OwnExamples(count, 1, 2)) for count in (3, 7, 100))
    with pytest.raises(sx.SweepError, match=r"^the features step FailsAt fails when it is fitted on .*ValueError: sev"):
        fits.fitted(chain, OwnExamples(7, 1, 2))
    for wrong, says in (((NoMapping(),), "fitted on .* AttributeError"), ((Function(fails_at_once),), "division by")):
        with pytest.raises(sx.SweepError, match=says) as raised:
            fits.check([(wrong, OwnExamples(7, 1, 2))])
        assert "\n" not in str(raised.value)


# In the engine


def behind(text: str, width: int = 4, family: str = "mlp", **changes) -> Trial:
    chain = chain_of(text)
    knobs = {"width": width, "depth": 2} if family == "mlp" else {}
    built = architecture(FAMILIES[family], knobs, shape=(12,), outputs=3, features=chain)
    return trial_of(built, family, knobs, features=tuple(map(repr, chain)), **changes)


def own_of(each: Trial) -> OwnExamples:
    assert each.own_examples is not None
    return each.own_examples


def weights_of(each: Trial, data: DataSet):
    weights = initial_weights(each.architecture, each.key("initialise"))
    return behind_features(weights, FeatureFits(data), each.chain, own_of(each))


def place_all(trials: list[Trial | None], data: DataSet, largest: Trial):
    pack = pack_of([None] * len(trials), data, largest=largest)
    pack.place([(number, each, weights_of(each, data)) for number, each in enumerate(trials) if each])
    pack.fill_idle()
    return pack


CHAINS = ["standardise + fourier(32)", "standardise + pca(5) + polynomial", "spectrum"]


@pytest.mark.parametrize("text", [*(pytest.param(text, marks=pytest.mark.slow) for text in CHAINS[:2]), CHAINS[2]])
def test_two_widths_behind_features_are_packed_and_train_as_they_do_alone(data, text):
    small, large = behind(text, 3, train_examples=30), behind(text, 8, train_examples=60)
    proof = prove(small.program, large.program)
    assert proof.proven, proof.reason
    together = summed_losses(place_all([small, large], data, large), 10)
    for number, each in enumerate((small, large)):
        alone = summed_losses(place_all([each], data, each), 10)[:, 0]
        np.testing.assert_allclose(together[:, number], alone, rtol=EXACT_SOLO)


@pytest.mark.slow
def test_a_trial_behind_features_is_the_training_on_inputs_made_beforehand(data):
    """The features of all data, made on the host, and a model alone on them: the same losses."""
    each = behind("standardise + pca(6)", train_examples=40)
    chain, pool = each.architecture.features, data.train.inputs
    own = pool[own_rows(40, pool=len(pool), key=each.settings.subset_key)]
    fitted = fit(chain, own, SEED)

    def made(split: Split) -> Split:
        return Split(transform(chain, fitted, split.inputs), split.targets)

    card = replace(data.card, shape=(6,))
    before = DataSet(card, made(data.train), made(data.validation), made(data.test))
    alone = trial_of(architecture(FAMILIES["mlp"], dict(each.knobs), shape=(6,), outputs=3), "mlp", dict(each.knobs))
    alone = changed(alone, train_examples=40)
    weights = initial_weights(alone.architecture, alone.key("initialise"))
    pack = pack_of([None], before, largest=alone)
    pack.place([(0, alone, weights)])
    found, expected = finish(place_all([each], data, each)), finish(pack)
    (found,), (expected,) = found.values(), expected.values()
    assert found.test_loss == pytest.approx(expected.test_loss, rel=1e-4)
    assert found.test_metric == expected.test_metric
    assert each.architecture.parameter_count == alone.architecture.parameter_count
    assert each.architecture.parameter_names == alone.architecture.parameter_names


def test_what_is_not_a_trials_own_changes_nothing_and_what_is_does(data):
    each = behind("standardise + pca(4)", train_examples=20)
    own = set(own_rows(20, pool=len(data.train.inputs), key=each.settings.subset_key).tolist())

    def fitted_after_changing(row: int) -> list[np.ndarray]:
        inputs = data.train.inputs.copy()
        inputs[row] += 5
        other = replace(data, train=Split(inputs, data.train.targets))
        return [leaf for name, leaf in named_leaves(weights_of(each, other)[1]) if name.startswith("fitted")]

    before = [leaf for name, leaf in named_leaves(weights_of(each, data)[1]) if name.startswith("fitted")]
    assert len(before) == 4
    assert all(np.any(leaf) for leaf in before)
    stranger = next(row for row in range(500) if row not in own)
    assert all(map(np.array_equal, before, fitted_after_changing(stranger)))
    assert not any(map(np.array_equal, before, fitted_after_changing(min(own))))


def test_a_fit_is_made_once_for_all_sizes_and_rates_and_memory_is_bounded(data, monkeypatch):
    made = []
    monkeypatch.setattr(
        own_examples, "fit", lambda *each, compiled: made.append(each[2]) or fit(*each, compiled=compiled)
    )
    fits = FeatureFits(data)

    for width in (3, 5):
        for rate in (1e-3, 1e-2):
            for seed in (0, 1):
                each = behind("standardise", width, learning_rate=rate, seed=seed)
                fits.fitted(each.chain, own_of(each))
    assert len(made) == len(set(made)) == 2
    monkeypatch.setattr(own_examples, "KEPT_BYTES", 0)
    for seed in (0, 1, 0):
        each = behind("standardise", 3, seed=seed)
        fits.fitted(each.chain, own_of(each))
    assert len(made) == 4  # the last one is kept whatever it takes, and seed 0 is fitted anew


# In a sweep

TRAIN = sx.TrainSpec(learning_rate=(1e-2,), batch_size=(8,), steps=20, evaluate_every=10)


def sweep_of(*models: sx.ModelGrid, sizes=(20, 100), features: Any = None) -> sx.Sweep:
    return sx.Sweep(
        "features",
        sx.DataSpec("mnist1d", sizes, examples=200, validation_examples=50, test_examples=50, features=features),
        models,
        TRAIN,
        seeds=(0, 1),
    )


def ids(sweep: sx.Sweep) -> list[str]:
    card = describe(sweep.data)
    older = [trial.trial_id for trial in expand_older(sweep, card)]
    return older or [counted.trial.trial_id for counted in expand(sweep, card)]


def half(x):
    return x[:, ::2]


def double_half(x):
    return 2 * x[:, ::2]


@pytest.mark.parametrize("family", ["logistic", "naive_bayes"])
def test_ids_contain_the_features_and_are_those_of_before_without(family):
    plain = ids(sweep_of(sx.ModelGrid(family)))
    assert ids(sweep_of(sx.ModelGrid(family, features="none"))) == plain
    assert ids(sweep_of(sx.ModelGrid(family), features=[])) == plain
    standardised = ids(sweep_of(sx.ModelGrid(family), features=["standardise"]))
    assert ids(sweep_of(sx.ModelGrid(family, features="standardise"))) == standardised
    variants = ["pca(3)", "pca(4)", "standardise + pca(3)", half, double_half, Centred(), Centred(2.0)]
    others = [ids(sweep_of(sx.ModelGrid(family), features=each)) for each in variants]
    assert ids(sweep_of(sx.ModelGrid(family), features=Centred())) == others[5]
    every = [*plain, *standardised, *(name for each in others for name in each)]
    assert len(set(every)) == len(every)
    assert ids(sweep_of(sx.ModelGrid(family), features="pca(components=3)")) == others[0]


SHIFT = 0.0


def shifted_mean(x: np.ndarray) -> np.ndarray:
    return x.mean(0) + SHIFT


@dataclass(frozen=True)
class Shifted(Centred):
    def fit(self, inputs: np.ndarray, seed: int) -> Mapping[str, np.ndarray]:
        del seed
        return {"mean": shifted_mean(inputs)}


class Inheriting(Shifted):
    pass


def test_what_a_fit_of_ones_own_reads_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch):
    sweep = sweep_of(sx.ModelGrid("naive_bayes"), features=Inheriting())
    before = ids(sweep)
    assert ids(sweep) == before
    monkeypatch.setitem(globals(), "SHIFT", 5.0)
    assert not {*ids(sweep)} & {*before}


def test_a_sweep_compares_features_resumes_and_extends(tmp_path):
    first = sx.run_sweep(sweep_of(sx.ModelGrid("mlp", width=[4, 8], depth=1)), tmp_path, progress=False).results()
    assert "features" not in first
    names = ["none", "standardise + fourier(16)"]
    both = sweep_of(sx.ModelGrid("mlp", width=[4, 8], depth=1, features=names))
    assert sx.plan(both).facts["lane_programs"] == 2
    run = sx.run_sweep(both, tmp_path, progress=False)
    rows = run.results()
    assert set(rows["status"]) == {"done"}
    assert len(rows) == 2 * len(first)
    old = rows[rows["features"] == "none"].reset_index(drop=True)
    order = old.set_index("trial_id").loc[first["trial_id"]]
    assert order["test_loss"].tolist() == first["test_loss"].tolist()
    assert order["seconds"].tolist() == first["seconds"].tolist()  # not trained again
    counts = rows[rows["features"] != "none"].groupby("width")["params"].first().to_dict()
    assert counts == {width: 17 * width + 10 * (width + 1) for width in (4, 8)}  # what is fitted is not counted
    assert set(run.curves()["model"]) == {f"mlp features {name}, width {width}" for name in names for width in (4, 8)}
    again = sx.run_sweep(both, tmp_path, progress=False).results()
    assert again["seconds"].tolist() == rows["seconds"].tolist()


def test_where_a_model_names_features_the_rows_of_all_say_what_stands_before_them():
    def named(*grids, features):
        sweep = sweep_of(*grids, features=features)
        card = describe(sweep.data)
        trials = [*(each.trial for each in expand(sweep, card)), *expand_older(sweep, card)]
        return {trial.family: trial.features_named for trial in trials}, {trial.trial_id for trial in trials}

    common, own = ["standardise", "pca(5)"], sx.ModelGrid("logistic", features="spectrum")
    others = sx.ModelGrid("mlp", width=4, depth=1), sx.ModelGrid("naive_bayes")
    chain = "standardise + pca(5)"
    names, ids = named(own, *others, features=common)
    assert names == {"logistic": "spectrum", "mlp": chain, "naive_bayes": chain}
    assert named(own, *others, features=None)[0] == {"logistic": "spectrum", "mlp": "none", "naive_bayes": "none"}
    alone, theirs = named(*others, features=common)
    assert set(alone.values()) == {None}
    assert theirs < ids  # a name is no part of an id


@pytest.mark.slow
def test_older_algorithms_are_compared_behind_features_beside_networks(tmp_path):
    names = ["none", "standardise + pca(4)"]
    grids = [sx.ModelGrid("logistic", features=names), sx.ModelGrid("logistic_regression", C=[0.1, 1], features=names)]
    one = sx.ModelGrid("naive_bayes", var_smoothing=1e-3, features="none")
    two = sx.ModelGrid("naive_bayes", var_smoothing=1e-3, features=[half])
    run = sx.run_sweep(sweep_of(*grids, one, two), tmp_path, progress=False)
    rows = run.results()
    assert set(rows["status"]) == {"done"}
    assert rows.groupby(["family", "features"])["params"].first().to_dict() == {
        ("logistic", "none"): 410,
        ("logistic", "standardise + pca(4)"): 50,
        ("logistic_regression", "none"): 410,
        ("logistic_regression", "standardise + pca(4)"): 50,
        ("naive_bayes", "none"): 810,
        ("naive_bayes", "half"): 410,
    }
    labels = {f"{family} features {name}" for family in ("logistic", "logistic_regression") for name in names}
    assert set(run.curves()["model"]) == {*labels, "naive_bayes features none", "naive_bayes features half"}
    again = sx.run_sweep(sweep_of(*grids, one, two), tmp_path, progress=False).results()
    assert again["seconds"].tolist() == rows["seconds"].tolist()


def test_features_of_the_data_are_those_of_an_older_algorithm_too(tmp_path):
    sweep = replace(
        sweep_of(sx.ModelGrid("nearest_neighbours", n_neighbors=[1, 3]), features=[half, "standardise"]),
        train=UNTRAINED,
    )
    run = sx.run_sweep(sweep, tmp_path / "both", progress=False)
    assert "features" not in run.results()
    assert set(run.curves()["model"]) == {"nearest_neighbours"}
    data = load(sweep.data)
    trial = next(expand_older(sweep, describe(sweep.data)))
    assert trial.inputs == 20
    assert trial.own_examples is not None
    made = FeatureFits(data).transformed(trial.chain, trial.own_examples)
    nearest = ((made["test"][:, None] - made["train"][None]) ** 2).sum(-1).argmin(1)
    own = own_rows(20, pool=data.card.examples, key=trial.subset_key)
    wrong = np.mean(data.train.targets[own][nearest] != data.test.targets)
    found = run.results().set_index("trial_id")["test_error"].to_dict()[trial.trial_id]
    assert found == pytest.approx(float(wrong))


@pytest.mark.slow
def test_steps_of_ones_own_are_trained(tmp_path):
    grid = sx.ModelGrid("logistic", features=["none", half, [Centred(), "standardise"]])
    rows = sx.run_sweep(sweep_of(grid, sizes=(20,)), tmp_path, progress=False).results()
    assert rows["features"].unique().tolist() == ["none", "half", "Centred + standardise"]
    assert set(rows["status"]) == {"done"}
    assert rows.groupby("features")["params"].first().to_dict() == {
        "none": 410,
        "half": 210,
        "Centred + standardise": 410,
    }


@pytest.mark.slow
def test_a_kept_model_comes_back_with_its_features(tmp_path):
    grid = sx.ModelGrid("logistic", features=["none", [half, "standardise", "pca(5)"]])
    run = sx.run_sweep(replace(sweep_of(grid, sizes=(20,)), keep_weights="best"), tmp_path, progress=False)
    losses = run.results().set_index("trial_id")["test_loss"].to_dict()
    assert len(run.models()) == 2 * 2  # of each features a cell, with its seeds
    for trial in run.models():
        assert run.evaluate(trial)["test_loss"] == pytest.approx(losses[trial], rel=1e-5)
        assert run.model(trial)(jnp.ones((3, 40))).shape == (3, 10)


def test_a_parameter_of_a_builder_that_is_called_features_stays_its_knob():
    from flax import nnx

    class Wide(nnx.Module):
        def __init__(self, *, inputs: int, classes: int, features: int, rngs: nnx.Rngs):
            self.hidden = nnx.Linear(inputs, features, rngs=rngs)
            self.output = nnx.Linear(features, classes, rngs=rngs)

        def __call__(self, x):
            return self.output(nnx.relu(self.hidden(x)))

    grid = sx.ModelGrid(Wide, features=[4, 8])
    assert grid.knobs == {"features": (4, 8)}
    assert grid.features is None
    sx.plan(sweep_of(grid, sx.ModelGrid("logistic"), features="standardise"))


FILE = """
name = "file"
[data]
source = "mnist1d"
train_examples = 20
[data.features]
steps = ["standardise", "pca( 16 )"]
[[models]]
family = "logistic"
[[models]]
family = "logistic"
features = ["none", "standardise + fourier(8, scale=0.5)"]
[train]
learning_rate = 1e-2
batch_size = 4
steps = 4
"""


def test_a_file_names_features_and_is_written_back(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(FILE)
    sweep = load_sweep(path)
    assert sweep.data.features == FeaturesSpec(["standardise", "pca( 16 )"])
    assert sweep.models[1].features == ((), ("standardise", "fourier(8, 0.5)"))
    assert sweep.models[1].features
    assert title(resolve(sweep.models[1].features[1])) == "standardise + fourier(8, 0.5)"
    path.write_text(sweep_to_toml(sweep))
    assert load_sweep(path) == sweep
    changed = load_sweep(path, {"data.features.steps": ["spectrum"]})
    assert changed.data.features == FeaturesSpec(["spectrum"])
    assert load_sweep(path, {"data.features": None, "models.1.features": "pca(3)"}).data.features is None
    own = replace(sweep, models=(sx.ModelGrid("logistic", features=[half]),))
    path.write_text(sweep_to_toml(own))
    assert load_sweep(path).models[0].features == ((f"{__name__}:half",),)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"pca( 16 )"', '"pcs(16)"', "line 7, [data.features] steps: 'pcs(16)' is no step of the features; did you"),
        ('"pca( 16 )"', '"pca"', "pca needs components in brackets, for instance pca(16)"),
        ('"pca( 16 )"', '"pca(0)"', "components of pca: expected a whole number >= 1, found 0"),
        ('"pca( 16 )"', '"pca(2, 3)"', "pca takes components, found 'pca(2, 3)'"),
        ('"pca( 16 )"', '"spectrum(3)"', "spectrum takes nothing in brackets"),
        ('"pca( 16 )"', "3", "expected a step of the features: a text, a function of a batch"),
        ('"pca( 16 )"', '"nowhere:f"', "there is no module nowhere"),
        ("[\"standardise\", \"pca( 16 )\"]", "[]\nstop = 1", "line 8, [data.features] stop: unknown key"),
        ('["none", ', '["standard", ', "[[models]] index 1 features: 'standard' is no step of the features"),
        ('["none", ', '["standardise+pca( 16 )", ', "repeats a model of index 0"),
        ('["none", ', '["standardise + fourier(8, scale=0.5)", ', "is given twice"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_one_sentence_with_the_line(tmp_path, old, new, says):
    path = tmp_path / "sweep.toml"
    assert old in FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(sx.SweepError) as error:
        load_sweep(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def odd(x):
    return x.sum()


def fails(x):
    return x @ jnp.zeros((3, 3))


class Unsaid:
    def __init__(self):
        self.what = object()

    arrays, fit, apply = Centred.arrays, Centred.fit, Centred.apply


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (odd, "the features step odd maps float32 [2, 40] to float32"),
        (fails, "the features step fails fails on inputs of shape (2, 40): TypeError"),
        ("pca(41)", "pca(41) asks for more components than the 40 numbers of an example"),
        ("fourier(300) + polynomial", "polynomial would make 45,450 numbers of 300, more than 20,000; put a step"),
        (Centred, "found the class Centred"),
        (Unsaid(), "has a field that is no number, text or array"),
        (lambda x: x * np.random.default_rng().normal(), "computes something else each time it is called"),
    ],
)
def test_what_cannot_be_a_step_is_one_sentence_before_any_training(features, says):
    for family in ("logistic", "naive_bayes"):
        with pytest.raises(sx.SweepError) as error:
            sx.plan(sweep_of(sx.ModelGrid(family), features=features))
        assert says in str(error.value)


class Wrong(Centred):
    def fit(self, inputs, seed):
        del seed
        return {"mean": inputs[:, 0]}


class Missing(Centred):
    def fit(self, inputs, seed):
        del seed
        return {"mean": inputs.mean(0) / (len(inputs) > 50)}


@pytest.mark.parametrize("again", ["pca(components=3)", "pca( 3 )"])
def test_two_spellings_of_one_chain_are_one_alternative(again: str):
    assert sx.ModelGrid("logistic", features=[again]).features == (("pca(3)",),)
    with pytest.raises(sx.SweepError, match=r"pca\(3\).? is given twice"):
        sx.ModelGrid("logistic", features=["pca(3)", again])
    data = sx.DataSpec(source="mnist1d", train_examples=(20,))
    models = tuple(sx.ModelGrid("logistic", features=[each]) for each in ("pca(3)", again))
    with pytest.raises(sx.SweepError, match=r"repeats a model of index 0 \(features = "):
        sx.Sweep(
            name="twice", data=data, models=models, train=sx.TrainSpec(learning_rate=(0.01,), batch_size=(8,), steps=10)
        )


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (lambda x: jnp.log(x), "make numbers that are not finite"),
        (lambda x: x - x.mean(0, keepdims=True), "make something else of an example when others are beside it"),
        (Wrong(), "and its `arrays` says {'mean': (40,)}"),
        (Missing(), "fits mean with numbers that are not finite"),
    ],
)
@pytest.mark.parametrize("grid", [sx.ModelGrid("logistic"), sx.ModelGrid("naive_bayes", var_smoothing=0.1)], ids=str)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow")
def test_what_features_make_is_checked_before_any_training(tmp_path, grid, features, says):
    with pytest.raises(sx.SweepError) as error:
        sx.run_sweep(sweep_of(grid, features=features), tmp_path, progress=False)
    assert says in str(error.value)
    assert sx.Run(tmp_path).counts()["pending"] == 4


def test_the_shape_of_an_example_goes_through_the_steps():
    assert shapes(chain_of("spectrum + standardise + pca(3)"), (4, 8)) == ((4, 8), (4, 5), (4, 5), (3,))
    assert shapes((Function(half),), (8,)) == ((8,), (4,))
