"""Planted worlds: how often the advice is right, and what its next trials are worth. About 40 minutes on one core.

    python tests/worlds.py [--worlds 100] [--pairs 50] [--json]

A world is a law of the loss over parameters and data, a design, and noise. Its laws come in three shapes, their sizes
given at the corner, the largest model on the most data, where s_0 + s_1 + s_2 = 1 and n, d are relative to it:

    sum          L = s_0 + s_1 n^-a + s_2 d^-b                    (Hoffmann et al. 2022)
    interaction  L = s_0 + (1 - s_0) (r n^(-a/g) + (1 - r) d^(-b/g))^g     (a power g as in Kaplan et al. 2020)
    plateau      a smooth minimum of one of both and a chance level, near which (above 0.8 of it) one place at least and
                 a third of all at most would lie

with exponents from 0.1 to 0.8, g from 0.5 to 2, and nowhere more than ten times the corner's loss. Designs are grids of
4 to 6 sizes over two decades, times 5 to 7 amounts of data over two to three decades, 2 or 3 seeds, whose noise is 1 to
3 %. With D and S the shares of the corner's loss that ten times the data or the parameters take away in truth:

    more data        D > 10 %, and S < D / 3 or S < 3 %
    a bigger model   the mirror of it
    both             D and S > 10 %, neither more than 1.6 times the other
    neither          D and S < 2 %
    cannot tell      half of them: 3 sizes x 4 amounts, one seed, 15 to 25 % noise, any law, where the best of many laws
                     of "more data" and the best of "a bigger model" fit within 1 of the best log likelihood of all;
                     half: tokens = 20 x parameters in all rows, 5 to 7 sizes, 2 or 3 seeds of 1 to 3 % noise, ten times
                     both taking away more than 15 %: swapping the two terms of the law gives the same rows

In a second comparison trials are added to worlds of each kind in turn: those that the advice names ("named"), as many
drawn from the same candidates ("random"), or the largest run that the FLOPs of the named ones can pay, its FLOPs grown
from the corner's by parameters and data alike ("largest"). They are trained in the world (law and noise), the forecasts
are made again, and what is compared is by how much the 90 % intervals of the log loss at ten times the data and at ten
times the parameters narrowed, on average of both, per FLOP.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from scalejax.analysis.forecast.advice import Part, advise_rows
from scalejax.analysis.forecast.anchor import anchor_of, falling
from scalejax.analysis.forecast.extrapolate import measured, posterior
from scalejax.analysis.forecast.next_trials import candidates_of, next_trials
from scalejax.analysis.forecast.observed import observed_of_table
from scalejax.analysis.forecast.posterior import Posterior
from scalejax.analysis.forecast.statement import Advice
from scalejax.analysis.forecast.verdict import BOTH, DATA, NEITHER, SIZE, UNSURE

KINDS = (DATA, SIZE, BOTH, NEITHER, UNSURE)
LARGEST = (1e8, 3e10)  # parameters and tokens of a grid's corner
BANK = 3000  # laws that show whether rows can tell
SHAPES = ("sum", "interaction", "plateau")
LEVEL = 0.9
ASKED = np.array([[1.0, 10.0], [10.0, 1.0]])  # times the corner's parameters, and its data


@dataclass(frozen=True)
class Law:
    """A loss of parameters and data: a bare law, relative to its value at the corner, and a chance level."""

    bare: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scale: float
    chance: float

    def __call__(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return self.scale * (self.bare(n, d) ** -8 + self.chance**-8) ** (-1 / 8)

    def fits(self, n: np.ndarray, d: np.ndarray) -> bool:
        """Whether a design shows a sensible law: at most tenfold losses, some at chance if any may be, most not."""
        losses, at_chance = self(n, d), self.bare(n, d) > 0.8 * self.chance
        return losses.max() < 10 * losses.min() and (self.chance == np.inf or 0 < at_chance.mean() < 1 / 3)


@dataclass(frozen=True)
class World:
    """A law, and rows that were trained in it."""

    kind: str
    shape: str
    law: Law
    noise: float
    corner: tuple[float, float]
    rows: pd.DataFrame

    @property
    def falls(self) -> tuple[float, float]:
        """The shares of the loss that ten times the data and ten times the parameters take away."""
        n, d = self.corner
        now, data, size = self.law(np.array([n, n, 10 * n]), np.array([d, 10 * d, d]))
        return float(1 - data / now), float(1 - size / now)

    def trained(self, params: np.ndarray, data: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
        """Train a run at each place (runs,)."""
        loss = self.law(params, data) * np.exp(self.noise * rng.standard_normal(len(params)))
        return pd.DataFrame({"params": params, "tokens": data, "loss": loss})


def law_of(rng: np.random.Generator, corner: tuple[float, float], shape: str) -> Law:
    """Draw a law."""
    a, b = rng.uniform(0.1, 0.8, 2)
    floor, size, data = rng.dirichlet(np.ones(3))
    power = 2 ** rng.uniform(-1, 1)
    inner = rng.uniform()
    height, scale = rng.uniform(1.5, 6.0), rng.uniform(0.5, 4.0)
    sums = shape == "sum" or (shape == "plateau" and rng.uniform() < 0.5)

    def bare(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        n, d = n / corner[0], d / corner[1]
        if sums:
            return floor + size * n**-a + data * d**-b
        return floor + (1 - floor) * (inner * n ** (-a / power) + (1 - inner) * d ** (-b / power)) ** power

    return Law(bare, scale, height if shape == "plateau" else np.inf)


def kind_of(falls: tuple[float, float]) -> str:
    """Return the kind of a law by its falls, "" where it is between two."""
    data, size = falls
    if data < 0.02 and size < 0.02:
        return NEITHER
    if min(falls) > 0.1 and max(falls) <= 1.6 * min(falls):
        return BOTH
    for kind, more, less in ((DATA, data, size), (SIZE, size, data)):
        if more > 0.1 and less < max(more / 3, 0.03):
            return kind
    return ""


def world_of(kind: str, number: int) -> World:
    """Plant a world of a kind."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    shape = SHAPES[number // 2 % len(SHAPES)]  # odd and even numbers differ in other ways
    if kind != UNSURE:
        return grid_world(kind, shape, rng)
    return noisy_world(shape, rng) if number % 2 else diagonal_world(shape, rng)


