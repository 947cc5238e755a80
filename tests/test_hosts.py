"""Several hosts: two processes of two devices each train what one process trains, and stop and resume as it does."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import EXACT_SOLO, planned, program

import scalejax as sx
from scalejax.cli.main import main
from scalejax.errors import HostError
from scalejax.execute import checkpoint, hosts
from scalejax.execute.observer import Observer, Progress, deferred
from scalejax.execute.slot import Paused, Slot
from scalejax.planning.arrangement import arrange
from scalejax.planning.device_specs import PUBLIC_SPECS, DeviceSpec
from scalejax.planning.packing import STATIC, Bucket, Capacity, Packing
from scalejax.planning.plan import make_plan
from scalejax.planning.trial import Counted
from scalejax.run.run import _in_modes
from scalejax.run.watch import Interruption
from scalejax.spec.file import load_sweep
from scalejax.train.cost import SPEEDS

SWEEP = """
name = "hosts"
[data]
source = "mnist1d"
examples = 400
train_examples = [50, 200]
validation_examples = 60
test_examples = 60
[[models]]
family = "mlp"
width = [4, 6]
depth = 1
[train]
learning_rate = [1e-3, 1e-2]
batch_size = 8
steps = 120
evaluate_every = 10
[train.halving]
rungs = [0.75]
"""


@dataclass(frozen=True)
class Planned:
    """A plan, as far as its modes go."""

    packing: Packing


JOB = Path(__file__).with_name("hosts_job.py")
SECONDS = 150.0  # for a job, after which it hangs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("hosts")
    (found / "sweep.toml").write_text(SWEEP)
    return found


@pytest.fixture(scope="module")
def job(folder) -> list[dict[str, str]]:
    """Return what the two hosts of a job say, which leave their runs in `folder`."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(sx.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    asked = [sys.executable, str(JOB), str(folder / "sweep.toml"), str(folder), f"localhost:{free_port()}"]
    started = []
    for number in map(str, range(2)):
        with (folder / f"said-{number}").open("w") as said, (folder / f"errors-{number}").open("w") as errors:
            started.append(subprocess.Popen([*asked, number], env=environment, stdout=said, stderr=errors))
    try:
        codes = [each.wait(SECONDS) for each in started]
    finally:
        for each in started:
            each.kill()
    errors = [(folder / f"errors-{number}").read_text()[-3000:] for number in range(2)]
    assert codes == [0, 0], errors
    return [json.loads((folder / f"said-{number}").read_text().splitlines()[-1]) for number in range(2)]


@pytest.fixture(scope="module")
def alone(folder) -> sx.Run:
    """Return the same sweep trained by this process alone."""
    return sx.run_sweep(load_sweep(folder / "sweep.toml"), folder / "one", progress=False)


def assert_alike(run: sx.Run, other: sx.Run) -> None:
    """Hold two runs against each other: which trials, how they ended, and what was measured on the way."""
    tables = [each.results().set_index("trial_id").sort_index() for each in (run, other)]
    for column in ("status", "reason", "best_step", "steps_taken"):
        assert list(tables[0][column]) == list(tables[1][column])
    assert set(tables[0]["status"]) == {"done", "stopped"}
    for column in ("train_loss", "validation_loss", "test_loss"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=EXACT_SOLO)
    measured = [each.measurements().set_index(["trial_id", "step"]).sort_index() for each in (run, other)]
    assert measured[0].index.equals(measured[1].index)
    np.testing.assert_allclose(measured[0]["validation_loss"], measured[1]["validation_loss"], rtol=EXACT_SOLO)


@pytest.mark.usefixtures("job")
def test_the_primary_host_records_the_lanes_of_all(folder):
    run = sx.Run(folder / "two")
    spans, (session,) = run.timeline(), run.sessions().to_dict("records")
    assert set(spans["trial_id"]) == set(run.results()["trial_id"])
    assert (session["devices"], session["groups"]) == (4, 1)
    assert set(spans["lane"]) == set(range(8))  # two on each device of both hosts
    assert len(set(spans["group"])) == 1


