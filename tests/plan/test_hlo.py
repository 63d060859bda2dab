"""Counting what a compiled program executes: loops by their turns, calls followed, free instructions left out."""

import pytest

from distmlp.plan.hlo import Instruction, Module, is_kernel, size

TEXT = """HloModule jit_run, is_scheduled=true

%fused_add (p: f32[8], q: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = f32[8]{0} parameter(1)
  ROOT %add = f32[8]{0} add(%p, %q)
}

%inner (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %product = (f32[8]{0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[8]{0}) tuple(%x, %x)
}

%called (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%a)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %f = f32[8]{0} fusion(%x, %x), kind=kLoop, calls=%fused_add
  %number = s32[] add(%n, %n)
  %all-reduce-start = (f32[8]{0}, f32[8]{0}) all-reduce-start(%f), to_apply=%fused_add
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)
  %gathered = f32[4,8]{1,0} all-gather(%f), dimensions={0}
  %w = (s32[], f32[8]{0}) while(%arg), condition=%cond, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %c = f32[8]{0} call(%f), to_apply=%called
  ROOT %t = (s32[], f32[8]{0}) tuple(%number, %c)
}

%cond (arg: (s32[], f32[8])) -> pred[] {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %limit = s32[] constant(64)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %before = f32[8]{0} fusion(%x, %x), kind=kLoop, calls=%fused_add
  %start = (s32[], f32[8]{0}) tuple(%n, %before)
  %while = (s32[], f32[8]{0}) while(%start), condition=%cond, body=%body
  ROOT %r = f32[8]{0} get-tuple-element(%while), index=1
}
"""


def test_a_step_is_one_turn_of_the_outer_loop_with_loops_and_calls_followed() -> None:
    module = Module(TEXT)
    assert module.step_loop is not None
    assert module.step_loop.name == "while"
    assert module.trip_count(module.step_loop) == 64  # from its condition
    assert module.kernels_per_step() == 1 + 3 * 1 + 1  # a fusion, the inner loop's product, the call's copy
    assert module.messages() == {"all-reduce": (1, 32), "all-gather": (1, 128)}
    assert module.host_transfers() == []


def test_a_loop_to_a_bound_that_is_an_argument_has_no_known_length() -> None:
    module = Module(TEXT.replace("%limit = s32[] constant(64)", "%limit = s32[] get-tuple-element(%arg), index=0"))
    assert module.step_loop is not None
    assert module.trip_count(module.step_loop) is None
    assert module.kernels_per_step() == 5


def test_a_loop_within_a_step_whose_length_is_not_known_counts_as_one_turn() -> None:
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    module = Module(text.replace("%limit = s32[] constant(64)", "%limit = s32[] get-tuple-element(%arg), index=0"))
    assert module.kernels_per_step() == 1 + 1 + 1


@pytest.mark.parametrize(("opcode", "shape", "kernel"), [
    ("fusion", "f32[]", True), ("custom-call", "(f32[8]{0}, s32[])", True), ("copy", "f32[]", True),
    ("copy-start", "(f32[], f32[], u32[])", True), ("add", "f32[8]{0}", True), ("add", "s32[]", False),
    ("bitcast", "f32[8]{0}", False), ("while", "(s32[], f32[8]{0})", False), ("outfeed", "token[]", False),
    ("all-reduce-start", "f32[8]{0}", False),
])  # fmt: skip
def test_what_is_a_kernel(opcode: str, shape: str, kernel: bool) -> None:
    assert is_kernel(Instruction("name", shape, opcode, "")) == kernel


def test_what_waits_for_the_host_is_named() -> None:
    callback = '%w2 = f32[8]{0} custom-call(%f), custom_call_target="xla_ffi_python_gpu_callback"'
    module = Module(TEXT.replace("  %c = f32[8]", f"  {callback}\n  %o = token[] outfeed(%f, %f)\n  %c = f32[8]"))
    assert module.host_transfers() == ["w2", "o"]


@pytest.mark.parametrize(
    ("shape", "expected"), [("f32[512,784]{1,0}", 1605632), ("s32[]", 4), ("(u8[3]{0}, bf16[2,2]{1,0:T(8,128)})", 11)]
)
def test_size_of_a_shape(shape: str, expected: int) -> None:
    assert size(shape) == expected
