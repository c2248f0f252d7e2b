"""benchmarks.hlo: what a program launches and moves, counted by hand."""

import pytest

from benchmarks import hlo

# A loop of three turns, each a library call, a fusion that takes 2 of 8 rows, and one
# that changes a row in place; then a loop without a known end, and a condition.
TEXT = """HloModule m, is_scheduled=true

%take (p0: f32[8,4], p1: s32[]) -> f32[2,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %renamed = f32[8,4]{1,0} bitcast(%p0)
  ROOT %slice.1 = f32[2,4]{1,0} dynamic-slice(%renamed, %p1, %p1)
}

%put (p0: f32[8,4], p1: f32[1,4], p2: s32[]) -> (f32[8,4], pred[3]) {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[1,4]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %flags = pred[3]{0} constant({0, 0, 1})
  %put.1 = f32[8,4]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
  ROOT %both = (f32[8,4]{1,0}, pred[3]{0}) tuple(%put.1, %flags)
}

%turn (t: (f32[8,4], f32[1,4], s32[])) -> (f32[8,4], f32[1,4], s32[]) {
  %t = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=0
  %row = f32[1,4]{1,0} get-tuple-element(%t), index=1
  %i = s32[] get-tuple-element(%t), index=2
  %call.1 = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%x, %x), custom_call_target="gemm"
  %few = f32[2,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%take
  %changed = (f32[8,4]{1,0}, pred[3]{0}) fusion(%x, %row, %i), kind=kLoop, calls=%put
  ROOT %next = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) tuple(%x, %row, %i)
}

%asks (t: (f32[8,4], f32[1,4], s32[])) -> pred[] {
  %t = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=2
  ROOT %yes = pred[] custom-call(%i), custom_call_target="less"
}

%much (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %copied = f32[8,4]{1,0} copy(%p)
}

%nothing (p: f32[8,4]) -> f32[8,4] {
  ROOT %p = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (a: f32[8,4], b: f32[1,4], c: s32[], d: pred[]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %c = s32[] parameter(2)
  %d = pred[] parameter(3)
  %start = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) tuple(%a, %b, %c)
  %three = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) while(%start), condition=%asks, \
body=%turn, backend_config={"known_trip_count":{"n":"3"}}
  %some = (f32[8,4]{1,0}, f32[1,4]{1,0}, s32[]) while(%three), condition=%asks, \
body=%turn
  ROOT %maybe = f32[8,4]{1,0} conditional(%d, %a, %a), true_computation=%much, \
false_computation=%nothing
}
"""
# Bytes: the call reads [8, 4] twice and writes [8, 8], without its room; the second
# reads and writes [2, 4], and reads an index; the third reads [1, 4] and an index, and
# writes [1, 4] and 3 flags.
TURN = hlo.Counts(3, 0, (2 * 128 + 256) + (32 + 32 + 4) + (16 + 4 + 16 + 3))


def test_a_turn_of_a_loop():
    assert hlo.count(hlo.parse(TEXT), "turn") == TURN


def test_loops_and_conditions():
    asked = hlo.Counts(1, 0, 4 + 1)  # before the turn and after it
    expected = TURN.times(4).plus(asked.times(2), hlo.Counts(waits=2 + 1))
    assert hlo.count(hlo.parse(TEXT)) == expected


def test_branches_by_number():
    listed = TEXT.replace(
        "true_computation=%much, false_computation=%nothing",
        "branch_computations={%nothing, %much}",
    )
    assert listed != TEXT
    assert hlo.count(hlo.parse(listed)) == hlo.count(hlo.parse(TEXT))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("bf16[3,5]{1,0}", 30), ("f64[2]{0}", 16), ("u4[7]{0}", 7), ("s32[]", 4)],
)
def test_sizes_of_types(kind, size):
    assert hlo.num_bytes(kind) == size


@pytest.mark.parametrize("is_listed", [False, True])
def test_room_of_a_library_call_in_a_fusion(is_listed):
    """It reads [4, 4] and the second half of [8, 4], and writes [4, 4]."""
    both = "(f32[4,4]{1,0}, s8[4096]{0})"
    root = f"ROOT %gemm = {both} custom-call(%p0, %half)"
    if is_listed:
        root = f"""%gemm = {both} custom-call(%p0, %half)
  %x = f32[4,4]{{1,0}} get-tuple-element(%gemm), index=0
  %room = s8[4096]{{0}} get-tuple-element(%gemm), index=1
  ROOT %all = {both} tuple(%x, %room)"""
    text = f"""%inside (p0: f32[4,4], p1: f32[8,4]) -> (f32[4,4], s8[4096]) {{
  %p0 = f32[4,4]{{1,0}} parameter(0)
  %p1 = f32[8,4]{{1,0}} parameter(1)
  %half = f32[4,4]{{1,0}} slice(%p1), slice={{[4:8], [0:4]}}
  {root}
}}

ENTRY %main (a: f32[4,4], b: f32[8,4]) -> (f32[4,4], s8[4096]) {{
  %a = f32[4,4]{{1,0}} parameter(0)
  %b = f32[8,4]{{1,0}} parameter(1)
  ROOT %y = {both} fusion(%a, %b), kind=kCustom, calls=%inside
}}
"""
    assert hlo.count(hlo.parse(text)) == hlo.Counts(1, 0, 3 * 64)
