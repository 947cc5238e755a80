"""TensorBoard: each trial is a folder of event files, with its losses by step and its hyperparameters."""

import importlib
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "tensorboard"  # in the directory of the run
BY_STEP = ("train_loss", "validation_loss", "validation_metric")
CHOSEN = ("family", "train_examples", "learning_rate", "weight_decay", "batch_size", "seed", "params", "steps")
RESULTS = ("train_loss", "validation_loss", "test_loss", "test_metric", "seconds")
ROWS_SHOWN = 200  # of a table, which is text here


def tracker(project: str | None, directory: Path) -> "TensorBoard":
    """Return the tracker; here the project is the folder to write into, by default one in the directory of the run.

    Raises:
        ImportError: tensorboardX is not installed.
    """
    writers = importlib.import_module("tensorboardX")
    return TensorBoard(writers, directory / FOLDER if project is None else Path(project))


class TensorBoard:
    """Writes event files, for `tensorboard --logdir FOLDER`, whose tab HParams compares the trials.

    Args:
        writers: the module tensorboardX.
        folder: to write into.
    """

    def __init__(self, writers: Any, folder: Path):
        self._writers, self._folder = writers, folder
        self._facts: Mapping[str, Any] = {}

    def init(self, facts: Mapping[str, Any]) -> None:
        """Write down what the sweep is."""
        self._facts = facts
        with self._writers.SummaryWriter(str(self._folder)) as writer:
            lines = [f"| {name} | {value} |" for name, value in facts.items() if name != "sweep"]
            writer.add_text("sweep", "\n".join(["| fact | value |", "|---|---|", *lines]))
            writer.add_text("file", f"```\n{facts['sweep']}\n```")

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:
        """Write a trial: its losses by step, and what was chosen for it beside how it ended."""
        with self._writers.SummaryWriter(str(self._folder / _place(trial))) as writer:
            for measured in measurements:
                for name in BY_STEP:
                    if _finite(measured[name]):
                        writer.add_scalar(name, measured[name], measured["step"])
            chosen = {name: trial[name] for name in (*CHOSEN, *trial["knobs"]) if trial[name] is not None}
            found = {f"result/{name}": float(trial[name]) for name in RESULTS if _finite(trial[name])}
            for summary in self._writers.summary.hparams(chosen, found):
                writer.file_writer.add_summary(summary)
            for name, value in found.items():
                writer.add_scalar(name, value, trial["steps_taken"] or 0)

    def finish(self, tables: "Mapping[str, pd.DataFrame]", figures: Sequence[Path]) -> None:
        """Write the learning curves and the figures."""
        with self._writers.SummaryWriter(str(self._folder)) as writer:
            if "learning_curves" in tables:
                writer.add_text("learning_curves", _markdown(tables["learning_curves"]))
            for path in figures:
                content = path.read_bytes()
                width, height = struct.unpack(">II", content[16:24])  # of a PNG
                summary = self._writers.proto.summary_pb2.Summary
                image = summary.Image(encoded_image_string=content, width=width, height=height)
                writer.file_writer.add_summary(summary(value=[summary.Value(tag=path.stem, image=image)]))


def _place(trial: Mapping[str, Any]) -> Path:
    """Return the folder of a trial: TensorBoard names its runs so, and filters them by such words."""
    knobs = [f"{name}={trial[name]}" for name in trial["knobs"]]
    model = " ".join([str(trial["family"]), *knobs]).replace("/", "-")
    return Path(model) / f"examples={trial['train_examples']}" / str(trial["trial_id"])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _markdown(table: "pd.DataFrame") -> str:
    rows = [table.columns.tolist(), ["---"] * len(table.columns), *table.head(ROWS_SHOWN).to_numpy().tolist()]
    return "\n".join(
        f"| {' | '.join(f'{each:.4g}' if isinstance(each, float) else str(each) for each in row)} |" for row in rows
    )
