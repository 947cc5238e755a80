"""Trained models that are kept: the best parameters of a trial and the rest of its state, at its true size.

    models/2f1c9a.../             a model; its folder takes its name once it is whole
        weights/                  written by Orbax: an array for each parameter, by name
        model.json                what it takes to build the module
        sha256                    vouches for both
    models/waiting/2f1c9a....npz  of a trial whose cell is not complete: quick to write, and to throw away

Arrays are those of the host, so they are read on any number of devices.
"""

import contextlib
import functools
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scalejax.builders import load_object, name_of, qualified_name
from scalejax.data import DataCard, DataSet
from scalejax.data.encoding import Encoding
from scalejax.data.features import resolve, written
from scalejax.errors import SweepError
from scalejax.execute.checkpoint import intact, orbax, seal
from scalejax.execute.initial_weights import Weights
from scalejax.execute.snapshot import bits, keyed
from scalejax.files import replacing, write_atomically
from scalejax.models import FAMILIES, Architecture, architecture
from scalejax.models.own import named_leaves
from scalejax.planning.trial import Trial
from scalejax.text import first_line
from scalejax.train.lanes import BLOCK, blocks, evaluate_one
from scalejax.train.step import Examples, seen
from scalejax.train.task import Task, is_own, output_shape

FORMAT = 1  # of the folder of a model; another one is not read
WAITING, WEIGHTS, DESCRIPTION = "waiting", "weights", "model.json"
PARTS = "params", "rest"  # of the weights

Description = dict[str, Any]  # as JSON can hold it


@dataclass(frozen=True)
class KeptModel:
    """A trained model as it lies on the disk.

    Attributes:
        description: what it takes to build the module: family, builder, knobs, shape and type of an example as
            the model sees it, outputs; what it was trained on, and how that was read ("inputs", "own_task" and
            "encoding", which came later: an older model has none of them).
        arrays: by name, such as "params.hidden.0.kernel"; of random keys their bits.
    """

    description: Description
    arrays: Mapping[str, np.ndarray]


def kept_model(trial: Trial, weights: Weights, card: DataCard, *, encoding: Encoding) -> KeptModel:
    """Return a trained model with all that it takes to build it again.

    Args:
        trial: that it comes from.
        weights: on the host, at the trial's true size.
        card: of the data that it was trained on.
        encoding: of these data, so that new ones can be read as they were.
    """
    size, task = trial.architecture, trial.recipe.task
    description = {
        "format": FORMAT,
        "trial_id": trial.trial_id,
        "family": trial.family,
        "builder": None if trial.builder is None else _address(size.build),
        "knobs": dict(trial.knobs),
        "shape": list(size.shape),
        "dtype": size.dtype,
        "inputs": card.inputs,
        "vocabulary": card.vocabulary,
        "features": list(map(written, size.features)),
        "outputs": output_shape(task, card)[-1],
        "task": task.name,
        "metric": task.metric,
        "own_task": is_own(task),
        "encoding": encoding.written(),
        "data": trial.data,
        "arrays": structure_of(size),
    }
    leaves = [leaf for _, leaf in _named(weights)]
    return KeptModel(description, dict(zip(description["arrays"], map(bits, leaves), strict=True)))


def structure_of(size: Architecture) -> dict[str, str]:
    """Return the type and the shape of each of a module's arrays by name, such as "float32 [40, 8]"."""
    return {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in _named(size.abstract[1:])}


def set_aside(folder: Path, model: KeptModel) -> None:
    """Write a model in one quick file, whole or not at all, until it is known whether it is kept."""
    waiting = folder / WAITING
    waiting.mkdir(parents=True, exist_ok=True)
    said = np.frombuffer(json.dumps(model.description).encode(), np.uint8)
    named: Any = {DESCRIPTION: said, **model.arrays}
    with (
        replacing(_waiting_file(folder, model.description["trial_id"])) as partial,
        partial.open("wb") as file,
    ):
        np.savez(file, **named)


def waiting_models(folder: Path) -> list[str]:
    """Return the ids of the trials whose models wait."""
    return sorted(path.stem for path in (folder / WAITING).glob("*.npz"))


