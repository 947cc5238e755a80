"""What the compiler of an accelerator says, read from its text; the compilers themselves where they are installed."""

import importlib.util
import json

import pytest

from scalejax.cli import main
from scalejax.planning.compile_for import Loop, read

GPU = """HloModule jit_train, entry_computation_layout={()->f32[]}

%body.1 (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %many = (f32[4]{0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, /*index=5*/f32[4]{0}) fusion(%x), kind=kLoop, calls=%f
  %one = s32[] fusion(%x), kind=kLoop, calls=%g
  ROOT %out = (s32[], f32[4]) tuple(%one, %x)
}

%condition.1 (arg.1: (s32[], f32[4])) -> pred[] {
  %arg.1 = (s32[], f32[4]) parameter(0)
  ROOT %less = pred[] compare(%arg.1, %arg.1), direction=LT
}

ENTRY %main.2 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %copy = f32[4]{0} copy(%p)
  %sum = f32[4]{0} all-reduce-start(%copy), channel_id=1
  %done = f32[4]{0} all-reduce-done(%sum)
  %loop = (s32[], f32[4]) while(%p), condition=%condition.1, body=%body.1, config={"known_trip_count":{"n":"32"}}
  %open = (s32[], f32[4]) while(%p), condition=%condition.1, body=%body.1
  ROOT %r = f32[4]{0} get-tuple-element(%loop), index=1
}
"""

TPU = """HloModule jit_train

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %add = s32[]{:T(128)} add(%arg, %arg)
  ROOT %out = (s32[], f32[4]) tuple(%add, %arg)
}

%condition (arg.1: (s32[], f32[4])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %constant = s32[]{:T(128)} constant(17)
  ROOT %less = pred[]{:T(512)} compare(%arg.1, %constant), direction=LT
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0:T(128)} parameter(0)
  %gathered = f32[4]{0:T(128)} all-gather(%p), channel_id=1
  %loop = (s32[], f32[4]) while(%p), condition=%condition, body=%body
  ROOT %r = f32[4]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def test_a_gpu_s_text_tells_launches_loops_and_collectives():
    reading = read(GPU)
    assert reading.launches == 2  # the copy and the start of the sum
    assert reading.loops == (Loop(None, 2), Loop(32, 2))  # results of many arrays count too
    assert reading.collectives == {"all-reduce": 1}


def test_a_tpu_s_loop_runs_as_often_as_the_constant_that_it_compares_with():
    reading = read(TPU)
    assert reading.loops == (Loop(17, 1),)
    assert reading.collectives == {"all-gather": 1}


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


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is installed")
def test_a_compiler_that_is_not_installed_is_named(tmp_path, capsys):
    code, _, said = asked(tmp_path, capsys, "--device-kind", "v5e:2x2")
    assert code == 2
    assert 'pip install ".[tpu]"' in said


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_s_compiler_knows_how_often_each_loop_of_training_runs(tmp_path, capsys):
    code, said, _ = asked(tmp_path, capsys, "--device-kind", "v5e:2x2", "--json")
    assert code == 0
    (bucket,) = json.loads(said)["compiled"]
    assert bucket["fits"]
    for program in bucket["programs"]:
        assert all(loop["trips"] for loop in program["reading"]["loops"])
        assert not program["reading"]["collectives"]  # lanes have nothing to say to each other
