"""Tests that the next images of a streamed split are prepared while the devices work, and that waiting is measured."""

import threading

import numpy as np
import pytest
from tiny_runs import one_device

from sft_jax.data.dataset import StreamedSplit
from sft_jax.data.loader import STREAMED_STEPS, Loader, StepsPerCall
from sft_jax.errors import UserError

COUNT = 3 * STREAMED_STEPS


class Decoder:
    """Decodes to the row's number; may refuse a row, and can be held back."""

    def __init__(self, refused=None):
        self.refused, self.free, self.last = refused, threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, row):
        assert self.free.wait(10)
        if row == self.refused:
            raise UserError(f"row {row} is damaged")
        if row == 2 * STREAMED_STEPS - 1:
            self.last.set()
        return np.full((2, 2, 3), row, np.uint8)


def calls(decoder):
    split = StreamedSplit.of_images(decoder, np.arange(COUNT), np.zeros(COUNT, np.int32))
    loader = Loader(split, one_device())
    return loader, loader.calls(np.arange(COUNT, dtype=np.int32)[:, None], steps_per_call=StepsPerCall())


def rows(call):
    return np.asarray(call.chunk.data["image"].values).reshape(STREAMED_STEPS, -1)[:, 0].tolist()


def test_the_next_chunk_is_prepared_while_the_last_one_is_used():
    decoder = Decoder()
    _, each = calls(decoder)
    first = next(each)
    assert decoder.last.wait(10)  # although it was not asked for
    assert [rows(call) for call in (first, *each)] == np.arange(COUNT).reshape(3, -1).tolist()


def test_waiting_is_measured():
    decoder = Decoder()
    decoder.free.clear()
    loader, each = calls(decoder)
    timer = threading.Timer(0.3, decoder.free.set)
    timer.start()
    next(each)
    timer.join()
    assert loader.waited > 0.25


def test_an_error_of_a_later_chunk_is_raised_when_it_is_asked_for():
    _, each = calls(Decoder(refused=STREAMED_STEPS))
    next(each)
    with pytest.raises(UserError, match=f"row {STREAMED_STEPS} is damaged"):
        next(each)


def test_a_loop_that_ends_early_leaves_no_thread():
    before = set(threading.enumerate())
    _, each = calls(Decoder())
    next(each)
    each.close()
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if "ThreadPoolExecutor" in thread.name]
