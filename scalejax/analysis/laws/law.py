"""What a law is: a pure function of parameters and predictors, with the names, bounds and units of its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

Array = Any  # numpy.ndarray or jax.Array, which type checkers take for a variable
Values = Mapping[str, Array]
Units = Callable[[Values], Mapping[str, Array]]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Fits are made in centred units: predictors and loss divided by their geometric means over the data. `low`, `high`
    and `start` are values in those units, so that nothing depends on whether tokens are counted in ones or billions.

    Attributes:
        name: the key in `Fit.params`.
        meaning: a phrase for tables.
        low: lower bound; a positive number where `scale` is "log".
        high: upper bound.
        scale: coordinate of the search. "log" for a positive parameter, "linear" for one that may reach its bound,
            such as a floor of zero, or that may have either sign.
        start: values from which a cold start is composed; unused for a parameter in `Law.linear`.
        units: for a parameter with units, a function of the parameters that returns the power of each unit in it:
            `lambda p: {"loss": 1, "params": p["alpha"]}` for A in A / params^alpha. None: a pure number.
    """

    name: str
    meaning: str
    low: float = 0.0
    high: float = np.inf
    scale: Literal["log", "linear"] = "log"
    start: tuple[float, ...] = (1.0,)
    units: Units | None = None

    def coordinate(self, value: Array) -> Array:
        """Return the search coordinate of a value in centred units."""
        with np.errstate(divide="ignore"):
            return np.log(value) if self.scale == "log" else np.asarray(value)


@dataclass(frozen=True)
class Law:
    """A law: how the loss depends on the predictors. Make one of your own by filling in these fields.

    ```python
    def relaxation(p, log):
        return p["e"] + p["b"] * jnp.exp(-jnp.exp(log["x"]) / p["d"])

    law = Law("relaxation", "e + b exp(-x / d)", "ours", ("x",), (
        Parameter("e", "floor", 0, 1e3, scale="linear", units=lambda p: {"loss": 1}),
        Parameter("b", "height over the floor at x = 0", 1e-9, 1e9, units=lambda p: {"loss": 1}),
        Parameter("d", "x that divides the height by e", 1e-6, 1e6, start=(0.1, 1, 10), units=lambda p: {"x": 1}),
    ), relaxation, linear=("e", "b"))
    sx.fit_law(law, {"hours": hours}, loss)
    ```

    Attributes:
        name: what `fit_law` calls it.
        formula: one line for tables.
        paper: where it comes from.
        predictors: names of the predictors. The only one, if called "x", stands for any name.
        parameters: in the order of tables.
        value: (parameters by name, natural logarithms of the predictors by name) -> loss, positive; elementwise, pure,
            written with jax.numpy. Parameters and logarithms come as scalars or as arrays that broadcast.
        linear: parameters that enter linearly and are not negative; a cold start solves for them (variable projection).
        starts: a law's own cold starts: (logarithms by name, log loss, both centred) -> parameters by name, each of
            shape (S,), best first. None: composed from `linear` and each `Parameter.start`.
        units: the unit of each predictor where two share one; None: each its own, called as the predictor.
    """

    name: str
    formula: str
    paper: str
    predictors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    value: Callable[[Values, Values], Array]
    linear: tuple[str, ...] = ()
    starts: Callable[[Values, np.ndarray], Mapping[str, np.ndarray]] | None = None
    units: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def predictor_units(self) -> tuple[str, ...]:
        """The unit of each predictor."""
        return self.units or self.predictors

    def __call__(self, parameters: Mapping[str, float | np.ndarray], predictors: Values) -> np.ndarray:
        """Return the loss at the predictors, float64; all arguments broadcast against each other."""
        rank = max(np.ndim(value) for value in (*parameters.values(), *predictors.values()))

        def lift(value: Array) -> np.ndarray:
            array = np.asarray(value, np.float64)
            return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array

        with jax.enable_x64(True):
            logs = {name: np.log(lift(column)) for name, column in predictors.items()}
            return np.asarray(self.value({name: lift(value) for name, value in parameters.items()}, logs), np.float64)
