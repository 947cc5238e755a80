"""The compilers of accelerators: what is asked of them, and what they say, where they are installed."""

import importlib.util
import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

import scalejax as sx
from scalejax import SweepError
from scalejax.cli import main
from scalejax.planning import compile_for as compilers
from scalejax.planning import topology as topologies
from scalejax.planning.compile_for import Compiled, CompiledBucket, call_seconds, measuring_share
from scalejax.planning.device_specs import PUBLIC_SPECS, device_spec_named, devices_named
from scalejax.planning.forecast import Timing
from scalejax.planning.hlo import Reading, Work, read
from scalejax.planning.lowering import abstract_data, abstract_lanes, lowered_training
from scalejax.planning.memory import Memory, needed_bytes
from scalejax.planning.outline import outline
from scalejax.planning.packing import in_mode
from scalejax.planning.placement import Placement
from scalejax.planning.plan import make_plan
from scalejax.planning.simulate import simulate
from scalejax.planning.topology import smallest, target, topology, without_compilation_cache
from scalejax.report.plan import plan_lines
from scalejax.train.recipe import STATIC

SWEEP = """
name = "asked"
[data]
source = "mnist1d"
examples = 4000
train_examples = [2000]
validation_examples = 200
test_examples = 200
[[models]]
family = "mlp"
width = [8]
depth = 2
[train]
learning_rate = [1e-3, 3e-3]
batch_size = 32
steps = 400
"""


def asked(tmp_path, capsys, *options: str) -> tuple[int, str, str]:
    path = tmp_path / "asked.toml"
    path.write_text(SWEEP)
    code = main(["plan", str(path), "--compile", *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_device_that_is_here_is_not_compiled_for(tmp_path, capsys):
    code, _, said = asked(tmp_path, capsys)
    assert code == 2
    assert said.splitlines()[-1].endswith(
        "--compile: expected a --device-kind that is not here, such as v5e:2x2 or h200:8"
    )


@pytest.mark.parametrize(("kind", "extra"), [("v5e:2x2", "tpu"), ("h200:8", "cuda13")])
def test_a_compiler_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch, kind, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, out, said = asked(tmp_path, capsys, "--device-kind", kind)
    name = kind.partition(":")[0]
    what = f'--compile: the compiler of {name} is not installed; pip install ".[{extra}]" brings it'
    assert (code, out) == (2, "")
    assert said.endswith(f"{what}\n")
    assert "JAX_PLATFORMS" not in os.environ


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_s_compiler_knows_how_often_each_loop_of_training_runs(tmp_path, capsys):
    code, said, _ = asked(tmp_path, capsys, "--device-kind", "v5e:2x2", "--json")
    assert code == 0
    (bucket,) = json.loads(said)["compiled"]
    assert bucket["fits"]
    for program in bucket["programs"]:
        assert all(loop["trips"] for loop in program["reading"]["loops"])
        assert not program["reading"]["collectives"]  # lanes have nothing to say to each other


def test_a_kind_may_say_how_its_devices_are_connected():
    assert devices_named("v5e") == (PUBLIC_SPECS["v5e"], ())
    assert devices_named("V5p:2x2x4") == (PUBLIC_SPECS["v5p"], (2, 2, 4))
    assert devices_named("h200:8") == (PUBLIC_SPECS["h200"], (8,))
    assert device_spec_named("a100") == PUBLIC_SPECS["a100-80"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("v5e:8", "--device-kind v5e:8: expected a topology such as v5e:2x2"),
        ("v5p:2x2", "--device-kind v5p:2x2: expected a topology such as v5p:2x2x1"),
        ("h200:2x2", "--device-kind h200:2x2: expected h200:8"),
        ("v6e:0x2", "--device-kind v6e:0x2: expected a topology such as v6e:2x2"),
        ("v6e:", "--device-kind v6e:: expected a topology such as v6e:2x2"),
        ("local:2", "the devices of this machine have no shape to choose"),
    ],
)
def test_a_wrong_shape_is_one_sentence(kind, says):
    with pytest.raises(SweepError, match=f"{says}"):
        devices_named(kind)


def test_devices_that_contradict_their_topology_are_refused(tmp_path, capsys):
    code, _, said = asked(tmp_path, capsys, "--device-kind", "v5e:2x2", "--devices", "8")
    assert code == 2
    assert said.endswith("--device-kind v5e:2x2: it has 4 devices, and --devices asks for 8; leave one of them out\n")


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("v5e", {1: (2, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 64: (8, 8)}),
        ("v5p", {2: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 64: (4, 4, 4)}),
        ("h200", {1: (1,), 16: (16,)}),
    ],
)
def test_the_smallest_topology_has_as_many_devices(kind, shapes):
    assert {count: smallest(PUBLIC_SPECS[kind], count) for count in shapes} == shapes


