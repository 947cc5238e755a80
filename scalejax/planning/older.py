"""The trials of the classical baselines that a sweep asks for."""

import itertools
import math
from collections.abc import Iterator

from scalejax.classical.families import FAMILIES, TIME_LIMIT, TIME_LIMIT_SECONDS, grid_of, is_older
from scalejax.classical.trial import OlderTrial
from scalejax.data import DataCard
from scalejax.data.features import resolve, shapes
from scalejax.planning.trial import features_named, random_bits, training_sizes
from scalejax.rules import SpecError
from scalejax.spec import Sweep
from scalejax.text import listing
from scalejax.train.numerics import current
from scalejax.train.task import is_own, task_of
from scalejax.train.traced import features_digest


def older_count(sweep: Sweep, *, examples: int) -> int:
    """Return how many fits a sweep asks for on so many numbers of training examples, without spelling them out."""
    fits = 0
    for grid in sweep.models:
        if is_older(grid.family):
            options = grid_of(str(grid.family), grid.knobs)
            fits += math.prod(map(len, (*options.values(), grid.features or "-")))
    return fits * examples * len(sweep.seeds)


def expand_older(sweep: Sweep, card: DataCard) -> Iterator[OlderTrial]:
    """Yield the trials of the classical baselines in the order of the file: models, features, examples, options, seeds.

    Raises:
        SpecError: an algorithm does not do the task of the sweep.
        SweepError: features are not for these inputs, or compute something else each time.
    """
    task, numerics = task_of(sweep.task, card, metric=sweep.metric), current()
    does = "a task of your own" if is_own(task) else task.name
    for index, grid in enumerate(sweep.models):
        if not is_older(grid.family):
            continue
        family = str(grid.family)
        if card.vocabulary is not None or does not in FAMILIES[family].make:
            found = "inputs are tokens" if card.vocabulary is not None else f"task of this sweep is {does}"
            why = f"{family} does {listing([*FAMILIES[family].make])} of numbers, and the {found}"
            able = [name for name, other in FAMILIES.items() if does in other.make and card.vocabulary is None]
            remedy = f"take {', '.join(able)}" if able else "leave it out"
            raise SpecError(f"{why}; {remedy}", table="models", keys=("family",), index=index)
        options = grid_of(family, grid.knobs)
        (limit,) = grid.knobs.get(TIME_LIMIT, (TIME_LIMIT_SECONDS,))
        settings = [tuple(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
        chains = [(steps, resolve(steps)) for steps in grid.features or (sweep.data.steps,)]
        digests = {chain: features_digest(chain, card.shape) for _, chain in chains}
        inputs = {chain: math.prod(shapes(chain, card.shape)[-1]) for _, chain in chains}
        for (steps, chain), train_examples, chosen, seed in itertools.product(
            chains, training_sizes(sweep.data, card), settings, sweep.seeds
        ):
            yield OlderTrial(
                family=family,
                hyperparameters=chosen,
                task=does,
                metric=task.metric,
                data=card.fingerprint,
                train_examples=train_examples,
                seed=seed,
                inputs=inputs[chain],
                outputs=card.classes or 1,
                subset_key=random_bits(card.fingerprint, seed, "subset"),
                random_state=random_bits(card.fingerprint, seed, "initialise"),
                time_limit=float(limit),
                features=digests[chain],
                numerics=numerics if chain else (),
                features_named=features_named(sweep, grid, steps),
                features_key=random_bits(card.fingerprint, seed, "features") if chain else 0,
                chain=chain,
            )
