"""What a report says of a run, and in which order: each section a pure function of what is known."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from scalejax.analysis.forecast.statement import Advice, Statement
from scalejax.report.answer import Answer, answer_of, span, speed_of, without_answer
from scalejax.report.page.section import Chapter, Code, Drawn, Grid, Section
from scalejax.report.status import counted
from scalejax.report.table import halving_lines, summary_lines
from scalejax.status import ENDED, Status
from scalejax.text import column_title, listing, number_of, quantity, short, short_count

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is

MOST_GROUPS = 30  # of trials that do not count, a line each
MOST_REASONS = 8  # that are told apart by their numbers
NUMBER = re.compile(r"[\d.,]*\d(e[-+]?\d+)?")
EDGE = "*"
ENDED_AS = {
    Status.STOPPED.value: "stopped early",
    Status.PENDING.value: "not begun",
}  # where the status alone is no word


@dataclass(frozen=True)
class Suggested:
    """A sweep file of one suggested trial: its model on its data with the seeds of the sweep, near the tuned settings.

    Attributes:
        path: where it lies, or would.
        text: as TOML.
        trials: how many it has.
    """

    path: str
    text: str
    trials: int


@dataclass(frozen=True)
class Facts:
    """What is known of a run, from which its chapter is made.

    Attributes:
        name: of the sweep.
        directory: of the run, as the commands name it.
        rows: the trial table.
        curves: the tuned learning curves; None where no trial counts.
        trends: what they do at their ends.
        advice: where it can be given.
        missing: why there are no curves or no advice, a sentence.
        unit: of the metric where that is not the user's own.
        environment: what the run wrote down of device and versions.
        sweep: the text of the sweep file.
        data: what the data are called.
        suggested: sweep files of the next trials, in the order of the advice; none where they cannot be made.
        follow_up: the command that takes their runs and this one together.
        written: whether these lie where they say.
        pictures: by the section that they stand in.
        notes: what else could not be made, and why.
        ran: how the sweep ran, a sentence each, where it was recorded.
        texts: passages of the test set and how kept models go on; None where the data are no text or none was kept.
    """

    name: str
    directory: str
    rows: Frame
    curves: Frame | None = None
    trends: Frame | None = None
    advice: Advice | None = None
    missing: str = ""
    unit: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    sweep: str = ""
    data: str = ""
    suggested: tuple[Suggested, ...] = ()
    follow_up: str = ""
    written: bool = False
    pictures: Mapping[str, tuple[Drawn, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ran: tuple[str, ...] = ()
    texts: Frame | None = None

    @property
    def answer(self) -> Answer:
        """The three sentences."""
        if self.advice is None:
            return without_answer(self.missing)
        params = float(self.advice["now"].facts["params"])
        return answer_of(self.advice, speed_of(self.rows, params=params))

    def drawn(self, section: str) -> tuple[Drawn, ...]:
        """The pictures of a section.

        Raises:
            ValueError: there is no such section, or a picture of one that there is not.
        """
        if unknown := sorted({section, *self.pictures} - SECTIONS.keys()):
            raise ValueError(f"the report has no section {listing(unknown)}: it has {listing(list(SECTIONS))}")
        return self.pictures.get(section, ())

    @property
    def metric(self) -> str:
        """The name of the metric as a heading, such as "Test error"."""
        return "Test error" if self.curves is None else column_title(str(self.curves["metric"].iloc[0]))

    @property
    def noun(self) -> str:
        """The metric in a sentence, such as "error"."""
        return self.metric.removeprefix("Test ")


def chapter_of(facts: Facts) -> Chapter:
    """Return all that a report says of a run, the answer first; a section without content is left out."""
    answer = facts.answer
    made = (section(facts) for section in SECTIONS.values())
    sections = tuple(section for section in made if section is not None)
    return Chapter(
        facts.name, about(facts), answer.headline, answer.sentences, sections, gains(facts), caution(facts)
    )  # fmt: skip


def caution(facts: Facts) -> str:
    """Return a warning for the answer where a back-test has failed, else nothing."""
    failed = _failed_tests(facts)
    if not failed:
        return ""
    held = listing([f"{100 * test.facts['held']:.0f} %" for test in failed])
    return f"In the back-test only {held} of the runs lie in their intervals: those given here are too narrow."


def gains(facts: Facts) -> Grid | None:
    """Return as a table what two and ten times the data, the parameters and both would bring, and what they cost."""
    advice = facts.advice
    if advice is None:
        return None
    data, noun = advice.columns["data"], advice.columns["loss"]
    said = {statement.name: statement for statement in advice.statements}
    speed = speed_of(facts.rows, params=float(said["now"].facts["params"]))
    words = {"now": "now", **{f"{times}x {what}": f"{times}x {what.replace('data', data)}"
             for what in ("data", "parameters", "both") for times in (2, 10)}}  # fmt: skip
    rows = []
    for name, shown in words.items():
        if name not in said:
            continue
        found = said[name]
        flops = float(found.facts["flops"])
        interval = "" if name == "now" else f"{short(found.low)} to {short(found.high)}"
        time = span(flops / speed.rate) if speed.rate > 0 else "–"
        rows.append((shown, short(found.value, 3 if name == "now" else 2), interval, quantity(flops, "FLOP"), time))
    now = said["now"].facts
    header = ("", noun, f"{100 * advice.level:.0f} % interval", "FLOPs of one run", f"time on {speed.device}")
    caption = (
        f"Relative to the run with the most compute, {now['params']:,.0f} parameters on {now['data']:,.0f} {data}. "
        "Intervals are those of one new run. The time is that of this sweep, in which trials share the device."
    )
    return Grid(header, tuple(rows), caption)


def about(facts: Facts) -> str:
    """Return in a line what was run."""
    counts = Counter(str(status) for status in facts.rows["status"])
    words = counted({status.value: counts[status.value] for status in Status})
    sizes = facts.rows["train_examples"]
    span_ = f"{int(sizes.min()):,} to {number_of(int(sizes.max()), 'example')}" if len(sizes) else ""
    device = facts.environment.get("device")
    parts = [words, span_, f"on {device}" if device else ""]
    return "; ".join(part for part in parts if part)


def scale(facts: Facts) -> Section:
    """The picture of scale, the curves as a table, and a sentence on the end of each."""
    if facts.curves is None or facts.trends is None:
        return Section("scale", "The picture of scale", (facts.missing,))
    lines = [*summary_lines(facts.curves, facts.trends), *halving_lines(facts.rows)]
    if facts.unit:
        lines.append(f"The RMSE is in {facts.unit}, which were standardised (standardise_target).")
    if facts.advice is not None and len(facts.advice.bands):
        lines.append(
            "A sentence on the end of a curve takes the curve's own points and assumes that its law goes on. The "
            "picture and the answer take all sizes of a family together and allow for laws that bend away: their "
            "intervals are wider."
        )
    return Section(
        "scale", "The picture of scale", pictures=facts.drawn("scale"), grids=(curve_grid(facts.curves, facts.trends),),
        points=tuple(lines), warnings=facts.notes,
    )  # fmt: skip


def curve_grid(curves: Frame, trends: Frame) -> Grid:
    """Return the tuned learning curves as a table: models against numbers of training examples."""
    from scalejax.analysis.curves.curves import notes

    sizes = sorted(set(curves["train_examples"].tolist()))
    texts = {
        (point["model"], point["train_examples"]): short(point["value"], 3) + (EDGE if point["edge"] else "")
        if math.isfinite(point["value"])
        else "–"
        for point in curves.to_dict("records")
    }
    params = dict(zip(curves["model"], curves["params"], strict=True))
    rows = tuple(
        (
            str(trend["model"]),
            f"{int(params[trend['model']]):,}" if params[trend["model"]] > 0 else "–",
            *(texts.get((trend["model"], size), "") for size in sizes),
            str(trend["verdict"]),
        )
        for trend in trends.to_dict("records")
    )
    said = [f"{EDGE} {line}" if "edge of its grid" in line else line for line in notes(curves)]
    title = f"{column_title(str(curves['metric'].iloc[0]))} at the best setting by validation loss."
    header = ("model", "parameters", *(short_count(size) for size in sizes), "at the end")
    return Grid(header, rows, " ".join([title, *said]), left=frozenset({0, len(header) - 1}))


def seen(facts: Facts) -> Section | None:
    """What the kept models make of examples: a map of land, images with their classes, texts that go on."""
    title = "What the models make of the data"
    if facts.texts is None:
        return _pictured(facts, "seen", title)
    columns = tuple(str(name) for name in facts.texts.columns)
    rows = tuple(
        tuple(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row)
        for row in facts.texts.itertuples(index=False)
    )
    caption = "Passages of the test set; each model goes on with the token that it takes for the likeliest."
    words = frozenset(place for place, name in enumerate(columns) if "probability" not in name)
    table = Grid(columns, rows, caption, left=words)
    return Section("seen", title, pictures=facts.drawn("seen"), grids=(table,))


def size(facts: Facts) -> Section | None:
    """The metric against parameters."""
    return _pictured(facts, "parameters", f"{facts.noun} against parameters")


def compute(facts: Facts) -> Section | None:
    """The loss or metric against compute, with its frontier, and how compute is best shared."""
    shared = _said(facts, "compute-optimal")
    return _pictured(facts, "compute", f"{facts.noun} against compute", shared)


def exponents(facts: Facts) -> Section | None:
    """How fast each curve falls: exponents with their intervals."""
    if facts.trends is None:
        return None
    rows = tuple(
        (
            str(trend["model"]),
            f"{trend['exponent']:z.3f}" if math.isfinite(trend["exponent"]) else "–",
            f"± {trend['standard_error']:.3f}" if math.isfinite(trend["standard_error"]) else "–",
            str(trend["verdict"]),
            f"{100 * trend['fall']:.0f} %" if math.isfinite(trend["fall"]) else "–",
            f"{100 * trend['fall_low']:.0f} to {100 * trend['fall_high']:.0f} %"
            if math.isfinite(trend["fall"])
            else "–",
        )
        for trend in facts.trends.to_dict("records")
    )
    header = ("model", "exponent", "standard error", "at the end", "10x data cuts by", "90 % interval")
    caption = "Exponent c of value ~ examples^-c over the last decade of sizes, by least squares in logarithms."
    return Section(
        "exponents", "Exponents", pictures=facts.drawn("exponents"),
        grids=(_told(Grid(header, rows, caption, left=frozenset({0, 3}))),),
    )  # fmt: skip


def _told(grid: Grid) -> Grid:
    """Return a table without the columns that say nothing."""
    kept = [place for place in range(len(grid.header)) if any(row[place] != "–" for row in grid.rows)]
    return Grid(
        tuple(grid.header[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in grid.rows),
        grid.caption,
        frozenset(new for new, place in enumerate(kept) if place in grid.left),
    )


def back_test(facts: Facts) -> Section | None:
    """How well the largest scale would have been forecast."""
    if facts.advice is None:
        return None
    title = "How far to trust the forecast"
    tests = _tests(facts)
    points = tuple(line for name in ("left out", "shorter training", "learning rates") for line in _said(facts, name))
    if not tests:
        none = "No curve is long enough to hide its end and forecast it from the rest."
        return Section("back-test", title, (none,), points=points)
    warnings = [
        f"In the back-test of {test.facts['hidden']} only {100 * test.facts['held']:.0f} % of the runs lie in "
        f"their {100 * facts.advice.level:.0f} % interval: here the intervals of this page are too narrow."
        for test in _failed_tests(facts)
    ]
    return Section(
        "back-test", title, tuple(test.sentence for test in tests), warnings=tuple(warnings),
        points=points,
    )  # fmt: skip


def _tests(facts: Facts) -> list[Statement]:
    statements = () if facts.advice is None else facts.advice.statements
    return [statement for statement in statements if statement.name.startswith("back-test")]


def _failed_tests(facts: Facts) -> list[Statement]:
    """Return the back-tests whose intervals held clearly fewer runs than they say."""
    level = 0.0 if facts.advice is None else facts.advice.level
    return [test for test in _tests(facts) if test.facts["held"] < level - _slack(level, test.facts["runs"])]


def _slack(level: float, runs: int) -> float:
    """Return two standard deviations of the share of independent runs that an interval holds."""
    return 2 * math.sqrt(level * (1 - level) / runs)


def rates(facts: Facts) -> Section | None:
    """Whether the learning rates reached far enough."""
    edges: list[str] = []
    if facts.curves is not None:
        for edge, advice in (("lowest", "lower"), ("highest", "higher")):
            here = facts.curves[facts.curves["edge"] == edge]
            if len(here):
                models = listing(list(dict.fromkeys(map(str, here["model"]))))
                points = f"In {number_of(len(here), 'point')} of {int(facts.curves['learning_rate'].notna().sum())}"
                best = f"{points} the best learning rate is the {edge} of its grid"
                edges.append(f"{best} ({models}): a {advice} one may be better.")
    pictures = facts.drawn("rates")
    if not pictures and not edges:
        return None
    said = () if edges or facts.curves is None else ("Every best learning rate lies inside its grid.",)
    return Section("rates", "Learning rates", said, warnings=tuple(edges), pictures=pictures)


def training(facts: Facts) -> Section | None:
    """Losses along training."""
    return _pictured(facts, "training", "Training curves")


def not_counted(facts: Facts) -> Section:
    """Trials that enter no curve, and why; alike reasons are one line."""
    title = "Trials that do not count"
    rows = facts.rows
    bad = rows[rows["status"] != Status.DONE]
    if bad.empty:
        return Section("trials", title, (f"None: {_all_done(len(rows))}.",))
    records = bad.to_dict("records")
    groups = _alike(records, same=lambda reason: reason)
    if folded := len(groups) > MOST_REASONS:
        groups = _alike(records, same=lambda reason: NUMBER.sub("#", reason))
    order = {status.value: place for place, status in enumerate(reversed(Status))}
    ranked = sorted(groups.items(), key=lambda each: (order.get(each[0][0], 0), -len(each[1])))
    lines = tuple(
        (
            status,
            f"{len(alike):,}",
            _reason(alike) if status in ENDED else "not run yet",
            _families(alike),
            _range([float(row["learning_rate"]) for row in alike if row["learning_rate"] == row["learning_rate"]]),
        )
        for (status, _), alike in ranked[:MOST_GROUPS]
    )
    counts = Counter(str(row["status"]) for row in records)
    parts = [f"{counts[each]:,} {ENDED_AS.get(each, each)}" for each in map(str, Status) if counts[each]]
    enter = "enters" if len(bad) == 1 else "enter"
    said = [f"{len(bad):,} of {number_of(len(rows), 'trial')} {enter} no curve: {listing(parts)}."]
    if len(ranked) > MOST_GROUPS:
        rest = sum(len(alike) for _, alike in ranked[MOST_GROUPS:])
        said.append(f"The table shows the {MOST_GROUPS} largest groups; {number_of(rest, 'trial')} more have others.")
    header = ("status", "trials", "reason", "families", "learning rates")
    caption = "Reasons that differ in numbers alone are one line." if folded else ""
    grid = Grid(header, lines, caption, left=frozenset({0, 2, 3, 4}))
    return Section("trials", title, tuple(said), grids=(grid,))


def _alike(
    records: Sequence[Mapping[Any, Any]], *, same: Callable[[str], str]
) -> dict[tuple[str, str], list[Mapping[Any, Any]]]:
    """Return the rows of each status and reason; reasons are one that `same` makes equal."""
    groups: dict[tuple[str, str], list[Mapping[Any, Any]]] = {}
    for row in records:
        reason = str(row["reason"] or "") if row["status"] in ENDED else "not run yet"
        groups.setdefault((str(row["status"]), same(reason)), []).append(row)
    return groups


def _reason(alike: Sequence[Mapping[Any, Any]]) -> str:
    texts = list(dict.fromkeys(str(row["reason"] or "no reason was written down") for row in alike))
    return texts[0] if len(texts) == 1 else f"{texts[0]} (and {len(texts) - 1:,} alike)"


def _families(alike: Sequence[Mapping[Any, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(row["family"]) for row in alike))


def _range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _all_done(number: int) -> str:
    return "the trial is done" if number == 1 else f"all {number:,} trials are done"


def ran(facts: Facts) -> Section:
    """How the sweep ran: the time it took, its FLOPs, and what was lost."""
    rows = facts.rows
    timed = rows[rows["seconds"] > 0]
    trained = timed[timed["flops"] > 0]
    lines = []
    environment = facts.environment
    if (device := environment.get("device")) and not facts.ran:
        number = environment.get("devices")
        lines.append(("device", f"{device}, {number_of(number, 'device')}" if isinstance(number, int) else str(device)))
    if len(trained):
        flops, seconds = float(trained["flops"].astype("float64").sum()), float(trained["seconds"].sum())
        lines.append(("FLOPs of training", quantity(flops, "FLOP")))
        lines.append(("time on the device", span(seconds)))
        if not facts.ran:  # whose sentences say it of the time in which lanes trained
            lines.append(("useful FLOP/s", quantity(flops / seconds, "FLOP/s")))
    older = timed[~(timed["flops"] > 0)]
    if len(older):
        lines.append(("time of classical baselines, on host cores", span(float(older["seconds"].sum()))))
    taken = rows[rows["steps_taken"].fillna(0) > 0]
    spared = taken[taken["status"] == Status.STOPPED]
    if len(spared):
        share = 1 - float(taken["steps_taken"].sum()) / float(taken["steps"].sum())
        lines.append(("steps that halving spared", f"{100 * share:.0f} %"))
    modes = Counter(str(mode) for mode in rows["mode"].dropna() if mode)
    if modes:
        lines.append(("modes", ", ".join(f"{name}: {number_of(count, 'trial')}" for name, count in modes.items())))
    caption = (
        "Time on the device: each trial's share of its program's calls, added up; compiling, loading and waiting are "
        "not in it. FLOPs are those of training, without padding and evaluation."
    )
    grid = Grid((), tuple(lines), caption, left=frozenset({0}))
    return Section(
        "ran", "How the sweep ran", facts.ran, pictures=facts.drawn("ran"), grids=(grid,) if lines else ()
    )  # fmt: skip


def next_trials(facts: Facts) -> Section | None:
    """Which trials would narrow the answer most, and how to run them."""
    if facts.advice is None or facts.advice.trials.empty:
        return None
    data = facts.advice.columns["data"]
    speed = speed_of(facts.rows, params=float(facts.advice["now"].facts["params"]))
    counts = [each.trials for each in facts.suggested]

    def cost(flops: float) -> str:
        time = f", {span(flops / speed.rate)}" if speed.rate > 0 else ""
        return f"{quantity(flops, 'FLOP')}{time}"

    rows = []
    for place, trial in enumerate(facts.advice.trials.to_dict("records")):
        trials, flops = counts[place] if place < len(counts) else 0, float(trial["flops"])
        rows.append(
            (
                str(place + 1),
                f"{trial['params']:,.0f}",
                f"{trial['data']:,.0f}",
                f"{100 * trial['narrows']:.0f} %" if math.isfinite(trial["narrows"]) else "–",
                cost(flops),
                f"{number_of(trials, 'trial')}: {cost(trials * flops)}" if trials else "–",
            )
        )
    there = f" on {speed.device}" if speed.rate > 0 else ""
    header = ("", "parameters", data, "narrows the forecasts by", f"one run{there}", f"its sweep file{there}")
    caption = (
        "The numbers are those in the picture of scale. The share of the variance of the forecasts that each run takes "
        "away, one after the other."
    )
    if counts:
        caption += " A sweep file tries each seed with the tuned learning rate of the largest model and its neighbours."
    codes = ()
    if facts.suggested and facts.written:
        commands = "\n".join(f"scalejax run {_quoted(each.path)}" for each in facts.suggested)
        codes = (Code(f"{commands}\n{facts.follow_up}", "Sweep files for these trials, and the advice from all"),)
    sentence = "Of the trials considered these would narrow the answer most for what they cost."
    grid = _told(Grid(header, tuple(rows), caption, left=frozenset({0})))
    return Section("next", "What to run next", (sentence,), grids=(grid,), codes=codes)


def reproduce(facts: Facts) -> Section:
    """Versions, device, data, the sweep file and the commands."""
    environment, lines = facts.environment, []
    versions = environment.get("versions")
    if isinstance(versions, Mapping):
        lines.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    for key, words in (("python", "Python"), ("platform", "platform"), ("device", "device"), ("devices", "devices")):
        if environment.get(key) is not None:
            lines.append((words, str(environment[key])))
    if environment.get("data"):
        lines.append(("data fingerprint", str(environment["data"])))
    rows = facts.rows
    lines.append(("seeds", ", ".join(str(seed) for seed in sorted(set(rows["seed"].tolist())))))
    there = _quoted(facts.directory)
    sweep = _quoted(f"{facts.directory.rstrip('/')}/sweep.toml")
    commands = "\n".join(
        [
            f"scalejax run {sweep} --out {there}    # trains nothing that is done",
            f"scalejax report {there}",
            f"scalejax fit {there} --law power_floor",
            f"scalejax export {there} --output trials.csv",
        ]
    )
    codes = [Code(commands, "Commands")]
    if facts.sweep:
        codes.append(Code(facts.sweep.rstrip("\n"), "The sweep file in full", "toml"))
    return Section(
        "reproduce", "How to reproduce it", grids=(Grid((), tuple(lines), left=frozenset({0, 1})),), codes=tuple(codes)
    )


def _quoted(path: str) -> str:
    """Return a path as a shell takes it."""
    return path if re.fullmatch(r"[\w./~+@%:,-]+", path) else "'" + path.replace("'", "'\\''") + "'"


def _pictured(facts: Facts, name: str, title: str, sentences: Sequence[str] = ()) -> Section | None:
    """Return a section that is there for its pictures; None where there are none."""
    pictures = facts.drawn(name)
    title = title[:1].upper() + title[1:]
    return Section(name, title, tuple(sentences), pictures=pictures) if pictures or sentences else None


def _said(facts: Facts, name: str) -> list[str]:
    """Return the sentence of a statement, if it is made."""
    statements = () if facts.advice is None else facts.advice.statements
    return [statement.sentence for statement in statements if statement.name == name]


def compared(all_facts: Sequence[Facts], picture: Drawn | None) -> Section:
    """Several runs side by side: a row each, and their best curves in one picture where their metrics agree."""
    rows = []
    for facts in all_facts:
        answer = facts.answer
        best = "–", "–"
        if facts.curves is not None:
            point = facts.curves.loc[facts.curves["value"].idxmin()]
            best = str(point["model"]), f"{facts.noun} {short(float(point['value']), 3)}"
        gains = ["–", "–"]
        if facts.advice is not None:
            said = {statement.name: statement for statement in facts.advice.statements}
            for place, name in enumerate(("10x data", "10x parameters")):
                if name in said:
                    found = said[name]
                    gains[place] = f"{short(found.value)} ({short(found.low)} to {short(found.high)})"
        largest = number_of(int(facts.rows["train_examples"].max()), "example") if len(facts.rows) else "–"
        rows.append(
            (
                facts.name,
                f"{_file_name(facts.data)}, {largest}" if facts.data else largest,
                *best,
                _forecast_model(facts),
                answer.verdict or "no answer yet",
                *gains,
            )
        )
    header = (
        *("run", "data, at most", "best model", "lowest", "forecast of", "what helps", "10x data", "10x parameters"),
    )
    sentences, warnings = [], []
    metrics = list(dict.fromkeys(facts.metric for facts in all_facts if facts.curves is not None))
    if len(metrics) > 1:
        warnings.append(f"The runs have the metrics {listing(metrics)}, so their curves are not drawn together.")
    elif not same_scale(all_facts):
        units = listing(list(dict.fromkeys(facts.unit or "units of their own" for facts in all_facts)))
        warnings.append(f"The runs have the {metrics[0]} in {units}, so their curves are not drawn together.")
    elif picture is not None:
        sentences.append("The picture shows the best model of each run, the one that comes lowest.")
    grid = Grid(
        header,
        tuple(rows),
        "10x: what ten times as much would bring; in brackets 90 % intervals of one run.",
        left=frozenset({0, 1, 2, 4, 5}),
    )
    pictures = () if picture is None or not same_scale(all_facts) else (picture,)
    title = "The runs side by side"
    return Section(
        "compared", title, tuple(sentences), warnings=tuple(warnings), pictures=pictures, grids=(grid,)
    )  # fmt: skip


def same_scale(all_facts: Sequence[Facts]) -> bool:
    """Say whether the curves of several runs may stand on one axis: those of one metric in one unit."""
    return len({(facts.metric, facts.unit) for facts in all_facts if facts.curves is not None}) < 2


def _forecast_model(facts: Facts) -> str:
    """Return the model that the advice is about, the largest of its family; it need not be the best of all."""
    if facts.advice is None or facts.curves is None:
        return "–"
    now = facts.advice["now"]
    there = facts.curves[facts.curves["params"].astype(float) == float(now.facts["params"])]
    if there.empty:
        return f"{now.facts['params']:,.0f} parameters"
    return str(there.loc[(there["value"] - now.value).abs().idxmin(), "model"])


def _file_name(source: str) -> str:
    """Return the name of a file of data without its folders; what is called otherwise as it is."""
    path = PurePath(source)
    return path.name if path.is_absolute() else source


# In the order in which they are read: the name of a section, under which its pictures are drawn, and what makes it.
SECTIONS: Mapping[str, Callable[[Facts], Section | None]] = {
    "scale": scale,
    "seen": seen,
    "parameters": size,
    "compute": compute,
    "exponents": exponents,
    "back-test": back_test,
    "rates": rates,
    "training": training,
    "trials": not_counted,
    "ran": ran,
    "next": next_trials,
    "reproduce": reproduce,
}
