"""What training costs: FLOPs counted from the program itself, bytes from its shapes, seconds from a simple model."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core

from scalejax.data import DataCard
from scalejax.models import Architecture
from scalejax.models.equations import inner_programs
from scalejax.models.precision import rounded
from scalejax.train.convolutions import CONVOLUTION, contains
from scalejax.train.lanes import abstract_lane
from scalejax.train.recipe import EVALUATION_BLOCK, LaneProgram, Recipe
from scalejax.train.sharding import NOT_SPREAD, Spread, parameter_axis
from scalejax.train.step import BLOCK_STEPS, widened
from scalejax.train.traced import traced_evaluation, traced_slope

# Passes over a parameter's four bytes in one step: gradient, both moments and the parameter, read and written.
PASSES = 10
CHECKPOINTS = {"checkpoint", "remat", "remat2"}  # what the primitive of jax.checkpoint is called, by version
# Passes over the operands and the result of each convolution: reordering, and the norms and activations in between.
# Without them two convolutions of width 8 were estimated at less than a third of their measured time.
CONVOLUTION_PASSES = 7
KEPT = {"dot_general", CONVOLUTION, "exp"}
KEPT_TWICE = 2  # a backward pass holds about as much again as the forward pass has kept
EVALUATION_BYTES = 2**25  # of the largest array when all lanes are evaluated side by side, where nothing else is said
INITIALISER_SHARE = 0.3  # of a program's compile time is that of one size's initialisation


@dataclass(frozen=True)
class DeviceSpeed:
    """What packing assumes of a kind of device.

    Rounded figures, never measured on the spot: which sizes share a program must be the same in every run of a sweep.
    """

    products: float  # FLOP/s of batched float32 matrix products of middling size
    bandwidth: float  # bytes/s
    overhead: float  # seconds of a step of any size
    compile: float  # seconds a program
    lanes: int  # of a program, beyond which more of them gain nothing
    lane_overhead: float = 0.0  # seconds of a lane's step of any size: its batch, its small operations
    link: float = math.inf  # bytes/s that a device sends to others while it receives as many
    cache: float = math.inf  # bytes of lane states beyond which every step waits for memory


SPEEDS = {
    # One core of a Xeon with 2 MB of second-level cache, measured: a lane's step takes 14 us at width 8, 26 at 32, 48
    # at 64 (batch 64). Lanes that leave the cache are a tenth slower at widths 32 to 128, a third at width 512.
    "cpu": DeviceSpeed(
        products=8e10, bandwidth=2.5e10, overhead=6e-5, lane_overhead=1e-5, compile=2.0, lanes=32, cache=1.3e6
    ),
    "gpu": DeviceSpeed(products=1e13, bandwidth=1e12, overhead=2e-4, compile=5.0, lanes=1024, link=2e11),
    "tpu": DeviceSpeed(products=3e13, bandwidth=1e12, overhead=1e-4, compile=5.0, lanes=1024, link=1e11),
}


def step_flops(architecture: Architecture, recipe: Recipe) -> int:
    """Return the useful FLOPs of one training step: of its matrix products and convolutions, a multiply-add being two.

    Counted in the traced program, so that it holds for any module; for a network of matrices it is close to the
    6 x parameters x examples of Kaplan et al. (2020, arXiv:2001.08361), less what the first layer need not pass back.
    Each product counts once, also where `jax.checkpoint` has it computed again in the backward pass. A convolution
    counts its outputs times its taps, those beyond the edge of the image included; but where zeros are put between the
    points of its input, as in the gradient of a strided one, only what meets a point. Of the branches of a `cond` the
    costliest counts, and the body of a loop of unknown length once.
    """
    return _step_costs(architecture, recipe).useful


def performed_flops(program: LaneProgram) -> float:
    """Return the FLOPs of one training step of a lane, with those that are computed again in the backward pass."""
    again = 4 / 3 if program.rematerialise else 1
    return again * _step_costs(program.architecture, program.recipe).performed


def step_bytes(program: LaneProgram) -> tuple[int, int]:
    """Return the bytes of one lane's state, and of the largest array beside it in one training step.

    The compiler decides what else is in memory at the same time; less than this it cannot be.
    """
    rows = 4 * BLOCK_STEPS * program.recipe.batch_size  # those of a block of batches
    return lane_bytes(program), max(_step_costs(program.architecture, program.recipe).array, rows)


@dataclass(frozen=True)
class _StepCosts:
    """What a step costs.

    Attributes:
        useful: FLOPs, each product once.
        performed: FLOPs, with those computed again.
        array: bytes of its largest array.
        convolved: bytes of all that its convolutions take and make.
    """

    useful: int
    performed: int
    array: int
    convolved: int


@functools.cache
def _step_costs(architecture: Architecture, recipe: Recipe) -> _StepCosts:
    traced = traced_slope(architecture, recipe).program.jaxpr
    useful = performed = _total(traced, _flops)
    if contains(traced, CHECKPOINTS):
        useful = _total(_without_recomputation(architecture, recipe.batch_size), _flops)
    return _StepCosts(useful, performed, largest_array(traced), _total(traced, _convolved_bytes))


def _without_recomputation(architecture: Architecture, batch_size: int) -> core.Jaxpr:
    """Return the gradient of a model's outputs as a program that forgets nothing."""
    params, rest = architecture.abstract[1:]
    operands = (params, rest, architecture.inputs(batch_size))
    traced = architecture.forward_program(batch_size)
    kept = core.jaxpr_as_fun(core.ClosedJaxpr(_keeping(traced.jaxpr), traced.consts))
    leaves, count = jax.tree.leaves(operands), len(jax.tree.leaves(params))

    def outputs_sum(weights: list[jax.Array], others: list[jax.Array]) -> jax.Array:
        return kept(*weights, *others)[0].sum()

    return jax.make_jaxpr(jax.value_and_grad(outputs_sum))(leaves[:count], leaves[count:]).jaxpr


