"""One fit and its losses, in a process of its own. Nothing here imports JAX."""

import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalejax.classical.families import CLASSIFICATION, FAMILIES, REGRESSION
from scalejax.classical.trial import OlderTrial
from scalejax.rules import TOP_ERROR, beyond

FOLDS = 5  # at most, of the cross-validation from which the probabilities of a machine without any are learned

Examples = tuple[np.ndarray, np.ndarray]  # inputs float32 [n, inputs], targets [n]


@dataclass(frozen=True)
class Scores:
    """Mean losses, in nats or squared units of the target, and the headline metric on the test examples."""

    train_loss: float
    validation_loss: float
    test_loss: float
    test_metric: float


def rows_file(seed: int) -> str:
    """Return the name of the file with the rows of the pool that a seed's trials begin with, in their order."""
    return f"rows-{seed}.npy"


def inputs_folder(trial: OlderTrial) -> str:
    """Return the folder, in that of the arrays, with the inputs of a trial: of one behind features what these make.

    All trials with the same features, seed and number of examples have it in common.
    """
    if not trial.features:
        return ""
    shared = repr((trial.features, trial.seed, trial.train_examples))
    return f"features-{hashlib.sha256(shared.encode()).hexdigest()[:16]}"


def examples_of(trial: OlderTrial, folder: Path) -> dict[str, Examples]:
    """Return what a trial is fitted to ("train") and measured on ("validation", "test"): the one place that makes it.

    Args:
        trial: which examples it sees.
        folder: of the arrays, as `HostPool` writes them.
    """
    own = np.load(folder / rows_file(trial.seed), mmap_mode="r")[: trial.train_examples]
    made = {}
    for split in ("train", "validation", "test"):
        inputs = np.load(folder / inputs_folder(trial) / f"{split}_inputs.npy", mmap_mode="r")
        targets = np.load(folder / f"{split}_targets.npy", mmap_mode="r")
        chosen = own if split == "train" else slice(None)
        # Behind features there are inputs of the trial's own examples alone, which the features were fitted on.
        made[split] = flat(inputs if trial.features else inputs[chosen]), np.asarray(targets[chosen])
    return made


def flat(inputs: np.ndarray) -> np.ndarray:
    """Return inputs [n, ...] as float32 [n, inputs]; bytes are pixels, 255 of which are 1."""
    wide = inputs.reshape(len(inputs), -1).astype(np.float32)
    return wide / np.float32(255) if inputs.dtype == np.uint8 else wide


def fit(trial: OlderTrial, examples: Mapping[str, Examples]) -> Scores:
    """Fit one trial and measure it, in one thread: there is a process for each core, and threads would wait."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return _fit(trial, examples)


def _fit(trial: OlderTrial, examples: Mapping[str, Examples]) -> Scores:
    measure = metric_of(trial)
    inputs, targets = examples["train"]
    make = FAMILIES[trial.family].make[trial.task]
    model = make(dict(trial.hyperparameters), len(targets), trial.random_state)
    if trial.task == CLASSIFICATION:
        model = _with_probabilities(model, inputs, targets)
        loss = {split: cross_entropy(probabilities(trial, model, x), y) for split, (x, y) in examples.items()}
    else:
        model.fit(inputs, targets)
        loss = {split: float(np.mean((model.predict(x) - y) ** 2)) for split, (x, y) in examples.items()}
    metric = measure(trial, model, loss["test"], *examples["test"])
    return Scores(loss["train"], loss["validation"], loss["test"], metric)


# From the trial, its fitted model, its loss on some examples, and their inputs and targets, to its headline metric.
Measure = Callable[[OlderTrial, Any, float, np.ndarray, np.ndarray], float]


def metric_of(trial: OlderTrial) -> Measure:
    """Return the headline metric of a trial; raises `KeyError` if there is none of its name."""
    if trial.task == CLASSIFICATION and (top := re.fullmatch(TOP_ERROR, trial.metric)):
        return functools.partial(_top_error, int(top[1]))
    return METRICS[trial.task][trial.metric]


def _top_error(
    count: int, trial: OlderTrial, model: Any, _loss: float, inputs: np.ndarray, targets: np.ndarray
) -> float:
    known = probabilities(trial, model, inputs)
    own = known[np.arange(len(targets)), targets][:, None]
    return float(np.mean(beyond(count, (known > own).sum(1), (known == own).sum(1))))


def _error(_trial: OlderTrial, model: Any, _loss: float, inputs: np.ndarray, targets: np.ndarray) -> float:
    return float(_wrong(model, inputs, targets).mean())


def _balanced_error(_trial: OlderTrial, model: Any, _loss: float, inputs: np.ndarray, targets: np.ndarray) -> float:
    wrong = _wrong(model, inputs, targets)
    return float(np.mean([wrong[targets == each].mean() for each in np.unique(targets)]))


def _wrong(model: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return where the algorithm itself is wrong: calibrated probabilities of a machine may say otherwise."""
    calibrated = getattr(model, "calibrated_classifiers_", None)
    return (calibrated[0].estimator if calibrated else model).predict(inputs) != targets