def test_two_hosts_train_what_one_process_trains(job, alone, folder):
    assert [said["others' devices"] for said in job] == ["2", "2"]
    assert job[0]["whole"] == job[1]["whole"] == f"run {folder / 'two'}: 8 trials: 4 done, 4 stopped"
    assert_alike(sx.Run(folder / "two"), alone)
    assert not (folder / "two" / "checkpoints").exists()


def test_a_signal_to_one_host_stops_both_and_they_resume(job, alone, folder):
    for said in job:
        assert said["stopped"].startswith("Interrupted: stopped by SIGTERM: what was running is saved")
        assert said["again"] == said["resumed"] == f"run {folder / 'stopped'}: 8 trials: 4 done, 4 stopped"
    assert_alike(sx.Run(folder / "stopped"), alone)


def test_one_process_resumes_what_two_hosts_have_left(job, alone, folder):
    assert job
    moved = sx.Run(folder / "moved")
    begun = moved.results()["steps_taken"]
    assert begun.between(1, 119).all()
    parts = {path.parent.parent.name.partition("-host")[2] for path in moved.directory.glob("checkpoints/*/*/sha256")}
    assert parts == {"", "1"}  # each host has written one
    sx.run_sweep(load_sweep(folder / "sweep.toml"), moved.directory, progress=False)
    assert_alike(moved, alone)


