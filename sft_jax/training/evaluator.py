"""Exact evaluation of a split: every image counts once, whatever the batch size and the number of devices."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from sft_jax.data.loader import Feed, Pace
from sft_jax.data.sampling import eval_order
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import EvalSums
from sft_jax.training.epoch import make_eval_steps
from sft_jax.training.step import Network, make_eval_step


class Evaluator:
    """The evaluation of a network with `classes` outputs, `batch_size` images at a time over all devices.

    With `flips` the logits of each image's mirror image are added to its own.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Callable[[jax.Array], jax.Array],
        devices: Devices,
        classes: int,
        batch_size: int,
        *,
        flips: bool = False,
    ):
        self._program = make_eval_steps(make_eval_step(network, flips=flips), preprocess, classes, AXIS)
        self._devices, self._batch_size = devices, batch_size
        self._compiled: dict[tuple[bool, ...], Callable] = {}
        self._pace = Pace()

    def __call__(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        feed: Feed,
        after_piece: Callable[[int, int], None] = lambda done, steps: None,
    ) -> EvalSums:
        """The sums over the whole split behind `feed`, as numpy arrays; `loss` and `calibration` are float64.

        They are the same bits however the steps are cut into calls, which is up to the clock.
        `after_piece(done, steps)` is called as the steps go by.
        """
        order, mask = eval_order(len(feed), self._batch_size)
        sharded = (False, False, *feed.sharded, True, False, False)
        if sharded not in self._compiled:
            self._compiled[sharded] = self._devices.compile(self._program, sharded=sharded)
        total: EvalSums | None = None
        by_step: list[tuple[np.ndarray, np.ndarray]] = []
        done = 0
        for piece in feed.pieces(order, mask, pace=self._pace):
            with self._pace.timing(piece.steps):
                new = jax.device_get(self._compiled[sharded](params, batch_stats, *piece.arguments))
            by_step.append((new.loss[piece.rows], new.calibration[piece.rows]))
            total = new if total is None else jax.tree.map(np.add, total, new)
            done += piece.steps
            after_piece(done, len(order))
        assert total is not None
        assert int(total.total) == len(feed), "every image counts exactly once"
        loss, calibration = (np.concatenate(rows).astype(np.float64).sum(0) for rows in zip(*by_step, strict=True))
        return total._replace(loss=loss, calibration=calibration)
