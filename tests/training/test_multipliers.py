"""Tests of which parameters are trained in which phase, and their learning-rate multipliers."""

import itertools

import pytest

from sft_jax import models
from sft_jax.config import complete, load_config
from sft_jax.errors import UserError
from sft_jax.models import Network
from sft_jax.training import phases as phases_module

NETWORK = Network.abstract(models.builder(complete({}).model, 10))
NAMES = list(NETWORK.params)


def multipliers(**changes):
    config = complete({f"finetune.{key}": value for key, value in changes.items()})
    return phases_module.multipliers(config.finetune, NETWORK)


def phases(**changes):
    config = complete({"epochs": 10} | {key.replace("__", "."): value for key, value in changes.items()})
    return phases_module.phases(config, NETWORK)


def summary(sequence):
    return [(phase.first, phase.stop, len(phase.trained), phase.on_features, phase.size) for phase in sequence]


def message(**changes):
    with pytest.raises(UserError) as caught:
        phases(**changes)
    return str(caught.value)


def test_by_default_all_parameters_are_trained_alike():
    assert set(multipliers().values()) == {1.0}
    assert summary(phases()) == [(0, 10, 62, False, 32)]


def test_the_first_pattern_that_matches_a_whole_name_applies():
    factors = multipliers(
        learning_rates=(("conv1.kernel", 0.5), (r"layer1\..*", 0.25), ("layer1.0.conv1.kernel", 9), (".*", 2))
    )
    assert factors["conv1.kernel"] == 0.5
    assert factors["layer1.0.conv1.kernel"] == 0.25
    assert factors["layer2.0.conv1.kernel"] == 2, "conv1.kernel is only part of this name"


def test_freezing_overrides_all_multipliers():
    factors = multipliers(
        freeze=("conv1.*", "bn1.*", "layer[12].*"), learning_rates=(("layer1.*", 3), ("layer[34].*|fc.*", 1))
    )
    assert {name for name, factor in factors.items() if not factor} == {
        name for name in NAMES if name.startswith(("conv1", "bn1", "layer1", "layer2"))
    }


def test_layerwise_decay_applies_once_per_block():
    factors = multipliers(layerwise_decay=0.5)
    steps = [
        "fc.bias",
        "layer4.1.bn2.scale",
        "layer4.0.downsample.0.kernel",
        "layer3.1.conv1.kernel",
        "layer3.0.bn1.bias",
    ]
    assert [factors[name] for name in steps] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert factors["conv1.kernel"] == factors["bn1.scale"] == 0.5**9


def test_the_blocks_of_deep_networks_are_ordered_by_number():
    network = Network.abstract(models.builder(complete({"model.name": "resnet101"}).model, 10))
    config = complete({"finetune.layerwise_decay": 0.9}).finetune
    factors = phases_module.multipliers(config, network)
    assert factors["layer3.9.conv1.kernel"] < factors["layer3.10.conv1.kernel"] < factors["layer3.22.conv1.kernel"]


def test_layerwise_decay_and_multipliers_multiply():
    factors = multipliers(layerwise_decay=0.5, learning_rates=((".*", 10),))
    assert (factors["fc.bias"], factors["layer4.1.conv1.kernel"]) == (10, 5)


def test_freezing_batch_norm_does_not_freeze_the_head():
    factors = multipliers(batch_norm="freeze")
    frozen = {name for name, factor in factors.items() if not factor}
    assert frozen == {name for name in NAMES if name.endswith(("scale", "bias")) and name != "fc.bias"}
    assert len(frozen) == 40


def test_the_head_method_is_one_phase_on_features():
    assert summary(phases(finetune__method="head")) == [(0, 10, 2, True, 32)]


def test_head_then_full_is_two_phases():
    sequence = phases(finetune__method="head_then_full", finetune__head_epochs=3)
    assert summary(sequence) == [(0, 3, 2, True, 32), (3, 10, 62, False, 32)]


def test_gradual_unfreezing_goes_from_the_head_to_the_stem():
    sequence = phases(finetune__method="gradual", finetune__unfreeze_epochs=2)
    assert [(phase.first, phase.stop) for phase in sequence] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert sequence[0].trained == {"fc.kernel", "fc.bias"}
    for phase, following in itertools.pairwise(sequence):
        assert phase.trained < following.trained
    assert {name.partition(".")[0] for name in sequence[1].trained} == {"fc", "layer4"}
    assert not any(phase.on_features for phase in sequence), "batch norm keeps training"
    assert phases(finetune__method="gradual")[-1].trained == set(NAMES)


def test_a_size_schedule_subdivides_the_phases():
    sequence = phases(data__size_schedule=(("16", 0.5), ("24", 0.2)))
    assert [(phase.first, phase.stop, phase.size, phase.start) for phase in sequence] == [
        (0, 5, 16, 0),
        (5, 7, 24, 0),
        (7, 10, 32, 0),
    ]
    sequence = phases(data__size_schedule=(("16", 0.5),), finetune__method="head_then_full", finetune__head_epochs=2)
    assert [(phase.first, phase.size, phase.start) for phase in sequence] == [(0, 32, 0), (2, 16, 2), (5, 32, 2)]


def test_invalid_settings_are_refused():
    assert message(finetune__freeze=("layer9.*",)).startswith(
        "finetune.freeze: 'layer9.*' matches no parameter; similar names: layer"
    )
    assert message(finetune__freeze=("layer1(",)).startswith(
        "finetune.freeze: 'layer1(' is not a valid regular expression: missing )"
    )
    assert message(finetune__learning_rates=(("fc.*", 1),)).startswith(
        "finetune.learning_rates: no pattern matches bn1.bias, bn1.scale, conv1.kernel, layer1.0.bn1.bias, "
        "layer1.0.bn1.scale and 55 more; add '.*=1' at the end for all others"
    )
    assert message(finetune__freeze=(".*",)) == (
        "nothing to train: finetune.freeze and finetune.learning_rates freeze every parameter"
    )
    assert message(finetune__freeze=("fc.*",), finetune__method="head").startswith("nothing to train: ")
    assert message(finetune__method="head_then_full") == (
        "finetune.head_epochs=10 must be less than epochs=10, or the rest of the network is never trained"
    )


def test_settings_are_parsed_from_the_command_line(pytestconfig):
    recipe = str(pytestconfig.rootpath / "configs" / "cifar10.py")
    config = load_config(
        recipe,
        [
            ("finetune.freeze", "conv1.*; bn1.*"),
            ("finetune.learning_rates", r"layer\d\.0.*=0.1;.*=1"),
            ("data.size_schedule", "16=0.5;24=.25"),
        ],
    )
    assert config.finetune.freeze == ("conv1.*", "bn1.*")
    assert config.finetune.learning_rates == ((r"layer\d\.0.*", 0.1), (".*", 1.0))
    assert config.data.size_schedule == (("16", 0.5), ("24", 0.25))
    for key, text, said in [
        ("finetune.learning_rates", "fc.*", "config.finetune.learning_rates='fc.*' is not a list of pairs such as"),
        ("finetune.learning_rates", "fc.*=-1", "must be pairs pattern=multiplier with multipliers of 0 or more"),
        ("data.size_schedule", "16=1", "must be pairs pixels=fraction whose fractions sum to less than 1"),
        ("data.size_schedule", "small=0.5", "must be pairs pixels=fraction whose fractions sum to less than 1"),
    ]:
        with pytest.raises(UserError) as caught:
            load_config(recipe, [(key, text)])
        assert said in str(caught.value)