def grid_world(kind: str, shape: str, rng: np.random.Generator) -> World:
    """Plant a world with a grid of sizes and amounts."""
    sizes, amounts = rng.integers(4, 7), rng.integers(5, 8)
    params = LARGEST[0] * np.geomspace(0.01, 1, sizes)
    data = LARGEST[1] * np.geomspace(10 ** -rng.uniform(2, 3), 1, amounts)
    return planted(
        kind, shape, rng, crossed(params, data, seeds=int(rng.integers(2, 4))), noise=rng.uniform(0.01, 0.03)
    )


def diagonal_world(shape: str, rng: np.random.Generator) -> World:
    """Plant a world in which data and size grow together."""
    params = LARGEST[0] * np.geomspace(0.01, 1, rng.integers(5, 8)).repeat(rng.integers(2, 4))
    return planted(UNSURE, shape, rng, (params, 20 * params), noise=rng.uniform(0.01, 0.03))


def noisy_world(shape: str, rng: np.random.Generator) -> World:
    """Plant a world whose few rows laws of opposite kinds fit as well."""
    design = crossed(
        LARGEST[0] * np.geomspace(0.01, 1, 3), LARGEST[1] * np.geomspace(10 ** -rng.uniform(2, 3), 1, 4), seeds=1
    )
    bank = [bare_world(rng, design, SHAPES[number % len(SHAPES)]) for number in range(BANK)]
    logs = np.stack([np.log(world.law(*design)) for world in bank])
    kinds = np.array([kind_of(world.falls) for world in bank])
    while True:
        world = planted("", shape, rng, design, noise=rng.uniform(0.15, 0.25))
        misses = np.log(world.rows["loss"].to_numpy()) - logs
        misses = ((misses - misses.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / (2 * world.noise**2)
        best = [misses[kinds == kind].min() for kind in (DATA, SIZE)]
        if max(best) < misses.min() + 1:
            return replace(world, kind=UNSURE)


def crossed(params: np.ndarray, data: np.ndarray, *, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return parameters and data of every run of a grid."""
    n, d, _ = np.meshgrid(params, data, np.arange(seeds), indexing="ij")
    return n.ravel(), d.ravel()


def bare_world(rng: np.random.Generator, design: tuple[np.ndarray, np.ndarray], shape: str) -> World:
    """Draw a law that fits the design, without rows."""
    corner = (float(design[0].max()), float(design[1].max()))
    while True:
        law = law_of(rng, corner, shape)
        if law.fits(*design):
            return World("", shape, law, 0.0, corner, pd.DataFrame())


def planted(
    kind: str, shape: str, rng: np.random.Generator, design: tuple[np.ndarray, np.ndarray], *, noise: float
) -> World:
    """Draw laws until one is of the kind ("" for any; "cannot tell": ten times both take away 15 %), and train."""
    while True:
        world = bare_world(rng, design, shape)
        n, d = (np.array([place, 10 * place]) for place in world.corner)
        here, there = world.law(n, d)
        fits = here - there > 0.15 * here if kind == UNSURE else not kind or kind_of(world.falls) == kind
        if fits:
            world = replace(world, kind=kind, noise=noise)
            return replace(world, rows=world.trained(*design, rng))


def verdict_of(world: World) -> tuple[str, int]:
    """Return the verdict of the advice, and how many trials it names where it cannot tell."""
    said = advice_of(world, parts=())
    return said.verdict, len(said.trials) if said.verdict == UNSURE else 0


def advice_of(world: World, *, parts: Collection[Part] = ("forecasts",)) -> Advice:
    """Return the advice, without the parts that take longer."""
    observed = observed_of_table(world.rows, columns={})
    return advise_rows(observed, target=None, compute=10.0, level=LEVEL, seed=0, parts=parts)


def width_of(known: Posterior, places: np.ndarray) -> float:
    """Return the mean width of the intervals of the log loss at places (2, places)."""
    low, high = known.forecast(places, noise=False).quantiles([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float((high - low).mean())


def narrowed(world: World, number: int) -> dict[str, tuple[float, float]]:
    """Return for each choice of trials by how much it narrows the intervals, and the FLOPs relative to the anchor's."""
    rng = np.random.default_rng(number)
    observed = observed_of_table(world.rows, columns={})
    anchor = anchor_of(observed.own, level=LEVEL, seed=0)
    candidates = candidates_of(anchor, observed)
    named = next_trials(anchor, observed)
    spent = float(named["flops"].to_numpy().sum() / anchor.flops)
    a, b = anchor.powers
    chosen = {
        "named": named[["params", "data"]].to_numpy() / [anchor.params, anchor.data],
        "random": candidates[rng.choice(len(candidates), len(named), replace=False)],
        "largest": np.array([[spent ** (0.5 / a), spent ** (0.5 / b)]]),
    }
    before = width_of(anchor.posterior, anchor.positions(*ASKED))
    result = {}
    for name, places in chosen.items():
        params, data = (places * [anchor.params, anchor.data]).T
        table = pd.concat([world.rows, world.trained(params, data, np.random.default_rng(number))])
        rows = falling(observed_of_table(table, columns={}).rows)
        found = measured({"params": rows["params"], "data": rows["data"]}, rows["loss"])
        asked = found.new({"params": ASKED[0] * anchor.params, "data": ASKED[1] * anchor.data})[0]
        after = width_of(posterior(found), asked)
        result[name] = (1 - after / before, float((anchor.cost(*places.T) / anchor.flops).sum()))
    return result


def judged(kind: str, number: int) -> dict[str, Any]:
    """Judge the verdicts in so many worlds of a kind."""
    told = [verdict_of(world_of(kind, place)) for place in range(number)]
    right = sum(verdict == kind and (kind != UNSURE or trials > 0) for verdict, trials in told)
    return {"right": right, "worlds": number, "said": dict(Counter(verdict for verdict, _ in told).most_common())}


def compared(number: int) -> dict[str, dict[str, float]]:
    """Compare choices of trials in so many worlds, other ones than those of the verdicts."""
    pairs = [narrowed(world_of(KINDS[place % len(KINDS)], 1000 + place), place) for place in range(number)]
    table = {}
    for name in pairs[0] if pairs else ():
        narrow, flops = np.array([pair[name] for pair in pairs]).T
        beaten = sum(pair["named"][0] / pair["named"][1] > pair[name][0] / pair[name][1] for pair in pairs)
        columns = {"narrowed": narrow, "flops": flops, "narrowed per flops": narrow / flops}
        table[name] = {title: float(np.median(column)) for title, column in columns.items()} | {"beaten": beaten}
    return table


def main() -> None:
    """Judge the advice in many worlds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=100, help="of each kind")
    parser.add_argument("--pairs", type=int, default=50, help="worlds in which trials are added")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    verdicts, fine = {}, True
    for kind in KINDS:
        verdicts[kind] = row = judged(kind, options.worlds)
        fine &= row["right"] >= 0.95 * row["worlds"]
        if not options.json:
            said = ", ".join(f"{count} {verdict}" for verdict, count in row["said"].items())
            print(f"{kind:15} {row['right']:4} right of {row['worlds']}: said {said}", flush=True)
    trials = compared(options.pairs)
    for name, row in trials.items():
        if name != "named":
            best = trials["named"]["narrowed per flops"]
            fine &= row["beaten"] > options.pairs / 2 and row["narrowed per flops"] < best
        if not options.json:
            print(
                f"{name:15} narrows by {100 * row['narrowed']:.1f} % with {row['flops']:.2f} times the anchor's FLOPs, "
                f"{100 * row['narrowed per flops']:.1f} % per such (medians); the named narrow more per FLOP in "
                f"{row['beaten']} of {options.pairs} worlds"
            )
    if options.json:
        print(json.dumps({"verdicts": verdicts, "trials": trials, "pass": bool(fine)}, indent=1))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
