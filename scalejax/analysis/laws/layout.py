"""How the coordinates of a search become the parameters of a law: free, fixed, shared by curves or each curve's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from scalejax.analysis.laws.law import Law, Parameter, powers

Array = Any


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
        return tuple(each for each in self.law.parameters if each.name not in self.fixed)

    def own(self, name: str) -> bool:
        """Whether each curve has a value of its own."""
        return self.curves > 1 and name not in self.shared and name not in self.fixed

    @property
    def slots(self) -> tuple[tuple[Parameter, int], ...]:
        """The parameter and the curve of each coordinate; curve -1 where it is shared."""
        result = []
        for each in self.free:
            result += [(each, curve) for curve in range(self.curves)] if self.own(each.name) else [(each, -1)]
        return tuple(result)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.slots)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest coordinates, each of shape (size,)."""
        pairs = [(each.coordinate(each.low), each.coordinate(each.high)) for each, _ in self.slots]
        return np.array([low for low, _ in pairs], float), np.array([high for _, high in pairs], float)

    def coordinates(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return coordinates (S, size) of parameters in centred units, each (S,), or (S, curves) for a curve's own."""
        columns = []
        for each, curve in self.slots:
            value = np.asarray(values[each.name], float)
            columns.append(each.coordinate(value[:, curve] if value.ndim == 2 else value))
        return np.stack(columns, axis=1)

    def values(self, theta: Array, centres: Array, fixed: Array) -> dict[str, Array]:
        """Return the parameters in centred units: scalars, or (curves,) for a curve's own. JAX, unbatched."""
        units = dict(zip((*dict.fromkeys(self.law.predictor_units), "loss"), centres, strict=True))
        result, place = {}, 0
        for each in self.free:
            count = self.curves if self.own(each.name) else 1
            part = theta[place] if count == 1 else theta[place : place + count]
            result[each.name] = jnp.exp(part) if each.scale == "log" else part
            place += count
        constants = [(each, self.fixed.index(each.name)) for each in self.law.parameters if each.name in self.fixed]
        # The unit of a fixed parameter can hang on an exponent, so pure numbers come first.
        for each, index in sorted(constants, key=lambda pair: pair[0].units is not None):
            result[each.name] = fixed[index] * jnp.exp(-powers(each, result, units))
        return result

    def log_value(self, theta: Array, log_x: Array, curve: Array, centres: Array, fixed: Array) -> Array:
        """Return the logarithm of the centred loss that the law predicts, shape (n,)."""
        values = self.values(theta, centres, fixed)
        rows = {name: value[curve] if jnp.ndim(value) else value for name, value in values.items()}
        logs = dict(zip(self.law.predictors, log_x, strict=True))
        return jnp.log(self.law.value(rows, logs))
