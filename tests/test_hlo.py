"""What the text of a compiled program says: launches, loops, bytes, collectives, in the dialects of two compilers."""

import pytest

from scalejax.planning.hlo import LEAST_CYCLES, HloProgram, Loop, read

GPU = """HloModule jit_train, entry_computation_layout={()->f32[]}

%inner (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]{0}) parameter(0)
  %x.1 = f32[4]{0} get-tuple-element(%a), index=1
  %y.1 = f32[4]{0} custom-call(%x.1), custom_call_target="__cublas$gemm"
  ROOT %o = (s32[], f32[4]{0}) tuple(%x.1, %y.1)
}

%body.1 (arg: (s32[], f32[4], f32[4], f32[4], f32[4], /*index=5*/f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, /*index=5*/f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %many = (f32[4]{0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, /*index=5*/f32[4]{0}) fusion(%x, %x), calls=%f
  %one = s32[] fusion(%x), kind=kLoop, calls=%g
  %nested = (s32[], f32[4]{0}) while(%arg), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = (s32[], f32[4]{0}) tuple(%one, %x)
}

ENTRY %main.2 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %copy = f32[4]{0} copy(%p)
  %sum = f32[4]{0} all-reduce-start(%copy), channel_id=1, to_apply=%add
  %done = f32[4]{0} all-reduce-done(%sum)
  %loop = (s32[], f32[4]{0}) while(%p), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"32"}}
  %open = (s32[], f32[4]{0}) while(%p), condition=%c, body=%inner
  ROOT %r = f32[4]{0} get-tuple-element(%loop), index=1
}
"""

TPU = """HloModule jit_train

%body (arg: (s32[], f32[64,10])) -> (s32[], f32[64,10]) {
  %arg = (s32[]{:T(128)}, f32[64,10]{1,0:T(8,128)}) parameter(0)
  %x = f32[64,10]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %n = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %i = s32[]{:T(128)} add(%n, %n)
  %start = (f32[64,10]{1,0:T(8,128)S(1)}, f32[64,10]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[64,10]{1,0:T(8,128)S(1)} copy-done(%start)
  %f.1 = f32[64,10]{1,0:T(8,128)S(1)} fusion(%near), calls=%f, backend_config={"w":{"estimated_cycles":"4864"}}
  %g.1 = f32[64,10]{1,0:T(8,128)} fusion(%f.1), kind=kCustom, calls=%f
  ROOT %out = (s32[], f32[64,10]) tuple(%i, %g.1)
}

%condition (arg.1: (s32[], f32[64,10])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[64,10]{1,0:T(8,128)}) parameter(0)
  %constant = s32[]{:T(128)} constant(17)
  %count = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %constant), direction=LT
}

ENTRY %main (p: f32[64,10]) -> f32[64,10] {
  %p = f32[64,10]{1,0:T(8,128)} parameter(0)
  %gathered = f32[64,10]{1,0:T(8,128)} all-gather(%p), channel_id=1
  %loop = (s32[]{:T(128)}, f32[64,10]{1,0:T(8,128)}) while(%p), condition=%condition, body=%body
  ROOT %r = f32[64,10]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
PADDED = 64 * 128 * 4  # bytes of f32[64,10] in tiles of 8 x 128


def test_a_gpu_s_text_tells_launches_loops_and_collectives():
    reading = read(GPU)
    assert reading.launches == 2  # the copy and the start of the sum
    # A fusion of many results counts, and a round of the outer loop has those of the inner one.
    assert reading.loops == (Loop(None, 1), Loop(32, 5), Loop(3, 1, entered=32))
    assert reading.collectives == {"all-reduce": 1}
    assert (reading.work.launches, reading.work.waits) == (2 + 32 * 5 + 1, 1)
    assert reading.work.sent == 16
    assert reading.launches_of_round(32) == 5
    assert reading.launches_of_round(3) == 32  # the outer loop comes to it so often


def test_a_tpu_s_loop_runs_as_often_as_the_constant_that_it_compares_with():
    reading = read(TPU)
    assert reading.loops == (Loop(17, 4),)
    assert reading.collectives == {"all-gather": 1}
    assert reading.work.waits == 0


def test_a_tpu_s_arrays_are_padded_and_what_is_near_does_not_pass_through_the_main_memory():
    work = read(TPU).work
    assert work.sent == PADDED
    round_bytes = 3 * 4 + PADDED + PADDED  # the counter, the copy to near memory, and what is written back
    assert work.bytes == 2 * PADDED + 17 * round_bytes
    assert work.cycles == 17 * (4864 + LEAST_CYCLES) + LEAST_CYCLES  # a number alone and a copy beside it are free


@pytest.mark.parametrize(
    ("condition", "trips"),
    [
        ("ROOT %less = pred[] compare(%count, %bound), direction=LT", 9),
        ("ROOT %less = pred[] compare(%count, %bound), direction=NE", None),
        ("ROOT %less = pred[] compare(%count, %given), direction=LT", None),
        ("ROOT %less = pred[] compare(%bound, %count), direction=LT", None),
        ("ROOT %less = pred[] fusion(%count, %bound), kind=kLoop, calls=%compared", 9),
        ("ROOT %less = pred[] fusion(%bound, %count), kind=kLoop, calls=%compared", None),
        ('ROOT %less = pred[] custom-call(%count), custom_call_target="ask"', None),
    ],
)
def test_only_a_counter_that_is_less_than_a_constant_tells_how_often(condition, trips):
    text = f"""HloModule m

