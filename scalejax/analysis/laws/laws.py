"""The laws by name, each a pure function of parameters and logarithms of predictors, and the table of them.

Every function takes `p`, the parameters by name, and `log`, the natural logarithms of the predictors by name; both as
scalars or as arrays that broadcast. It returns the loss in the unit of its parameters. For plain numbers call a law:
`LAWS["power"]({"b": 2.0, "c": 0.5}, {"x": x})`.

Some have starts of their own, which take the logarithms and the log loss, both centred, and return parameters of shape
(S,) each, best first. Bounds are in the centred units of `Parameter`. All laws fall towards a floor with growing x; an
accuracy that rises towards 1 is fitted with `fit_law(..., ceiling=1.0)`.
"""

import difflib
import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.analysis.laws.law import Law, Parameter, Values
from scalejax.analysis.laws.starts import grid, project, regress

Array = Any
Logs = Mapping[str, np.ndarray]
Starts = dict[str, np.ndarray]
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


def m4_starts(log: Logs, log_loss: np.ndarray) -> Starts:
    """Return starts of `m4`: given floor and chance, log(L - e_inf) is linear in alpha, log beta and c."""
    x, loss = log["x"], np.exp(log_loss)
    lowest, highest = loss.min(), loss.max()
    chances = highest + (highest - lowest) * np.array([0.003, 0.02, 0.1, 0.5, 2.0])
    combinations = grid([np.array([0.0, 0.5, 0.8, 0.95, 0.99]) * lowest, chances, (0.0, 0.1, 0.3, 1.0, 3.0)])
    floor, chance, alpha = combinations.T
    above, below = loss - floor[:, None], chance[:, None] - loss
    # alpha comes from the grid where the regression would make it negative; hence both.
    columns = np.stack([np.ones_like(above), -x * np.ones_like(above), np.log(below)], axis=2)
    weights = (above / loss) ** 2
    free, _ = regress(columns, np.log(above), weights)
    alpha = np.where(alpha > 0, alpha, np.clip(free[:, 2], 0.02, 50.0))
    coefficients, order = regress(columns[..., :2], np.log(above) - alpha[:, None] * np.log(below), weights)
    beta, c = np.exp(np.clip(coefficients[:, 0], -60, 60)), np.clip(coefficients[:, 1], 1e-3, 20.0)
    result = {"e_inf": floor, "e_0": chance, "alpha": alpha, "beta": beta, "c": c}
    return {name: value[order] for name, value in result.items()}


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


def broken_power_starts(breaks: int, log: Logs, log_loss: np.ndarray) -> Starts:
    """Return starts of `broken_power`: given floor, places and widths, the logarithm of L - a is linear in the rest."""
    x, loss = log["x"], np.exp(log_loss)
    places = np.quantile(x, np.linspace(0, 1, (2, 14, 12, 10)[breaks])[1:-1])
    sets = list(itertools.combinations(range(len(places)), breaks))
    widths = (0.1, 0.35, 1.0) if breaks else (1.0,)
    floors = (0.0, 0.5, 0.9, 0.99)
    combinations = grid([floors, range(len(sets)), widths])
    floor = combinations[:, 0] * loss.min()
    place = places[np.array(sets, int).reshape(len(sets), breaks)[combinations[:, 1].astype(int)]]
    width = combinations[:, 2]
    above = loss - floor[:, None]
    bend = np.logaddexp(0, (x[None, :, None] - place[:, None, :]) / width[:, None, None]) * width[:, None, None]
    ones = np.ones_like(above)[..., None]
    columns = np.concatenate([ones, -x[None, :, None] * ones, -bend], axis=2)
    coefficients, order = regress(columns, np.log(above), (above / loss) ** 2)
    result = {"a": floor, "b": np.exp(np.clip(coefficients[:, 0], -20, 20)), "c0": coefficients[:, 1]}
    for i in range(breaks):
        result |= {f"c{i + 1}": coefficients[:, 2 + i], f"d{i + 1}": np.exp(place[:, i]), f"f{i + 1}": width}
    return {name: value[order] for name, value in result.items()}


