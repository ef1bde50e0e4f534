"""A second family of networks, in Flax and in torch: three convolutions under other names, without batch norm.

It is a complete example of what a family needs, named in CONTRIBUTING.md.
"""

import functools

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from convert.reference import Reference
from sft_jax.models.architecture import Architecture, Features, Rule, located_by
from sft_jax.models.layers import Linear

CHANNELS = (8, 12, 16)


class Layer(nnx.Module):
    """A 3x3 convolution of stride 2 with a bias, ReLU, and a factor for each channel."""

    def __init__(self, inputs, outputs, *, rngs):
        self.kernel = nnx.Param(0.1 * jax.random.normal(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.gamma = nnx.Param(jnp.ones((1, 1, outputs)))

    def __call__(self, x):
        kernel = self.kernel[...].astype(x.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
        y = jax.nn.relu(y + self.bias[...].astype(x.dtype)[None, None, None])
        return y * self.gamma[...].astype(x.dtype)[None]


class ConvNet(nnx.Module):
    """Three layers, global average, linear head."""

    def __init__(self, outputs, *, stem, dtype=jnp.float32, axis_name=None, stochastic_depth=0.0, rngs):
        self.dtype = dtype
        widths = zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)
        self.blocks = nnx.List([Layer(inputs, outputs, rngs=rngs) for inputs, outputs in widths])
        self.classifier = Linear(CHANNELS[-1], outputs, rngs=rngs)

    def __call__(self, x, train=False, key=None):
        return self.head(self.features(x, train=train, key=key).pooled)

    def features(self, x, *, train=False, key=None):
        maps = [activations for _, activations in self.stages(x)]
        return Features(maps[-1].mean((1, 2), dtype=jnp.float32), tuple(maps))

    def head(self, features):
        return self.classifier(features)

    def stages(self, x):
        x = x.astype(self.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x)
            yield f"blocks.{index}", x


ARCHITECTURE = Architecture(
    name="convnet",
    family="convnet",
    make=functools.partial(ConvNet),
    head="classifier",
    channels=CHANNELS,
    strides=(2, 4, 8),
    locate=located_by([(r"blocks\.(\d+)\.", lambda match: (int(match[1]), 0))]),
    reference="somebody's",
    rules=(
        Rule(r"blocks\.(\d+)\.kernel", r"convs.\1.weight", (2, 3, 1, 0)),
        Rule(r"blocks\.(\d+)\.bias", r"convs.\1.bias", (0,)),
        Rule(r"blocks\.(\d+)\.gamma", r"gammas.\1", (1, 2, 0)),
    ),
)


class TorchConvNet(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        widths = zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(inputs, outputs, 3, 2, 1) for inputs, outputs in widths)
        self.gammas = torch.nn.ParameterList(torch.randn(channels, 1, 1) for channels in CHANNELS)
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in CHANNELS)  # where activations are read
        self.classifier = torch.nn.Linear(CHANNELS[-1], outputs)

    def forward(self, x):
        for conv, gamma, block in zip(self.convs, self.gammas, self.blocks, strict=True):
            x = block(torch.relu(conv(x)) * gamma)
        return self.classifier(x.mean((2, 3)))


class ConvNetReference(Reference):
    def module(self, arch, outputs, state_dict, stem):
        module = TorchConvNet(outputs)
        module.load_state_dict(state_dict)
        return module.eval()

    def stages(self, module):
        return {f"blocks.{index}": block for index, block in enumerate(module.blocks)}
