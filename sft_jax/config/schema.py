"""Every setting with its default, its meaning and what its values must satisfy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


class Patterns(tuple):
    """Regular expressions; on the command line with semicolons between them."""


class Pairs(tuple):
    """(text, number) pairs; on the command line as "TEXT=NUMBER;TEXT=NUMBER"."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting: its default, the type of its values, what it means, and what its values must satisfy."""

    default: Any
    kind: type
    doc: str
    check: Callable[[Any], bool] = lambda value: True
    rule: str = ""
    optional: bool = False

    def parse(self, text: str) -> Any:
        """The value that `text`, from the command line, stands for. Raises ValueError."""
        if self.optional and text.lower() == "none":
            return None
        if self.kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if self.kind is tuple:
            return tuple(float(part) for part in text.strip("()[] ").split(",") if part.strip())
        if self.kind is Patterns:
            return Patterns(part.strip() for part in text.split(";") if part.strip())
        if self.kind is Pairs:
            pairs = (part.rpartition("=") for part in text.split(";") if part.strip())
            return Pairs((left.strip(), float(right)) for left, _, right in pairs)
        return self.kind(text)

    def coerce(self, value: Any) -> Any:
        """`value` as the key's type where nothing is lost by it, as 1 for a float. Raises TypeError, ValueError."""
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is tuple and isinstance(value, list | tuple):
            return tuple(float(part) for part in value)
        if self.kind is Patterns and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return Patterns(value)
        if self.kind is Pairs and isinstance(value, list | tuple):
            return Pairs((str(left), float(right)) for left, right in value)
        if type(value) is not self.kind:
            raise ValueError(value)
        return value


def _whole(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def _one_of(*names: str) -> dict[str, Any]:
    return {"check": lambda value: value in names, "rule": f"one of {', '.join(names)}"}


_POSITIVE: dict[str, Any] = {"check": lambda value: value is None or 0 < value < math.inf, "rule": "greater than 0"}
_NOT_NEGATIVE: dict[str, Any] = {"check": lambda value: 0 <= value < math.inf, "rule": "0 or more"}
_SHARE: dict[str, Any] = {"check": lambda value: 0 <= value < 1, "rule": "at least 0 and less than 1"}
_RGB: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(map(math.isfinite, value)),
    "rule": "three numbers, one a channel",
}
_DEVIATIONS: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(0 < deviation < math.inf for deviation in value),
    "rule": "three numbers greater than 0, one a channel",
}

KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        int,
        "Of the new weights, the order of the images, their augmentation, and the images of data.per_class and of the "
        "limits. Never which image is in which part: that depends on names alone.",
        **_NOT_NEGATIVE,
    ),
    "epochs": Key(100, int, "Passes over the training images.", **_POSITIVE),
    "batch_size": Key(100, int, "Images a step, over all devices together.", **_POSITIVE),
    "precision": Key(
        "float32", str, "Of activations and products; weights stay float32.", **_one_of("float32", "bfloat16")
    ),
    "save_minutes": Key(10.0, float, "A long epoch is saved this often; every epoch's end is.", **_POSITIVE),
    "task": Key(
        "classification",
        str,
        "What is learnt; sft_jax/tasks has a file for each.",
    ),
    "monitor": Key(
        None,
        str,
        "The validation figure that chooses the best epoch, ends training with regularization.early_stopping and ranks "
        "the trials of a search; none for the task's own. Classification: val_accuracy (its own), "
        "val_balanced_accuracy, val_macro_f1, val_loss (the lowest is best).",
        optional=True,
    ),
    "compare_with_scratch": Key(
        False, bool, "Afterwards train the same recipe from random weights and report its test accuracy beside."
    ),
    "model.name": Key(
        "resnet18",
        str,
        "The network by its torchvision name: resnet18 to resnet152, wide_resnet50_2, resnext50_32x4d, ...",
    ),
    "model.stem": Key(
        "imagenet",
        str,
        "cifar: stride 1 and no max-pool, for small images; cifar3x3: also a 3x3 kernel, as networks for CIFAR have.",
        **_one_of("imagenet", "cifar", "cifar3x3"),
    ),
    "init": Key(
        "weights/resnet18.safetensors",
        str,
        "Converted weights (.safetensors), the folder of a run to fine-tune further, or scratch.",
    ),
    "data.source": Key("tfds:cifar10", str, "tfds:NAME, folder:PATH, csv:FILE, digits or digits:FIRST-LAST."),
    "data.dir": Key(None, str, "Where tfds keeps its data sets; none: its own default.", optional=True),
    "data.download": Key(True, bool, "Whether tfds may download and prepare a data set that is not there."),
    "data.train": Key("train[:45000]", str, "The split to train on, as tfds writes it."),
    "data.validation": Key("train[45000:]", str, "The split that chooses the best checkpoint."),
    "data.test": Key("test", str, "The split that is scored once, at the end."),
    "data.allow_overlap": Key(
        False,
        bool,
        "Train although images of the test part are in the training part too, or were in that of init's run.",
    ),
    "data.per_class": Key(
        None, int, "Train on this many images of each class only (few-shot).", optional=True, **_POSITIVE
    ),
    "data.balance": Key(
        "none",
        str,
        "How often each class is drawn in training: none, as often as it has images; sqrt, by the square root of their "
        "number; full, all equally often.",
        **_one_of("none", "sqrt", "full"),
    ),
    "data.size": Key(32, int, "Side in pixels of what the network sees; images are resized.", **_POSITIVE),
    "data.fit": Key(
        "crop",
        str,
        "Images that are not square. crop: the shorter side is brought to data.size, and the centre is cut out; pad: "
        "the longer side is, and the rest is black; squash: both sides are.",
        **_one_of("crop", "pad", "squash"),
    ),
    "data.on_error": Key(
        "stop",
        str,
        "Images that cannot be read: stop before training starts, or skip: leave them out.",
        **_one_of("stop", "skip"),
    ),
    "data.max_pixels": Key(
        500_000_000, int, "An image file with more pixels counts as one that cannot be read.", **_POSITIVE
    ),
    "data.image_key": Key(
        None, str, "Name of the image feature of a tfds set or column of a CSV file; none: guessed.", optional=True
    ),
    "data.label_key": Key(
        None, str, "Name of the label feature of a tfds set or column of a CSV file; none: guessed.", optional=True
    ),
    "data.part_key": Key(
        None,
        str,
        "Name of the column of a CSV file that says train, validation or test; none: guessed, there need not be one.",
        optional=True,
    ),
    "data.mean": Key((0.5, 0.5, 0.5), tuple, "Subtracted from each channel, on the scale 0..1.", **_RGB),
    "data.std": Key((0.5, 0.5, 0.5), tuple, "Each channel is divided by it, on the scale 0..1.", **_DEVIATIONS),
    "data.crop_padding": Key(
        4, int, "Zeros around an image before a random crop, in pixels; 0: no crop.", **_NOT_NEGATIVE
    ),
    "data.flip": Key(True, bool, "Mirror every second training image, at random."),
    "data.size_schedule": Key(
        Pairs(),
        Pairs,
        "Progressive resizing: pixels=share, as '16=0.5;24=0.3': half of the epochs at 16 px, then 30% at 24, the rest "
        "at data.size.",
        check=lambda value: (
            all(_whole(left) and right > 0 for left, right in value) and sum(right for _, right in value) < 1
        ),
        rule="pairs pixels=share whose shares add up to less than 1",
    ),
    "data.auto_augment": Key(
        "none",
        str,
        "trivial: TrivialAugmentWide (arXiv:2103.10158); rand: RandAugment (arXiv:1909.13719).",
        **_one_of("none", "trivial", "rand"),
    ),
    "data.rand_augment_operations": Key(2, int, "RandAugment's N: operations an image.", **_POSITIVE),
    "data.rand_augment_magnitude": Key(
        9, int, "RandAugment's M.", check=lambda value: 0 <= value <= 30, rule="from 0 to 30"
    ),
    "data.random_erasing": Key(0.0, float, "Share of the images with a rectangle erased (arXiv:1708.04896).", **_SHARE),
    "finetune.method": Key(
        "full",
        str,
        "full; head: the head alone, on features computed once (linear probe); head_then_full: LP-FT "
        "(arXiv:2202.10054); gradual: one more stage every unfreeze_epochs (ULMFiT, arXiv:1801.06146).",
        **_one_of("full", "head", "head_then_full", "gradual"),
    ),
    "finetune.head_epochs": Key(10, int, "Of head_then_full: its first epochs, on the head.", **_POSITIVE),
    "finetune.head_learning_rate": Key(
        None,
        float,
        "In place of optimizer.learning_rate while the head alone is trained, also as the first stage of gradual; "
        "follows the schedule as that does.",
        optional=True,
        **_POSITIVE,
    ),
    "finetune.unfreeze_epochs": Key(1, int, "Of gradual: epochs until the next stage is trained too.", **_POSITIVE),
    "finetune.freeze": Key(
        Patterns(),
        Patterns,
        "Parameters left as they are: regular expressions that match whole names, as 'conv1.*;bn1.*;layer1.*'.",
    ),
    "finetune.learning_rates": Key(
        Pairs(),
        Pairs,
        "Multipliers of the learning rate, the first match counts, as 'fc.*=1;.*=0.1'; 0 freezes. Every parameter must "
        "be matched.",
        check=lambda value: all(0 <= right < math.inf for _, right in value),
        rule="pairs pattern=multiplier with multipliers of 0 or more",
    ),
    "finetune.layerwise_decay": Key(
        1.0,
        float,
        "The learning rate is multiplied by it for every block further from the head (BEiT, arXiv:2106.08254).",
        check=lambda value: 0 < value <= 1,
        rule="greater than 0 and at most 1",
    ),
    "finetune.batch_norm": Key(
        "train",
        str,
        "train: statistics of each batch; freeze_statistics: the running ones of init; freeze: scale and bias as well; "
        "recalibrate: running ones measured on the training images first (AdaBN, arXiv:1603.04779), then frozen.",
        **_one_of("train", "freeze_statistics", "freeze", "recalibrate"),
    ),
    "regularization.label_smoothing": Key(0.0, float, "Share of the target spread over all classes.", **_SHARE),
    "regularization.class_weights": Key(
        "none",
        str,
        "Of the training loss, torch's CrossEntropyLoss(weight=...): none; balanced, images / (classes * images of the "
        "class), as scikit-learn; or a JSON or CSV file of names and weights. The validation loss is not weighted.",
    ),
    "regularization.mixup": Key(0.0, float, "Alpha of mixup (arXiv:1710.09412); 0: none.", **_NOT_NEGATIVE),
    "regularization.cutmix": Key(
        0.0, float, "Alpha of CutMix (arXiv:1905.04899); 0: none. With mixup, one of the two a batch.", **_NOT_NEGATIVE
    ),
    "regularization.stochastic_depth": Key(
        0.0, float, "Rate at which the last block is skipped, earlier ones less often (arXiv:1603.09382).", **_SHARE
    ),
    "regularization.l2_sp": Key(
        0.0,
        float,
        "L2-SP (arXiv:1802.01483): weight of half the squared distance from init's weights.",
        **_NOT_NEGATIVE,
    ),
    "regularization.clip_norm": Key(
        None, float, "Gradients are scaled down to this norm at most.", optional=True, **_POSITIVE
    ),
    "regularization.ema": Key(
        0.0,
        float,
        "Decay of a moving average of the weights, which is evaluated beside them; 0: none.",
        check=lambda value: 0 <= value < 1,
        rule="at least 0 and less than 1",
    ),
    "regularization.early_stopping": Key(
        None,
        int,
        "Epochs without a better value of monitor after which training ends; counted in the last phase of "
        "finetune.method and data.size_schedule, which no earlier one keeps from coming.",
        optional=True,
        **_POSITIVE,
    ),
    "evaluation.flips": Key(
        False, bool, "Also score the test images with the logits of their mirror images added (reported beside)."
    ),
    "optimizer.name": Key(
        "sgd",
        str,
        "sgd, with momentum as torch defines it, or any optimizer of optax or optax.contrib: adamw, lamb, lion, muon, "
        "schedule_free_sgd, ...",
    ),
    "optimizer.learning_rate": Key(1e-3, float, "The peak of the schedule.", **_NOT_NEGATIVE),
    "optimizer.momentum": Key(
        0.9, float, "Of SGD.", check=lambda value: 0 <= value < 1, rule="at least 0 and less than 1"
    ),
    "optimizer.nesterov": Key(False, bool, "Nesterov's momentum, of SGD."),
    "optimizer.arguments": Key(
        Pairs(),
        Pairs,
        "Further arguments of the optimizer by their names in optax, as 'b1=0.9;b2=0.99'.",
        check=lambda value: all(left.isidentifier() and math.isfinite(right) for left, right in value),
        rule="pairs name=number with finite numbers",
    ),
    "optimizer.weight_decay": Key(
        0.0,
        float,
        "SGD: times the weights, added to the gradient (L2, as torch). Others: decoupled, as optax defines it.",
        **_NOT_NEGATIVE,
    ),
    "optimizer.decay": Key(
        "kernels",
        str,
        "What weight_decay acts on: kernels, or all parameters (torch's default), biases and batch norm included.",
        **_one_of("kernels", "all"),
    ),
    "optimizer.sam_rho": Key(
        0.0, float, "Sharpness-aware minimisation (arXiv:2010.01412): radius; 0: off. Twice the time.", **_NOT_NEGATIVE
    ),
    "optimizer.schedule": Key(
        "constant",
        str,
        "cosine and linear fall to 0; step: divided by 10 every third of the epochs; one_cycle: up for 30%, then down.",
        **_one_of("constant", "cosine", "linear", "step", "one_cycle"),
    ),
    "optimizer.warmup_epochs": Key(0.0, float, "The learning rate first rises from 0, linearly.", **_NOT_NEGATIVE),
    "optimizer.reference_batch": Key(
        None,
        int,
        "The learning rate is meant for this batch size and is multiplied by batch_size / reference_batch.",
        optional=True,
        **_POSITIVE,
    ),
    "optimizer.accumulate": Key(
        1,
        int,
        "A batch is computed in this many parts, one after the other, to save memory; batch norm sees each by itself.",
        **_POSITIVE,
    ),
    "logging.wandb": Key(False, bool, "Log to Weights & Biases too (pip install wandb), in the project WANDB_PROJECT."),
    "logging.mlflow": Key(False, bool, "Log to MLflow too (pip install mlflow); MLFLOW_TRACKING_URI says where."),
    "limit_train_examples": Key(None, int, "Train on this many images only.", optional=True, **_POSITIVE),
    "limit_eval_examples": Key(None, int, "Evaluate on this many images of a split only.", optional=True, **_POSITIVE),
}

KIND_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of numbers such as 0.5,0.5,0.5",
    Patterns: "a list of regular expressions such as 'conv1.*;bn1.*'",
    Pairs: "a list of pairs such as 'fc.*=1;.*=0.1'",
}
