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
import platform
import shutil
import sys
import warnings
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
from scalejax.code_text import digest
from scalejax.data import DataCard, DataSet
from scalejax.data.encoding import Encoding
from scalejax.data.features import (
    Chain,
    Features,
    Shape,
    Step,
    apply_step,
    listed_steps,
    resolve,
    shapes,
    title,
    written,
)
from scalejax.errors import SweepError
from scalejax.execute import hosts
from scalejax.execute.checkpoint import intact, orbax, seal
from scalejax.execute.devices import versions
from scalejax.execute.initial_weights import Weights
from scalejax.execute.snapshot import bits, keyed
from scalejax.files import replacing, write_atomically
from scalejax.models import FAMILIES, Architecture, architecture
from scalejax.models.equations import text
from scalejax.models.own import named_leaves
from scalejax.models.precision import FLOAT32, multiplied
from scalejax.planning.trial import Trial
from scalejax.text import first_line, number_of
from scalejax.train.lanes import blocks, evaluate_one
from scalejax.train.numerics import Numerics, current, held
from scalejax.train.recipe import EVALUATION_BLOCK, Recipe
from scalejax.train.step import Examples, seen
from scalejax.train.task import Task, is_own, output_shape
from scalejax.train.traced import task_digest

FORMAT = 1  # of the folder of a model; another one is not read
REMEMBERED = 64  # sizes whose digests are kept in memory
WAITING, WEIGHTS, DESCRIPTION = "waiting", "weights", "model.json"
PARTS = "params", "rest"  # of the weights
TRACERS = "scalejax", "jax", "flax", "numpy"  # packages of which another version may trace a model to another program

Description = dict[str, Any]  # as JSON can hold it


@dataclass(frozen=True)
class KeptModel:
    """A trained model as it lies on the disk.

    Attributes:
        description: what it takes to build the module: family, builder, knobs, shape and type of an example as
            the model sees it, outputs; what it was trained on, and how that was read ("inputs", "own_task" and
            "encoding", which came later: an older model has none of them); what it computes ("program", which came
            later still, and "precision", without which it is float32).
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
        "precision": size.precision,
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
        "program": {
            **_programs_once(size, trial.recipe.batch_size, trial.numerics),
            "task": trial.own[0] if is_own(task) else None,
            "batch": trial.recipe.batch_size,
            "numerics": list(map(list, trial.numerics)),
            "versions": _tracers(),
        },
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

    One of several hosts leaves it where it is, from where it is read as well: in Orbax all would have to write it.

    Raises:
        OSError: or what else Orbax raises where it cannot write.
    """
    if not hosts.is_single():
        return
    if not (folder / trial_id).exists():
        model = _read_waiting(_waiting_file(folder, trial_id))
        part = folder / f".{trial_id}.part"
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        with orbax() as ocp:
            ocp.save(str((part / WEIGHTS).absolute()), dict(model.arrays))
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


def rebuilt(model: KeptModel, build: Any = None, features: Any = None) -> tuple[Architecture, Weights]:
    """Return the architecture of a model and its weights.

    Args:
        model: as it was read.
        build: the user's own builder, where its name is not enough to find it.
        features: the steps before the model, where their names are not enough to find them.

    Raises:
        SweepError: the builder or a step is not found, makes other arrays than those of the model, or computes
            something else with them than it did.

    Warns:
        UserWarning: the program is another one, and so are the versions that trace it: which of them it comes from
            cannot be told.
    """
    says = model.description
    program = says.get("program", {})
    numerics = _numerics(says)
    with held(numerics):
        chain = _chain(says, features)
        if build is None:
            build = _builder(says)
        name, remedy = f"the builder {name_of(build)}", f"give the one that trial {says['trial_id']} was trained with"
        try:
            size = architecture(
                build, says["knobs"], shape=tuple(says["shape"]), outputs=says["outputs"], dtype=says["dtype"],
                vocabulary=says["vocabulary"], features=chain, occasion=object(),
                precision=says.get("precision", FLOAT32),
            )  # fmt: skip
            made = structure_of(size)
            wrong = _difference(made, says["arrays"])
            found = {} if wrong or not program else _programs(size, program["batch"], numerics)
        except Exception as error:  # whatever the user's own code raises
            knobs = ", ".join(f"{name}={value}" for name, value in says["knobs"].items())
            problem = f"{name} fails with {knobs or 'no knobs'} ({first_line(error)})"
            raise SweepError(f"{problem}; {remedy}") from error
    if wrong:
        raise SweepError(f"{name} {wrong}; {remedy}")
    if found and found["model"] != program["model"]:
        if program["versions"] == _tracers():
            raise SweepError(_changed(name, found, says, chain))
        _warn_of_other_versions(says, "its model")
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
    whole = min(EVALUATION_BLOCK, 1 << (examples - 1).bit_length())  # of a few examples a small program

    @jax.jit
    def outputs(params: nnx.State, rest: nnx.State, inputs: jax.Array) -> jax.Array:
        with multiplied(size.numbers.multiplies):
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


