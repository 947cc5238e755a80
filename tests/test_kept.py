"""What a kept model is held against when it comes back. The models are as they were drawn: none trains."""

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from test_predict import ALL, ROW, run_of

import scalejax as sx
from scalejax.data import DataCard, describe
from scalejax.data.file_state import found_files
from scalejax.errors import RunError
from scalejax.execute import kept
from scalejax.execute.refusal import broke_off
from scalejax.planning.trial import expand
from scalejax.rules import SpecError
from scalejax.run.store import Store
from scalejax.run.weights import _task
from scalejax.spec.file import located
from scalejax.train.numerics import held
from scalejax.train.task import Classification, NextToken

pytestmark = pytest.mark.usefixtures("compile_quickly")
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
DATA = sx.DataSpec((X, np.arange(40) % 2), fractions=ALL)


class Net(nnx.Module):
    """A module in the module of a user, who may change it."""

    act: Callable[[jax.Array], jax.Array] = staticmethod(jnp.tanh)

    def __init__(self, *, inputs: int, outputs: int, width: int, depth: int, rngs: nnx.Rngs):
        del depth
        self.a, self.b = nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(Net.act(self.a(x)))


@dataclass(frozen=True)
class Centre:
    """A step that is fitted."""

    power: int = 1

    def arrays(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {"mean": shape}

    def fit(self, inputs: np.ndarray, seed: int) -> Mapping[str, np.ndarray]:
        del seed
        return {"mean": inputs.mean(0)}

    def apply(self, fitted: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
        return (inputs - fitted["mean"][None]) ** self.power


def described(run: sx.Run, trial_id: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the description of the run's model, and the function that writes it anew."""
    kept.store(run.directory / "models", trial_id)
    monkeypatch.setattr(kept, "intact", lambda _: True)
    path = run.directory / "models" / trial_id / "model.json"
    return json.loads(path.read_text()), lambda says: path.write_text(json.dumps(says))


def test_a_builder_that_computes_something_else_by_now_is_one_sentence(tmp_path: Path, monkeypatch):
    run, trial_id, sweep = run_of(DATA, tmp_path, family=Net)
    says, write = described(run, trial_id, monkeypatch)
    monkeypatch.setattr(Net, "act", staticmethod(nnx.relu))  # names and shapes of all arrays are the same
    changed = f"the builder Net makes the arrays .* something else with them; give the one that trial {trial_id} was"
    with pytest.raises(sx.SweepError, match=changed):
        run.evaluate(trial_id, sweep=sweep)
    with pytest.raises(sx.SweepError, match=changed):
        run.predict(trial_id, X, build=Net)
    older = {**says, "program": {**says["program"], "versions": {**says["program"]["versions"], "jax": "0.9.9"}}}
    write(older)
    warned = rf"trial {trial_id} was kept under jax 0\.9\.9, and under jax {jax.__version__} its model is another prog"
    with pytest.warns(UserWarning, match=warned):
        run.model(trial_id)
    write({key: value for key, value in says.items() if key != "program"})  # as versions before kept it
    run.model(trial_id)
    monkeypatch.setattr(Net, "act", staticmethod(jnp.tanh))
    write(older)
    run.model(trial_id)  # nothing to warn of


def test_a_model_is_the_same_under_other_numerics(tmp_path: Path):
    with jax.default_matmul_precision("bfloat16"):
        run, trial_id, _ = run_of(DATA, tmp_path)
    run.model(trial_id)
    with held(()):
        assert jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]
        run.model(trial_id)


def test_features_that_no_name_leads_to_are_given(tmp_path: Path):
    steps: Any = [Centre(2), lambda batch: 2 * batch, "pca(2)"]
    run, trial_id, _ = run_of(replace(DATA, features=steps), tmp_path)
    assert run.predict(trial_id, X, features=[Centre(2), lambda x: 2 * x, "pca(2)"]).shape == (40,)
    remedy = rf"; give the steps that trial {trial_id} was trained behind, features=\[\.\.\.\]$"
    with pytest.raises(
        sx.SweepError, match=r"step test_kept:Centre, 1 of 3, cannot be .* an object of that.*" + remedy
    ):
        run.model(trial_id)
    wrong: list[tuple[Any, str]] = [
        ([Centre(3), *steps[1:]], "the features step Centre, 1 of 3, computes something else than when"),
        ([steps[0], lambda batch: 3 * batch, "pca(2)"], "the features step <lambda>, 2 of 3, computes something else"),
        ([*steps[:2], "pca(1)"], r"the features step pca\(1\), 3 of 3, is not the pca\(2\) of the model"),
        (steps[:2], r"given have 2 steps \(Centre \+ <lambda>\), and those of the model 3 \(.*"),
        (["spectrum", *steps[1:]], "the features step spectrum, 1 of 3, is not the test_kept:Centre of the model"),
    ]
    for given, says in wrong:
        with pytest.raises(sx.SweepError, match=says):
            run.model(trial_id, features=given)
    with pytest.raises(sx.SweepError, match="that are given: expected an object, found the class Centre"):
        run.model(trial_id, features=[Centre, *steps[1:]])


def test_a_lambda_is_named_and_features_of_a_model_without_any_are_refused(tmp_path: Path):
    run, trial_id, _ = run_of(replace(DATA, features=[lambda batch: batch + 1]), tmp_path / "a")
    with pytest.raises(sx.SweepError, match=r"the features step test_kept:.*<lambda>, 1 of 1, cannot be found by its"):
        run.model(trial_id)
    run, trial_id, _ = run_of(DATA, tmp_path / "b")
    run.model(trial_id, features=[])
    with pytest.raises(sx.SweepError, match=r"given have 1 step \(pca\(2\)\), .* model 0 \(none\); drop features"):
        run.model(trial_id, features="pca(2)")


@dataclass(frozen=True)
class Margin:
    """A task of one's own."""

    name: str = "margin"
    metric: str = "hinge"
    scale: float = 1.0

    def outputs(self, card: DataCard) -> int:
        del card
        return 1

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.scale * outputs[:, 0] * targets

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.loss(outputs, targets)

    def headline(self, mean: jax.Array) -> jax.Array:
        return mean


def test_the_task_and_its_metric_are_those_of_the_trial():
    sweep = sx.Sweep("s", DATA, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5), metric="log_loss")
    card = describe(sweep.data)
    for metric in ("error", "log_loss", "top1_error"):
        says = {"task": "classification", "metric": metric, "own_task": False, "trial_id": "a1"}
        assert _task(says, sweep, card) == Classification(metric)
        assert _task(says, replace(sweep, metric=None), card) == Classification(metric)
        assert _task(says, replace(sweep, task=Margin(), metric=None), card) == Classification(metric)
    tokens = replace(card, vocabulary=7, classes=None)
    assert _task({"task": "next_token", "metric": "bits_per_token"}, replace(sweep, metric=None), tokens) == NextToken()
    own: Any = {"task": "margin", "metric": "hinge", "trial_id": "a1"}
    assert _task(own, replace(sweep, task=Margin(), metric=None), card) == Margin()
    for other in (sweep, replace(sweep, task=Margin(metric="other"), metric=None)):
        with pytest.raises(sx.SweepError, match="a1 was trained on the task margin with the metric hinge, and the"):
            _task(own, other, card)
    changed = replace(sweep, task=Margin(scale=2.0), metric=None)
    own["program"] = {"task": made_by(Margin(), card), "numerics": [], "versions": kept._tracers()}
    _task(own, replace(sweep, task=Margin(), metric=None), card)
    with pytest.raises(sx.SweepError, match="the task margin computes something else than when trial a1 was trained"):
        _task(own, changed, card)
    own["program"]["versions"]["flax"] = "0.1"
    with pytest.warns(UserWarning, match=r"a1 was kept under flax 0\.1, and under flax .* its task is another program"):
        _task(own, changed, card)


def made_by(task: Any, card: DataCard) -> str:
    """Return the digest of a task as a trial has it."""
    sweep = sx.Sweep("s", DATA, (sx.ModelGrid(one_output),), sx.TrainSpec((0.1,), (4,), steps=5), task=task)
    return next(iter(expand(sweep, card))).trial.own[0]


def one_output(*, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Linear(inputs, outputs, rngs=rngs)


def test_an_older_trial_that_the_sweep_no_longer_asks_for_is_said_to_be_none(tmp_path: Path):
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan([replace(ROW, trial_id="b507", family="svm"), replace(ROW, trial_id="c1")])
        store.plan([replace(ROW, trial_id="c1")])
        assert store.standing("d4") is None
    with pytest.raises(sx.SweepError, match=r'b507 is of svm, an algorithm of sci.*; run\.best\(family="mlp"\) names'):
        sx.Run(tmp_path).model("b507")


@pytest.mark.parametrize("kind", [RunError, sx.SweepError, SpecError])
def test_what_a_source_says_of_its_data_promises_no_resuming(kind: type[Exception]):
    says = str(broke_off(kind("t.bin: it holds the token 300; correct the vocabulary")))
    assert says == (
        "training broke off: t.bin: it holds the token 300; correct the vocabulary; finished trials are kept"
    )
    assert str(broke_off(OSError("full"))).endswith("and the same command resumes")


def test_a_pattern_is_found_from_a_folder_whose_name_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "runs [old]*"
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "a.txt").write_text("a")
    monkeypatch.chdir(folder)
    data = sx.DataSpec("bytes", fractions=ALL, options={"path": "texts/*.txt"})
    sweep = sx.Sweep("s", data, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5))
    path: Any = located(sweep).data.options["path"]
    monkeypatch.chdir(tmp_path)
    assert found_files(path, "path") == [os.path.realpath(folder / "texts" / "a.txt")]
    assert located(located(sweep)) == located(sweep)


def test_orbax_works_for_one_thread_at_a_time(tmp_path, monkeypatch):
    # It counts its operations in one number for the whole process: of two saves at once one fails now and then.
    inside, most, save = 0, 0, ocp.save

    def counted(*arguments) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        save(*arguments)
        time.sleep(0.05)
        inside -= 1

    monkeypatch.setattr(ocp, "save", counted)
    for name in "abcd":
        kept.set_aside(
            tmp_path, kept.KeptModel({"trial_id": name, "arrays": {"w": "float32 [2]"}}, {"w": np.ones(2, np.float32)})
        )
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: kept.store(tmp_path, name), "abcd"))
    assert most == 1
    assert kept.stored_models(tmp_path) == ["a", "b", "c", "d"]
