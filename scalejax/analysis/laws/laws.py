"""The laws by name: pure functions of parameters and the logarithms of the predictors, and the table of them.

Every function takes `p`, the parameters by name, and `log`, the natural logarithms of the predictors by name; both as
scalars or as arrays that broadcast. It returns the loss in the unit of its parameters. For plain numbers call a law:
`LAWS["power"]({"b": 2.0, "c": 0.5}, {"x": x})`.

Bounds are in the centred units of `Parameter`. All laws fall towards a floor with growing x; an accuracy that rises
towards 1 is fitted with `fit_law(..., ceiling=1.0)`.
"""

import difflib
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from scalejax.analysis.laws import starts
from scalejax.analysis.laws.law import Law, Parameter, Values

Array = Any
EXPONENT_GRID = (0.03, 0.1, 0.2, 0.35, 0.55, 0.9, 1.5)
TINY, HUGE = 1e-9, 1e9
STEEPEST = 20.0


def power(p: Values, log: Values) -> Array:
    """Return b x^-c: a straight line on logarithmic axes (Hestness et al. 2017, arXiv:1712.00409)."""
    return jnp.exp(jnp.log(p["b"]) - p["c"] * log["x"])


def power_floor(p: Values, log: Values) -> Array:
    """Return e + b x^-c: a power law towards the floor e (M2 of Alabdulmohsin et al. 2022, arXiv:2209.06640)."""
    return p["e"] + jnp.exp(jnp.log(p["b"]) - p["c"] * log["x"])


def m4(p: Values, log: Values) -> Array:
    """Return the L with (L - e_inf) / (e_0 - L)^alpha = beta x^-c (M4 of Alabdulmohsin et al. 2022, arXiv:2209.06640).

    A power law towards the floor e_inf that also saturates at e_0, the loss (or error) of chance, for small x: the law
    for error rates. Chance is often known: `fixed={"e_0": 0.9}` for ten classes. Without saturation in sight e_0 and
    alpha cannot be identified; take `power_floor`. e_0 > e_inf; else NaN.
    """
    span = p["e_0"] - p["e_inf"]
    target = jnp.log(p["beta"]) - p["c"] * log["x"] + (p["alpha"] - 1) * jnp.log(span)
    return p["e_inf"] + span * jax.nn.sigmoid(_saturation(p["alpha"], target))


def _saturation(alpha: Array, target: Array) -> Array:
    """Return the v with log u - alpha log(1 - u) = target, u = sigmoid(v).

    The left side has slopes between 1 and alpha and bends one way, so Newton's method converges from anywhere. The
    last two steps are differentiated: that makes first and second derivatives exact.
    """

    def improve(v: Array, alpha: Array, target: Array) -> Array:
        value = alpha * jax.nn.softplus(v) - jax.nn.softplus(-v)
        u = jax.nn.sigmoid(v)
        return v - (value - target) / (1 - u + alpha * u)

    fixed_alpha, fixed_target = jax.lax.stop_gradient((alpha, target))
    v = jnp.where(fixed_target < 0, fixed_target, fixed_target / jnp.maximum(fixed_alpha, TINY))
    v = jax.lax.fori_loop(0, 7, lambda _, v: improve(v, fixed_alpha, fixed_target), v)
    v = jax.lax.stop_gradient(v)
    return improve(improve(v, alpha, target), alpha, target)


def broken_power(breaks: int, p: Values, log: Values) -> Array:
    """Return a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i), i = 1..breaks: a smoothly broken power law.

    From the break d_i on the exponent is larger by c_i, which may be negative (a curve that turns up, double descent);
    f_i is the break's width in ln x (Caballero et al. 2022, arXiv:2210.14891).
    """
    exponent = jnp.log(p["b"]) - p["c0"] * log["x"]
    for i in range(1, breaks + 1):
        width = p[f"f{i}"]
        exponent = exponent - p[f"c{i}"] * width * jax.nn.softplus((log["x"] - jnp.log(p[f"d{i}"])) / width)
    return p["a"] + jnp.exp(exponent)


