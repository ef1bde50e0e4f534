"""A network as a pure function of plain dictionaries, as the train step, checkpoints and weights files hold it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Arrays = dict[str, jax.Array]


class Functional:
    """Splits an NNX network once into its structure and two flat dictionaries of arrays.

    Keys are attribute paths joined by dots, for instance "layer1.0.downsample.0.kernel".

    Attributes:
      params: what is trained.
      batch_stats: running means and variances of batch norm.

    The values are arrays, or `jax.ShapeDtypeStruct`s where the network was built by `abstract`.
    """

    @classmethod
    def abstract(cls, build: Callable[[nnx.Rngs], nnx.Module]) -> "Functional":
        """The network that `build` constructs, with shapes in place of arrays: no random number is drawn."""
        return cls(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))))

    def __init__(self, model: nnx.Module):
        structure, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]  # typed for 1
        self._structure = structure
        self.params, self.batch_stats = _flatten(params), _flatten(batch_stats)
        self._paths = {_dotted(path): path for state in (params, batch_stats) for path, _ in nnx.to_flat_state(state)}

    def bind(self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array]) -> nnx.Module:
        """The NNX network with these arrays."""
        return nnx.merge(self._structure, self._state(nnx.Param, params), self._state(nnx.BatchStat, batch_stats))

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        images: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """Runs the network on images [batch, height, width, 3], normalised.

        Returns:
          logits [batch, classes] and the batch statistics after the call: updated ones where `train` is set.
        """
        model = self.bind(params, batch_stats)
        logits = model(images, train=train, key=key)
        return logits, _flatten(nnx.state(model, nnx.BatchStat))

    def features(
        self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array], images: jax.Array
    ) -> jax.Array:
        """What the head sees of images [batch, height, width, 3], normalised: [batch, channels]."""
        model: Any = self.bind(params, batch_stats)
        return model.features(images, train=False)

    def _state(self, kind: type[nnx.Variable], arrays: Mapping[str, jax.Array]) -> nnx.State:
        return nnx.from_flat_state([(self._paths[key], kind(value)) for key, value in sorted(arrays.items())])


class Head:
    """The last layer of `network` alone, with its interface: a function of features in place of images."""

    def __init__(self, network: Functional):
        self._network = network
        self.params, self.batch_stats = network.params, network.batch_stats

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        features: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """The logits of features [batch, channels], as `Functional.features` gives them; nothing else changes."""
        model: Any = self._network.bind(params, batch_stats)
        return model.head(features), dict(batch_stats)


def initial_arrays(build: Callable[[nnx.Rngs], nnx.Module], seed: int, prefix: str = "") -> tuple[Arrays, Arrays]:
    """Freshly initialised parameters and batch statistics of the network that `build` constructs.

    Only those whose key begins with `prefix`: a new head is drawn in a moment, all of ResNet-18 compiles for seconds.
    """

    @jax.jit
    def draw() -> tuple[Arrays, Arrays]:
        network = Functional(build(nnx.Rngs(params=seed)))
        params, batch_stats = (
            {key: leaf for key, leaf in part.items() if key.startswith(prefix)}
            for part in (network.params, network.batch_stats)
        )
        return params, batch_stats

    return draw()


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _flatten(state: nnx.State) -> Arrays:
    return {_dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
