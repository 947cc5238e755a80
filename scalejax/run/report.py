"""The report of a run, or of several: read from their directories, written as one page, as Markdown and as figures."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.advice import COMPUTE
from scalejax.run.directory import FIGURES, LEDGER, SWEEP, read_environment, unit_of
from scalejax.run.fits import LEVEL
from scalejax.run.store import Store
from scalejax.run.weights import kept_models
from scalejax.text import Shown, first_line

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.report.page.section import Drawn, Report
    from scalejax.report.sections import Facts
    from scalejax.spec import Sweep

PAGE, TEXT = "report.html", "report.md"
DIGEST = re.compile(r'<meta name="scalejax-digest" content="(\w*)">')
FOR_PHONES = 2  # runs on a page, up to which each figure is there a second time, as narrow as a phone
HEAD = 4096  # characters of a page within which its digest stands


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
    of several runs there is the page alone, by default report.html in the working directory.

    Args:
        directories: of the runs.
        sweep: that the run was made of, where this process has made it.
        output: the place of the page.
        brief: as at the end of a run: without the back-test, samples, Markdown and the files of figures.

    Raises:
        SweepError: a directory holds no run, or the page cannot be written.
    """
    from scalejax.report.page.html import page_of
    from scalejax.report.page.section import Report
    from scalejax.report.sections import chapter_of, compared

    directories = list({directory.resolve(): directory for directory in directories}.values())
    narrow = not brief and len(directories) <= FOR_PHONES
    known = _told_apart(
        [facts_of(directory, sweep=sweep, tested=not brief, narrow=narrow) for directory in directories]
    )
    chapters = tuple(chapter_of(facts) for facts in known)
    alone = len(known) == 1
    page = output or (directories[0] / PAGE if alone else Path(PAGE))
    if alone:
        made = Report(known[0].name, chapters, digest=_digest(known[0].rows, brief=brief))
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


def report_at_end(directory: Path, sweep: "Sweep | None") -> tuple[Path | None, str]:
    """Write the page of a run that has just ended, unless it has one of the same rows.

    Returns:
        The page; or None, and a sentence that says why there is none.
    """
    try:
        if not is_current(directory):
            report([directory], sweep=sweep, brief=True)
    except Exception as error:  # whatever it is: the run has ended well, its exit code and its rows stand
        reason = first_line(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {first_line(error)}"
        return None, f"no report: {reason}"
    return directory / PAGE, ""


def is_current(directory: Path) -> bool:
    """Say whether the page of a run was made from the rows that it has now."""
    try:
        head = (directory / PAGE).read_text(encoding="utf-8")[:HEAD]
    except (OSError, ValueError):
        return False
    found = DIGEST.search(head)
    with Store(directory / LEDGER, write=False) as store:
        rows = store.results()
    return found is not None and found[1] in (_digest(rows, brief=brief) for brief in (True, False))


def facts_of(directory: Path, *, sweep: "Sweep | None" = None, tested: bool = True, narrow: bool = True) -> "Facts":
    """Return what is known of a run, and write sweep files of the next trials beside it, as `scalejax advise` does.

    Args:
        directory: of the run.
        sweep: that it was made of, where this process has made it.
        tested: whether the advice is to hold a back-test.
        narrow: whether each figure is drawn for a phone as well.

    Raises:
        SweepError: there is no run, or its ledger cannot be read.
    """
    from scalejax.analysis import learning_curves, trends
    from scalejax.analysis.forecast.advice import PARTS, Part, advise_rows
    from scalejax.report.pictures import pictures_of
    from scalejax.report.ran import ran_facts, ran_sentences
    from scalejax.report.sections import Facts
    from scalejax.run.advice import observed_in, write_sweeps
    from scalejax.spec.file import data_key, sweep_name

    with Store(directory / LEDGER, write=False) as store:
        rows, measurements = store.results(), store.measurements()
        timeline, sessions = store.timeline(), store.sessions()
    curves = advice = falling = None
    missing, unit, notes, sweeps = "", "", (), ()
    try:
        curves = learning_curves(rows)
        falling, unit = trends(curves), unit_of(directory, sweep, str(curves["metric"].iloc[0]))
        observed = observed_in(directory, rows)
        parts: list[Part] = [part for part in PARTS if tested or part != "back-test"]
        advice = advise_rows(observed, target=None, compute=COMPUTE, level=LEVEL, seed=0, parts=parts)
        sweeps, notes = write_sweeps(directory, observed, advice)
    except ValueError as error:
        if isinstance(error, SweepError):
            raise
        missing = str(error)
    except OSError as error:
        notes = (f"no sweep file of the next trials: {error.strerror or error}",)
    pictures, undrawn = pictures_of(
        rows, measurements, timeline, curves=curves, advice=advice, unit=unit, narrow=narrow
    )
    seen, texts, unseen = _seen(directory, sweep, narrow=narrow) if tested else ((), None, ())
    environment, recorded = read_environment(directory), ran_facts(sessions, timeline)
    source = data_key(directory / SWEEP, "source")
    return Facts(
        name=sweep_name(directory / SWEEP) or directory.resolve().name,
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
        next_sweeps=tuple(map(str, sweeps)),
        pictures={**pictures, "seen": seen},
        notes=(*notes, *undrawn, *unseen),
        tested=tested,
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


def _told_apart(known: "Sequence[Facts]") -> "list[Facts]":
    """Return runs of sweeps of one name with the directory behind it."""
    counts = Counter(facts.name for facts in known)
    return [
        facts if counts[facts.name] == 1 else replace(facts, name=f"{facts.name} in {facts.directory}")
        for facts in known
    ]


def _together(known: "Sequence[Facts]") -> "Drawn | None":
    """Draw the best curves of several runs in one picture, where there are two or more with one metric."""
    from scalejax.report.figures.compare import compare_picture
    from scalejax.report.pictures import drawn_twice

    curves = {facts.name: facts.curves for facts in known if facts.curves is not None}
    metrics = {str(table["metric"].iloc[0]) for table in curves.values()}
    if len(curves) < 2 or len(metrics) > 1:
        return None
    return drawn_twice(lambda width: compare_picture(curves, unit=known[0].unit, width=width))


def _write_beside(made: "Report", directory: Path) -> Path:
    """Write each figure as SVG, PNG and CSV, and the report as Markdown beside them."""
    from scalejax.report.figures.canvas import save_figure
    from scalejax.report.page.markdown import markdown_of

    for picture in made.pictures:
        save_figure(picture.figure, directory / FIGURES, picture.name)
        picture.data.to_csv(directory / FIGURES / f"{picture.name}.csv", index=False)
    write_atomically(directory / TEXT, markdown_of(made.chapters[0], figures=FIGURES))
    return directory / TEXT


def _figures(made: "Report", directory: Path) -> list[Path]:
    return [
        directory / FIGURES / f"{picture.name}.{suffix}"
        for picture in made.pictures
        for suffix in ("svg", "png", "csv")
    ]


def _digest(rows: "pd.DataFrame", *, brief: bool) -> str:
    """Return a digest of what a report is made from."""
    import importlib.metadata

    text = rows.to_csv(index=False)
    version = importlib.metadata.version("scalejax")
    return hashlib.sha256(f"{version} {brief}\n{text}".encode()).hexdigest()[:16]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