def kaplan(p: Values, log: Values) -> Array:
    """Return ((N_c / params)^(alpha_N / alpha_D) + D_c / tokens)^alpha_D (Kaplan et al. 2020, arXiv:2001.08361)."""
    model = (p["alpha_N"] / p["alpha_D"]) * (jnp.log(p["N_c"]) - log["params"])
    return jnp.exp(p["alpha_D"] * jnp.logaddexp(model, jnp.log(p["D_c"]) - log["tokens"]))


def chinchilla(p: Values, log: Values) -> Array:
    """Return E + A / params^alpha + B / tokens^beta (Hoffmann et al. 2022, arXiv:2203.15556, approach 3).

    The default objective is theirs with its sum, not mean, of Huber losses (Besiroglu et al. 2024, arXiv:2404.10102).
    """
    model = jnp.exp(jnp.log(p["A"]) - p["alpha"] * log["params"])
    return p["E"] + model + jnp.exp(jnp.log(p["B"]) - p["beta"] * log["tokens"])


def data_constrained(p: Values, log: Values) -> Array:
    """Return E + A / N'^alpha + B / D'^beta with effective sizes (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5-7).

    D' = U + U R_D* (1 - exp(-(tokens/U - 1) / R_D*)): repeated tokens lose value; U is unique_tokens.
    N' = V + V R_N* (1 - exp(-(params/V - 1) / R_N*)): parameters beyond V = (alpha A U^beta / (beta B))^(1/alpha),
    the number that is compute-optimal for U tokens, lose value. tokens must not be fewer than unique_tokens.
    """
    ratio = jnp.log(p["alpha"] * p["A"]) - jnp.log(p["beta"] * p["B"])
    needed = (ratio + p["beta"] * log["unique_tokens"]) / p["alpha"]
    tokens = effective(log["unique_tokens"], log["tokens"], p["R_D*"])
    params = effective(jnp.minimum(needed, log["params"]), log["params"], p["R_N*"])
    return chinchilla(p, {"params": params, "tokens": tokens})


def effective(log_unique: Array, log_size: Array, half_life: Array) -> Array:
    """Return the logarithm of U + U R (1 - exp(-(size/U - 1) / R))."""
    excess = jnp.expm1(jnp.clip(log_size - log_unique, 0.0, 300.0))
    return log_unique + jnp.log1p(-half_life * jnp.expm1(-excess / half_life))


def _floor(name: str, meaning: str) -> Parameter:
    return Parameter(name, meaning, 0.0, 1e3, "linear", units=lambda _: {"loss": 1})


def _height(name: str, meaning: str, predictor: str, exponent: str) -> Parameter:
    return Parameter(name, meaning, TINY, HUGE, units=lambda p: {"loss": 1, predictor: p[exponent]})


def _exponent(name: str, meaning: str) -> Parameter:
    return Parameter(name, meaning, 0.0, STEEPEST, "linear", start=EXPONENT_GRID)


@functools.lru_cache
def bnsl(breaks: int) -> Law:
    """Return the broken neural scaling law with 0 to 3 breaks; see `broken_power`. Parameters a, b, c0, c1, d1, f1, ...

    Raises:
        ValueError: breaks is not 0, 1, 2 or 3.
    """
    if breaks not in range(4):
        raise ValueError(f"bnsl has 0 to 3 breaks, not {breaks}: more cannot be identified on a learning curve.")
    parameters = [_floor("a", "floor"), _height("b", "height of the first stretch at x = 1", "x", "c0")]
    parameters.append(Parameter("c0", "exponent of the first stretch", -STEEPEST, STEEPEST, "linear"))
    for i in range(1, breaks + 1):
        parameters += [
            Parameter(f"c{i}", f"change of the exponent at break {i}", -STEEPEST, STEEPEST, "linear"),
            Parameter(f"d{i}", f"place of break {i}", 1e-6, 1e6, units=lambda _: {"x": 1}),
            Parameter(f"f{i}", f"width of break {i} in ln x", 0.02, 20.0),
        ]
    return Law(
        "bnsl" if breaks == 1 else f"bnsl{breaks}",
        "a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i)",
        "Caballero et al. 2022, arXiv:2210.14891",
        ("x",),
        tuple(parameters),
        functools.partial(broken_power, breaks),
        starts=functools.partial(starts.broken_power_starts, breaks),
    )