def _log_loss(_trial: OlderTrial, _model: Any, loss: float, _inputs: np.ndarray, _targets: np.ndarray) -> float:
    return loss


def _rmse(_trial: OlderTrial, _model: Any, loss: float, _inputs: np.ndarray, _targets: np.ndarray) -> float:
    return loss**0.5


def _unexplained(_trial: OlderTrial, _model: Any, loss: float, _inputs: np.ndarray, targets: np.ndarray) -> float:
    variance = float(targets.var())
    return loss / variance if variance > 0 else math.nan  # the fit and its losses are worth keeping


# Task -> name -> metric, as in `train.task.TASKS`, which imports JAX; a test holds both equal. Those of TOP_ERROR are
# no names here, but numbers.
METRICS: Mapping[str, Mapping[str, Measure]] = {
    CLASSIFICATION: {"error": _error, "log_loss": _log_loss, "balanced_error": _balanced_error},
    REGRESSION: {"RMSE": _rmse, "1-R2": _unexplained},
}


def _with_probabilities(model: Any, inputs: np.ndarray, targets: np.ndarray) -> Any:
    """Return a model fitted to these examples that knows probabilities.

    Examples of one class only leave nothing to fit: that class is the answer. Where a model has a decision function
    but no probabilities, they are learned by cross-validation (Platt 1999) if each class has two examples at least.
    """
    counts = np.unique(targets, return_counts=True)[1]
    if len(counts) == 1:
        from sklearn.dummy import DummyClassifier

        model = DummyClassifier(strategy="prior")
    elif not hasattr(model, "predict_proba") and counts.min() >= 2:
        from sklearn.calibration import CalibratedClassifierCV

        model = CalibratedClassifierCV(model, method="sigmoid", cv=int(min(FOLDS, counts.min())), ensemble=False)  # pyright: ignore[reportArgumentType]
    return model.fit(inputs, targets)


def probabilities(trial: OlderTrial, model: Any, inputs: np.ndarray) -> np.ndarray:
    """Return the probabilities [n, classes] of a fitted model, mixed with a little of the uniform distribution.

    A forest gives a class that it has never seen the probability 0, and one such example would make the loss infinite.
    Seeing n examples tells nothing of what happens less often than once in n + 1 (Laplace's rule of succession), so the
    uniform distribution gets the weight 1 / (n + 1). A decision function without probabilities, of a support vector
    machine with a class of one example, is taken for logits.
    """
    if hasattr(model, "predict_proba"):
        known = model.predict_proba(inputs)
    else:
        scores = model.decision_function(inputs)
        scores = np.stack([-scores, scores], 1) / 2 if scores.ndim == 1 else scores
        known = np.exp(scores - scores.max(axis=1, keepdims=True))
        known /= known.sum(axis=1, keepdims=True)
    weight = 1 / (trial.train_examples + 1)
    mixed = np.full((len(inputs), trial.outputs), weight / trial.outputs)
    mixed[:, model.classes_] += (1 - weight) * known  # of a class that no example had it is 0
    return mixed


def cross_entropy(mixed: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean cross-entropy in nats of probabilities [n, classes] for classes [n]."""
    return float(-np.log(mixed[np.arange(len(targets)), targets]).mean())
