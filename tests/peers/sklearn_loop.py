"""The scikit-learn peer: MLPClassifier, one call of partial_fit a batch."""

from collections.abc import Sequence

import numpy as np
import workload
from scipy.special import log_softmax
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_info


def cross_entropy(model: MLPClassifier, inputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy from the logits: scikit-learn's own cuts off what is surer than one in 10 million.

    An overfitted network is that sure, and wrong, of many examples.
    """
    x = inputs
    for kernel, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    logits = x @ model.coefs_[-1] + model.intercepts_[-1]
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def run_sklearn(prepared: workload.Prepared, chosen: Sequence[int]) -> workload.Result:
    """Train trial after trial on the same batches.

    Its API takes no initial weights: a first call makes the arrays, they are overwritten, and the optimizer of that
    call is thrown away, so that the next one starts afresh.
    """
    tally, classes = workload.Tally(prepared), np.arange(workload.CLASSES)
    for position in chosen:
        trial, clock = prepared.trials[position], workload.Clock()
        rows = prepared.rows[trial.group]
        model = MLPClassifier(
            (trial.width,) * workload.DEPTH,
            solver="adam",
            alpha=0.0,
            batch_size=rows.shape[1],
            learning_rate_init=trial.learning_rate,
        )
        model.partial_fit(prepared.inputs[rows[0]], prepared.labels[rows[0]], classes=classes)
        for number, (kernel, bias) in enumerate(prepared.initial(trial)):
            model.coefs_[number][:], model.intercepts_[number][:] = kernel, bias
        del model._optimizer
        with clock:
            losses = []
            for batch in rows:
                model.partial_fit(prepared.inputs[batch], prepared.labels[batch])
                losses.append(model.loss_)
            held_out = cross_entropy(model, prepared.validation_inputs, prepared.validation_labels)
        tally.add([position], clock.seconds, (np.mean(losses), held_out))
    pools = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info())
    return tally.result("sklearn", threads=f"threads: {pools}")


if __name__ == "__main__":
    workload.contest({"sklearn": run_sklearn})
