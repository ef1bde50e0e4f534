"""What the tests of every family compare with its reference: shapes, activations, gradients, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import torchvision

from convert import keys, parity
from convert.families import REFERENCES
from convert.reference import empty_network
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder
from sft_jax.tasks.losses import cross_entropy

CLASSES = 5


def network(architecture, **settings):
    """Returns our network with `CLASSES` outputs, as shapes."""
    return Network.abstract(Builder(architecture, CLASSES, settings))


def moved(module, seed=0):
    """Moves parameters and statistics away from their initial values, as training does; for evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def images(size, dtype=np.float32, count=2):
    """Draws normalised images [count, size, size, 3]."""
    return np.random.default_rng(size).standard_normal((count, size, size, 3)).astype(dtype)


def assert_close(found, wanted, tolerance):
    """Asserts that all arrays agree to `tolerance` relative to their largest value."""
    assert found.keys() == wanted.keys()
    errors = {
        key: float(
            np.abs(np.asarray(found[key]) - np.asarray(wanted[key])).max() / max(np.abs(wanted[key]).max(), 1e-3)
        )
        for key in wanted
    }
    worst = max(errors, key=lambda key: np.nan_to_num(errors[key], nan=np.inf))
    print(f"largest difference {errors[worst]:.1e} ({worst})")
    assert errors[worst] <= tolerance, f"{worst} is off by {errors[worst]:.1e}"


def assert_same_function(module, ours, sizes=(32, 33), tolerance=1e-5, named=dict):
    """Compares all stages and logits in float32, and that the weights survive the way there and back bit by bit.

    `named` gives a state_dict of the module the names of its file.
    """
    reference = REFERENCES[ours.architecture.family]
    state_dict = named(module.state_dict())
    own, _ = reference.adapted(state_dict, ours.architecture.name)
    assert not keys.problems(own, ours)
    arrays = keys.to_flax(own, ours)
    for size in sizes:
        inputs = reference.inputs(module, size, 2, seed=size)
        theirs, their_logits = parity.torch_activations(module, inputs, reference)
        found, logits = parity.flax_activations(ours, arrays, inputs)
        assert_close(found | {"logits": logits}, theirs | {"logits": their_logits}, tolerance)
    back = keys.to_torch(arrays, ours.architecture, keys.counters_of(own if reference.dense else state_dict))
    back = reference.whole(back, ours.architecture.name)
    state_dict = reference.whole(own, ours.architecture.name) if reference.dense else state_dict  # no auxiliary heads
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def assert_same_gradients(module, architecture, size=16, tolerance=1e-7, named=dict, **settings):
    """Compares the gradients of all parameters, and updated statistics, in float64.

    `named` gives a state_dict of the module the names of its file.
    """
    reference, labels = REFERENCES[architecture.family], np.array([0, 3])
    if architecture.dense:
        labels = np.random.default_rng(0).integers(0, CLASSES, (len(labels), size, size))
    inputs = tuple(
        array.astype(np.float64) if array.dtype == np.float32 else array
        for array in reference.inputs(module, size, len(labels), seed=size)
    )
    module = module.double().train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout | torchvision.ops.StochasticDepth | timm.layers.DropPath):
            layer.eval()
    with jax.enable_x64():
        ours = network(architecture, dtype=jnp.float64, **settings)
        own, _ = reference.adapted(named(module.state_dict()), architecture.name)
        arrays = keys.to_flax(own, ours)
        params, batch_stats = ({key: arrays[key] for key in part} for part in (ours.params, ours.batch_stats))

        @jax.jit
        def gradients_of(params, batch_stats):
            def loss(params):
                logits, statistics = ours.apply(params, batch_stats, *inputs, train=True)
                return cross_entropy(logits, labels).mean(), statistics

            return jax.grad(loss, has_aux=True)(params)

        gradients, statistics = jax.device_get(gradients_of(params, batch_stats))
    logits = reference.logits(module, reference.given(module, *inputs))
    logits = logits.movedim(1, -1).flatten(0, -2)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.ravel())).backward()
    parameters = {key: parameter for key, parameter in module.named_parameters() if parameter.grad is not None}
    theirs = {key: parameter.grad for key, parameter in parameters.items()} | dict(module.named_buffers())
    assert_close(gradients | statistics, keys.to_flax(named(theirs), ours), tolerance)


def assert_same_shapes(name):
    """Compares names and shapes with those of the reference's network, without any values; all have a depth."""
    ours = Network.abstract(Builder(ARCHITECTURES[name], 1000))
    tensors = {
        key: torch.ones((), dtype=tensor.dtype).expand(tensor.shape)
        for key, tensor in empty_network(name, 1000).state_dict().items()
        if not key.endswith(("relative_position_index", "relative_coords_table"))
    }
    assert not keys.problems(tensors, ours)
    for key in ours.params | ours.batch_stats:
        assert ours.architecture.depth(key)


def with_classes(name):
    """Returns the reference's network `name` with `CLASSES` outputs and initial weights."""
    torch.manual_seed(0)
    if ARCHITECTURES[name].reference == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return timm.create_model(name, num_classes=CLASSES)


def expanded(name, outputs=1000):
    """Returns a state_dict of the network `name` whose tensors take no memory."""
    tensors = {
        key: torch.ones((), dtype=tensor.dtype).expand(tensor.shape)
        for key, tensor in empty_network(name, outputs).state_dict().items()
    }
    return REFERENCES[ARCHITECTURES[name].family].whole(tensors, name)
