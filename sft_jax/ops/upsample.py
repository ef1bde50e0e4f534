"""Bilinear interpolation of maps."""

import jax


def upsample(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes maps [batch, rows, columns, channels] to [batch, height, width, channels].

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: without antialiasing. It is computed as
    two products of matrices, in float32 on every device.
    """
    shape = (x.shape[0], height, width, x.shape[3])
    if x.shape == shape:
        return x
    return jax.image.resize(x, shape, "linear", antialias=False, precision=jax.lax.Precision.HIGHEST)