def stored_models(folder: Path) -> list[str]:
    """Return the ids of the trials whose models are kept."""
    return sorted(path.parent.name for path in folder.glob(f"[!.]*/{DESCRIPTION}"))


def store(folder: Path, trial_id: str) -> None:
    """Write a model that waits into a folder of its own, which appears once it is whole.

    Raises:
        OSError: or what else Orbax raises where it cannot write.
    """
    if not (folder / trial_id).exists():
        model = _read_waiting(_waiting_file(folder, trial_id))
        part = folder / f".{trial_id}.part"
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        orbax().save(str((part / WEIGHTS).absolute()), dict(model.arrays))
        write_atomically(part / DESCRIPTION, json.dumps(model.description, indent=2) + "\n")
        seal(part)
        part.rename(folder / trial_id)
    drop(folder, trial_id)


def drop(folder: Path, trial_id: str) -> None:
    """Throw away a model that waits."""
    _waiting_file(folder, trial_id).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the folder of the models that wait, if none does."""
    with contextlib.suppress(OSError):
        (folder / WAITING).rmdir()


def read(folder: Path, trial_id: str) -> KeptModel | None:
    """Return the model of a trial, None if there is none.

    Raises:
        SweepError: it is damaged, or was written by another version.
    """
    path, waiting = folder / trial_id, _waiting_file(folder, trial_id)
    place = path if path.is_dir() else waiting
    if not place.exists():
        return None
    try:
        model = _read_waiting(waiting) if place is waiting else _read_stored(path)
    except Exception as error:  # whatever Orbax and NumPy raise at damaged files
        problem = f"the model cannot be read ({first_line(error)})"
        raise SweepError(f"{place}: {problem}; restore a copy of it, or train it again in another directory") from error
    if model.description.get("format") != FORMAT:
        raise SweepError(f"{place}: the model was written by another version of scalejax; read it with that")
    return model


def rebuilt(model: KeptModel, build: Any = None) -> tuple[Architecture, Weights]:
    """Return the architecture of a model and its weights.

    Args:
        model: as it was read.
        build: the user's own builder, where its name is not enough to find it.

    Raises:
        SweepError: the builder is not found, or makes other arrays than those of the model.
    """
    says = model.description
    if build is None:
        build = _builder(says)
    title = f"the builder {name_of(build)}"
    try:
        size = architecture(
            build, says["knobs"], shape=tuple(says["shape"]), outputs=says["outputs"], dtype=says["dtype"],
            vocabulary=says["vocabulary"], features=resolve(says.get("features", ())),
        )  # fmt: skip
        made = structure_of(size)
    except Exception as error:  # whatever the user's own code raises
        knobs = ", ".join(f"{name}={value}" for name, value in says["knobs"].items())
        problem = f"{title} fails with {knobs or 'no knobs'} ({first_line(error)})"
        raise SweepError(f"{problem}; give the one that trial {says['trial_id']} was trained with") from error
    wrong = _difference(made, says["arrays"])
    if wrong:
        raise SweepError(f"{title} {wrong}; give the one that trial {says['trial_id']} was trained with")
    leaves, tree = jax.tree.flatten(size.abstract[1:])
    arrays = [keyed(model.arrays[name], leaf) for name, leaf in zip(made, leaves, strict=True)]
    return size, jax.tree.unflatten(tree, arrays)


def module_of(size: Architecture, weights: Weights) -> nnx.Module:
    """Return the Flax module with its weights, in evaluation mode."""
    module = nnx.merge(size.abstract[0], *jax.device_put(weights), copy=True)
    module.eval()
    return module


def evaluate(module: nnx.Module, size: Architecture, *, task: Task, data: DataSet) -> tuple[float, float]:
    """Return the loss and the headline metric of a module on the test examples, in the blocks of the engine."""
    _, params, rest = nnx.split(module, nnx.Param, ...)
    test = jax.device_put(blocks(data.test.inputs, data.test.targets))
    found = jax.jit(functools.partial(evaluate_one, size, task))(params, rest, blocks=test)
    loss, metric = jax.device_get(found)
    return float(loss), float(metric)


def predictor(
    module: nnx.Module, size: Architecture, *, examples: int, last: bool = False
) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    """Return the function from inputs [n, *shape], as they may be stored, to blocks of outputs, float32 [.., *outputs].

    It is in evaluation mode, compiled once, and has as many examples on the device at once as the engine.

    Args:
        module: the model.
        size: its architecture.
        examples: that it will be given in all.
        last: whether of the outputs at each place of a window those at the last one are wanted alone.
    """
    _, params, rest = nnx.split(module, nnx.Param, ...)
    whole = min(BLOCK, 1 << (examples - 1).bit_length())  # of a few examples a small program

    @jax.jit
    def outputs(params: nnx.State, rest: nnx.State, inputs: jax.Array) -> jax.Array:
        found = size.predict(params, rest, seen(size, Examples(inputs, jnp.zeros(whole))).inputs)
        return found[:, -1] if last else found

    def predict(inputs: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(inputs), whole):
            block = inputs[start : start + whole]
            padding = np.zeros((whole - len(block), *block.shape[1:]), block.dtype)  # or the last were another program
            yield np.asarray(outputs(params, rest, np.concatenate([block, padding])))[: len(block)]

    return predict


def _named(weights: Any) -> list[tuple[str, Any]]:
    """Return the arrays of weights, or their shapes, with their names."""
    parts = zip(PARTS, weights, strict=True)
    return [(f"{part}.{name}", leaf) for part, state in parts for name, leaf in named_leaves(state)]


def _address(build: Any) -> str:
    """Return where a builder is found again, such as "models.mine:Net"; empty for one of a notebook, or a partial."""
    name = qualified_name(build)
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return name if found is build and module != "__main__" else ""


def _builder(says: Description) -> Any:
    """Find the builder of a model.

    Raises:
        SweepError: there is none of that name here.
    """
    family, builder, remedy = says["family"], says["builder"], "give it with run.model(trial_id, build=...)"
    if builder is None:
        if family not in FAMILIES:
            raise SweepError(f"this version of scalejax has no family {family}; read the model with the one before")
        return FAMILIES[family]
    if not builder:
        raise SweepError(f"the builder {family} has no address from which it could be imported; {remedy}")
    try:
        return load_object(builder)
    except SweepError as error:
        raise SweepError(f"{error}; or {remedy}") from error


def _difference(made: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """Say how the arrays of a module differ from those of a model, as the rest of a sentence; empty if they do not."""
    for name in [*stored, *made]:
        if name not in made:
            return f"makes no {name}, which the model has"
        if name not in stored:
            return f"makes {name}, which the model does not have"
        if made[name] != stored[name]:
            return f"makes {name} {made[name]}, and that of the model is {stored[name]}"
    return ""


def _waiting_file(folder: Path, trial_id: str) -> Path:
    return folder / WAITING / f"{trial_id}.npz"


def _read_waiting(path: Path) -> KeptModel:
    with zipfile.ZipFile(path) as file, np.load(path, allow_pickle=False) as arrays:
        if (broken := file.testzip()) is not None:
            raise ValueError(f"the checksum of {broken} does not match")
        description = json.loads(arrays[DESCRIPTION].tobytes())
        return _typed(description, {name: arrays[name] for name in description["arrays"]})


def _read_stored(path: Path) -> KeptModel:
    if not intact(path):  # looked at first: damaged files are not parsed
        raise ValueError("its checksum does not match")
    description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    arrays: Any = orbax().load(str((path / WEIGHTS).absolute()))
    return _typed(description, {name: np.asarray(arrays[name]) for name in description["arrays"]})


def _typed(description: Description, arrays: Mapping[str, np.ndarray]) -> KeptModel:
    """Return a model whose arrays have their types again: NumPy writes bfloat16 as bytes without a meaning."""

    def one(name: str, array: np.ndarray) -> np.ndarray:
        return array.view(jnp.dtype(description["arrays"][name].split()[0])) if array.dtype.kind == "V" else array

    return KeptModel(description, {name: one(name, array) for name, array in arrays.items()})
