"""Passes over a split that train nothing: the features of its images, and batch norm's statistics on them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.data.order import eval_order
from sft_jax.feed import Feed, Pace
from sft_jax.models import Functional
from sft_jax.models.resnet import KEEP_STATISTICS
from sft_jax.parallel import Devices

Preprocess = Callable[[jax.Array], jax.Array]


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

    def program(params, batch_stats, images, labels, order, start, stop):
        def views(rows) -> jax.Array:
            inputs = preprocess(images[rows])
            found = [inputs, inputs[:, :, ::-1]] if mirrored else [inputs]
            return jnp.stack([network.features(params, batch_stats, view).astype(jnp.float32) for view in found], 1)

        def body(index, table):
            return table.at[index].set(views(order[index]))

        like = jax.eval_shape(views, order[0])
        return lax.fori_loop(start, stop, body, jnp.zeros((len(order), *like.shape), jnp.float32))

    compiled = devices.compile(program, sharded=(False, False, *feed.sharded, False, False), gather=False)
    order, _ = eval_order(len(feed), batch_size)
    found, pace = [], Pace(seconds=5.0)
    for piece in feed.pieces(order, pace=pace):
        with pace.timing(piece.steps):
            table = np.asarray(compiled(params, batch_stats, *piece.arguments)[:, piece.rows])
        # [devices, steps, share, ...] -> the images in their order
        found.append(np.moveaxis(table, 0, 1).reshape(-1, *table.shape[3:]))
    return np.concatenate(found)[: len(feed)]


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

    def program(params, zeros, images, labels, order, start, stop):
        def body(index, sums):
            inputs = preprocess(images[order[index]])
            # From zero, one update is the share 1 - KEEP_STATISTICS of the batch's own statistics.
            _, new = network.apply(params, zeros, inputs, train=True)
            return {key: sums[key] + new[key] / (1 - KEEP_STATISTICS) for key in sums}

        return lax.fori_loop(start, stop, body, zeros)

    compiled = devices.compile(program, sharded=(False, False, *feed.sharded, False, False))
    zeros = jax.tree.map(jnp.zeros_like, dict(batch_stats))
    sums, pace = zeros, Pace()
    for piece in feed.pieces(order, pace=pace):
        with pace.timing(piece.steps):
            new = jax.block_until_ready(compiled(params, zeros, *piece.arguments))
        sums = jax.tree.map(jnp.add, sums, new)
    return {key: total / len(order) for key, total in sums.items()}
