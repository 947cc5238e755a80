"""The report of a run, or of several: read from their directories, written as one page, as Markdown and as figures."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.advice import COMPUTE, follow_up, next_sweeps, observed_in, write_sweeps
from scalejax.run.directory import FIGURES, LEDGER, SWEEP, read_environment, unit_of
from scalejax.run.fits import LEVEL
from scalejax.run.store import HOST, Store
from scalejax.run.weights import kept_models
from scalejax.text import Shown, first_line

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.report.page.section import Drawn, Report
    from scalejax.report.sections import Facts
    from scalejax.spec import Sweep

PAGE, TEXT = "report.html", "report.md"
COMPARISON = "comparison.html"  # of several runs, in the working directory: each keeps its own report
FOR_PHONES = 2  # runs on a page, up to which each figure is there a second time, as narrow as a phone


@dataclass(frozen=True, repr=False)
class Reported(Shown):
    """A report that was written; it shows itself as `scalejax report` prints it.

    Attributes:
        path: of the page.
        facts: what `scalejax report --json` prints.
    """

    path: Path
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        lines = []
        for run in self.facts["runs"]:
            lines += (
                [f"{run['name']}: {run['headline']}", *run["sentences"]]
                if len(self.facts["runs"]) > 1
                else (run["sentences"])
            )
        lines.append(f"report: {self.path}")
        if markdown := self.facts["markdown"]:
            lines.append(f"for a pull request: {markdown}, with its figures beside it")
        return "\n".join(lines)


def report(
    directories: Sequence[Path], *, sweep: "Sweep | None" = None, output: Path | None = None, brief: bool = False
) -> Reported:
    """Write the report of a run, or of several side by side.

    Of one run DIR: DIR/report.html, DIR/report.md and, as SVG, PNG and CSV, DIR/figures/. With `output` the page alone;
    of several runs there is the page alone, by default comparison.html in the working directory.

    Args:
        directories: of the runs.
        sweep: that the run was made of, where this process has made it.
        output: the place of the page.
        brief: as at the end of a run: without samples, Markdown and the files of figures.

    Raises:
        SweepError: a directory holds no run, or the page cannot be written.
    """
    from scalejax.report.page.html import page_of
    from scalejax.report.page.section import Report
    from scalejax.report.sections import chapter_of, compared

    directories = list({directory.resolve(): directory for directory in directories}.values())
    narrow = not brief and len(directories) <= FOR_PHONES
    digest = _digest(directories[0], brief=brief)  # first: a run may go on meanwhile
    known = _told_apart([facts_of(directory, sweep=sweep, brief=brief, narrow=narrow) for directory in directories])
    alone = len(known) == 1
    if alone and output is None:
        known = [_with_sweeps(known[0])]
    chapters = tuple(chapter_of(facts) for facts in known)
    page = output or (directories[0] / PAGE if alone else Path(COMPARISON))
    if alone:
        made = Report(known[0].name, chapters, digest=digest)
    else:
        title = " and ".join([", ".join(facts.name for facts in known[:-1]), known[-1].name])
        made = Report(title, chapters, before=(compared(known, _together(known)),))
    markdown = None
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, page_of(made))
        if alone and output is None and not brief:
            markdown = _write_beside(made, directories[0])
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise SweepError(f"{page}: {problem}; give another place with --output") from error
    facts = {
        "report": str(page),
        "markdown": None if markdown is None else str(markdown),
        "figures": [str(path) for path in _figures(made, directories[0])] if markdown else [],
        "runs": [
            {
                "name": each.name,
                "directory": each.directory,
                "verdict": each.answer.verdict,
                "headline": chapter.headline,
                "sentences": list(chapter.sentences),
            }
            for each, chapter in zip(known, chapters, strict=True)
        ],
    }
    return Reported(page, facts)


def report_at_end(
    directory: Path, sweep: "Sweep | None", *, notify: Callable[[str], None] = lambda _: None
) -> tuple[Path | None, str]:
    """Write the page of a run that has just ended, unless it has one of the same rows.

    Where a full report was written before, it is written in full again: its texts and figures would no longer agree.

    Args:
        directory: of the run.
        sweep: that it was made of.
        notify: is told what takes some seconds.

    Returns:
        The page; or None, and a sentence that says why there is none.
    """
    try:
        if not is_current(directory):
            notify("drawing the report")
            report([directory], sweep=sweep, brief=not (directory / TEXT).exists())
    except Exception as error:  # whatever it is: the run has ended well, its exit code and its rows stand
        reason = first_line(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {first_line(error)}"
        return None, f"no report: {reason}"
    return directory / PAGE, ""


def is_current(directory: Path) -> bool:
    """Say whether the report of a run was made from what is there now; if it has a Markdown, in full."""
    from scalejax.report.page.html import digest_of

    kinds = (False,) if (directory / TEXT).exists() else (False, True)
    found = digest_of(_text_of(directory / PAGE))
    return found != "" and found in (_digest(directory, brief=brief) for brief in kinds)


def facts_of(directory: Path, *, sweep: "Sweep | None" = None, brief: bool = False, narrow: bool = True) -> "Facts":
    """Return what is known of a run; nothing is written.

    Args:
        directory: of the run.
        sweep: that it was made of, where this process has made it.
        brief: without what the kept models make of examples.
        narrow: whether each figure is drawn for a phone as well.

    Raises:
        SweepError: there is no run, or its ledger cannot be read.
    """
    from scalejax.analysis import learning_curves, trends
    from scalejax.analysis.forecast.advice import advise_rows
    from scalejax.report.pictures import pictures_of
    from scalejax.report.ran import ran_facts, ran_sentences
    from scalejax.report.sections import Facts
    from scalejax.spec.file import data_key

    with Store(directory / LEDGER, write=False) as store:
        rows, measurements = store.results(), store.measurements()
        timeline, sessions = store.timeline(), store.sessions()
    curves = advice = falling = None
    missing, unit, notes, suggested = "", "", (), ()
    try:
        curves = learning_curves(rows)
        falling, unit = trends(curves), unit_of(directory, sweep, str(curves["metric"].iloc[0]))
        observed = observed_in(directory, rows)
        advice = advise_rows(observed, target=None, compute=COMPUTE, level=LEVEL, seed=0)
        suggested, notes = next_sweeps(directory, observed, advice)
    except ValueError as error:
        if isinstance(error, SweepError):
            raise
        missing = str(error)
    pictures, undrawn = pictures_of(
        rows, measurements, timeline, curves=curves, advice=advice, unit=unit, narrow=narrow
    )
    seen, texts, unseen = _seen(directory, sweep, narrow=narrow) if not brief else ((), None, ())
    environment, recorded = read_environment(directory), ran_facts(sessions, timeline, host=HOST)
    source = data_key(directory / SWEEP, "source")
    return Facts(
        name=_name_of(directory),
        directory=str(directory),
        rows=rows,
        curves=curves,
        trends=falling,
        advice=advice,
        missing=missing,
        unit=unit,
        environment=environment if isinstance(environment, Mapping) else {},
        sweep=_text_of(directory / SWEEP),
        data=source if isinstance(source, str) else "",
        suggested=suggested,
        follow_up=follow_up([directory], [Path(each.path) for each in suggested]) if suggested else "",
        written=all(_text_of(Path(each.path)) == each.text for each in suggested),
        pictures={**pictures, "seen": seen},
        notes=(*notes, *undrawn, *unseen),
        ran=() if recorded is None else tuple(ran_sentences(recorded)),
        texts=texts,
    )


def _seen(
    directory: Path, sweep: "Sweep | None", *, narrow: bool
) -> "tuple[tuple[Drawn, ...], pd.DataFrame | None, tuple[str, ...]]":
    """Return pictures and a table of what the kept models make of examples, and a sentence for what cannot be made."""
    from scalejax.report.figures.land import land_picture
    from scalejax.report.figures.samples import samples_picture
    from scalejax.report.pictures import drawn_twice
    from scalejax.run.samples import image_samples, land_maps, text_samples

    if not kept_models(directory):
        return (), None, ()
    try:
        drawn = []
        if (land := land_maps(directory, given=sweep)) is not None:
            truth = land.truth.astype(float)
            drawn.append(drawn_twice(lambda width: land_picture(land.maps, truth, width=width), narrow=narrow))
        if (images := image_samples(directory, given=sweep)) is not None:
            found = images.examples, images.truth, images.predictions
            drawn.append(drawn_twice(lambda width: samples_picture(*found, width=width), narrow=narrow))
        return tuple(each for each in drawn if each is not None), text_samples(directory, given=sweep), ()
    except (SweepError, ValueError) as error:
        return (), None, (f"What the models make of the data is not shown: {error}",)


def _with_sweeps(facts: "Facts") -> "Facts":
    """Write the sweep files of the next trials beside a run, and say that they are there, or why not."""
    notes = write_sweeps(facts.suggested)
    return replace(facts, written=not notes, notes=(*facts.notes, *notes))


def _told_apart(known: "Sequence[Facts]") -> "list[Facts]":
    """Return runs of sweeps of one name with the directory behind it."""
    counts = Counter(facts.name for facts in known)
    return [
        facts if counts[facts.name] == 1 else replace(facts, name=f"{facts.name} in {facts.directory}")
        for facts in known
    ]


def _together(known: "Sequence[Facts]") -> "Drawn | None":
    """Draw the best curves of several runs in one picture, where two or more have one metric in one unit."""
    from scalejax.report.figures.compare import compare_picture
    from scalejax.report.pictures import drawn_twice
    from scalejax.report.sections import same_scale

    curves = {facts.name: facts.curves for facts in known if facts.curves is not None}
    if len(curves) < 2 or not same_scale(known):
        return None
    unit = next(facts.unit for facts in known if facts.curves is not None)
    return drawn_twice(lambda width: compare_picture(curves, unit=unit, width=width))


def _write_beside(made: "Report", directory: Path) -> Path:
    """Write each figure as SVG, PNG and CSV, and the report as Markdown beside them."""
    from scalejax.report.figures.canvas import save_figure
    from scalejax.report.page.markdown import markdown_of

    for picture in made.pictures:
        save_figure(picture.figure, directory / FIGURES, picture.name, data=picture.data)
    write_atomically(directory / TEXT, markdown_of(made.chapters[0], figures=FIGURES))
    return directory / TEXT


def _figures(made: "Report", directory: Path) -> list[Path]:
    return [
        directory / FIGURES / f"{picture.name}.{suffix}"
        for picture in made.pictures
        for suffix in ("svg", "png", "csv")
    ]


def _digest(directory: Path, *, brief: bool) -> str:
    """Return a digest of what the report of a run is made from: its name, sweep file, rows and sessions."""
    import importlib.metadata

    with Store(directory / LEDGER, write=False) as store:
        tables = store.results().to_csv(index=False), store.sessions().to_csv(index=False)
    parts = importlib.metadata.version("scalejax"), brief, _name_of(directory), _text_of(directory / SWEEP), *tables
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _name_of(directory: Path) -> str:
    """Return the name of a run's sweep, or else of its directory."""
    from scalejax.spec.file import sweep_name

    return sweep_name(directory / SWEEP) or directory.resolve().name


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
