"""What the kept models of a run make of examples: maps of land, images with their classes, texts that go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scalejax.data import Bytes, DataCard, Land, describe, load
from scalejax.data.encoding import encoding_of
from scalejax.data.land import is_land, packed_mask
from scalejax.errors import SweepError
from scalejax.run.directory import LEDGER, MODELS, SWEEP
from scalejax.run.predict import predicted
from scalejax.run.store import Store
from scalejax.run.weights import kept_models, model_parts
from scalejax.spec import Sweep
from scalejax.spec.file import load_sweep

if TYPE_CHECKING:
    import pandas as pd

MAP_SHAPE = 90, 180  # cells of two degrees
MOST_MAPS = 4, 4  # sizes, and numbers of examples, that are mapped
LOOKED_THROUGH = 2_000  # examples of the test set among which samples are looked for
SAMPLES = 7, 7  # the first, and the first that the two models call otherwise
DIGITS = {"digits": (8, 8)}  # sources that give their images as rows of pixels
TEXTS = 4
SPACE = "␣"
CONTEXT, CONTINUED = 48, 24  # tokens that are shown, and that a model goes on with
Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


@dataclass(frozen=True)
class LandMaps:
    """Maps of land as models see them.

    Attributes:
        maps: (model, number of examples) -> probability of land [latitudes, longitudes], cells of two degrees, from
            north to south and from west to east; the smallest model first.
        truth: 1 for land, 0 for sea, of the same shape.
    """

    maps: Mapping[tuple[str, int], npt.NDArray[np.float64]]
    truth: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Samples:
    """Examples of the test set and what models say of them.

    Attributes:
        examples: images [n, height, width, ...] or signals [n, length].
        truth: their classes [n], as they stand in the data.
        predictions: model -> classes [n]; the smallest model first.
    """

    examples: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    predictions: Mapping[str, npt.NDArray[Any]]


def land_maps(directory: Path, *, given: Sweep | None = None) -> LandMaps | None:
    """Return the world as the kept models of a run see it, of at most four sizes on four numbers of examples.

    Of each cell it is the tuned trial of the first seed that was kept.

    Args:
        directory: of the run.
        given: the sweep, where its file does not hold the data: objects of Python.

    Returns:
        None where the data are not those of "land", or no tuned model was kept.

    Raises:
        SweepError: a model is damaged, or global-land-mask is not installed.
        ValueError: no trial has finished.
    """
    sweep = given or _sweep(directory)
    if sweep is None or not isinstance(source := sweep.data.origin, Land):
        return None
    trials = kept_trials(directory)
    if trials.empty:
        return None
    models = _spaced(list(dict.fromkeys(trials["model"])), MOST_MAPS[0])
    sizes = _spaced(sorted(trials["train_examples"].unique().tolist()), MOST_MAPS[1])
    shown = trials[trials["model"].isin(models) & trials["train_examples"].isin(sizes)]
    rows, columns = MAP_SHAPE
    latitude = np.repeat(90 - 180 * (np.arange(rows) + 0.5) / rows, columns)
    longitude = np.tile(-180 + 360 * (np.arange(columns) + 0.5) / columns, rows)
    inputs = source.inputs(latitude, longitude)
    maps = {}
    for trial in shown.to_dict("records"):
        probabilities: Any = _predicted(directory, trial["trial_id"], inputs, sweep, probabilities=True)
        maps[trial["model"], int(trial["train_examples"])] = probabilities.to_numpy()[:, 1].reshape(MAP_SHAPE)
    return LandMaps(maps, is_land(packed_mask(), latitude, longitude).reshape(MAP_SHAPE))


def image_samples(directory: Path, *, given: Sweep | None = None) -> Samples | None:
    """Return examples of the test set with what the smallest and the largest kept model say of them.

    They are the first of the test set, and after them the first of those that the two models call otherwise. The
    arguments are those of `land_maps`.

    Returns:
        None where the task is no classification of images or signals, or no tuned model was kept.

    Raises:
        SweepError: a model is damaged, or the data cannot be loaded.
        ValueError: no trial has finished.
    """
    sweep = given or _sweep(directory)
    if sweep is None:
        return None
    card = describe(sweep.data)
    shape = DIGITS.get(card.source, card.shape)
    images = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if card.classes is None or not (images or card.source == "mnist1d"):
        return None
    ends = _ends(directory, card)
    if ends.empty:
        return None
    test = load(sweep.data).test
    inputs, targets = np.asarray(test.inputs[:LOOKED_THROUGH]), np.asarray(test.targets[:LOOKED_THROUGH])
    names = encoding_of(sweep.data, card.sizes).classes
    truth = targets if names is None else np.array(names)[targets]
    said = {
        row["model"]: np.asarray(_predicted(directory, row["trial_id"], inputs, sweep))
        for row in ends.to_dict("records")
    }
    first, differing = SAMPLES
    differs = np.any([each != next(iter(said.values())) for each in said.values()], axis=0)
    differs[:first] = False
    chosen = [*range(min(first, len(inputs))), *np.flatnonzero(differs)[:differing].tolist()]
    return Samples(
        inputs[chosen].reshape(len(chosen), *shape),
        truth[chosen],
        {model: each[chosen] for model, each in said.items()},
    )


def text_samples(directory: Path, *, given: Sweep | None = None) -> "pd.DataFrame | None":
    """Return passages of the test set and how the smallest and the largest kept model go on, token by token.

    The arguments are those of `land_maps`.

    Returns:
        A row a passage: context, next (the true token), and for each model, the smallest first, a column with its
        continuation (always the likeliest token) and "MODEL: probability of the next". Text is decoded where tokens are
        bytes; else tokens are numbers. None where the task is not next_token or no tuned model was kept.

    Raises:
        SweepError: a model is damaged, or the data cannot be loaded.
        ValueError: no trial has finished.
    """
    import pandas as pd

    sweep = given or _sweep(directory)
    if sweep is None or (card := describe(sweep.data)).vocabulary is None or card.classes is not None:
        return None
    ends = _ends(directory, card)
    if ends.empty:
        return None
    test, spell = load(sweep.data).test, _speller(isinstance(sweep.data.origin, Bytes))
    places = np.unique(np.linspace(0, len(test.inputs) - 1, TEXTS).round().astype(int))
    windows, follows = np.asarray(test.inputs[places]), np.asarray(test.targets[places])
    table: dict[str, Any] = {
        "context": [spell(window[-CONTEXT:]) for window in windows],
        "next": [spell([token]).replace(" ", SPACE) for token in follows],
    }
    for row in ends.to_dict("records"):
        tokens, likely = _continued(directory, row["trial_id"], windows, follows, sweep)
        texts = [spell(each) for each in tokens]
        table[row["model"]] = [text if text.strip() else text.replace(" ", SPACE) for text in texts]
        table[f"{row['model']}: probability of the next"] = likely
    return pd.DataFrame(table)


def kept_trials(directory: Path) -> Table:
    """Return the tuned trials whose models were kept, one a cell: that of the first seed. The smallest model first.

    Returns:
        Columns of the trial table, and model.

    Raises:
        ValueError: no trial has finished.
    """
    from scalejax.analysis.curves.curves import models_of
    from scalejax.analysis.curves.tuning import tuned

    with Store(directory / LEDGER, write=False) as store:
        rows = store.results()
    best: Table = tuned(rows)
    best = best.assign(model=models_of(best, among=rows))
    best = best[best["trial_id"].isin(kept_models(directory))]
    best = best.sort_values(["params", "train_examples", "seed"], kind="stable")
    return best.drop_duplicates(["model", "train_examples"]).reset_index(drop=True)


def _ends(directory: Path, card: DataCard) -> Table:
    """Return of the kept trials on most examples that of the smallest and that of the largest model.

    Raises:
        SweepError: they were trained on other data: what is their test set now may have been in their training set.
    """
    from scalejax.execute import kept

    trials = kept_trials(directory)
    most = trials[trials["train_examples"] == trials["train_examples"].max()]
    ends = most.iloc[sorted({0, len(most) - 1})] if len(most) else most
    for trial_id in ends["trial_id"]:
        model = kept.read(directory / MODELS, trial_id)
        if model is not None and model.description["data"] != card.fingerprint:
            problem = f"trial {trial_id} was trained on other data than the sweep has now"
            raise SweepError(f"{directory}: {problem}; bring back the data that it was trained on")
    return ends


def _sweep(directory: Path) -> Sweep | None:
    """Return the sweep in the file of a run; None where it does not hold it, since it was made of objects of Python."""
    try:
        return load_sweep(directory / SWEEP)
    except SweepError:
        return None


def _predicted(directory: Path, trial_id: str, inputs: Any, sweep: Sweep, *, probabilities: bool = False) -> Any:
    return predicted(directory, trial_id, inputs, build=None, features=None, sweep=sweep, probabilities=probabilities)


def _spaced(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many of the values, evenly spaced, with the first and the last."""
    places = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[place] for place in places]