def _programs(size: Architecture, batch_size: int, numerics: Numerics) -> Description:
    """Return digests of what a model computes in evaluation mode, and each step of its features by itself.

    How it is drawn, and what it does in training alone, such as dropout, changes nothing in a trained model.

    Args:
        size: its architecture.
        batch_size: of the inputs.
        numerics: under which it was trained.
    """

    def model(params: nnx.State, rest: nnx.State, inputs: jax.Array) -> jax.Array:
        return size.predict(params, rest, inputs)

    # Traced anew, though planning has: what Python remembers of a builder may be of an earlier form of it.
    with held(numerics):
        traced = jax.make_jaxpr(model)(*size.abstract[1:], size.inputs(batch_size))
        steps = zip(size.features, shapes(size.features, size.shape), strict=False)
        return {"model": digest(text(traced)), "steps": [_step_program(step, shape) for step, shape in steps]}


# Of the trials of a run, whose code stays as it is; of so many sizes at a time, for a process may have many runs.
_programs_once = functools.lru_cache(maxsize=REMEMBERED)(_programs)


def _step_program(step: Features, shape: Shape) -> str:
    """Return a digest of what a step does with a batch of examples."""
    fitted = {name: jax.ShapeDtypeStruct(of, jnp.float32) for name, of in step.arrays(shape).items()}
    batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return digest(text(jax.make_jaxpr(lambda *each: apply_step(step, *each))(fitted, batch)))


def _tracers() -> dict[str, str]:
    """Return the versions of all that may trace the same model to another program."""
    packages = {name: versions()[name] for name in TRACERS}
    return {**packages, "python": ".".join(platform.python_version_tuple()[:2]), "platform": jax.default_backend()}


def _changed(name: str, found: Description, says: Description, chain: Chain) -> str:
    """Say what computes something else than when a model was trained: a step of its features, or its builder."""
    trial_id, steps = says["trial_id"], zip(chain, found["steps"], says["program"]["steps"], strict=True)
    for place, (step, now, then) in enumerate(steps, start=1):
        if now != then:
            which = f"the features step {title((step,))}, {place} of {len(chain)},"
            return f"{which} computes something else than when trial {trial_id} was trained; {_features_remedy(says)}"
    problem = "makes the arrays of the model and computes something else with them"
    return f"{name} {problem}; give the one that trial {trial_id} was trained with, as it was then"


def check_task(says: Mapping[str, Any], task: Task, card: DataCard) -> None:
    """Hold a task of the user's own against the one that a model was trained on.

    Raises:
        SweepError: it computes something else.

    Warns:
        UserWarning: it does, and versions differ, which may be why.
    """
    then = says.get("program", {}).get("task")
    if then is None:
        return
    recipe = Recipe("sgd", "constant", None, 2, task=task, target=(card.learns, card.target_shape))
    inputs = jax.ShapeDtypeStruct((2, *card.shape), np.dtype(card.sees))
    with held(_numerics(says)):
        now = task_digest(recipe, output_shape(task, card), inputs=inputs)
    if now == (then,):
        return
    if says["program"]["versions"] == _tracers():
        problem = f"the task {task.name} computes something else than when trial {says['trial_id']} was trained"
        raise SweepError(f"{problem}; give the sweep that it comes from with sweep=...")
    _warn_of_other_versions(says, "its task")