def test_an_operation_that_a_device_does_not_have_is_a_refusal_of_its_compiler(monkeypatch):
    def lowered(*_: object, **__: object) -> None:
        raise NotImplementedError("MLIR translation rule for primitive 'eig' not found for platform tpu")

    sweep = sx.Sweep(
        name="own",
        data=sx.DataSpec(source="mnist1d", examples=400, train_examples=(50,)),
        models=(sx.ModelGrid("logistic"),),
        train=sx.TrainSpec(learning_rate=(1e-3,), batch_size=(8,), steps=100),
    )
    spec = device_spec_named("v5e")
    plan = make_plan(sweep, devices=1, spec=spec)
    monkeypatch.setattr(compilers, "lowered_training", lowered)
    here = (SimpleNamespace(platform="tpu", process_index=0),)
    found = compilers.compiled_bucket(plan.packing.buckets[0], plan, devices=here, spec=spec)
    assert "'eig' not found for platform tpu" in found.refused
    assert not found.fits


def test_a_topology_of_fewer_devices_is_refused(monkeypatch):
    monkeypatch.setattr(topologies, "check_compiler", lambda _: None)
    with pytest.raises(SweepError, match="v5e:2x2 has 4 devices, and 8 work together; name a larger one"):
        topology(PUBLIC_SPECS["v5e"], shape=(2, 2), count=8)


def test_every_gpu_is_described_to_its_compiler():
    for name, spec in PUBLIC_SPECS.items():
        assert (spec.platform == "gpu") == (spec.chip is not None) == (not spec.host_shape) == (not spec.clock)
        if spec.chip:
            assert f"core_count: {spec.chip.cores} " in target(name, spec.chip)


def test_what_is_set_for_a_compiler_is_taken_back(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    monkeypatch.delenv("TPU_HOST_BOUNDS", raising=False)
    before = dict(os.environ)
    with topologies.environment(topologies.TPU_ENVIRONMENT):
        assert os.environ["TPU_HOST_BOUNDS"] == "1,1,1"
        assert os.environ["TPU_WORKER_ID"] == "7"
    assert dict(os.environ) == before
    name = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, name)
    with without_compilation_cache():
        assert getattr(jax.config, name) == math.inf
    assert getattr(jax.config, name) == seconds


def test_memory_counts_lanes_data_and_waiting_trials_once():
    placing = Memory(argument_bytes=110, temporary_bytes=5, output_bytes=100, aliased_bytes=100)  # 100 are lanes
    training = Memory(argument_bytes=140, temporary_bytes=7, output_bytes=100, aliased_bytes=100)
    testing = Memory(argument_bytes=130, temporary_bytes=2, output_bytes=1, aliased_bytes=0)  # its lanes stay
    assert needed_bytes([training], placing) == 100 + 40 + 10 + 7
    assert needed_bytes([testing], placing) == 100 + 30 + 10 + 5
    assert needed_bytes([testing, training], placing) == 100 + 40 + 10 + 7


def test_seconds_are_launches_and_the_slower_of_bytes_and_products_on_a_gpu_and_cycles_on_a_tpu():
    gpu, tpu = PUBLIC_SPECS["h200"], PUBLIC_SPECS["v5e"]
    work = Work(launches=100, bytes=10**9, cycles=3_000_000)
    moving = 1e9 / gpu.speed.bandwidth
    assert call_seconds(work, gpu, speed=gpu.speed, flops=1.0) == pytest.approx(100 * 2.5e-6 + moving)
    computing = 1e13 / gpu.speed.products
    assert call_seconds(work, gpu, speed=gpu.speed, flops=1e13) == pytest.approx(100 * 2.5e-6 + computing)
    assert call_seconds(work, tpu, speed=tpu.speed, flops=1.0) == pytest.approx(3e6 / 1.5e9)
    waiting = call_seconds(replace(work, waits=2), gpu, speed=gpu.speed, flops=1.0)
    assert waiting - call_seconds(work, gpu, speed=gpu.speed, flops=1.0) == pytest.approx(2e-5)


