"""Passes over a split that train nothing: logits and features of its images, and batch norm's statistics on them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.data.loader import Feed, Pace
from sft_jax.data.sampling import eval_order
from sft_jax.models import Functional
from sft_jax.models.layers import KEEP_STATISTICS
from sft_jax.runtime import processes
from sft_jax.runtime.devices import Devices

Preprocess = Callable[[jax.Array], jax.Array]


# (params, batch_stats, images uint8 [share, height, width, 3]) -> [share, ...]
Outputs = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array], jax.Array]


class PerImage:
    """A function of the weights and each image of a split; `batch_size` images at a time over all devices."""

    def __init__(self, outputs: Outputs, devices: Devices, batch_size: int):
        def program(params, batch_stats, images, labels, order, start, stop):
            def of(rows) -> jax.Array:
                return outputs(params, batch_stats, images[rows]).astype(jnp.float32)

            def body(index, table):
                return table.at[index].set(of(order[index]))

            like = jax.eval_shape(of, order[0])
            return lax.fori_loop(start, stop, body, jnp.zeros((len(order), *like.shape), jnp.float32))

        self._program, self._devices, self._batch_size = program, devices, batch_size
        self._compiled: dict[tuple[bool, ...], Callable] = {}

    def __call__(self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array], feed: Feed) -> np.ndarray:
        """Of all images of the split behind `feed`, in its order: float32 [n, ...]."""
        sharded = (False, False, *feed.sharded, False, False)
        if sharded not in self._compiled:
            self._compiled[sharded] = self._devices.compile(self._program, sharded=sharded, gather=False)
        order, _ = eval_order(len(feed), self._batch_size)
        found, pace = [], Pace(seconds=5.0)
        for piece in feed.pieces(order, pace=pace):
            with pace.timing(piece.steps):
                own = self._compiled[sharded](params, batch_stats, *piece.arguments)[:, piece.rows]
                table = processes.gathered(own)
            # [devices, steps, share, ...] -> the images in their order
            found.append(np.moveaxis(table, 0, 1).reshape(-1, *table.shape[3:]))
        return np.concatenate(found)[: len(feed)]


def logits(network: Functional, devices: Devices, preprocess: Preprocess, batch_size: int) -> PerImage:
    """What `network` says of each image: float32 [n, classes] of a split."""

    def outputs(params, batch_stats, images) -> jax.Array:
        return network.apply(params, batch_stats, preprocess(images), train=False)[0]

    return PerImage(outputs, devices, batch_size)


def features(
    network: Functional,
    params: Mapping[str, jax.Array],
    batch_stats: Mapping[str, jax.Array],
    feed: Feed,
    devices: Devices,
    preprocess: Preprocess,
    batch_size: int,
    *,
    mirrored: bool,
) -> np.ndarray:
    """What the head sees of every image of the split behind `feed`, in its order.

    Returns:
      float32 [n, views, channels]: of the image and, with `mirrored`, of its mirror image.
    """

    def outputs(params, batch_stats, images) -> jax.Array:
        inputs = preprocess(images)
        views = [inputs, inputs[:, :, ::-1]] if mirrored else [inputs]
        return jnp.stack([network.features(params, batch_stats, view).astype(jnp.float32) for view in views], 1)

    return PerImage(outputs, devices, batch_size)(params, batch_stats, feed)


def measured_statistics(
    network: Functional,
    params: Mapping[str, jax.Array],
    batch_stats: Mapping[str, jax.Array],
    feed: Feed,
    devices: Devices,
    preprocess: Preprocess,
    order: np.ndarray,
) -> dict[str, jax.Array]:
    """Batch norm's statistics on the images of `feed`: the mean of those of the batches of `order` [steps, batch].

    Adapting them to new images is AdaBN (Li et al., 2016, arXiv:1603.04779); that the mean over batches serves better
    than a running mean, Wu and Johnson, 2021, arXiv:2105.07576.
    """

    def program(params, sums, images, labels, order, start, stop):
        def body(index, sums):
            inputs = preprocess(images[order[index]])
            # From zero, one update is the share 1 - KEEP_STATISTICS of the batch's own statistics.
            _, new = network.apply(params, jax.tree.map(jnp.zeros_like, sums), inputs, train=True)
            return {key: sums[key] + new[key] / (1 - KEEP_STATISTICS) for key in sums}

        return lax.fori_loop(start, stop, body, sums)

    compiled = devices.compile(program, sharded=(False, False, *feed.sharded, False, False))
    sums, pace = jax.tree.map(jnp.zeros_like, dict(batch_stats)), Pace()
    for piece in feed.pieces(order, pace=pace):
        with pace.timing(piece.steps):
            # Each call adds to what those before it found: how the clock cuts them makes no difference.
            sums = jax.block_until_ready(compiled(params, sums, *piece.arguments))
    return {key: total / len(order) for key, total in sums.items()}
