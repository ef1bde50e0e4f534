"""A network as a pure function of flat dictionaries, the form used by the train step, checkpoints and weights files."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from sft_jax.models.architecture import Architecture, Builder
from sft_jax.models.precision import multiplying

Arrays = dict[str, jax.Array]


class Network:
    """An NNX network, split into its structure and two flat dictionaries of arrays.

    Keys are attribute paths joined by dots, e.g. "layer1.0.downsample.0.kernel". Values are arrays, or
    `jax.ShapeDtypeStruct`s if the network was built by `abstract`.

    Attributes:
      architecture: the architecture of the network.
      inputs: names of the batch's arrays that it reads, by default those of the architecture.
      products: how its products, and those of their gradients, are computed, see `precision.multiplying`.
      params: parameters.
      batch_stats: running means and variances of batch norm.
    """

    @classmethod
    def abstract(cls, build: Builder, inputs: tuple[str, ...] | None = None) -> "Network":
        """Builds a network of shapes instead of arrays, without drawing random numbers."""
        return cls(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))), build.architecture, inputs, build.products)

    def __init__(
        self,
        model: nnx.Module,
        architecture: Architecture,
        inputs: tuple[str, ...] | None = None,
        products: str | None = None,
    ):
        structure, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]  # typed for 1
        self.architecture, self.products = architecture, products
        self.inputs = architecture.inputs if inputs is None else inputs
        self._structure = structure
        self.params, self.batch_stats = _flatten(params), _flatten(batch_stats)
        self._paths = {_dotted(path): path for state in (params, batch_stats) for path, _ in nnx.to_flat_state(state)}

    def is_head(self, name: str) -> bool:
        """Returns whether a parameter belongs to the head."""
        return self.architecture.is_head(name)

    def bind(self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array]) -> nnx.Module:
        """Returns the NNX network with these arrays."""
        return nnx.merge(self._structure, self._state(nnx.Param, params), self._state(nnx.BatchStat, batch_stats))

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        *inputs: jax.Array,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """Runs the network on its inputs, e.g. normalised images [batch, height, width, 3].

        Returns:
          outputs [batch, ...] and the batch statistics, which are updated if `train` is set.
        """
        model = self.bind(params, batch_stats)
        with multiplying(self.products):
            outputs = model(*inputs, train=train, key=key)
        return outputs, _flatten(nnx.state(model, nnx.BatchStat))

    def features(
        self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array], *inputs: jax.Array
    ) -> jax.Array:
        """Computes the head's inputs in evaluation mode: [batch, channels]."""
        model: Any = self.bind(params, batch_stats)
        with multiplying(self.products):
            return model.features(*inputs, train=False).pooled

    def _state(self, kind: type[nnx.Variable], arrays: Mapping[str, jax.Array]) -> nnx.State:
        return nnx.from_flat_state([(self._paths[key], kind(value)) for key, value in sorted(arrays.items())])


class HeadNetwork:
    """The head of `network`, with the same interface: a function of features instead of images."""

    inputs = ("feature",)

    def __init__(self, network: Network):
        self._network = network
        self.params, self.batch_stats, self.products = network.params, network.batch_stats, network.products

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        features: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """Computes the outputs for features [batch, channels] of `Network.features`; keeps the batch statistics."""
        model: Any = self._network.bind(params, batch_stats)
        return model.head(features), dict(batch_stats)


def initial_arrays(build: Callable[[nnx.Rngs], nnx.Module], seed: int, prefix: str = "") -> tuple[Arrays, Arrays]:
    """Draws the initial parameters and batch statistics whose keys begin with `prefix`.

    Drawing only a new head takes a moment, while all of ResNet-18 takes seconds to compile.
    """

    @jax.jit
    def draw(key: jax.Array) -> tuple[Arrays, Arrays]:
        _, params, batch_stats = nnx.split(build(nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)  # type: ignore[misc]
        wanted, statistics = (
            {key: leaf for key, leaf in _flatten(part).items() if key.startswith(prefix)}
            for part in (params, batch_stats)
        )
        return wanted, statistics

    return draw(jax.random.key(seed))  # an argument, so that the cached program is that of any seed


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _flatten(state: nnx.State) -> Arrays:
    return {_dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