def _numerics(says: Mapping[str, Any]) -> Numerics:
    """Return the settings under which a model was trained; of one whose version did not write them those of now."""
    return tuple((name, value) for name, value in says["program"]["numerics"]) if "program" in says else current()


def _warn_of_other_versions(says: Mapping[str, Any], what: str) -> None:
    then, now = says["program"]["versions"], _tracers()
    names = [name for name in now if now[name] != then.get(name)]
    before, after = (", ".join(f"{name} {each.get(name)}" for name in names) for each in (then, now))
    problem = f"trial {says['trial_id']} was kept under {before}, and under {after} {what} is another program"
    warnings.warn(f"{problem}; see that run.evaluate returns the test loss of the table.", stacklevel=5)


def _features_remedy(says: Description) -> str:
    return f"give the steps that trial {says['trial_id']} was trained behind, features=[...]"


def _chain(says: Description, features: Any) -> Chain:
    """Return the steps of a model's features: those that are given, or else those that are found by their names.

    Raises:
        SweepError: a step is not found, or is another one.
    """
    names, shape = says.get("features", []), tuple(says["shape"])
    if features is None:
        chain = tuple(_step(name, f"{place} of {len(names)}", says) for place, name in enumerate(names, start=1))
    else:
        try:
            chain = resolve(listed_steps(features))
        except SweepError as error:
            raise SweepError(f"the features that are given: {error}") from error
        if len(chain) != len(names):
            given, had = f"{number_of(len(chain), 'step')} ({title(chain)})", f"{len(names)} ({title(names)})"
            remedy = _features_remedy(says) if names else "drop features=[...]"
            raise SweepError(f"the features that are given have {given}, and those of the model {had}; {remedy}")
    try:
        before = shapes(chain, shape)
    except SweepError as error:
        raise SweepError(f"{error}; {_features_remedy(says)}") from error
    for place, (step, name, of_example) in enumerate(zip(chain, names, before, strict=False)):
        own = f"{PARTS[1]}.fitted.{place}."
        made = {f"{own}{each}": f"float32 {list(of)}" for each, of in step.arrays(of_example).items()}
        fitted = {each: of for each, of in says["arrays"].items() if each.startswith(own)}
        if made != fitted or (":" not in name and written(step) != name):
            which = f"the features step {title((step,))}, {place + 1} of {len(chain)},"
            raise SweepError(f"{which} is not the {name} of the model; {_features_remedy(says)}")
    return chain


def _step(name: str, place: str, says: Description) -> Features:
    """Return a step by its name.

    Raises:
        SweepError: its name does not tell which it was.
    """
    try:
        found: Step | type = load_object(name) if ":" in name else name
        if isinstance(found, type):
            raise SweepError("it was an object of that class")
        return resolve((found,))[0]
    except SweepError as error:
        why = str(error).partition(";")[0]
        problem = f"the features step {name}, {place}, cannot be found by its name alone ({why})"
        raise SweepError(f"{problem}; {_features_remedy(says)}") from error


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
    family, builder, remedy = says["family"], says["builder"], "give it with build=..."
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
    with orbax() as ocp:
        arrays: Any = ocp.load(str((path / WEIGHTS).absolute()))
    return _typed(description, {name: np.asarray(arrays[name]) for name in description["arrays"]})


def _typed(description: Description, arrays: Mapping[str, np.ndarray]) -> KeptModel:
    """Return a model whose arrays have their types again: NumPy writes bfloat16 as bytes without a meaning."""

    def one(name: str, array: np.ndarray) -> np.ndarray:
        return array.view(jnp.dtype(description["arrays"][name].split()[0])) if array.dtype.kind == "V" else array

    return KeptModel(description, {name: one(name, array) for name, array in arrays.items()})
