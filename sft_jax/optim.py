"""From `config.optimizer` to optax."""

import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate at each of `steps` steps. `config` is the part `optimizer` of the configuration."""
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """`torch.optim.SGD`: weight decay is added to the gradient, before the momentum, for every parameter alike.

    v = momentum * v + (gradient + weight_decay * weight); weight -= learning_rate * v
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.sgd(make_schedule(config, steps), momentum=config.momentum or None),
    )