%compared (a.0: s32[], a.1: s32[]) -> pred[] {{
  %a.0 = s32[] parameter(0)
  %a.1 = s32[] parameter(1)
  ROOT %r = pred[] compare(%a.0, %a.1), direction=LT
}}

%condition (arg: (s32[], s32[])) -> pred[] {{
  %arg = (s32[], s32[]) parameter(0)
  %bound = s32[] constant(9)
  %count = s32[] get-tuple-element(%arg), index=0
  %given = s32[] get-tuple-element(%arg), index=1
  {condition}
}}

%body (arg.1: (s32[], s32[])) -> (s32[], s32[]) {{
  ROOT %arg.1 = (s32[], s32[]) parameter(0)
}}

ENTRY %main (p: (s32[], s32[])) -> (s32[], s32[]) {{
  %p = (s32[], s32[]) parameter(0)
  ROOT %loop = (s32[], s32[]) while(%p), condition=%condition, body=%body
}}
"""
    assert [loop.trips for loop in read(text).loops] == [trips]


def test_of_what_is_sliced_the_slice_is_read_and_of_what_is_updated_in_place_the_part_is_written():
    text = """HloModule m

%sliced (pool: f32[1000,40], row: s32[]) -> f32[1,40] {
  %pool = f32[1000,40]{1,0} parameter(0)
  %row = s32[] parameter(1)
  %same = f32[1000,40]{1,0} bitcast(%pool)
  ROOT %slice = f32[1,40]{1,0} dynamic-slice(%same, %row, %row), dynamic_slice_sizes={1,40}
}

%updated (all: f32[1000,40], row.1: s32[], one: f32[1,40]) -> (f32[1000,40], f32[40]) {
  %all = f32[1000,40]{1,0} parameter(0)
  %row.1 = s32[] parameter(1)
  %one = f32[1,40]{1,0} parameter(2)
  %update = f32[1000,40]{1,0} dynamic-update-slice(%all, %one, %row.1, %row.1)
  %flat = f32[40]{0} bitcast(%one)
  ROOT %both = (f32[1000,40]{1,0}, f32[40]{0}) tuple(%update, %flat)
}

ENTRY %main (p: f32[1000,40], q: s32[]) -> f32[1000,40] {
  %p = f32[1000,40]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %a = f32[1,40]{1,0} fusion(%p, %q), kind=kLoop, calls=%sliced
  %b = (f32[1000,40]{1,0}, f32[40]{0}) fusion(%p, %q, %a), kind=kLoop, calls=%updated
  %c = f32[1,40]{1,0} dynamic-slice(%p, %q, %q), dynamic_slice_sizes={1,40}
  %d = f32[1000,40]{1,0} dynamic-update-slice(%p, %c, %q, %q)
  ROOT %e = bf16[1000,40]{1,0} convert(%d)
}
"""
    program = HloProgram(text)
    found = {each.name: program.accessed_bytes(each) for each in program.computations["main"]}
    row, number = 160, 4
    assert found["a"] == row + number + row
    assert found["b"] == number + row + row + row
    assert found["c"] == found["d"] == 2 * row
    assert found["e"] == 1000 * 40 * (4 + 2)


def test_the_costliest_branch_of_a_condition_counts_and_a_call_is_what_it_calls():
    text = """HloModule m

%few (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %x1 = f32[8]{0} copy(%x)
}

%more (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  %y1 = f32[8]{0} copy(%y)
  ROOT %y2 = f32[8]{0} negate(%y1)
}

ENTRY %main (p: f32[8], which: pred[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %which = pred[] parameter(1)
  %called = f32[8]{0} call(%p), to_apply=%more
  %either = f32[8]{0} conditional(%which, %p, %p), true_computation=%few, false_computation=%more
  ROOT %one = f32[8]{0} conditional(%which, %p, %p), branch_computations={%few, %few}
}
"""
    work = read(text).work
    assert (work.launches, work.waits) == (2 + 2 + 1, 2)
    assert work.bytes == 64 * (2 + 2 + 1)