def test_what_is_wrong_on_one_host_is_a_sentence_on_all(job):
    for said in job:
        remedy = "see that all hosts have the same files, packages and kind of devices"
        assert said["others"] == f"SweepError: host 1 plans something else than host 0; {remedy}"
        assert said["no folder"].startswith("SweepError: ")
        assert said["no folder"].endswith("cannot be written (File exists); give another directory with --out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--coordinator", "nowhere"], "--coordinator nowhere: expected HOST:PORT"),
        (["--coordinator", "a:70000"], "--coordinator a:70000: expected HOST:PORT"),
        (["--host-number", "2", "--number-of-hosts", "2"], "--host-number 2: expected a number below"),
        (["--hosts"], "the hosts do not come together (coordinator_address should be defined); give --coordinator"),
    ],
)
def test_hosts_that_cannot_be_are_one_sentence(options, says, capsys, monkeypatch):
    def initialize(*_: object, **__: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert main(["run", "sweep.toml", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scalejax run: {says}")


class StoreClient:
    """The client of the key-value store of `jax.distributed`, for threads that stand for hosts."""

    def __init__(self):
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        with self._changed:
            assert key not in self.values
            self.values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get_bytes(self, key: str, milliseconds: int) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get_bytes(self, folder: str) -> list[tuple[str, bytes]]:
        return [each for each in self.values.items() if each[0].startswith(folder)]

    def key_value_delete(self, folder: str) -> None:
        for key in [key for key in self.values if key.startswith(folder)]:
            del self.values[key]


@pytest.fixture
def client(monkeypatch) -> StoreClient:
    """Return the client that hosts find."""
    made = StoreClient()
    monkeypatch.setattr("orbax.checkpoint.multihost.get_jax_distributed_client", lambda: made)
    monkeypatch.setattr(hosts, "WAIT_SECONDS", 0.01)
    return made


@pytest.fixture
def as_host(client, monkeypatch):
    """Return a function that runs another one as both hosts at once, and returns what each returns or raises."""
    assert not client.values
    own, stores = threading.local(), [hosts.KeyValueStore(), hosts.KeyValueStore()]
    monkeypatch.setattr(hosts, "is_single", lambda: False)
    monkeypatch.setattr(hosts, "is_primary", lambda: own.number == 0)
    monkeypatch.setattr(hosts, "_store", lambda: stores[own.number])
    monkeypatch.setattr(jax, "process_index", lambda: own.number)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def both(function: Any, *, seconds: float = 10.0) -> list[Any]:
        found: list[Any] = [None, None]

        def one(number: int) -> None:
            own.number = number
            try:
                found[number] = function(number)
            except BaseException as error:
                found[number] = error

        threads = [
            threading.Thread(target=one, args=(number,), name=f"host {number}", daemon=True) for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds)
        return found

    return both


def test_a_broadcast_may_have_any_size_and_old_ones_are_deleted(as_host, client, monkeypatch):
    monkeypatch.setattr(hosts, "CHUNK_BYTES", 7)
    monkeypatch.setattr(hosts, "KEPT_BROADCASTS", 3)

    def exchange(number: int) -> list[Any]:
        return [(hosts.broadcast(lambda: (number, "x" * 100)), hosts.all_gather(number * 10)) for _ in range(5)]

    said = [((0, "x" * 100), [0, 10])] * 5
    assert as_host(exchange) == [said, said]
    left = {key.split("/")[1:3][-1] for key in client.values}
    assert left == {"7", "8", "9"}  # of the broadcasts; nothing that a host has sent to be gathered


def test_a_flag_that_any_host_sets_all_see_at_the_same_poll(as_host):
    def stops(number: int) -> list[int]:
        flag, seen = hosts.SharedFlag(), []
        for call in range(6):
            seen.append(flag.poll(15 if number == 1 and call >= 2 else 0))
            hosts.all_gather(None)  # as a program does that all of them run
        return seen

    first, second = as_host(stops)
    assert first == second
    assert first[:2] == [0, 0]
    assert first[-1] == 15


def test_a_block_ends_on_all_hosts_as_on_the_first(as_host, monkeypatch):
    def early(number: int) -> None:
        with hosts.exit_together():
            hosts.broadcast(lambda: 1 / 0 if number == 5 else refuse())

    def refuse() -> None:
        raise sx.SweepError("a disk is missing")

    def stopped(number: int) -> None:
        with hosts.exit_together():
            if number == 0:
                raise sx.Interrupted(signal.SIGTERM, lost=[3])

    def lonely(number: int) -> None:
        with hosts.exit_together():
            if number == 1:
                raise OSError("no such file")
            hosts.all_gather(None)  # which the other one never calls

    assert [str(each) for each in as_host(early)] == ["a disk is missing"] * 2
    found = as_host(stopped)
    assert [(each.signal, each.lost) for each in found] == [(signal.SIGTERM, (3,))] * 2
    assert as_host(lambda number: hosts.broadcast(lambda: number)) == [0, 0]  # they are in step again
    monkeypatch.setattr(hosts, "EXIT_SECONDS", 0.05)
    error = as_host(lonely, seconds=0.3)[1]
    assert isinstance(error, HostError)
    assert "no such file; this is host 1" in str(error)


def test_what_one_host_cannot_make_is_its_sentence_on_all(as_host):
    def make(number: int) -> int:
        if number == 1:
            raise sx.SweepError("sweep.toml: there is no such file")
        return number

    found = as_host(lambda number: hosts.make_on_all(lambda: make(number)))
    says = ["host 1: sweep.toml: there is no such file", "sweep.toml: there is no such file"]
    assert [str(each) for each in found] == says
    assert all(isinstance(each, sx.SweepError) for each in found)
    assert as_host(lambda _: hosts.make_on_all(lambda: 7, digest=str)) == [7, 7]


def test_hosts_evaluate_as_much_at_once_as_the_first_one(as_host, monkeypatch, tmp_path):
    own, spec = planned(), PUBLIC_SPECS["h200"]
    bucket = Bucket(program(own), (Counted(own),) * 512, 512, 1.0, 1, 50)
    plan: Any = Planned(Packing((bucket,), ()))

    def local() -> DeviceSpec:  # of the second host with an eighth of the memory
        return replace(spec, memory=1e8 / 8 ** hosts.index())

    monkeypatch.setattr("scalejax.execute.modes.local_spec", local)
    monkeypatch.setattr("scalejax.planning.device_specs.local_spec", local)
    monkeypatch.setattr("scalejax.execute.modes.choose_mode", lambda *_, **__: STATIC)
    found = as_host(lambda _: _in_modes(plan, tmp_path, measure=False).packing.buckets[0].program.evaluation_block)
    assert found[0] == found[1]


def test_trials_that_hosts_have_read_otherwise_begin_again(as_host):
    trials = [planned(seed=seed) for seed in range(4)]
    homes = {trial.trial_id: (trial, program(trial)) for trial in trials}
    read = [(0, 5, 3, 2), (0, 5, 2, None)]  # the steps of each

    def load(number: int) -> list[tuple[str, int]]:
        found = [(trial, step) for trial, step in zip(trials, read[number], strict=True) if step is not None]
        state: Any = None
        paused = {trial.trial_id: Paused(Slot(trial, step), state) for trial, step in found[:: 1 - 2 * number]}
        return [(name, each.slot.step) for name, each in checkpoint._read_alike(paused, homes).items()]

    with pytest.warns(UserWarning, match="Not all hosts read the same of the checkpoints, so 2 trials begin again"):
        found = as_host(load)
    assert found == [[(trials[0].trial_id, 0), (trials[1].trial_id, 5)]] * 2


def test_trouble_of_one_host_is_deferred_until_all_can_stop():
    def full(_: object) -> None:
        raise sx.RunError("the disk is full")

    noted: list[sx.RunError] = []
    deferred(Observer(full, full, full), noted.append).progressed(Progress({}))
    assert [str(each) for each in noted] == ["the disk is full"]


def test_devices_of_all_hosts_work_on_each_bucket_together():
    spec = PUBLIC_SPECS["h200"]
    sweep = sx.Sweep(
        name="whole",
        data=sx.DataSpec(source="mnist1d", examples=400, train_examples=(50, 200)),
        models=(sx.ModelGrid("mlp", width=[4, 6], depth=1),),
        train=sx.TrainSpec(learning_rate=(1e-3, 1e-2), batch_size=(8,), steps=100),
    )
    packing = make_plan(sweep, devices=1, spec=spec).packing
    capacity = Capacity(devices=6, state_bytes=1e10, step_bytes=1e10, speed=SPEEDS["gpu"])
    assert arrange(packing, devices=6, spec=spec, capacity=capacity)[1] == 1
    together, size = arrange(packing, devices=6, spec=spec, capacity=capacity, one_group=True)
    assert size == 6
    of_two = tuple(SimpleNamespace(process_index=number // 3) for number in range(6))
    few = [replace(bucket, counted=(Counted(bucket.trials[0]),)) for bucket in together.buckets]
    assert {len(bucket.placement(of_two).devices) for bucket in (*together.buckets, *few)} == {6}
    assert {len(bucket.placement(of_two[:3]).devices) for bucket in few} == {1}


def test_a_part_of_a_checkpoint_reads_as_it_was_written(tmp_path):
    arrays = {"0000": np.arange(6.0).reshape(2, 3), "0001": np.asarray(jnp.ones((2, 1), jnp.bfloat16) * 3)}
    manifest = {"format": 1, "trials": [{"trial_id": "a", "step": 4}]}
    checkpoint._store_part(tmp_path / "1", arrays, manifest)
    checkpoint.seal(tmp_path / "1")
    found, said = checkpoint._read(tmp_path / "1")
    assert said == manifest
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_handler_that_is_not_of_python_is_no_trouble():
    before = signal.getsignal(signal.SIGUSR1)
    interruption = Interruption(lambda _: None)
    interruption._before = {signal.SIGUSR1: None}  # as of `jax.distributed`, which installs one in C
    interruption.__exit__()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    signal.signal(signal.SIGUSR1, before)
