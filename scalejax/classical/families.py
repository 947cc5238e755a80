"""The classical baselines: which tasks each does, its options, and the values that are tried where a sweep names none.

Inputs are taken as they are, like those of the networks: bring them in about unit variance. scikit-learn is imported
where an estimator is made. Nothing here imports JAX: the processes that fit do without it.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scalejax.rules import Check, Knob, Rule, SpecError, nearest, shown

CLASSIFICATION, REGRESSION = "classification", "regression"  # the tasks, by name
TIME_LIMIT = "time_limit"  # the key beside the options
TIME_LIMIT_SECONDS = 120.0

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """What a hyperparameter may be, and the values that are tried where a sweep does not say."""

    check: Check
    grid: tuple[Knob, ...]


@dataclass(frozen=True)
class Family:
    """One algorithm.

    Attributes:
        make: task -> a function of the options, the number of training examples and the seed to an estimator.
        options: its hyperparameters by name, in the order in which they are written.
        params: numbers that a fit determines, of the number of inputs and of outputs; None where that is not fixed.
    """

    make: Mapping[str, Callable[[Options, int, int], Any]]
    options: Mapping[str, Option]
    params: Callable[[int, int], int] | None = None


def _logistic_regression(options: Options, _examples: int, _seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=options["C"], max_iter=2_000)


def _ridge(options: Options, _examples: int, _seed: int) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=options["alpha"])


def _svm(options: Options, _examples: int, seed: int) -> Any:
    from sklearn.svm import SVC

    return SVC(C=options["C"], gamma=options["gamma"], random_state=seed)


def _neighbours(kind: str) -> Callable[[Options, int, int], Any]:
    def make(options: Options, examples: int, _seed: int) -> Any:
        from sklearn import neighbors

        return getattr(neighbors, kind)(n_neighbors=min(options["n_neighbors"], examples), weights=options["weights"])

    return make


def _forest(kind: str) -> Callable[[Options, int, int], Any]:
    def make(options: Options, _examples: int, seed: int) -> Any:
        from sklearn import ensemble

        return getattr(ensemble, kind)(**options, random_state=seed)

    return make


def _boosting(kind: str) -> Callable[[Options, int, int], Any]:
    def make(options: Options, _examples: int, seed: int) -> Any:
        from sklearn import ensemble

        return getattr(ensemble, kind)(**options, early_stopping=False, random_state=seed)

    return make


def _naive_bayes(options: Options, _examples: int, _seed: int) -> Any:
    from sklearn.naive_bayes import GaussianNB

    return GaussianNB(var_smoothing=options["var_smoothing"])


def _scale_or_number(value: Any) -> Any:
    if isinstance(value, str) and value != "scale":
        raise SpecError(f'expected "scale" or a number > 0, found {shown(value)}')
    return value if value == "scale" else _POSITIVE(value)


_POSITIVE, _COUNT = Rule(float, above=0), Rule(int, at_least=1)
_SECONDS = Rule(float, above=0, at_most=1e9)  # thirty years; Python's timers end at nine times as much

# The one table that the sweep file needs: family name -> family.
FAMILIES: dict[str, Family] = {
    "logistic_regression": Family(  # multinomial, penalty |w|^2 / (2 C) on the sum of losses
        {CLASSIFICATION: _logistic_regression},
        {"C": Option(_POSITIVE, (0.01, 0.1, 1.0, 10.0, 100.0))},
        params=lambda inputs, outputs: (inputs + 1) * (1 if outputs == 2 else outputs),
    ),
    "ridge": Family(
        {REGRESSION: _ridge},
        {"alpha": Option(_POSITIVE, (0.01, 0.1, 1.0, 10.0, 100.0))},
        params=lambda inputs, _: inputs + 1,
    ),
    "naive_bayes": Family(  # Gaussian
        {CLASSIFICATION: _naive_bayes},
        {"var_smoothing": Option(_POSITIVE, (1e-9, 1e-3, 1e-2, 1e-1))},
        params=lambda inputs, outputs: (2 * inputs + 1) * outputs,
    ),
    "nearest_neighbours": Family(  # of fewer examples than n_neighbors all
        {CLASSIFICATION: _neighbours("KNeighborsClassifier"), REGRESSION: _neighbours("KNeighborsRegressor")},
        {
            "n_neighbors": Option(_COUNT, (1, 3, 10, 30)),
            "weights": Option(Rule(str, choices=("uniform", "distance")), ("uniform",)),
        },
    ),
    "svm": Family(  # with the kernel exp(-gamma |x - x'|^2); "scale": gamma = 1 / (inputs x their variance)
        {CLASSIFICATION: _svm},
        {"C": Option(_POSITIVE, (0.1, 1.0, 10.0, 100.0)), "gamma": Option(_scale_or_number, ("scale",))},
    ),
    "random_forest": Family(
        {CLASSIFICATION: _forest("RandomForestClassifier"), REGRESSION: _forest("RandomForestRegressor")},
        {"min_samples_leaf": Option(_COUNT, (1, 3, 10)), "n_estimators": Option(_COUNT, (100,))},
    ),
    "gradient_boosting": Family(  # of histograms
        {
            CLASSIFICATION: _boosting("HistGradientBoostingClassifier"),
            REGRESSION: _boosting("HistGradientBoostingRegressor"),
        },
        {
            "learning_rate": Option(_POSITIVE, (0.03, 0.1, 0.3)),
            "min_samples_leaf": Option(_COUNT, (3, 20)),
            "max_iter": Option(_COUNT, (100,)),
        },
    ),
}


def is_older(family: object) -> bool:
    """Return whether a family of a sweep is one of these."""
    return isinstance(family, str) and family in FAMILIES


def grid_of(family: str, knobs: Mapping[str, tuple[Knob, ...]]) -> dict[str, tuple[Knob, ...]]:
    """Return the values that are tried of each option of a family, given those that a sweep names.

    Raises:
        SpecError: a key is no option, a value is not what it may be, or scikit-learn is not installed.
    """
    options = FAMILIES[family].options
    for name, values in knobs.items():
        if name == TIME_LIMIT and len(values) > 1:
            raise SpecError("expected one number of seconds, found a list", keys=(name,))
        if name != TIME_LIMIT and name not in options:
            raise SpecError(f"unknown option of {family}; {nearest(name, [*options, TIME_LIMIT])}", keys=(name,))
        try:
            list(map(_SECONDS if name == TIME_LIMIT else options[name].check, values))
        except SpecError as fault:
            raise SpecError(fault.says, keys=(name,)) from None
    if importlib.util.find_spec("sklearn") is None:
        package = "needs the package scikit-learn, which is not installed"
        raise SpecError(f'{family} {package}: run pip install "scalejax[sklearn]"', keys=("family",))
    return {
        name: tuple(map(option.check, knobs[name])) if name in knobs else option.grid
        for name, option in options.items()
    }