def _keeping(program: core.Jaxpr) -> core.Jaxpr:
    """Return the same program with everything saved for its backward pass."""

    def saved(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(saved, value))
        if isinstance(value, core.ClosedJaxpr):
            return core.ClosedJaxpr(_keeping(value.jaxpr), value.consts)
        return _keeping(value) if isinstance(value, core.Jaxpr) else value

    equations = []
    for equation in program.eqns:
        parameters = {name: saved(value) for name, value in equation.params.items()}
        if equation.primitive.name in CHECKPOINTS:
            parameters["policy"] = jax.checkpoint_policies.everything_saveable
        equations.append(equation.replace(params=parameters))
    return program.replace(eqns=equations)


def largest_array(program: core.Jaxpr) -> int:
    """Return the bytes of the largest array that a program, or a program inside it, takes or makes."""
    made = (variable for equation in program.eqns for variable in equation.outvars)
    inside = (inner for equation in program.eqns for inner in inner_programs(equation.params))
    sizes = (_bytes(variable.aval) for variable in (*program.invars, *made))
    return max((*sizes, *map(largest_array, inside)), default=0)


def evaluation_block(program: LaneProgram, lanes: int, *, room: float = EVALUATION_BYTES) -> int:
    """Return how many examples all lanes evaluate at once side by side, a power of two: what fits into `room` bytes.

    The compiler has a few arrays of that size in memory at the same time.
    """
    count = program.recipe.batch_size
    traced = traced_evaluation(program.architecture, count).program.jaxpr
    each = max(1, largest_array(traced.replace(invars=[]))) / count
    return 2 ** int(np.clip(math.log2(room / (lanes * each)), 0, math.log2(EVALUATION_BLOCK)))


def _total(program: core.Jaxpr, cost: Callable[[Any], int]) -> int:
    """Add up the costs of the equations of a program and of the programs inside it.

    A scan's body counts as often as it runs, and of the branches of a `cond` the costliest.
    """
    total = 0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        inside = [_total(inner, cost) for inner in inner_programs(params)]
        repeats = params.get("length", 1) if name == "scan" else 1
        total += cost(equation) + repeats * (max(inside) if name == "cond" else sum(inside))
    return total


