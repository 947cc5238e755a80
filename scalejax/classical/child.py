"""The process that fits: `python -m scalejax.classical.child FOLDER PIPE`. It never imports JAX, which takes a second.

It reads pickled trials from its standard input and answers each with its `Scores`, or with why there are none, in the
pipe of that number: what a package prints is no answer.
"""

import os
import pickle
import queue
import sys
import threading
import warnings
from pathlib import Path

import sklearn

from scalejax.classical.fit import Scores, examples_of, fit
from scalejax.classical.trial import OlderTrial
from scalejax.text import first_line


def main() -> None:
    """Fit until there is nothing more to read: when the process that asks has ended, however it did, so does this."""
    answers = os.fdopen(int(sys.argv[2]), "wb")
    warnings.simplefilter("ignore")  # such as of a solver that has not converged: the losses say what it is worth
    asked: queue.SimpleQueue[OlderTrial] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    answer: object = sklearn.__version__  # it is ready
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        answer = _answer(asked.get())


def _listen(asked: "queue.SimpleQueue[OlderTrial]") -> None:
    try:
        while True:
            asked.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        os._exit(0)  # in the midst of a fit


def _answer(trial: OlderTrial) -> Scores | str:
    try:
        return fit(trial, examples_of(trial, Path(sys.argv[1])))
    except MemoryError:
        return "it needs more memory than there is"
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    main()
