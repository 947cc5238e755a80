"""The verdicts and forecasts of curves whose laws are known, planted here."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from scalejax.analysis import trends
from scalejax.analysis.curves.curves import FLAT_FALL
from scalejax.analysis.curves.tenfold import forecast_fall

Law = Callable[[np.ndarray], np.ndarray]


def power_law(generator: np.random.Generator, sizes: np.ndarray, floor: float) -> Law:
    """e + b n^-c, c from 0.1 to 1."""
    exponent = generator.uniform(0.1, 1)
    return lambda n: 0.9 * (floor + (1 - floor) * (n / sizes[0]) ** -exponent)


def early_break(generator: np.random.Generator, sizes: np.ndarray, floor: float) -> Law:
    """Like `bnsl1`: a slow start, and a smooth break at least 1.5 decades before the end of long curves."""
    slow, more, sharp = generator.uniform(0, 0.3), generator.uniform(0.1, 0.8), generator.uniform(0.1, 0.5)
    at = min(sizes[0] * 10 ** generator.uniform(-0.5, 1), sizes[-1] / 10**1.5)
    return lambda n: (
        0.9 * (floor + (1 - floor) * (n / sizes[0]) ** -slow * (1 + (n / at) ** (1 / sharp)) ** (-more * sharp))
    )


def two_powers(generator: np.random.Generator, sizes: np.ndarray, floor: float) -> Law:
    """e + b n^-c + b' n^-c'."""
    (one, other), share = generator.uniform(0.05, 1, 2), generator.uniform(0.1, 0.9)
    start = sizes[0]
    return lambda n: 0.9 * (floor + (1 - floor) * (share * (n / start) ** -one + (1 - share) * (n / start) ** -other))


@dataclass(frozen=True)
class Planted:
    """What was planted in each of many curves, and what `trends` says of it; arrays (curves,)."""

    truth: np.ndarray  # the fall that ten times the data would bring
    floor: np.ndarray
    sizes: np.ndarray
    noise: np.ndarray  # relative, of one seed
    verdict: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def given(self) -> np.ndarray:
        return self.verdict != "unclear"

    def right(self) -> float:
        """Share of right verdicts among those given."""
        right = (self.verdict == "flattened") == (self.truth < FLAT_FALL)
        return float(right[self.given()].mean())

    def held(self) -> float:
        """Share of intervals that hold the truth; sentences give whole percents, so a tenth of one is no miss."""
        return float(((self.low - 0.001 <= self.truth) & (self.truth <= self.high + 0.001)).mean())

    def clear(self) -> np.ndarray:
        """Curves that deserve a verdict: at least 5 sizes, little noise, a truth far from 5 %."""
        far = (self.truth < 0.02) | (self.truth > 0.12)
        return far & (self.sizes >= 5) & (self.noise < 0.02)

    def part(self, chosen: np.ndarray) -> "Planted":
        return Planted(**{name: column[chosen] for name, column in vars(self).items()})


def plant(law: Callable[[np.random.Generator, np.ndarray, float], Law], number: int, *, seeds: int = 3) -> Planted:
    """Plant curves and judge them.

    Half have a floor, of 1 to 70 % of the first error; 3 to 8 sizes, 2 to 10 times apart; the spread of seeds is 1 to
    5 %.
    """
    generator = np.random.default_rng(12345)
    tables, floors, counts, noises, truths = [], [], [], [], []
    for place in range(number):
        first, apart = np.exp(generator.uniform(np.log([20, 2]), np.log([1000, 10])))
        sizes = first * apart ** np.arange(generator.integers(3, 9))
        floor, noise = np.exp(generator.uniform(np.log([0.01, 0.01]), np.log([0.7, 0.05])))
        floors.append(place % 2 == 1)
        error = law(generator, sizes, floor if floors[-1] else 0.0)
        runs = error(sizes) * np.exp(noise * generator.standard_normal((seeds, len(sizes))))
        spread = runs.std(0, ddof=1) / math.sqrt(seeds) if seeds > 1 else math.nan
        tables.append(pd.DataFrame({"model": str(place), "params": 1, "train_examples": sizes, "value": runs.mean(0),
                                    "standard_error": spread, "seeds": seeds}))  # fmt: skip
        counts.append(len(sizes))
        noises.append(noise)
        truths.append(1 - error(10 * sizes[-1]) / error(sizes[-1]))
    said = trends(pd.concat(tables))
    columns = (said[name].to_numpy() for name in ("verdict", "fall_low", "fall_high"))
    return Planted(*(np.array(column) for column in (truths, floors, counts, noises)), *columns)


@pytest.mark.slow
def test_verdicts_are_right_and_intervals_hold_the_truth_of_planted_curves():
    found = plant(power_law, 200)
    assert found.right() >= 0.93
    assert 0.88 <= found.held() <= 0.98
    assert found.given().mean() >= 0.88
    assert found.part(found.clear()).given().mean() >= 0.93


@pytest.mark.slow
def test_verdicts_and_intervals_of_many_planted_curves():
    found = plant(power_law, 2000)
    assert found.right() >= 0.95
    assert 0.85 <= found.held() <= 0.96
    assert found.given().mean() >= 0.9
    assert found.part(found.clear()).given().mean() >= 0.95
    for number in range(3, 9):
        part = found.part(found.sizes == number)
        assert part.right() >= 0.93
        assert 0.85 <= part.held() <= 0.98
    for floor in (False, True):
        part = found.part(found.floor == floor)
        assert part.right() >= 0.95
        assert 0.85 <= part.held() <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("law", [early_break, two_powers])
def test_verdicts_on_laws_outside_the_average_are_right_too(law):
    found = plant(law, 500)
    assert found.right() >= 0.93
    assert found.held() >= 0.8  # less than the 0.9 it says: these laws are not among those averaged over
    assert found.given().mean() >= 0.85


def test_with_one_seed_the_spread_is_learned_from_the_misfit():
    found = plant(power_law, 120, seeds=1)
    assert found.right() >= 0.93
    assert 0.86 <= found.held() <= 0.99
    assert found.given().mean() >= 0.8


def forecast(values, *, sizes=(100, 300, 1000, 3000, 10000), spread=0.01, seeds=3):
    values = np.asarray(values)
    errors = spread / math.sqrt(seeds) * values
    return forecast_fall(sizes, values, standard_errors=errors, seeds=np.full(len(values), seeds))


def test_without_noise_the_forecast_is_the_planted_fall():
    sizes = np.geomspace(100, 10000, 5)
    for floor, exponent in ((0.0, 0.1), (0.0, 0.5), (0.05, 0.5), (0.2, 0.8), (0.3, 0.0)):
        error = floor + 0.6 * (np.append(sizes, 1e5) / 100) ** -exponent
        found = forecast(error[:-1], sizes=sizes, spread=0.0)
        assert found.low - 0.01 <= 1 - error[-1] / error[-2] <= found.high + 0.01
        assert found.fall == pytest.approx(1 - error[-1] / error[-2], abs=0.04)


def test_a_floor_is_seen_in_the_bend_and_not_in_the_last_slope():
    sizes = np.array([100, 300, 1000, 3000, 10000])
    error = 0.2 + 0.6 * (sizes / 100) ** -0.5
    found = forecast(error)
    straight = 1 - (error[-1] / error[2])  # the last decade's fall, repeated
    assert straight > 0.3
    assert found.fall == pytest.approx(0.158, abs=0.03)  # 1 - (0.2 + 0.6 / 1000^0.5) / (0.2 + 0.6 / 10)
    assert found.high < straight


def test_a_start_plateau_neither_spoils_nor_hides_the_end():
    end = 0.5 * np.geomspace(1, 100, 5) ** -0.4
    alone = forecast(end)
    sizes = np.array([1, 3, 10, 30, 100, 300, 1000, 3000, 10000])
    whole = forecast(np.concatenate([np.full(4, 0.9), end]), sizes=sizes)
    assert (whole.fall, whole.low, whole.high) == pytest.approx((alone.fall, alone.low, alone.high), abs=0.03)


def test_points_that_miss_every_law_widen_the_interval():
    smooth = forecast([0.6, 0.48, 0.38, 0.30, 0.24])
    rough = forecast([0.6, 0.40, 0.44, 0.27, 0.24])
    assert rough.high - rough.low > 2 * (smooth.high - smooth.low)


def test_the_unit_of_size_and_error_changes_nothing():
    values = np.array([0.6, 0.48, 0.38, 0.31, 0.27])
    one = forecast(values)
    other = forecast(7 * values, sizes=1000 * np.array([100, 300, 1000, 3000, 10000]))
    assert (other.fall, other.low, other.high, other.flat) == pytest.approx((one.fall, one.low, one.high, one.flat))


def test_the_trends_of_a_run_take_no_time():
    curves = pd.concat(
        pd.DataFrame({"model": str(k), "params": k, "train_examples": 20 * 2 ** np.arange(8),
                      "value": 2.0 ** (-0.02 * k * np.arange(8)), "standard_error": 0.01, "seeds": 3})
        for k in range(20))  # fmt: skip
    seconds = []
    for _ in range(3):
        start = time.process_time()
        trends(curves)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0  # about 0.2 on one slow core