def kaplan(p: Values, log: Values) -> Array:
    """Return ((N_c / params)^(alpha_N / alpha_D) + D_c / tokens)^alpha_D (Kaplan et al. 2020, arXiv:2001.08361)."""
    model = (p["alpha_N"] / p["alpha_D"]) * (jnp.log(p["N_c"]) - log["params"])
    return jnp.exp(p["alpha_D"] * jnp.logaddexp(model, jnp.log(p["D_c"]) - log["tokens"]))


def kaplan_starts(log: Logs, log_loss: np.ndarray) -> Starts:
    """Return starts of `kaplan`: L^(1 / alpha_D) is linear in N_c^(alpha_N / alpha_D) and D_c."""
    exponents = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    combinations = grid([exponents, exponents])
    alpha_n, alpha_d = combinations.T
    ratio = (alpha_n / alpha_d)[:, None]
    target = log_loss / alpha_d[:, None]
    columns = np.exp(np.stack([-ratio * log["params"] - target, -log["tokens"] - target], axis=2))
    coefficients, _ = project(columns, np.ones(len(log_loss)))
    model, tokens = np.log(coefficients).T
    model = model / ratio[:, 0]
    fitted = alpha_d[:, None] * np.logaddexp(ratio * (model[:, None] - log["params"]), tokens[:, None] - log["tokens"])
    order = np.argsort(np.abs(fitted - log_loss).sum(1), kind="stable")
    result = {"N_c": np.exp(model), "D_c": np.exp(tokens), "alpha_N": alpha_n, "alpha_D": alpha_d}
    return {name: value[order] for name, value in result.items()}


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


def effective(log_unique: Array, log_size: Array, half_life: Array, xp: Any = jnp) -> Array:
    """Return the logarithm of U + U R (1 - exp(-(size/U - 1) / R)), computed by `xp`, jax.numpy or numpy."""
    excess = xp.expm1(xp.clip(log_size - log_unique, 0.0, 300.0))
    return log_unique + xp.log1p(-half_life * xp.expm1(-excess / half_life))


def data_constrained_starts(log: Logs, log_loss: np.ndarray) -> Starts:
    """Return starts of `data_constrained`: given exponents and R_D*, all parameters taken as useful, it is linear.

    The heights found tell how many parameters are useful; with those it is solved once more, as further starts.
    """
    exponents = (0.1, 0.25, 0.5, 0.9)
    combinations = grid([exponents, exponents, (2.0, 10.0, 50.0), (1.0, 10.0)])
    alpha, beta, tokens_life, params_life = (column[:, None] for column in combinations.T)
    unique, params = log["unique_tokens"], log["params"] + np.zeros_like(alpha)
    tokens = effective(unique, log["tokens"], tokens_life, np)
    weights = np.ones(len(log_loss))

    def terms(params: np.ndarray) -> np.ndarray:
        return np.exp(np.stack([np.zeros_like(tokens), -alpha * params, -beta * tokens], axis=2) - log_loss[:, None])

    coefficients, _ = project(terms(params), weights)
    heights = np.log(alpha[:, 0] * coefficients[:, 1]) - np.log(beta[:, 0] * coefficients[:, 2])
    needed = np.minimum((heights[:, None] + beta * unique) / alpha, params)
    both = np.concatenate([terms(params), terms(effective(needed, params, params_life, np))])
    coefficients, order = project(both, weights)
    result = dict(zip(("E", "A", "B"), coefficients.T, strict=True))
    result |= dict(zip(("alpha", "beta", "R_D*", "R_N*"), np.tile(combinations, (2, 1)).T, strict=True))
    return {name: value[order] for name, value in result.items()}


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
        starts=functools.partial(broken_power_starts, breaks),
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
    starts=m4_starts,
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
    starts=kaplan_starts,
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
    starts=data_constrained_starts,
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
