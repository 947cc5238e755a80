"""New examples, predicted with a kept model and answered in the terms of the data that it was trained on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.data.encoding import Encoding
from scalejax.data.table import encoded
from scalejax.data.table_files import read_table
from scalejax.errors import SweepError
from scalejax.rules import SpecError
from scalejax.run.weights import model_parts
from scalejax.spec import Sweep

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 8192  # rows of a table that are inputs at the same time: a column of categories may become a thousand


def predicted(
    directory: Path,
    trial: Any,
    new: Any,
    *,
    build: Any = None,
    features: Any = None,
    sweep: Sweep | None = None,
    probabilities: bool = False,
) -> "np.ndarray | pd.DataFrame":
    """Return what a kept model makes of new examples; see `Run.predict`."""
    import pandas as pd

    from scalejax.execute import kept

    module, size, says = model_parts(directory, trial, build=build, features=features, sweep=sweep)
    task, trial_id = None if says.get("own_task") else says["task"], says["trial_id"]
    if probabilities and task not in ("classification", "next_token"):
        what = f"of the task {says['task']}, which has no probabilities"
        raise SweepError(f"trial {trial_id} is {what}; drop probabilities=True")
    encoding = Encoding.read(says["encoding"]) if "encoding" in says else Encoding()
    _check_kind(new, encoding, says)
    place = "the new table"
    if isinstance(new, str | os.PathLike):
        place = str(new)
        if not encoding.columns:
            raise SweepError(f"{place}: {_no_table(says)}")
        try:
            new = read_table(Path(new), encoding.columns)
        except SpecError as fault:
            raise SweepError(fault.says) from None
    is_table = isinstance(new, pd.DataFrame)
    if is_table and not encoding.columns and "encoding" not in says:
        raise SweepError(_no_table(says))
    as_table = is_table and bool(encoding.columns)
    examples: Any = new if as_table else _stored(new, says)
    if not len(examples):
        raise SweepError("there is no new example; expected one at least")
    predict = kept.predictor(module, size, examples=len(examples), last=task == "next_token")
    answers = []
    for first in range(0, len(examples), AT_ONCE):
        part: Any = examples[first : first + AT_ONCE]
        inputs: Any = encoded(part, encoding.columns, place, first=first) if as_table else part
        answers += [_answers(each, task, encoding, probabilities=probabilities) for each in predict(inputs)]
    found = np.concatenate(answers)
    if not probabilities:
        return found
    names = range(found.shape[1]) if encoding.classes is None else encoding.classes
    return pd.DataFrame(found, columns=pd.Index(names), index=new.index if is_table else None)


def _check_kind(new: Any, encoding: Encoding, says: Mapping[str, Any]) -> None:
    """Refuse new examples that are neither a table nor an array: one row of a table, or a text.

    Raises:
        SweepError: they are; it says what to give.
    """
    import pandas as pd

    if isinstance(new, pd.Series | Mapping):
        if not encoding.columns:
            raise SweepError(_no_table(says))
        found = f"expected a table, found a {type(new).__name__}"
        raise SweepError(f"the new examples: {found}; give a DataFrame, of one row pd.DataFrame([row])")
    if says["vocabulary"] is not None and isinstance(new, str | bytes):
        shape = ", ".join(map(str, ("n", *says["shape"])))
        what = f"numbers from 0 to {says['vocabulary'] - 1}, an array [{shape}]; bytes are list(text.encode())"
        raise SweepError(f"the model of trial {says['trial_id']} was trained on tokens and takes no text; give {what}")


def _no_table(says: Mapping[str, Any]) -> str:
    """Say why a model takes no table."""
    shape, why = ["n", *says["shape"]], "was trained on arrays"
    if "encoding" not in says:
        why = "was kept by an earlier version, which did not write down how a table is read"
    return f"the model of trial {says['trial_id']} {why}; give an array of inputs [{', '.join(map(str, shape))}]"


def _answers(outputs: np.ndarray, task: str | None, encoding: Encoding, *, probabilities: bool) -> np.ndarray:
    """Return what outputs [n, *outputs] of a model say, [n]; or probabilities [n, classes]; or they themselves.

    Args:
        outputs: float32; of a window of tokens those at its last place.
        task: its name, None if it is the user's own.
        encoding: of the data.
        probabilities: whether these are asked for.
    """
    if task == "regression":
        numbers = outputs.astype(np.float64) * encoding.scale + encoding.mean
        return numbers[:, 0] if numbers.shape[1] == 1 else numbers
    if task not in ("classification", "next_token"):
        return outputs
    if probabilities:
        odds = np.exp(outputs.astype(np.float64) - outputs.max(-1, keepdims=True))
        return odds / odds.sum(-1, keepdims=True)
    codes = outputs.argmax(-1)
    return codes if encoding.classes is None else np.array(encoding.classes)[codes]


def _stored(new: Any, says: Mapping[str, Any]) -> np.ndarray:
    """Return an array of inputs in the type in which those of the training data were stored.

    Raises:
        SweepError: it is of another shape or type, or holds what no inputs are.
    """
    try:
        array = np.asarray(new)
    except Exception:  # ragged lists; whatever an object raises
        raise SweepError("NumPy can make no array of the new inputs; give them as one array [n, ...]") from None
    shape, vocabulary = tuple(says["shape"]), says["vocabulary"]
    if array.dtype.kind not in "fiub":
        raise SweepError(f"the new inputs: expected numbers, found an array of type {array.dtype}")
    if array.ndim == 0 or array.shape[1:] != shape:
        expected = f"[{', '.join(map(str, ('n', *shape)))}], as of the training data"
        raise SweepError(f"the new inputs: expected the shape {expected}, found {list(array.shape)}")
    if vocabulary is not None:
        if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < vocabulary):
            found = f"{array.dtype} from {array.min()} to {array.max()}"
            raise SweepError(f"the new inputs: expected tokens from 0 to {vocabulary - 1}, found {found}")
        return array.astype(np.int32)
    # Of what an earlier version kept the type is not known: pixels then are what it took for pixels.
    pixels = array.dtype == np.uint8 and array.ndim >= 3
    if says.get("inputs", "uint8" if pixels else "float32") == "uint8":
        if array.dtype != np.uint8:
            raise SweepError(f"the new inputs: expected uint8, as of the training data, found {array.dtype}")
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        small = array.astype(np.float32)
    if not np.isfinite(small).all():
        row = int((~np.isfinite(small.reshape(len(small), -1)).all(1)).argmax())
        raise SweepError(f"the new inputs: example {row:,}, counted from 0, has numbers that are not finite as float32")
    return small