def _flops(equation: Any) -> int:
    """Return the FLOPs of one equation: of a matrix product or a convolution, 0 of any other."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    return _convolution_flops(equation) if equation.primitive.name == CONVOLUTION else 0


def _convolution_flops(equation: Any) -> int:
    """Return the FLOPs of a convolution, without those on zeros between the points of its input or of its kernel."""
    image, kernel, out = (variable.aval.shape for variable in (*equation.invars[:2], equation.outvars[0]))
    numbers = equation.params["dimension_numbers"]
    features = kernel[numbers.rhs_spec[1]]
    total = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * features
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    axes = (spec[2:] for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec))
    for i, k, o, stride, (before, _), gap, spread in zip(*axes, *map(equation.params.get, names), strict=True):
        if gap == 1:
            total *= out[o] * kernel[k]
        else:  # the taps of each output that meet a point: those on a multiple of the gap, within the image
            places = np.arange(out[o])[:, None] * stride + np.arange(kernel[k]) * spread - before
            total *= int(((places % gap == 0) & (places >= 0) & (places < gap * image[i])).sum())
    return total


def _convolved_bytes(equation: Any) -> int:
    """Return the bytes that a convolution takes and makes, 0 of any other equation."""
    convolves = equation.primitive.name == CONVOLUTION
    return _bytes([variable.aval for variable in (*equation.invars, *equation.outvars)]) if convolves else 0


@functools.cache
def lane_bytes(program: LaneProgram) -> int:
    """Return the bytes of one lane's state: parameters, optimizer state, the best parameters, and a gradient.

    Where a model is called on rounded parameters, these are a copy beside the others. Gradients of parts of a batch are
    added up in float32.
    """
    return _bytes(_held(program))


def _held(program: LaneProgram) -> list[jax.ShapeDtypeStruct]:
    """Return the arrays that one lane has in memory in a step, beside what its forward pass keeps."""
    lane, numbers = abstract_lane(program), program.architecture.numbers
    params = lane.learner.params
    gradient = params if program.microbatches == 1 else jax.eval_shape(widened, params)
    called_on = jax.eval_shape(lambda stored: rounded(stored, numbers.computes), params)
    pairs = zip(*map(jax.tree.leaves, (called_on, params)), strict=True)
    return [*jax.tree.leaves((lane, gradient)), *(copy for copy, own in pairs if copy.dtype != own.dtype)]


def data_bytes(card: DataCard, examples: int) -> int:
    """Return the bytes of `examples` examples of a data set, as they are stored."""
    target = np.dtype(card.targets).itemsize * math.prod(card.target_shape)
    return examples * (np.dtype(card.inputs).itemsize * math.prod(card.shape) + target)


def lane_seconds(program: LaneProgram, speed: DeviceSpeed, *, spread: Spread = NOT_SPREAD) -> float:
    """Return the estimated seconds that one lane adds to a step: its batch, its products, its parameters.

    Args:
        program: of the lane.
        speed: of a device.
        spread: of the lane over devices. They share the products, and send each other the gradient, or the parameters
            twice and the gradient (Rajbhandari et al. 2020, arXiv:1910.02054, section 7).
    """
    costs, count = _step_costs(program.architecture, program.recipe), spread.devices
    batch, parameters = spread.batch, spread.parameters
    weights = 4 * program.architecture.parameter_count
    traffic = PASSES * weights / parameters + CONVOLUTION_PASSES * costs.convolved / count
    sent = 2 * weights / parameters * (batch - 1) / batch + 3 * weights * (parameters - 1) / parameters
    computing = performed_flops(program) / (count * speed.products)
    return speed.lane_overhead + computing + traffic / speed.bandwidth + sent / speed.link


def device_bytes(program: LaneProgram, *, lanes: int, spread: Spread = NOT_SPREAD) -> float:
    """Return the estimated bytes of a program on each device: states, gradients, and what a step keeps.

    Args:
        program: the constants.
        lanes: on each device.
        spread: of each lane over devices.
    """
    parameters = spread.parameters

    def share(leaf: Any) -> float:
        return _bytes(leaf) / (1 if parameter_axis(leaf.shape, parameters) is None else parameters)

    state = sum(map(share, _held(program)))
    gathered = 2 * _bytes(program.architecture.abstract[1]) if parameters > 1 else 0
    forward = program.architecture.forward_program(program.recipe.batch_size).jaxpr
    kept = KEPT_TWICE * _kept_bytes(forward, rematerialised=program.rematerialise)
    return lanes * (state + gathered + kept / (spread.devices * program.microbatches))


def _kept_bytes(program: core.Jaxpr, *, rematerialised: bool) -> int:
    """Return the bytes of the arrays that a forward pass makes and keeps for its gradient.

    Counted are the results of products, convolutions and exponentials: what is between them fuses with what reads it.
    Of a scan that is rematerialised only what passes from each step to the next is kept, and one step as a whole.
    """
    made = (equation for equation in program.eqns if equation.primitive.name in KEPT)
    total = sum(_bytes(variable.aval) for equation in made for variable in equation.outvars)
    for equation in program.eqns:
        inside = [_kept_bytes(inner, rematerialised=rematerialised) for inner in inner_programs(equation.params)]
        if equation.primitive.name != "scan":
            total += max(inside, default=0)
            continue
        length, first = equation.params["length"], equation.params["num_consts"]
        carried = equation.invars[first : first + equation.params["num_carry"]]
        each = sum(_bytes(variable.aval) for variable in carried)
        total += length * each + sum(inside) if rematerialised else length * sum(inside)
    return total


def measuring_seconds(program: LaneProgram, examples: int, *, speed: DeviceSpeed) -> float:
    """Return the estimated seconds of one lane's loss on so many examples: a forward pass, a third of a step's."""
    costs = _step_costs(program.architecture, program.recipe)
    moved = CONVOLUTION_PASSES * costs.convolved / 3 * examples / program.recipe.batch_size
    return evaluation_flops(program, examples) / speed.products + moved / speed.bandwidth


def evaluation_flops(program: LaneProgram, examples: int) -> float:
    """Return the estimated FLOPs of one lane's loss on so many examples: of a forward pass, a third of a step's."""
    return _step_costs(program.architecture, program.recipe).useful / 3 * examples / program.recipe.batch_size


def compile_seconds(sizes: int, *, speed: DeviceSpeed) -> float:
    """Return the estimated seconds to compile a bucket's program and the initialisation of each of its sizes."""
    return speed.compile * (1 + INITIALISER_SHARE * sizes)


def _bytes(tree: object) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
