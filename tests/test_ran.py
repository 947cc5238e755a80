"""How a sweep ran: its picture and its sentences, from tables made up here."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scalejax.report.figures import ran
from scalejax.report.figures.ran import ran_picture
from scalejax.report.ran import ran_facts, ran_sentences


def results(count: int = 6, **changes: Any) -> Any:
    rows = [
        {
            "trial_id": f"t{number}", "family": "mlp", "width": 8 * (1 + number % 2), "params": 100 * (1 + number % 2),
            "train_examples": 20, "seed": number, "learning_rate": 0.1, "status": "done",
        }
        for number in range(count)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    for name, status in changes.items():
        table.loc[table["trial_id"] == name, "status"] = status
    return table


def spans(count: int = 6, lanes: int = 2, **outcomes: str) -> Any:
    """Return trials of ten seconds each, one behind the other in each lane, on one group."""
    rows = [
        {
            "trial_id": f"t{number}", "session": 1, "pack": 0, "group": "cpu 0-1", "bucket": "mlp width 8, 16",
            "lanes": lanes, "lane": number % lanes, "began": 1000.0 + 10 * (number // lanes),
            "ended": 1010.0 + 10 * (number // lanes), "steps": 5, "step_flops": 10,
            "outcome": outcomes.get(f"t{number}", "done"),
        }
        for number in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_each_span_is_a_bar_in_its_lane_in_the_colour_of_its_model():
    picture = ran_picture(spans(), results())
    assert picture is not None
    (ax,) = picture.figure.axes
    assert [len(each) for each in picture.tips.values()] == [3, 3]
    bars = {each.get_gid(): each for each in ax.collections if each.get_gid() in picture.tips}
    assert bars.keys() == picture.tips.keys()
    first = [np.asarray(path.vertices) for path in bars["ran-0"].get_paths()]
    assert [(points[:, 0].min(), points[:, 0].max()) for points in first] == [(0, 10), (10, 20), (20, 30)]
    assert picture.tips["ran-0"][0] == "mlp width 8, 20 examples (t0): 5 steps in 10 s, done"
    assert picture.alt == "6 trials of 2 models in 2 lanes on 1 group of devices, over 30 s."
    assert len(picture.data) == 6
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend == ["mlp width 8", "mlp width 16"]


def test_what_did_not_end_well_is_marked():
    table = spans(t0="diverged", t1="refused", t2="rung", t3="rung")
    picture = ran_picture(table, results(t0="diverged", t2="stopped", t3="pending"))
    assert picture is not None
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend[2:] == ["diverged", "stopped by halving", "sent back: short of memory"]
    assert picture.tips["ran-0"][1].endswith("stopped by halving")
    assert picture.tips["ran-1"][1].endswith("then waited at a rung")


def test_sessions_stand_one_behind_the_other_whatever_lay_between_them():
    later = spans(t5="interrupted").assign(
        session=2, began=lambda it: it["began"] + 1e6, ended=lambda it: it["ended"] + 1e6
    )
    picture = ran_picture(pd.concat([spans(), later], ignore_index=True), results())
    assert picture is not None
    assert picture.figure.axes[0].get_xlim() == (0, 60)
    assert "sessions one behind the other" in picture.figure.axes[0].get_xlabel()


def test_groups_and_buckets_have_blocks_of_their_own():
    elsewhere = spans().assign(group="gpu 10", bucket="cnn"), spans().assign(group="gpu 9", bucket="cnn")
    table = pd.concat(elsewhere, ignore_index=True)
    picture = ran_picture(table, results())
    assert picture is not None
    words = [text.get_text() for text in picture.figure.axes[0].texts]
    assert words == ["gpu 9: cnn", "gpu 10: cnn"]
    assert [tick.get_text() for tick in picture.figure.axes[0].get_yticklabels()] == ["0", "1", "0", "1"]


def test_with_many_lanes_it_shows_how_many_were_busy():
    count = 3 * ran.MOST_LANES
    picture = ran_picture(spans(count, lanes=2 * ran.MOST_LANES), results(count))
    assert picture is not None
    busy = picture.data.pivot_table(index="from_s", values="busy", aggfunc="sum")["busy"].tolist()
    assert (busy[0], busy[-1]) == pytest.approx((2 * ran.MOST_LANES, ran.MOST_LANES))
    assert picture.data["lanes"].to_numpy() == pytest.approx(2 * ran.MOST_LANES)
    assert picture.figure.axes[0].get_ylabel() == "Busy lanes"


def test_a_trial_that_is_still_in_its_lane_ends_with_the_last_known_moment():
    table = spans()
    table.loc[5, ["ended", "outcome"]] = np.nan, ""
    picture = ran_picture(table, results(t5="running"))
    assert picture is not None
    assert picture.data["ended"].tolist()[-1] == 1030.0


def test_without_spans_there_is_no_picture():
    assert ran_picture(spans().iloc[:0], results()) is None
    assert ran_picture(spans(), results().assign(trial_id=list("abcdef"))) is None


def session(**changes: Any) -> Any:
    row = {
        "session": 1, "began": 0.0, "ended": 100.0, "host": "h", "device": "NVIDIA H200", "devices": 2, "groups": 2,
        "peak_flops": 4e12, "forecast_seconds": 50.0, "plan_useful_flops": 6e13, "plan_padding_flops": 2e13,
        "plan_idle_flops": 2e13, "useful_flops": 8e13, "padding_flops": 2e13, "lane_seconds": 800.0,
        "idle_seconds": 80.0, "training_seconds": 80.0,
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def said(*sessions: Any, timeline: Any = None) -> list[str]:
    facts = ran_facts(pd.concat(sessions, ignore_index=True), spans() if timeline is None else timeline, host="host")
    assert facts is not None
    return ran_sentences(facts)


def test_the_sentences_hold_what_came_out_against_what_was_planned():
    assert said(session()) == [
        "The sweep ran for 1 min 40 s on 2 devices (NVIDIA H200); lanes trained for 1 min 20 s of them: the rest went "
        "into loading, compiling and writing.",
        "The plan's forecast was 50 s; it took 1 min 40 s, 2.0 times as long.",
        "Padding was 20 % (planned: 25 %) of the FLOPs, and lanes were without a trial for 10 % (planned: 20 %) of "
        "their time.",
        "While lanes trained they did 1 TFLOP/s of useful work, 25.0 % of the 4 TFLOP/s that matrix products reach.",
    ]


def test_classical_baselines_have_a_time_of_their_own_and_are_in_no_forecast():
    lanes = spans().assign(began=lambda it: it["began"] - 990, ended=lambda it: it["ended"] - 990)  # from 10 s to 40 s
    fits = lanes.assign(group="host", pack=-1, began=[20.0, 30.0] * 3, ended=[60.0, 95.0] * 3)
    both = pd.concat([lanes, fits], ignore_index=True)
    sentences = said(session(training_seconds=30.0, forecast_seconds=20.0), timeline=both)
    assert sentences[:2] == [
        "The sweep ran for 1 min 40 s on 2 devices (NVIDIA H200); lanes trained for 30 s of them, and classical "
        "baselines were fitted on host cores for 1 min 15 s, 55 s of these alone: the rest went into loading, "
        "compiling and writing.",
        "The plan's forecast for the networks was 20 s; they took 40 s, 2.0 times as long.",
    ]
    alone = said(session(training_seconds=0.0), timeline=fits)
    assert alone == [
        "The sweep ran for 1 min 40 s; classical baselines were fitted on host cores for 1 min 15 s of them, "
        "and no network was trained."
    ]


def test_several_sessions_are_added_up_and_the_forecast_is_that_of_the_last():
    sentences = said(session(), session(session=2, began=1e6, ended=1e6 + 52.0))
    assert sentences[0].startswith("The sweep ran for 2 min 32 s on 2 devices (NVIDIA H200), in 2 sessions;")
    assert sentences[1] == "The forecast for what the last session had to do was 50 s, and it took 52 s."


def test_what_is_not_known_is_not_said():
    unknown = session(peak_flops=np.nan, forecast_seconds=np.nan)
    assert not re.search("forecast|nan", " ".join(said(unknown)))
    assert "scalejax bench measures it" in said(unknown)[-1]
    assert not any("forecast" in each for each in said(session(), timeline=spans(t5="interrupted")))
    idle = session(useful_flops=0.0, padding_flops=0.0, lane_seconds=0.0, training_seconds=0.0)
    assert said(idle) == ["The sweep ran for 1 min 40 s, and no network was trained."]
    assert ran_facts(session(ended=np.nan), spans(), host="host") is None
