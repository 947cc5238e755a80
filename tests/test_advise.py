"""Advice from tables whose laws are planted; the long form is `worlds.py`."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import worlds

import scalejax as sx
from scalejax.analysis.forecast.advice import _answer, _at_edges, _left_out, _shorter_training, advise_rows
from scalejax.analysis.forecast.anchor import CHANCE, WORTH, Anchor, _powers, anchor_of, falling
from scalejax.analysis.forecast.back_test import back_test
from scalejax.analysis.forecast.budget import needed_for, target_statements
from scalejax.analysis.forecast.crossings import flattened, overtaking
from scalejax.analysis.forecast.next_trials import TRIALS, candidates_of
from scalejax.analysis.forecast.observed import Observed, observed_of_run, observed_of_table
from scalejax.analysis.forecast.statement import Advice
from scalejax.analysis.forecast.verdict import BOTH, DATA, NEITHER, SIZE, UNSURE, verdict_of
from scalejax.report.answer import HEADLINES, Speed, answer_of, span
from scalejax.text import quantity, short

CORNER = (1e8, 1e10)
FLOOR, OF_SIZE, OF_DATA = 1.0, 0.8, 0.8  # of the planted loss: what nothing, what size and what data take away


def law(params: np.ndarray, data: np.ndarray) -> np.ndarray:
    return FLOOR + OF_SIZE * (params / CORNER[0]) ** -0.5 + OF_DATA * (data / CORNER[1]) ** -0.5


def table_of(sizes: int = 3, amounts: int = 4, noise: float = 0.005) -> pd.DataFrame:
    params = CORNER[0] * 0.2 ** np.arange(sizes)
    data = CORNER[1] * 0.2 ** np.arange(amounts)
    n, d = worlds.crossed(params, data, seeds=1)
    loss = law(n, d) * np.exp(noise * np.random.default_rng(7).standard_normal(len(n)))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss})


def quickly(rows: pd.DataFrame) -> Advice:
    """The answer and the forecasts alone."""
    asked = {"target": None, "compute": 10.0, "level": 0.9, "seed": 0}
    return advise_rows(observed_of_table(rows, columns={}), **asked, parts=("forecasts",))


@pytest.fixture(scope="module")
def advised() -> Advice:
    return sx.advise(table_of(), target=1.5)


@pytest.fixture(scope="module")
def known() -> tuple[Anchor, Observed]:
    observed = observed_of_table(table_of(), columns={})
    return anchor_of(observed.own, level=0.9, seed=0), observed


@pytest.mark.parametrize("kind", worlds.KINDS)
def test_verdicts_and_the_three_sentences_of_planted_worlds(kind: str) -> None:
    world = worlds.world_of(kind, 0)
    said = worlds.advice_of(world)
    assert said.verdict == kind
    assert kind != UNSURE or len(said.trials) == TRIALS
    answer = answer_of(said, Speed(1e15, "chip"))
    assert (answer.verdict, answer.headline) == (kind, HEADLINES[kind])
    helps, brings, costs = answer.sentences
    assert helps.split(". ")[0].rstrip(".") == said["answer"].sentence.split(". ")[0].rstrip(".")
    assert helps.endswith('. The trials under "What to run next" would tell most.') == (kind == UNSURE)
    assert ("The trials named last would tell most." in str(said).splitlines()) == (kind == UNSURE)
    n, d = world.corner
    if kind != UNSURE:
        for name, params, data in (
            ("10x data", n, 10 * d),
            ("10x parameters", 10 * n, d),
            ("10x both", 10 * n, 10 * d),
        ):
            assert said[name].low < float(world.law(np.array(params), np.array(data))) < said[name].high
            assert f"{short(said[name].value)} ({short(said[name].low)} to {short(said[name].high)}) with ten" in brings
    assert f"One training run takes {quantity(6 * n * d, 'FLOP')} now, about {span(6 * n * d / 1e15)}" in costs
    assert f"with ten times the parameters {quantity(60 * n * d, 'FLOP')}" in costs


@pytest.mark.slow
def test_named_trials_narrow_more_for_their_flops() -> None:
    found = worlds.narrowed(worlds.world_of(UNSURE, 0), 0)  # few rows, on a diagonal: quickly forecast
    gains = {name: narrowed / flops for name, (narrowed, flops) in found.items()}
    assert max(gains, key=lambda name: gains[name]) == "named", gains


def test_the_picture_forecasts_what_the_sentences_do(advised: Advice) -> None:
    bands = advised.bands
    largest = bands[bands["params"] == CORNER[0]]
    ends = largest.iloc[[0, len(largest) // 2, -1]]
    np.testing.assert_allclose(ends["data"] / CORNER[1], [1, 10, 100])
    told = advised["10x data"]
    np.testing.assert_allclose(ends.iloc[1][["value", "low", "high"]].astype(float), [told.value, told.low, told.high],
                               rtol=0.03)  # fmt: skip
    assert (ends["value"].diff().dropna() < 0).all()


def test_verdict_follows_the_draws() -> None:
    rng = np.random.default_rng(0)

    def said(data: float, size: float, deviation: float = 0.01) -> str:
        around = {DATA: data, SIZE: size, BOTH: data + size}
        falls = {name: middle + deviation * rng.standard_normal(2000) for name, middle in around.items()}
        return verdict_of(falls, sizes=True)

    assert said(0.3, 0.05) == DATA
    assert said(0.05, 0.3) == SIZE
    assert said(0.2, 0.25) == BOTH
    assert said(0.01, 0.01) == NEITHER
    assert said(0.2, 0.2, deviation=0.3) == UNSURE


@pytest.mark.parametrize(("data", "size", "verdict"), [
    ([0.3] * 83 + [0.0] * 17, [0.3] * 100, BOTH),  # together with probability 0.83
    ([0.3] * 78 + [0.0] * 22, [0.3] * 100, UNSURE),  # and 0.78
    ([0.2] * 78 + [0.0] * 22, [0.3] * 100, SIZE),
    ([0.2] * 78 + [0.0] * 22, [0.1] * 21 + [0.3] * 79, UNSURE),  # it helps more with 0.79
    ([0.0] * 22 + [0.2] * 78, [0.3] * 89 + [0.0] * 11, UNSURE),  # it helps with 0.89
    ([0.0] * 71 + [0.3] * 29, [0.0] * 71 + [0.3] * 29, NEITHER),
    ([0.0] * 69 + [0.3] * 31, [0.0] * 100, UNSURE),
])  # fmt: skip
def test_verdicts_ask_for_these_probabilities(data: list[float], size: list[float], verdict: str) -> None:
    falls = {DATA: np.array(data), SIZE: np.array(size), BOTH: np.array(data)}
    assert verdict_of(falls, sizes=True) == verdict
    assert verdict_of({**falls, DATA: falls[SIZE], SIZE: falls[DATA]}, sizes=True) == {SIZE: DATA}.get(verdict, verdict)


@pytest.mark.parametrize(("kind", "sentence"), [
    (DATA, "More data: ten times the tokens would cut the loss by 30 % (90 % interval 20 to 40 %); "
           "ten times the parameters by 30 % (90 % interval 20 to 40 %)."),
    (SIZE, "A bigger model: ten times the parameters would cut the loss by 30 % (90 % interval 20 to 40 %); "
           "ten times the tokens would cut the loss by 30 % (90 % interval 20 to 40 %)."),
    (NEITHER, "More data does not help much: ten times the tokens would cut the loss by 30 % "
              "(90 % interval 20 to 40 %); one size was measured, so nothing is known about a bigger model."),
    (UNSURE, "These results cannot tell whether more data helps: ten times the tokens would cut the loss by 30 % "
             "(90 % interval 20 to 40 %); one size was measured."),
])  # fmt: skip
def test_the_answer_in_words(kind: str, sentence: str) -> None:
    planted: Any = SimpleNamespace(sizes="one size" not in sentence, level=0.9, interval=lambda _: (30.0, 20.0, 40.0))
    observed: Any = SimpleNamespace(data="tokens", noun="loss")
    falls = {DATA: np.array([0.3]), SIZE: np.array([0.3])}
    assert _answer(kind, falls, planted, observed).sentence == sentence


def test_statements_are_found_by_name(advised: Advice) -> None:
    assert advised.verdict == BOTH
    assert advised.statements[0] is advised["answer"]
    assert advised["answer"].facts["verdict"] == advised.verdict
    assert str(advised).splitlines()[0] == advised["answer"].sentence
    assert advised["10x data"].low < float(law(np.array(1e8), np.array(1e11))) < advised["10x data"].high
    assert advised["10x parameters"].low < float(law(np.array(1e9), np.array(1e10))) < advised["10x parameters"].high
    assert 0 < advised["data beats size"].value < 1
    assert "helps more than ten times the parameters with probability 0." in advised["data beats size"].sentence
    assert advised["now"].sentence.startswith(
        "Now: the run with the most compute, 100,000,000 parameters on 10,000,000,000 tokens, has loss 2."
    )
    assert advised["now"].facts["lowest"] == advised["now"].value  # one run: no interval
    assert math.isnan(advised["now"].low)
    assert re.search(
        r"best is a model of \d+M parameters \(\d+M to [\d.]+[MB]\) on [\d.]+B tokens",
        advised["compute-optimal"].sentence,
    )
    assert re.fullmatch(
        r"To reach loss 1.5 takes [\d.]+ [EZ]FLOP \(90 % interval .*\)\.", advised["target by FLOPs"].sentence
    )
    with pytest.raises(KeyError, match="the statements are answer, now, 2x data"):
        advised["no such"]


def test_facts_are_json(advised: Advice) -> None:
    facts = json.loads(json.dumps(advised.facts, allow_nan=False))
    assert facts["verdict"] == advised.verdict
    assert [entry["name"] for entry in facts["statements"]] == [entry.name for entry in advised.statements]
    assert len(facts["trials"]) == TRIALS
    assert all(trial["flops"] > 0 for trial in facts["trials"])
    assert len({(trial["params"], trial["data"]) for trial in facts["trials"]}) == TRIALS
    assert facts["columns"] == {"data": "tokens", "loss": "loss"}


def test_a_target_within_reach_has_a_price(advised: Advice) -> None:
    # Ten times of both: 1 + 1.6 / sqrt(10) = 1.506.
    reached = advised["target by FLOPs"]
    assert reached.low < 6e18 * 102 < reached.high, reached


def test_a_target_out_of_reach_names_the_loss_that_remains(advised: Advice, known: tuple[Anchor, Observed]) -> None:
    alone = advised["target by tokens"]
    assert math.isnan(alone.value)
    low, middle, high = alone.facts["remains"]
    assert alone.sentence.startswith("Tokens alone probably do not reach loss 1.5 (probability of reaching it 0.")
    assert "); with 10,000 times the tokens the loss would still be 1." in alone.sentence
    assert low < law(np.array(CORNER[0]), np.array(1e4 * CORNER[1])) < high
    assert middle == pytest.approx(FLOOR + OF_SIZE, rel=0.1)
    (all_of_it,) = (s for s in target_statements(0.7, *known) if s.name == "target by FLOPs")
    assert all_of_it.sentence.startswith("More compute probably does not reach loss 0.7 (probability of reaching it ")
    assert "; with 10,000 times both the loss would still be " in all_of_it.sentence
    assert all_of_it.facts["remains"][1] == pytest.approx(FLOOR, rel=0.15)


def test_a_target_that_is_reached_has_no_price(known: tuple[Anchor, Observed]) -> None:
    best = float(known[1].rows["loss"].min())
    (found,) = target_statements(1.01 * best, *known)
    assert found.sentence.startswith("loss ")
    assert " is reached already: model " in found.sentence
    assert found.value == pytest.approx(best)


def test_a_model_of_another_family_that_is_better_is_named() -> None:
    rows = table_of().assign(family="mlp")
    boosted = pd.DataFrame({"params": np.nan, "tokens": CORNER[1] * 0.2 ** np.arange(4), "family": "boosting"})
    boosted["loss"] = 0.5 * (boosted["tokens"] / CORNER[1]) ** -0.2
    both = pd.concat([rows, boosted.assign(params=1.0)], ignore_index=True)
    found = quickly(both)
    said = found["best model"]
    assert said.sentence.startswith("The lowest loss on 10,000,000,000 tokens is that of boosting 1, 0.500; ten times")
    assert said.facts["fall"][0] < 1 - 10**-0.2 < said.facts["fall"][2]
    assert str(found).splitlines()[1] == said.sentence
    assert found.verdict == quickly(rows).verdict


def test_rows_that_say_that_a_bigger_model_is_worse_are_believed() -> None:
    params, tokens = worlds.crossed(CORNER[0] * 0.2 ** np.arange(4), CORNER[1] * 0.2 ** np.arange(5), seeds=1)
    noise = np.exp(0.01 * np.random.default_rng(3).standard_normal(len(params)))

    def truth(n: Any, d: Any) -> Any:
        return (1 + 2 * (d / CORNER[1]) ** -0.5) * (n / CORNER[0]) ** 0.15

    found = quickly(pd.DataFrame({"params": params, "tokens": tokens, "loss": truth(params, tokens) * noise}))
    told = found["10x parameters"]
    assert told.low < truth(10 * CORNER[0], CORNER[1]) < told.high
    assert found.verdict not in ("a bigger model", "both")


@pytest.mark.parametrize("size", [1.0, 0.3])
def test_equal_models_do_not_overtake(size: float) -> None:
    data = np.tile(np.geomspace(1e3, 1e6, 6), 2)
    rows = pd.DataFrame({"params": [1e3] * 6 + [1e5] * 6, "tokens": data, "loss": size})
    observed = observed_of_table(rows, columns={})
    (found,) = overtaking(observed, anchor_of(observed.own, level=0.9, seed=0))
    assert 0.3 < found.facts["probability"] < 0.7


@pytest.mark.parametrize(("size", "data"), [(0.3, 0.0), (0.0, 0.3), (0.2, 0.2), (0.3, 0.02)])
def test_the_fewest_flops_are_at_most_those_of_data_or_parameters_alone(size: float, data: float) -> None:
    heights = np.geomspace(1, 3, 50)[:, None]
    planted: Any = SimpleNamespace(
        params=1e6, data=1e8, flops=6e14, powers=(1.0, 1.0), sizes=True, offset=0.0, level=0.9,
        cost=lambda n, d: 6e14 * np.asarray(n) * d,
        draws=lambda n, d: heights * np.asarray(n) ** -size * np.asarray(d) ** -data,
    )  # fmt: skip
    needed, remains = needed_for(0.9, planted)
    np.testing.assert_allclose(remains["FLOPs"], heights[:, 0] * 1e4 ** -(size + data))
    by_size, by_data = 6e8 * needed["parameters"], 6e6 * needed["data"]
    assert np.all(needed["FLOPs"] <= np.minimum(by_size, by_data) * (1 + 1e-9))
    best = 6e14 * (heights[:, 0] / 0.9) ** (1 / max(size, data))
    np.testing.assert_allclose(needed["FLOPs"], best, rtol=1e-6)  # a power law is straight in logarithms


def test_columns_of_other_names(known: tuple[Anchor, Observed]) -> None:
    renamed = table_of().rename(columns={"params": "N", "tokens": "D", "loss": "val_nll"})
    observed = observed_of_table(renamed, columns={"params": "N", "tokens": "D", "loss": "val_nll"})
    pd.testing.assert_frame_equal(observed.rows, known[1].rows)
    with pytest.raises(ValueError, match="There is no column 'loss' for loss: the table has N, D and val_nll"):
        observed_of_table(renamed, columns={"params": "N", "tokens": "D"})
    with pytest.raises(ValueError, match="There is no column of data"):
        observed_of_table(renamed, columns={"params": "N", "loss": "val_nll"})
    with pytest.raises(ValueError, match="size means nothing to advise: what it knows is"):
        observed_of_table(renamed, columns={"size": "N"})


def test_one_size_tells_of_data_alone() -> None:
    one = table_of(sizes=1, amounts=6, noise=0.003)
    found = sx.advise(one)
    assert found.verdict == DATA
    assert "nothing is known about a bigger model" in found["answer"].sentence
    assert found.trials["params"].iloc[0] != CORNER[0]
    assert not any("parameters" in entry.name or entry.name == "data beats size" for entry in found.statements)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="The rows are at 3 different places: a forecast needs at least 4"):
        sx.advise(table_of(sizes=1, amounts=3))


@pytest.mark.parametrize(("mistake", "sentence"), [
    ({"target": 0.0}, "target is 0: give a loss above zero"),
    ({"compute": -1.0}, "compute is -1: give how many times"),
])  # fmt: skip
def test_mistaken_questions_are_refused(mistake: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sx.advise(table_of(), **mistake)  # pyright: ignore[reportArgumentType]


def test_overtaking_that_was_measured() -> None:
    data = np.array([1e3, 1e4, 1e5, 1e6])
    small, large = np.array([0.5, 0.4, 0.35, 0.34]), np.array([0.7, 0.5, 0.3, 0.2])
    rows = pd.DataFrame(
        {"params": [1e3] * 4 + [1e5] * 4, "tokens": np.tile(data, 2), "loss": np.concatenate([small, large])}
    )
    observed = observed_of_table(rows, columns={})
    (found,) = overtaking(observed, anchor_of(observed.own, level=0.9, seed=0))
    assert (found.value, found.facts) == (1e5, {"not_yet": 1e4})
    assert math.isnan(found.low)
    assert found.sentence.startswith("model 100,000 is clearly better than model 1,000 from 100,000 tokens on, not yet")


def test_overtaking_that_is_unlikely() -> None:
    data = np.geomspace(1e3, 1e6, 6)
    curves = np.concatenate([0.1 * (data / 1e3) ** -0.3, 0.9 * (data / 1e3) ** -0.01])
    rows = pd.DataFrame({"params": [1e3] * 6 + [1e5] * 6, "tokens": np.tile(data, 2), "loss": curves})
    observed = observed_of_table(rows, columns={})
    (found,) = overtaking(observed, anchor_of(observed.own, level=0.9, seed=0))
    assert re.fullmatch(
        r"model 100,000 probably does not overtake model 1,000 within 100 times the tokens \(probability of overtaking "
        r"it 0\.\d\d\)\.",
        found.sentence,
    )


def test_a_flattened_curve_is_named() -> None:
    data = np.geomspace(1e3, 1e7, 9)
    flat = 0.2 + 0.5 * (data / 1e3) ** -1.0
    falling = 0.9 * (data / 1e3) ** -0.2
    rows = pd.DataFrame(
        {"params": [1e4] * 9 + [1e5] * 9, "tokens": np.tile(data, 2), "loss": np.concatenate([flat, falling])}
    )
    (found,) = flattened(observed_of_table(rows, columns={}))
    assert found.name == "flattened: model 10,000"
    assert found.facts["since"] == data[4]  # 0.205, the first within 5 % of the last
    assert found.value < WORTH
    low, high = (round(100 * end) for end in found.facts["interval_90"])  # of 90 % whatever the advice's level
    assert found.sentence.endswith(f" % (90 % interval {low} to {high} %).")
    assert math.isnan(found.low)


def test_back_test_counts_what_its_intervals_held() -> None:
    rows = table_of(sizes=2, amounts=6, noise=0.003)
    astray = (rows["params"] == CORNER[0]) & (rows["tokens"] == CORNER[1])
    rows.loc[astray, "loss"] *= 3
    (found,) = back_test(observed_of_table(rows, columns={}), level=0.9, seed=0)
    assert found.facts == {"hidden": "data", "held": 0.5, "runs": 2}
    assert "1 of 2 runs lie in their 90 % interval" in found.sentence


def test_the_back_test_asks_no_law_where_nothing_falls_yet() -> None:
    rows = table_of(sizes=5, amounts=7, noise=0.003)
    chance = 1.25 * law(np.array([CORNER[0] * 0.2**4]), np.array([CORNER[1] * 0.2**3])).item()
    rows["loss"] = np.minimum(rows["loss"], chance)
    (found,) = [each for each in back_test(observed_of_table(rows, columns={}), level=0.9, seed=0)
                if each.facts["hidden"] == "size"]  # fmt: skip
    seen = rows.rename(columns={"tokens": "data"}).query("params < @CORNER[0]")
    amounts = falling(seen)["data"].nunique()
    assert 4 <= amounts < 7
    assert found.facts["runs"] == amounts
    assert found.facts["held"] >= 0.75


def test_the_back_test_by_size_needs_no_lattice() -> None:
    """Of isoFLOP profiles no two sizes have an amount of data in common."""
    flops, params = (each.ravel() for each in np.meshgrid(np.geomspace(1e16, 1e18, 4), np.geomspace(2e7, 1.7e9, 5)))
    tokens = flops / 6 / params
    rows = pd.DataFrame(
        {"params": params, "tokens": tokens, "loss": 1.69 + 406.4 * params**-0.34 + 410.7 * tokens**-0.28}
    )
    told = back_test(observed_of_table(rows, columns={}), level=0.9, seed=0)
    assert {each.facts["hidden"]: each.facts["runs"] for each in told}["size"] == 4


def test_rows_at_chance_are_left_out_and_said_so() -> None:
    rows = table_of(sizes=4, amounts=5)
    assert len(falling(rows.rename(columns={"tokens": "data"}))) == len(rows)
    chance = 20.0
    rows["loss"] = np.minimum(rows["loss"], chance)
    kept = falling(rows.rename(columns={"tokens": "data"}))
    assert np.all(kept["loss"].to_numpy() < CHANCE * chance)
    assert len(kept) == np.count_nonzero(rows["loss"] < CHANCE * chance)
    observed = observed_of_table(rows, columns={})
    (found,) = _left_out(SimpleNamespace(left_out=len(rows) - len(kept)), observed)  # pyright: ignore
    assert found.value == len(rows) - len(kept)
    assert "within 20 % of the highest loss" in found.sentence


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((10, 30, 100, 200, 200), (2, 2.0)),  # a limit of the steps that two amounts reach
        ((10, 30, 100, 300, 300), (3, 1.0)),
        ((10, 10, 10, 30, 100), None),  # a least number of steps, then epochs
        ((10, 10, 10, 10, 10), None),  # the number of steps is fixed
        ((1, 9, 30, 150, 700), None),  # the first are rounded up
        ((100, 100, 1000, 2500, 7000), None),
        ((0, 0, 0, 0, 0), None),  # of an older algorithm
        ((10, 30, 100, math.nan, 300), None),
    ],
)
def test_training_that_stops_growing_with_the_data_is_said(
    steps: tuple[float, ...], said: tuple[int, float] | None
) -> None:
    rows = table_of(sizes=3, amounts=5)
    data = np.unique(rows["tokens"])
    taken = dict(zip(data.tolist(), steps, strict=True))
    rows["flops"] = [6 * n * taken[d] for n, d in zip(rows["params"], rows["tokens"], strict=True)]
    observed: Any = SimpleNamespace(own=rows.assign(data=rows["tokens"], steps=rows["flops"] / rows["params"]),
                                    data="tokens")  # fmt: skip
    found = _shorter_training(SimpleNamespace(params=CORNER[0]), observed)  # pyright: ignore
    if said is None:
        assert not found
        return
    (statement,) = found
    before, times = said
    assert statement.value == pytest.approx(times)
    assert statement.facts == {"before": data[before], "at": data[-1]}
    more = "no more steps" if times == 1 else "2.0 times the steps"
    assert f"up to {data[before]:,.0f}, and for {more} on {data[-1]:,.0f}: its curve may flatten" in statement.sentence


def test_steps_of_training_are_those_planned_of_batches_of_one_size() -> None:
    rows = table_of(sizes=3, amounts=5).rename(columns={"tokens": "train_examples"})
    rows = rows.assign(
        trial_id=np.arange(len(rows)).astype(str), family="mlp", width=np.log(rows["params"]), seed=0, fraction=0.1,
        learning_rate=0.01, weight_decay=0.0, batch_size=16, steps=100, flops=1e6, status="done",
        validation_loss=rows["loss"], test_error=rows["loss"], steps_taken=3,
    )  # fmt: skip
    order = ["trial_id", "family", "width", "params", *(name for name in rows if name not in
             ("trial_id", "family", "width", "params", "loss"))]  # fmt: skip
    rows: Any = rows[order]
    assert (observed_of_run(rows, most_data=math.inf).rows["steps"] == 100).all()
    first = rows["params"] == rows["params"].iloc[0]
    rows.loc[rows.index[first][0], "batch_size"] = 32
    steps = observed_of_run(rows, most_data=math.inf).rows["steps"]
    assert steps[first].isna().all()
    assert (steps[~first] == 100).all()
    flops = table_of().assign(flops=lambda table: 12 * table["params"] * 7)
    assert observed_of_table(flops, columns={}).rows["steps"].to_numpy() == pytest.approx(84)
    assert observed_of_table(table_of(), columns={}).rows["steps"].isna().all()


def test_the_run_with_the_most_compute_is_that_by_its_flops() -> None:
    rows = table_of(sizes=3, amounts=4).rename(columns={"tokens": "data"})
    fixed = rows.assign(flops=6 * rows["params"] * 1e4, family="mlp")  # the number of steps is fixed
    small = rows["params"] == rows["params"].min()
    more = fixed[small].assign(data=fixed.loc[small, "data"] * 1000)
    known = anchor_of(pd.concat([fixed, more], ignore_index=True), level=0.9, seed=0)
    assert (known.params, known.data) == CORNER
    grown = rows.assign(flops=6 * rows["params"] * rows["data"], family="mlp")
    more = grown[small].assign(data=grown.loc[small, "data"] * 1000, flops=grown.loc[small, "flops"] * 1000)
    known = anchor_of(pd.concat([grown, more], ignore_index=True), level=0.9, seed=0)
    assert (known.params, known.data) == (rows["params"].min(), 1000 * CORNER[1])


def test_learning_rates_at_the_ends_of_their_grid_are_said() -> None:
    models = pd.DataFrame({"model": ["a"] * 2 + ["b"] * 2 + ["c"] * 2, "train_examples": [10, 100] * 3,
                           "value": [0.5, 0.4, 0.5, 0.4, 0.5, math.nan],
                           "edge": ["", "highest", "lowest", "", "lowest", ""]})  # fmt: skip
    observed: Any = SimpleNamespace(curves=models, own=pd.DataFrame({"model": ["a", "b", "c"]}), family="mlp")
    (found,) = _at_edges(observed)
    assert found.value == pytest.approx(2 / 3)
    assert found.sentence.startswith("Learning rates: at 2 of 3 ends of the curves of mlp")
    assert not _at_edges(SimpleNamespace(**{**vars(observed), "own": pd.DataFrame({"model": ["b"]})}))  # pyright: ignore


def test_no_trial_is_suggested_that_was_measured(known: tuple[Anchor, Observed]) -> None:
    anchor, observed = known
    chosen = candidates_of(anchor, observed) * [anchor.params, anchor.data]
    places = observed.own[["params", "data"]].to_numpy(float)
    assert len(chosen) == 24  # all but the corner itself
    assert np.abs(np.log(chosen[:, None] / places)).max(axis=2).min() > 0.05
    quarter = observed.own.assign(params=observed.own["params"] * 0.25)
    more = replace(observed, rows=pd.concat([observed.rows, quarter], ignore_index=True))
    assert len(candidates_of(anchor, more)) == 23


def test_flops_count_as_6_n_d_where_rows_cannot_say() -> None:
    params = np.geomspace(1e6, 1e8, 5)
    diagonal = pd.DataFrame({"params": params, "data": 20 * params, "flops": 120 * params**2})
    assert _powers(diagonal) == pytest.approx((1.0, 1.0))
    one_size = pd.DataFrame({"params": 1e6, "data": params, "flops": 3 * params})
    assert _powers(one_size) == pytest.approx((1.0, 1.0))
    fixed_steps = pd.DataFrame({"params": params, "data": params[::-1] ** 0.5, "flops": params})
    grid = pd.concat([fixed_steps, fixed_steps.assign(data=1e5)])
    assert _powers(grid) == pytest.approx((1.0, 0.0), abs=1e-9)
