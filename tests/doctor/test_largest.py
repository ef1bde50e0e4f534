"""Tests of the search for the largest batch that fits."""

import pytest

from sft_jax.doctor.largest import CLOSE, MOST, Need, largest_batch


def linear(fixed, each):
    return lambda batch: Need(fixed + each * batch, each * batch)


def refusing(need, memory):
    """Imitates a TPU's compiler, which gives no figure for a batch that does not fit."""
    return lambda batch: needed if (needed := need(batch)).bytes <= memory else None


def curved(batch):
    return Need(300 + 3 * batch + batch * batch // 1000, 3 * batch + batch * batch // 1000)


@pytest.mark.parametrize("need", [linear(300, 3), linear(9000, 3), linear(0, 100), curved])
@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("start", [8, 96, 2000])
def test_the_largest_batch_is_found_with_few_compilations(need, refuses, start):
    memory, compiled = 16_000, []

    def counted(batch):
        compiled.append(batch)
        return (refusing(need, memory) if refuses else need)(batch)

    result = largest_batch(counted, start=start, unit=8, limit=10**6, memory=memory)
    assert list(result.tried) == compiled
    assert len(compiled) <= MOST
    assert all(batch % 8 == 0 for batch in compiled)
    assert need(result.batch).bytes <= memory
    best = max(batch for batch in range(8, 10_000, 8) if need(batch).bytes <= memory)
    assert result.batch >= (CLOSE - 0.2 * (need is curved)) * (best - 8)
    if result.too_large is not None:
        assert need(result.too_large).bytes > memory


def test_the_limit_is_tried():
    result = largest_batch(linear(300, 1), start=100, unit=1, limit=4096, memory=10**9)
    assert (result.batch, result.too_large, list(result.tried)) == (4096, None, [100, 4096])


def test_there_may_be_no_batch_that_fits():
    result = largest_batch(linear(20_000, 1), start=64, unit=16, limit=4096, memory=16_000)
    assert (result.batch, result.too_large, list(result.tried)) == (None, 16, [64, 32, 16])