POWER = Law(
    "power",
    "b x^-c",
    "Hestness et al. 2017, arXiv:1712.00409",
    ("x",),
    (_height("b", "loss at x = 1", "x", "c"), _exponent("c", "exponent")),
    power,
    linear=("b",),
)
POWER_FLOOR = Law(
    "power_floor",
    "e + b x^-c",
    "Alabdulmohsin et al. 2022, arXiv:2209.06640",
    ("x",),
    (_floor("e", "floor"), _height("b", "height over the floor at x = 1", "x", "c"), _exponent("c", "exponent")),
    power_floor,
    linear=("e", "b"),
)
M4 = Law(
    "m4",
    "(L - e_inf) / (e_0 - L)^alpha = beta x^-c",
    "Alabdulmohsin et al. 2022, arXiv:2209.06640",
    ("x",),
    (
        _floor("e_inf", "floor"),
        Parameter("e_0", "loss of chance", 1e-3, 1e4, units=lambda _: {"loss": 1}),
        Parameter("alpha", "how sharply it saturates at chance", 0.02, 50.0),
        Parameter("beta", "height", 1e-30, 1e30, units=lambda p: {"loss": 1 - p["alpha"], "x": p["c"]}),
        _exponent("c", "exponent far from chance"),
    ),
    m4,
    starts=starts.m4_starts,
)
KAPLAN = Law(
    "kaplan",
    "((N_c / params)^(alpha_N / alpha_D) + D_c / tokens)^alpha_D",
    "Kaplan et al. 2020, arXiv:2001.08361",
    ("params", "tokens"),
    (
        Parameter("N_c", "scale of params", 1e-90, 1e90, units=lambda p: {"params": 1, "loss": 1 / p["alpha_N"]}),
        Parameter("D_c", "scale of tokens", 1e-90, 1e90, units=lambda p: {"tokens": 1, "loss": 1 / p["alpha_D"]}),
        Parameter("alpha_N", "exponent of params", 1e-3, STEEPEST),
        Parameter("alpha_D", "exponent of tokens", 1e-3, STEEPEST),
    ),
    kaplan,
    starts=starts.kaplan_starts,
)
_CHINCHILLA_PARAMETERS = (
    _floor("E", "irreducible loss"),
    _height("A", "height of the term in params", "params", "alpha"),
    _height("B", "height of the term in tokens", "tokens", "beta"),
    _exponent("alpha", "exponent of params"),
    _exponent("beta", "exponent of tokens"),
)
CHINCHILLA = Law(
    "chinchilla",
    "E + A / params^alpha + B / tokens^beta",
    "Hoffmann et al. 2022, arXiv:2203.15556",
    ("params", "tokens"),
    _CHINCHILLA_PARAMETERS,
    chinchilla,
    linear=("E", "A", "B"),
)
DATA_CONSTRAINED = Law(
    "data_constrained",
    "E + A / N'^alpha + B / D'^beta, N' and D' saturating with repetition",
    "Muennighoff et al. 2023, arXiv:2305.16264",
    ("params", "tokens", "unique_tokens"),
    (
        *_CHINCHILLA_PARAMETERS,
        Parameter("R_D*", "epochs, after the first, in which repeated tokens lose 1 - 1/e of their value", 1e-3, 1e6),
        Parameter("R_N*", "the same for excess parameters, in multiples of the optimal number", 1e-3, 1e6),
    ),
    data_constrained,
    starts=starts.data_constrained_starts,
    units=("params", "tokens", "tokens"),
)
LAWS: Mapping[str, Law] = MappingProxyType(
    {law.name: law for law in (POWER, POWER_FLOOR, M4, *map(bnsl, range(4)), KAPLAN, CHINCHILLA, DATA_CONSTRAINED)}
)


def find_law(law: str | Law) -> Law:
    """Return the law of that name, or the law itself.

    Raises:
        ValueError: no law has the name; the sentence names the nearest.
    """
    if isinstance(law, Law):
        return law
    if law in LAWS:
        return LAWS[law]
    near = difflib.get_close_matches(str(law), LAWS, n=1, cutoff=0.0)
    raise ValueError(f"There is no law {law!r}: did you mean {near[0]!r}? The laws are {', '.join(LAWS)}.")
