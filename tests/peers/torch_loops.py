"""PyTorch peers: the plain loop, and all trials of a width at once by torch.func."""

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
import workload
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

BETAS, EPSILON = (0.9, 0.999), 1e-8


def network(width: int, layers: workload.Layers) -> nn.Sequential:
    """Build the network with the given weights."""
    sizes = [workload.INPUTS] + [width] * workload.DEPTH + [workload.CLASSES]
    linears = [nn.Linear(one, other) for one, other in itertools.pairwise(sizes)]
    with torch.no_grad():
        for linear, (kernel, bias) in zip(linears, layers, strict=True):
            linear.weight.copy_(torch.from_numpy(kernel.T.copy()))
            linear.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])


def tensors(prepared: workload.Prepared) -> tuple[torch.Tensor, ...]:
    """Return training inputs and labels, validation inputs and labels."""
    pairs = (prepared.inputs, prepared.labels), (prepared.validation_inputs, prepared.validation_labels)
    return tuple(torch.from_numpy(array) for x, y in pairs for array in (x, y.astype(np.int64)))


def threads() -> str:
    """Say how many threads PyTorch uses."""
    return f"{torch.get_num_threads()} threads in an operation"


def run_torch(prepared: workload.Prepared, chosen: Sequence[int]) -> workload.Result:
    """Train trial after trial with torch.optim.AdamW and a Python loop over steps."""
    tally, data = workload.Tally(prepared), tensors(prepared)
    for number, position in enumerate(chosen):
        trial = prepared.trials[position]
        rows = torch.from_numpy(prepared.rows[trial.group].astype(np.int64))
        if number == 0:  # PyTorch loads parts of itself at the first step, which a sample must not multiply
            _train_one(network(trial.width, prepared.initial(trial)), rows[:1], trial.learning_rate, data)
        model = network(trial.width, prepared.initial(trial))
        with workload.Clock() as clock:
            losses = _train_one(model, rows, trial.learning_rate, data)
        tally.add([position], clock.seconds, losses)
    return tally.result("torch", threads=threads())


def _train_one(
    model: nn.Sequential, rows: torch.Tensor, rate: float, data: tuple[torch.Tensor, ...]
) -> tuple[float, float]:
    """Return the mean training loss and the validation loss."""
    inputs, labels, held_inputs, held_labels = data
    cross_entropy = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    total = torch.zeros(())
    for batch in rows:
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        total += loss.detach()
    with torch.no_grad():
        held_out = cross_entropy(model(held_inputs), held_labels)
    return float(total) / len(rows), float(held_out)


class StackedAdam:
    """AdamW without decay on stacked parameters [trial, ...], in place, each trial with its own learning rate."""

    def __init__(self, params: dict[str, torch.Tensor], rates: torch.Tensor):
        self._params = params
        self._rates = {name: rates.reshape(-1, *[1] * (param.ndim - 1)) for name, param in params.items()}
        self._first = {name: torch.zeros_like(param) for name, param in params.items()}
        self._second = {name: torch.zeros_like(param) for name, param in params.items()}
        self._steps = 0

    def step(self, gradients: dict[str, torch.Tensor]) -> None:
        """Move the parameters."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in BETAS]
        for name, gradient in gradients.items():
            first = self._first[name].lerp_(gradient, 1 - BETAS[0])
            second = self._second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = second.sqrt().div_(corrections[1] ** 0.5).add_(EPSILON)
            self._params[name].addcdiv_(first * self._rates[name], scale, value=-1 / corrections[0])


def run_torch_vmap(prepared: workload.Prepared, chosen: Sequence[int]) -> workload.Result:
    """Train all trials of a width together."""
    tally, data = workload.Tally(prepared), tensors(prepared)
    for number, positions in enumerate(prepared.by_width(chosen).values()):
        trials = [prepared.trials[position] for position in positions]
        models = [network(trial.width, prepared.initial(trial)) for trial in trials]
        # [steps, trials, batch], laid out as they are used
        stacked_rows = np.stack([prepared.rows[trial.group] for trial in trials], axis=1).astype(np.int64)
        rates = torch.tensor([trial.learning_rate for trial in trials], dtype=torch.float32)
        rows = torch.from_numpy(stacked_rows)
        if number == 0:
            _train_stacked(copy.deepcopy(models), rows[:1], rates, data)
        with workload.Clock() as clock:
            losses = _train_stacked(models, rows, rates, data)
        tally.add(positions, clock.seconds, losses)
    return tally.result("torch_vmap", threads=threads())


def _train_stacked(
    models: list[nn.Sequential], rows: torch.Tensor, rates: torch.Tensor, data: tuple[torch.Tensor, ...]
) -> np.ndarray:
    """Return the mean training and the validation losses [2, trials]."""
    inputs, labels, held_inputs, held_labels = data
    skeleton = copy.deepcopy(models[0]).to("meta")
    stacked, _ = stack_module_state(models)
    params = {name: param.detach() for name, param in stacked.items()}

    def loss_of(own: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(skeleton, own, (x,)), y)

    step, optimizer, total = vmap(grad_and_value(loss_of)), StackedAdam(params, rates), torch.zeros(len(models))
    with torch.no_grad():
        for batch in rows:
            gradients, loss = step(params, inputs[batch], labels[batch])
            optimizer.step(gradients)
            total += loss
        held_out = vmap(loss_of, in_dims=(0, None, None))(params, held_inputs, held_labels)
    return torch.stack([total / len(rows), held_out]).numpy()


if __name__ == "__main__":
    workload.contest({"torch": run_torch, "torch_vmap": run_torch_vmap})
