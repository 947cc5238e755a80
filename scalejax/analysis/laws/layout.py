"""How the coordinates of a search become the parameters of a law: free, fixed, shared by curves or each curve's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from scalejax.analysis.laws.law import Law, Parameter, Values

Array = Any
FARTHEST = 400.0  # in ln: a fit without sense can have a unit beyond float64; it stays finite


@dataclass(frozen=True)
class Layout:
    """The coordinates of one fit, in the order of the law's parameters; hashable, so that programs are kept by it.

    Attributes:
        law: the law.
        fixed: names of the parameters that the caller has fixed.
        curves: number of curves.
        shared: names of the parameters that all curves share; the others are each curve's own.
    """

    law: Law
    fixed: tuple[str, ...] = ()
    curves: int = 1
    shared: tuple[str, ...] = ()

    @property
    def free(self) -> tuple[Parameter, ...]:
        """The parameters that are searched for."""
        return tuple(parameter for parameter in self.law.parameters if parameter.name not in self.fixed)

    def own(self, name: str) -> bool:
        """Whether each curve has a value of its own."""
        return self.curves > 1 and name not in self.shared and name not in self.fixed

    @property
    def slots(self) -> tuple[tuple[Parameter, int], ...]:
        """The parameter and the curve of each coordinate; curve -1 where it is shared."""
        return tuple((p, curve) for p in self.free for curve in (range(self.curves) if self.own(p.name) else (-1,)))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.slots)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest coordinates, each of shape (size,)."""
        pairs = [(p.coordinate(p.low), p.coordinate(p.high)) for p, _ in self.slots]
        return np.array([low for low, _ in pairs], float), np.array([high for _, high in pairs], float)

    def coordinates(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return coordinates (S, size) of parameters in centred units, each (S,), or (S, curves) for a curve's own."""
        columns = []
        for parameter, curve in self.slots:
            value = np.asarray(values[parameter.name], float)
            columns.append(parameter.coordinate(value[:, curve] if value.ndim == 2 else value))
        return np.stack(columns, axis=1)

    def parts(self, theta: Array) -> dict[str, Array]:
        """Return the free parameters in centred units, each (...), or (..., curves) for a curve's own.

        Of coordinates (..., size), in JAX or in NumPy.
        """
        exp, values, place = np.exp if isinstance(theta, np.ndarray) else jnp.exp, {}, 0
        for parameter in self.free:
            count = self.curves if self.own(parameter.name) else 1
            part = theta[..., place] if count == 1 else theta[..., place : place + count]
            values[parameter.name] = exp(part) if parameter.scale == "log" else part
            place += count
        return values

    def log_value(self, theta: Array, log_x: Array, curve: Array, centres: Array, fixed: Array) -> Array:
        """Return the logarithm of the centred loss that the law predicts, shape (n,). JAX, unbatched."""
        units = dict(zip((*dict.fromkeys(self.law.predictor_units), "loss"), centres, strict=True))
        values = self.parts(theta)
        constants = [parameter for parameter in self.law.parameters if parameter.name in self.fixed]
        # The unit of a fixed parameter can depend on an exponent, so pure numbers come first.
        for parameter in sorted(constants, key=lambda parameter: parameter.units is not None):
            value = fixed[self.fixed.index(parameter.name)]
            values[parameter.name] = value * jnp.exp(-_powers(parameter, values, units))
        rows = {name: value[curve] if jnp.ndim(value) else value for name, value in values.items()}
        logs = dict(zip(self.law.predictors, log_x, strict=True))
        return jnp.log(self.law.value(rows, logs))


def in_units(law: Law, values: Values, centres: Values) -> dict[str, Array]:
    """Return the parameters in the caller's units, given those in centred units and the log centres of the units."""
    powers = {p.name: np.clip(_powers(p, values, centres), -FARTHEST, FARTHEST) for p in law.parameters}
    return {name: values[name] * np.exp(power) for name, power in powers.items()}


def _powers(parameter: Parameter, values: Values, centres: Values) -> Array:
    """Return the logarithm of the unit of a parameter: what a value in centred units is multiplied by, as exp."""
    if parameter.units is None:
        return 0.0
    return sum(power * centres[unit] for unit, power in parameter.units(values).items())
