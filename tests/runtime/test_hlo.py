"""Tests of the counts of operations and bytes in the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sft_jax.runtime.hlo import count_step, parse, size_of

# A loop over steps whose body gathers two rows of a table in a fusion, transposes a kernel, copies, multiplies, and
# sums over devices. The transpose of unit axes moves nothing, and the one after the loop is not counted.
MODULE = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[3,4])->f32[4,3]}

%gathered (param_0: u8[1000,64], param_1: s32[2]) -> u8[2,64] {
  %param_0 = u8[1000,64]{1,0} parameter(0)
  %param_1 = s32[2]{0} parameter(1)
  ROOT %gather.1 = u8[2,64]{1,0} gather(%param_0, %param_1), offset_dims={1}, metadata={op_name="a/transpose(jvp())"}
}

%turned (param_0.1: f32[3,4]) -> f32[4,3] {
  %param_0.1 = f32[3,4]{1,0} parameter(0)
  ROOT %transpose.1 = f32[4,3]{1,0} transpose(%param_0.1), dimensions={1,0}
}

%body (state: (s32[], f32[3,4], u8[1000,64], s32[2])) -> (s32[], f32[3,4], u8[1000,64], s32[2]) {
  %state = (s32[], f32[3,4]{1,0}, u8[1000,64]{1,0}, s32[2]{0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %kernel = f32[3,4]{1,0} get-tuple-element(%state), index=1
  %table = u8[1000,64]{1,0} get-tuple-element(%state), index=2
  %rows = s32[2]{0} get-tuple-element(%state), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%index, %one)
  %images = u8[2,64]{1,0} fusion(%table, %rows), kind=kLoop, calls=%gathered
  %fusion.2 = f32[4,3]{1,0} fusion(%kernel), kind=kInput, calls=%turned
  %transpose.2 = f32[1,4,3]{2,1,0} transpose(%fusion.2), dimensions={0,1,2}
  %copy.1 = f32[4,3]{0,1} copy(%fusion.2)
  %dot.1 = f32[3,3]{1,0} dot(%kernel, %copy.1), lhs_contracting_dims={1}, operand_precision={highest,highest}
  %conv.1 = (f32[3,4]{1,0}, u8[0]{0}) custom-call(%kernel, %copy.1), custom_call_target="__cudnn$convForward"
  %all-reduce.1 = f32[3,4]{1,0} all-reduce(%kernel), to_apply=%sum
  ROOT %tuple.1 = (s32[], f32[3,4]{1,0}, u8[1000,64]{1,0}, s32[2]{0}) tuple(%next, %all-reduce.1, %table, %rows)
}

%condition (state.1: (s32[], f32[3,4], u8[1000,64], s32[2])) -> pred[] {
  %state.1 = (s32[], f32[3,4]{1,0}, u8[1000,64]{1,0}, s32[2]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (argument: (s32[], f32[3,4], u8[1000,64], s32[2])) -> f32[4,3] {
  %argument = (s32[], f32[3,4]{1,0}, u8[1000,64]{1,0}, s32[2]{0}) parameter(0)
  %while.1 = (s32[], f32[3,4]{1,0}, u8[1000,64]{1,0}, s32[2]{0}) while(%argument), condition=%condition, body=%body
  %last = f32[3,4]{1,0} get-tuple-element(%while.1), index=1
  ROOT %transpose.9 = f32[4,3]{1,0} transpose(%last), dimensions={1,0}
}
"""


def test_the_body_of_the_loop_is_the_step():
    step = count_step(MODULE)
    assert (step.transposes, step.copies, step.all_reduces, step.loops, step.host_transfers) == (1, 1, 1, 0, 0)
    # Two fusions, a transpose, a copy, a product, a library call and a sum; the addition of scalars does not count.
    assert step.kernels == 7
    assert step.products == {"f32 highest": 1, "f32": 1}


def test_bytes_are_those_read_and_written():
    gathered = 2 * 2 * 64 + 2 * 4  # two rows of the table, not all of it, and their indices
    kernel = 3 * 4 * 4
    moved = {"fusion": 2, "transpose": 2, "copy": 2, "convolution": 3, "all-reduce": 2}
    product = 2 * kernel + 3 * 3 * 4
    single = 3 * 4  # the addition
    assert count_step(MODULE).bytes == gathered + sum(moved.values()) * kernel + product + single


@pytest.mark.parametrize(
    ("text", "size"),
    [("f32[512,3072]{1,0:T(8,128)}", 6_291_456), ("(bf16[3]{0}, s32[])", 10), ("pred[]", 1), ("token[]", 0)],
)
def test_sizes_of_types(text, size):
    assert size_of(text) == size


def test_text_that_is_not_a_module_is_an_error():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("nothing")


def test_a_program_of_this_version_of_xla():
    def program(matrix, steps):
        return lax.fori_loop(0, steps, lambda _, x: jnp.tanh(x @ x), matrix)

    compiled = jax.jit(program).lower(jnp.ones((8, 8)), 3).compile()
    counts = count_step(compiled.as_text())
    assert counts.products == {"f32": 1}
    assert counts.bytes >= 4 * 8 * 8 * 4
