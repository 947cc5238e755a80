"""Progress of a run: a plain line now and then where there is no terminal, a bar where there is one."""

import io
import re

import pytest

from scalejax.report import progress
from scalejax.report.progress import ProgressDisplay


class Clock:
    """Stands in for the time module: time passes only when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):  # with these rich takes any stream for a terminal
        monkeypatch.delenv(variable, raising=False)
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_come_seldom_and_say_trials_speed_and_time_left(clock: Clock):
    stream = io.StringIO()
    with ProgressDisplay(trials=3, work=100.0, stream=stream) as display:
        display.advance(steps=10, flops=1e6, work=1.0)
        assert stream.getvalue() == ""  # too soon
        clock.now += progress.PLAIN_INTERVAL
        display.advance(steps=490, flops=999e6, work=24.0)
        display.end_trial("done", spared=0.0)
        assert stream.getvalue() == "0/3 trials, 50 steps/s, 100 MFLOP/s, 10 s elapsed, ETA 30 s\n"
        display.end_trial("diverged", spared=25.0)
        assert display.line() == "2/3 trials, 1 diverged, 50 steps/s, 100 MFLOP/s, 10 s elapsed, ETA 10 s"


def test_the_last_line_shows_all_trials_at_once(clock: Clock):
    stream = io.StringIO()
    with ProgressDisplay(trials=2, work=4.0, stream=stream) as display:
        clock.now += 1
        display.advance(steps=40, flops=1e3, work=4.0)
        display.end_trial("done", spared=0.0)
        display.end_trial("done", spared=0.0)
    assert stream.getvalue().splitlines() == ["2/2 trials, 40 steps/s, 1 kFLOP/s, 1.0 s elapsed, ETA 0.0 s"]


def test_there_is_no_estimate_before_there_is_anything_to_go_by(clock: Clock):
    display = ProgressDisplay(trials=2, work=1000.0, stream=io.StringIO())
    clock.now += 1
    display.advance(steps=1, flops=1.0, work=1000 * progress.WARM_UP_SHARE)
    assert display.line().endswith("ETA ...")
    display.advance(steps=1, flops=1.0, work=230.0)
    assert display.line().endswith("ETA 3.0 s")


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch, clock: Clock):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with ProgressDisplay(trials=1, work=1.0, stream=stream) as display:
        clock.now += 1
        display.advance(steps=1, flops=1.0, work=0.5)
        display.end_trial("done", spared=0.5)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "100 %" in shown
    assert "1/1 trial," in shown
    assert stream.getvalue().endswith("\x1b[2K")  # the line is cleared


def test_in_a_notebook_too_a_stream_gets_what_is_written_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    display = ProgressDisplay(trials=1, work=1.0, stream=io.StringIO())
    assert not display._console.is_jupyter


def test_trials_that_are_called_back_count_too(clock: Clock):
    display = ProgressDisplay(trials=1, work=10.0, stream=io.StringIO())
    clock.now += 1
    display.advance(steps=10, flops=1.0, work=10.0)
    display.expect(trials=1, work=30.0)
    display.end_trial("done", spared=0.0)
    assert display.line().startswith("1/2 trials")
    assert display.line().endswith("ETA 3.0 s")