WIDE = sx.Sweep(
    name="wide",
    data=sx.DataSpec("mnist1d", examples=100_000, train_examples=(20_000,)),
    models=(sx.ModelGrid("mlp", width=64, depth=2),),
    train=sx.TrainSpec(learning_rate=(1e-3,), batch_size=(128,), steps=2400),
)


def said_by_a_compiler(**changes) -> CompiledBucket:
    memory = Memory(10_000_000, 2_000_000, 8_000_000, 8_000_000)
    reading = Reading(13, (), {"all-reduce": 3}, Work(launches=781, waits=1))
    names = ("32", "8", "1", "validate", "test", "place")
    programs = tuple(Compiled(name, 1.5, memory, reading, 1e-3) for name in names)
    timing = Timing(step=6.21e-5, evaluation=1e-4, test=2e-3)
    return replace(CompiledBucket(64, 128, 2, programs, 1e9, 24, timing, 0.031), **changes)


def test_what_a_compiler_says_is_said_in_words_and_sets_the_times_of_the_simulation():
    spec = PUBLIC_SPECS["h200"]
    plan = make_plan(WIDE, devices=4, spec=spec)
    says = said_by_a_compiler()
    simulated = simulate(plan, spec, timings=[says.timing], source="estimated from what its compiler says")
    assert not any(simulated.timed)  # an estimate stays one
    assert simulated.total != simulate(plan, spec).total
    facts = json.loads(json.dumps(outline(plan, simulated, device="cpu", compiled=[says])))
    lines = plan_lines(facts)
    begin = lines.index("compiler  of h200, which need not be here; seconds are estimates")
    assert lines[begin + 1 : begin + 5] == [
        "  mlp depth 2 width 64: 64 lanes a device on 2 devices together, 6 programs compiled in 9.0 s",
        "    memory  14 MB of 1 GB, 986 MB to spare; "
        "a call of 32 steps takes 10 MB of arguments and 2 MB of temporaries",
        "    time    of all lanes: a training step 24 launches and 62.1 us, an evaluation 781 and 12.8 ms, "
        "a test 781 and 256 ms; 3.1 % of a trial is not training",
        "    loops   6 whose end only the device knows: where it is a GPU, the host waits for it each time; "
        "collectives: 18 all-reduces",
    ]
    too_large = outline(plan, simulated, device="cpu", compiled=[replace(says, room_bytes=1e6)])
    assert any("13 MB too much" in line for line in plan_lines(too_large))
    none = replace(says, programs=(), timing=None, refused="Ran out of memory in memory space hbm")
    refused = outline(plan, simulated, device="cpu", compiled=[none])
    assert not refused["compiled"][0]["fits"]
    assert any(
        line.endswith("the compiler refuses it: Ran out of memory in memory space hbm") for line in plan_lines(refused)
    )


def test_the_share_of_evaluations_and_tests_in_a_trial():
    plan = make_plan(WIDE, devices=1, spec=PUBLIC_SPECS["h200"])
    (bucket,) = plan.packing.buckets
    (counted,) = bucket.counted
    assert counted.steps == 2400
    evaluations = math.ceil(2400 / counted.trial.evaluate_every)
    share = measuring_share(bucket, Timing(step=8e-3, evaluation=0.5, test=1.0), lanes=4)
    measuring = evaluations * 0.5 + 1
    assert share == pytest.approx(measuring / (measuring + 2400 * 2e-3))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_thousand_lanes_on_each_of_four_tpus_take_little_more_than_their_bytes_and_tell_each_other_nothing():
    spec, count, lanes = PUBLIC_SPECS["v5e"], 4, 1024
    plan = make_plan(WIDE, devices=count, spec=spec)
    program = replace(
        in_mode(replace(plan.packing.buckets[0], lanes=lanes), STATIC, evaluation_bytes=spec.evaluation_bytes).program,
        pieces=(8,),
    )
    placement = Placement(topology(spec, count=count), lanes)
    with without_compilation_cache():
        compiled = lowered_training(program, placement, card=plan.card)[8].compile()
    reading, memory = read(compiled.as_text()), compiled.memory_analysis()
    assert 8 in {loop.trips for loop in reading.loops}
    assert all(loop.trips is not None for loop in reading.loops)
    assert not reading.collectives
    lane_bytes, pool = (
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (abstract_lanes(program, placement), abstract_data(plan.card, placement, program=program).pool)
    )
    assert memory.argument_size_in_bytes <= 1.2 * (lane_bytes / count + pool)
    assert memory.temp_size_in_bytes <= 200e6
