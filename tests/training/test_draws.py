"""Tests that every use of random numbers has its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sft_jax.data.augment import Augmentation
from sft_jax.data.loader import Chunk
from sft_jax.data.mixup import mix
from sft_jax.models.resnet import BasicBlock, ResNet, Variant
from sft_jax.models.stochastic_depth import skip_factor
from sft_jax.training.experiment import TRAINING
from sft_jax.training.features import pick_view
from sft_jax.training.state import TrainState
from sft_jax.training.step import MIXTURE, SKIPS, StepMetrics
from sft_jax.training.steps import AUGMENTATION, UPDATE, make_train_steps

IMAGES = np.zeros((2, 8, 8, 3), np.uint8)
LABELS = np.zeros(2, np.int32)
COLOUR = (0.5, 0.5, 0.5)
PARTS = {
    "crop_scale": (0.5, 1.0),
    "vertical_flip": True,
    "rotation": 10.0,
    "color_jitter": (0.1, 0.1, 0.1, 0.1),
    "grayscale": 0.5,
    "blur": 0.5,
}


def traced(key):
    return isinstance(jax.random.key_data(key), jax.core.Tracer)


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_augmentation_and_update_have_their_own_keys():
    """Compares the keys that the training program passes to them with keys derived here."""
    seen = {}

    def augmented(batch, key, first, total):
        if not traced(key):
            seen["augmentation"] = words(key)
        return batch

    def updated(state, batch, key):
        if not traced(key):
            seen["update"] = words(key)
        return state, StepMetrics(jnp.zeros(()), jnp.zeros((), jnp.int32))

    key, state = jax.random.key(0), TrainState(jnp.asarray(5, jnp.int32), {}, {}, ())
    steps = make_train_steps(updated, augmented, "data", 1)
    chunk = Chunk({"image": jnp.asarray(IMAGES)}, jnp.zeros((1, 2), jnp.int32), None, 0, 1)
    with jax.disable_jit():  # keys are concrete then, except where only shapes are evaluated
        jax.vmap(lambda _: steps(state, chunk, key)[1], axis_name="data")(jnp.zeros(1))
    step_key = jax.random.fold_in(key, 5)
    assert seen == {
        "augmentation": words(jax.random.fold_in(step_key, AUGMENTATION)),
        "update": words(jax.random.fold_in(step_key, UPDATE)),
    }


@pytest.fixture
def used(monkeypatch):
    """Returns the keys from which numbers are drawn."""
    keys = []

    def recording(draw):
        def record(key, *arguments, **settings):
            if not traced(key):
                keys.append(words(key))
            return draw(key, *arguments, **settings)

        return record

    for name in ("bernoulli", "randint", "uniform", "beta", "normal"):
        monkeypatch.setattr(jax.random, name, recording(getattr(jax.random, name)))
    return keys


@pytest.mark.long
def test_no_two_purposes_share_a_key(used):
    """No key is used for two draws, and no key from which others are derived is used for a draw."""
    parents = [jax.random.fold_in(jax.random.key(0), TRAINING)]
    for step in range(3):
        step_key = jax.random.fold_in(parents[0], step)
        own, update = (jax.random.fold_in(step_key, purpose) for purpose in (AUGMENTATION, UPDATE))
        mixture, skips = (jax.random.fold_in(update, purpose) for purpose in (MIXTURE, SKIPS))
        parents += [step_key, own, update, mixture, skips]
        Augmentation(size=8, mean=COLOUR, std=COLOUR, crop_padding=1, flip=True)(IMAGES, own, 0, 2)
        # The other parts: a random resized crop replaces the crop above.
        Augmentation(size=8, mean=COLOUR, std=COLOUR, **PARTS)(IMAGES, own, 0, 2)
        batch = {"image": IMAGES.astype(np.float32), "label": LABELS}
        mix(batch, mixture, targets=("label",), mixup=1.0, cutmix=1.0)
        ResNet(Variant(BasicBlock, (1, 1, 1, 1)), 2, rngs=nnx.Rngs(params=0))
        for position in (1, 2, 3, 4):
            skip_factor(skips, 0.5 * position / 4, position, 2, None)
    assert len(used) > 3 * (2 + 9 + 5 + 4), "in addition to the network's weights"
    weights = {words(jax.random.fold_in(jax.random.key(0), count)) for count in range(1000)}
    drawn = [key for key in used if key not in weights]
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & {words(key) for key in parents}
    assert not weights & {words(key) for key in parents}


def test_the_view_of_a_feature_is_drawn_with_its_own_key(used):
    own = jax.random.fold_in(jax.random.key(0), AUGMENTATION)
    pick_view({"feature": np.zeros((4, 2, 3), np.float32)}, own, 0, 4)
    assert words(own) not in used