def _continued(
    directory: Path, trial_id: str, windows: npt.NDArray[Any], follows: npt.NDArray[Any], sweep: Sweep
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return tokens [n, CONTINUED] with which a model goes on, and its probability of the true next one [n]."""
    from scalejax.execute import kept

    module, size, _ = model_parts(directory, trial_id, sweep=sweep)
    predict = kept.predictor(module, size, examples=len(windows), last=True)
    seen, likely = windows.astype(np.int32), np.empty(0)
    for step in range(CONTINUED):
        outputs = np.concatenate(list(predict(seen))).astype(np.float64)
        if step == 0:
            odds = np.exp(outputs - outputs.max(-1, keepdims=True))
            likely = (odds / odds.sum(-1, keepdims=True))[np.arange(len(windows)), follows.astype(int)]
        seen = np.concatenate([seen[:, 1:], outputs.argmax(-1)[:, None].astype(np.int32)], axis=1)
    return seen[:, -CONTINUED:], likely


def _speller(text: bool) -> Any:
    """Return the function that writes tokens as people read them."""
    if not text:
        return lambda tokens: " ".join(str(int(token)) for token in tokens)

    def spell(tokens: Any) -> str:
        letters = bytes(int(token) for token in tokens).decode("utf-8", "replace")
        return "".join("↵" if letter == "\n" else letter if letter.isprintable() else "�" for letter in letters)

    return spell
