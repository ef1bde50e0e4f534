"""All config keys with their defaults, descriptions and constraints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


class Patterns(tuple):
    """Regular expressions, separated by semicolons on the command line."""


class Pairs(tuple):
    """(string, number) pairs, written "NAME=NUMBER;NAME=NUMBER" on the command line."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: default, type, description, and the check its values must pass, which `rule` puts into words."""

    default: Any
    kind: type
    doc: str
    check: Callable[[Any], bool] = lambda value: True
    rule: str = ""
    optional: bool = False

    def parse(self, text: str) -> Any:
        """Parses a value given on the command line. Raises ValueError or KeyError."""
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
        """Converts `value` to the key's type if that is lossless, e.g. 1 to 1.0. Raises TypeError or ValueError."""
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
_EXPONENT: dict[str, Any] = {
    # The gradient of other powers is infinite at 0.
    "check": lambda value: value == 0 or 1 <= value < math.inf,
    "rule": "0, or 1 or more",
}
_FRACTION: dict[str, Any] = {"check": lambda value: 0 <= value < 1, "rule": "at least 0 and less than 1"}
_PROBABILITY: dict[str, Any] = {"check": lambda value: 0 <= value <= 1, "rule": "from 0 to 1"}
_RGB: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(map(math.isfinite, value)),
    "rule": "three numbers, one per channel",
}
_DEVIATIONS: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(0 < deviation < math.inf for deviation in value),
    "rule": "three numbers greater than 0, one per channel",
}

KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        int,
        "Seed for newly initialised weights, shuffling, augmentation, and the subsets drawn by data.per_class and the "
        "limits. It does not affect the train/validation/test split, which depends on file names only.",
        **_NOT_NEGATIVE,
    ),
    "epochs": Key(100, int, "Number of passes over the training set.", **_POSITIVE),
    "batch_size": Key(100, int, "Global batch size: images per step, summed over all devices.", **_POSITIVE),
    "precision": Key(
        "float32",
        str,
        "Data type of activations and matrix products; weights stay float32. With float32 products are what the device "
        "has by default: float32 on CPUs, TF32 on NVIDIA GPUs since A100, bfloat16 on TPUs; tf32 means at least TF32 "
        "(on TPUs, 3 passes of bfloat16), highest means float32 on every device.",
        **_one_of("float32", "highest", "tf32", "bfloat16"),
    ),
    "save_minutes": Key(
        10.0, float, "Minutes between checkpoints within an epoch; one is always saved at its end.", **_POSITIVE
    ),
    "task": Key(
        "classification",
        str,
        "What to learn: classification (one class per image), multilabel (any number of labels) or regression (a "
        "number).",
    ),
    "monitor": Key(
        None,
        str,
        "Metric that selects the best epoch, drives regularization.early_stopping and ranks the trials of a search; "
        "none for the task's own. Classification has val_accuracy (its own), val_balanced_accuracy, val_macro_f1 and "
        "val_loss; multilabel val_map (its own), val_macro_f1 and val_loss; regression val_mae (its own), val_rmse, "
        "val_r2 and val_loss. Losses and errors are minimised.",
        optional=True,
    ),
    "compare_with_scratch": Key(
        False, bool, "Also train the same recipe from random weights, and report both test accuracies."
    ),
    "model.name": Key(
        "resnet18",
        str,
        "Name of the network, torchvision's or else timm's: `python -m sft_jax.models` lists them.",
    ),
    "model.stem": Key(
        "imagenet",
        str,
        "cifar: stride 1 and no max-pool, for small images; cifar3x3: a 3x3 kernel as well, as is usual on CIFAR.",
        **_one_of("imagenet", "cifar", "cifar3x3"),
    ),
    "init": Key(
        "weights/resnet18.safetensors",
        str,
        "Initial weights: a converted file (.safetensors), the folder of an earlier run, package:NAME for those of an "
        "installed package (efficientnet-lite0, -lite1, -lite2), or scratch for random ones.",
    ),
    "data.source": Key(
        "tfds:cifar10", str, "The dataset: tfds:NAME, folder:PATH, csv:FILE, digits or digits:FIRST-LAST."
    ),
    "data.dir": Key(None, str, "Data directory of tfds; none: its default.", optional=True),
    "data.download": Key(True, bool, "Whether tfds may download and prepare a missing dataset."),
    "data.train": Key("train[:45000]", str, "Training split, in the syntax of tfds."),
    "data.validation": Key("train[45000:]", str, "Validation split, which selects the best checkpoint."),
    "data.test": Key("test", str, "Test split, evaluated once at the end."),
    "data.allow_overlap": Key(
        False,
        bool,
        "Train even if the training split, of this run or of the run that init names, contains test images.",
    ),
    "data.per_class": Key(
        None, int, "Train on only this many images per class (few-shot).", optional=True, **_POSITIVE
    ),
    "data.balance": Key(
        "none",
        str,
        "Class-balanced sampling of training images. none: in proportion to the number of images in the class; sqrt: "
        "to its square root; full: all classes equally often.",
        **_one_of("none", "sqrt", "full"),
    ),
    "data.placement": Key(
        "auto",
        str,
        "Where the images are. replicated: on each device; sharded: a share on each, exchanged once an epoch; auto: "
        "replicated if they fit, else sharded if they fit on all devices together, else streamed in chunks.",
        **_one_of("auto", "replicated", "sharded"),
    ),
    "data.size": Key(32, int, "Side length in pixels to which images are resized for the network.", **_POSITIVE),
    "data.keep_size": Key(
        None,
        int,
        "Side length in pixels at which images are kept, for random resized crops and evaluation.crops to choose from; "
        "none: data.size / data.crop_pct.",
        optional=True,
        **_POSITIVE,
    ),
    "data.crop_pct": Key(
        1.0,
        float,
        "Fraction of the image's side that evaluation and prediction see, from the centre, as in timm.",
        check=lambda value: 0 < value <= 1,
        rule="greater than 0 and at most 1",
    ),
    "data.interpolation": Key(
        "bilinear", str, "How images are resized, with antialiasing.", **_one_of("bilinear", "bicubic")
    ),
    "data.fit": Key(
        "crop",
        str,
        "How images become square. crop: resize the shorter side to data.size, then centre-crop; pad: resize the "
        "longer side, then pad with black; squash: resize both sides.",
        **_one_of("crop", "pad", "squash"),
    ),
    "data.on_error": Key(
        "stop",
        str,
        "Unreadable images: stop before training starts, or skip them.",
        **_one_of("stop", "skip"),
    ),
    "data.max_pixels": Key(
        500_000_000, int, "Image files with more pixels than this count as unreadable.", **_POSITIVE
    ),
    "data.image_key": Key(
        None, str, "Image feature of a tfds dataset, or image column of a CSV file; none: guessed.", optional=True
    ),
    "data.label_key": Key(
        None,
        str,
        "Label feature of a tfds dataset, or label column of a CSV file; for multilabel also several columns of 0 and "
        "1, separated by semicolons, or * for all that are left; none: guessed.",
        optional=True,
    ),
    "data.part_key": Key(
        None,
        str,
        "Column of a CSV file that says train, validation or test; none: guessed, and it may be absent.",
        optional=True,
    ),
    "data.mean": Key((0.5, 0.5, 0.5), tuple, "Per-channel mean for normalisation, for pixels in 0..1.", **_RGB),
    "data.std": Key(
        (0.5, 0.5, 0.5), tuple, "Per-channel standard deviation for normalisation, for pixels in 0..1.", **_DEVIATIONS
    ),
    "data.augment": Key(
        "none",
        str,
        "Augmentation of training images as one key. light: crops of at least half the area and color_jitter=0.2; "
        "medium: at least a quarter, TrivialAugmentWide, random_erasing=0.1; strong: at least 8%, RandAugment of "
        "magnitude 15, random_erasing=0.25. Of the keys below only those that have their defaults are changed.",
        **_one_of("none", "light", "medium", "strong"),
    ),
    "data.crop_padding": Key(4, int, "Zero padding in pixels before a random crop; 0: no crop.", **_NOT_NEGATIVE),
    "data.crop_scale": Key(
        (),
        tuple,
        "Random resized crops as torchvision's, instead of crop_padding: least and greatest fraction of the image's "
        "area, e.g. 0.35,1; empty: off. With data.keep_size larger than data.size they are sharper.",
        check=lambda value: value == () or (len(value) == 2 and 0 < value[0] <= value[1] <= 1),
        rule="empty, or two fractions of the area such as 0.35,1",
    ),
    "data.crop_ratio": Key(
        (0.75, 1.33333),
        tuple,
        "Least and greatest ratio of width to height of random resized crops.",
        check=lambda value: len(value) == 2 and 0 < value[0] <= value[1] < math.inf,
        rule="two ratios such as 0.75,1.33",
    ),
    "data.flip": Key(True, bool, "Flip training images horizontally with probability 0.5."),
    "data.vertical_flip": Key(False, bool, "Flip training images vertically with probability 0.5."),
    "data.rotation": Key(
        0.0,
        float,
        "Rotate training images by up to this many degrees, over black.",
        check=lambda value: 0 <= value <= 180,
        rule="from 0 to 180",
    ),
    "data.color_jitter": Key(
        (),
        tuple,
        "Strengths of random changes of brightness, contrast, saturation and hue, e.g. 0.4,0.4,0.4,0.1; one number: "
        "the first three, as in timm; empty: off.",
        check=lambda value: (
            len(value) in (0, 1, 4) and all(0 <= part < math.inf for part in value) and max(value[3:], default=0) <= 0.5
        ),
        rule="empty, one number or four, of 0 or more, the fourth (hue) at most 0.5",
    ),
    "data.grayscale": Key(0.0, float, "Probability of removing the colours of a training image.", **_PROBABILITY),
    "data.blur": Key(
        0.0, float, "Probability of blurring a training image, with sigmas of 0.1 to 2 pixels.", **_PROBABILITY
    ),
    "data.repeats": Key(
        1,
        int,
        "Repeated augmentation (arXiv:1901.09335): an epoch has this many versions of each image in the same batch, "
        "and as many fewer images.",
        **_POSITIVE,
    ),
    "data.size_schedule": Key(
        Pairs(),
        Pairs,
        "Progressive resizing, as pixels=fraction pairs: '16=0.5;24=0.3' trains half of the epochs at 16 px, then 30% "
        "at 24 px, and the rest at data.size.",
        check=lambda value: (
            all(_whole(left) and right > 0 for left, right in value) and sum(right for _, right in value) < 1
        ),
        rule="pairs pixels=fraction whose fractions sum to less than 1",
    ),
    "data.auto_augment": Key(
        "none",
        str,
        "trivial: TrivialAugmentWide (arXiv:2103.10158); rand: RandAugment (arXiv:1909.13719); augmix: AugMix "
        "(arXiv:1912.02781), which takes nine times as long as trivial.",
        **_one_of("none", "trivial", "rand", "augmix"),
    ),
    "data.rand_augment_operations": Key(2, int, "N of RandAugment: operations per image.", **_POSITIVE),
    "data.rand_augment_magnitude": Key(
        9, int, "M of RandAugment: magnitude.", check=lambda value: 0 <= value <= 30, rule="from 0 to 30"
    ),
    "data.random_erasing": Key(0.0, float, "Probability of random erasing (arXiv:1708.04896).", **_FRACTION),
    "finetune.method": Key(
        "full",
        str,
        "full: all layers; head: only the head, on features computed once (linear probe); head_then_full: LP-FT "
        "(arXiv:2202.10054); gradual: unfreezes one more stage every unfreeze_epochs (ULMFiT, arXiv:1801.06146).",
        **_one_of("full", "head", "head_then_full", "gradual"),
    ),
    "finetune.head_epochs": Key(10, int, "Epochs of head_then_full in which only the head is trained.", **_POSITIVE),
    "finetune.head_learning_rate": Key(
        None,
        float,
        "Replaces optimizer.learning_rate while only the head is trained, including the first stage of gradual; the "
        "schedule applies to it as well.",
        optional=True,
        **_POSITIVE,
    ),
    "finetune.unfreeze_epochs": Key(1, int, "Epochs of gradual before the next stage is unfrozen.", **_POSITIVE),
    "finetune.freeze": Key(
        Patterns(),
        Patterns,
        "Parameters to freeze: regular expressions that match whole names, e.g. 'conv1.*;bn1.*;layer1.*'.",
    ),
    "finetune.learning_rates": Key(
        Pairs(),
        Pairs,
        "Learning-rate multipliers by parameter name, e.g. 'fc.*=1;.*=0.1'; the first match wins, 0 freezes, and every "
        "parameter must match.",
        check=lambda value: all(0 <= right < math.inf for _, right in value),
        rule="pairs pattern=multiplier with multipliers of 0 or more",
    ),
    "finetune.layerwise_decay": Key(
        1.0,
        float,
        "Factor on the learning rate for each block further from the head (BEiT, arXiv:2106.08254).",
        check=lambda value: 0 < value <= 1,
        rule="greater than 0 and at most 1",
    ),
    "finetune.rematerialise": Key(
        "none",
        str,
        "blocks: activations within the network's blocks are computed again in the backward pass instead of kept, "
        "which takes less memory and about a third more time (arXiv:1604.06174).",
        **_one_of("none", "blocks"),
    ),
    "finetune.batch_norm": Key(
        "train",
        str,
        "train: batch statistics; freeze_statistics: the running statistics of init; freeze: scale and bias frozen as "
        "well; recalibrate: running statistics re-estimated on the training images (AdaBN, arXiv:1603.04779), then "
        "frozen.",
        **_one_of("train", "freeze_statistics", "freeze", "recalibrate"),
    ),
    "regularization.label_smoothing": Key(0.0, float, "Target mass spread uniformly over all classes.", **_FRACTION),
    "regularization.class_weights": Key(
        "none",
        str,
        "Class weights of the training loss, as torch's CrossEntropyLoss(weight=...): none; balanced: images / (classes"
        " * images of the class), as in scikit-learn; or a JSON or CSV file of names and weights. The validation loss "
        "is not weighted.",
    ),
    "regularization.mixup": Key(0.0, float, "Alpha of mixup (arXiv:1710.09412); 0: off.", **_NOT_NEGATIVE),
    "regularization.cutmix": Key(
        0.0,
        float,
        "Alpha of CutMix (arXiv:1905.04899); 0: off. With mixup, each batch uses one of the two.",
        **_NOT_NEGATIVE,
    ),
    "regularization.stochastic_depth": Key(
        0.0, float, "Drop rate of the last block; it is lower for earlier ones (arXiv:1603.09382).", **_FRACTION
    ),
    "regularization.l2_sp": Key(
        0.0,
        float,
        "L2-SP (arXiv:1802.01483): coefficient of half the squared distance to init's weights.",
        **_NOT_NEGATIVE,
    ),
    "regularization.clip_norm": Key(None, float, "Maximum global norm of the gradients.", optional=True, **_POSITIVE),
    "regularization.ema": Key(
        0.0,
        float,
        "Decay of an exponential moving average (EMA) of the weights, evaluated alongside them; 0: off.",
        check=lambda value: 0 <= value < 1,
        rule="at least 0 and less than 1",
    ),
    "regularization.early_stopping": Key(
        None,
        int,
        "Patience: epochs without improvement of monitor before training stops. Only epochs of the last phase of "
        "finetune.method and data.size_schedule count, so that it is always reached.",
        optional=True,
        **_POSITIVE,
    ),
    "multilabel.loss": Key(
        "bce",
        str,
        "Loss of task=multilabel, averaged over labels. bce: binary cross-entropy; focal (arXiv:1708.02002), as "
        "torchvision's sigmoid_focal_loss; asymmetric: ASL (arXiv:2009.14119).",
        **_one_of("bce", "focal", "asymmetric"),
    ),
    "multilabel.focal_gamma": Key(2.0, float, "Exponent of the focal loss.", **_EXPONENT),
    "multilabel.focal_alpha": Key(
        0.25,
        float,
        "Weight of an image's own labels in the focal loss, that of the others being 1 minus this; none: unweighted.",
        check=lambda value: value is None or 0 < value < 1,
        rule="greater than 0 and less than 1",
        optional=True,
    ),
    "multilabel.gamma_positive": Key(1.0, float, "ASL's exponent for an image's own labels.", **_EXPONENT),
    "multilabel.gamma_negative": Key(4.0, float, "ASL's exponent for all other labels.", **_EXPONENT),
    "multilabel.clip": Key(
        0.05, float, "ASL's margin: less probable labels that an image does not have cost nothing.", **_FRACTION
    ),
    "regression.loss": Key(
        "squared",
        str,
        "Loss of task=regression, of errors divided by the standard deviation of the training images' numbers: "
        "squared, absolute, or huber (squared up to 1).",
        **_one_of("squared", "absolute", "huber"),
    ),
    "evaluation.flips": Key(
        False, bool, "Flip test-time augmentation: also report test results with the logits of mirror images added."
    ),
    "evaluation.crops": Key(
        1,
        int,
        "5: also report test results with the logits of five crops averaged: centre and corners, each of the size that "
        "evaluation sees; with evaluation.flips also of their mirror images.",
        check=lambda value: value in (1, 5),
        rule="1 or 5",
    ),
    "optimizer.name": Key(
        "sgd",
        str,
        "sgd, with momentum as in torch, or any optimizer of optax or optax.contrib: adamw, lamb, lion, muon, "
        "schedule_free_sgd, ...",
    ),
    "optimizer.learning_rate": Key(1e-3, float, "Peak learning rate of the schedule.", **_NOT_NEGATIVE),
    "optimizer.momentum": Key(
        0.9, float, "Momentum of SGD.", check=lambda value: 0 <= value < 1, rule="at least 0 and less than 1"
    ),
    "optimizer.nesterov": Key(False, bool, "Use Nesterov momentum in SGD."),
    "optimizer.arguments": Key(
        Pairs(),
        Pairs,
        "Further arguments of the optax optimizer by name, e.g. 'b1=0.9;b2=0.99'.",
        check=lambda value: all(left.isidentifier() and math.isfinite(right) for left, right in value),
        rule="pairs name=number with finite numbers",
    ),
    "optimizer.weight_decay": Key(
        0.0,
        float,
        "SGD: L2 penalty added to the gradient, as in torch. Others: decoupled, as in optax.",
        **_NOT_NEGATIVE,
    ),
    "optimizer.decay": Key(
        "kernels",
        str,
        "What weight_decay applies to: kernels, or all parameters (torch's default), including biases and batch norm.",
        **_one_of("kernels", "all"),
    ),
    "optimizer.sam_rho": Key(
        0.0,
        float,
        "Radius rho of sharpness-aware minimisation (arXiv:2010.01412); 0: off. Doubles the time of a step.",
        **_NOT_NEGATIVE,
    ),
    "optimizer.schedule": Key(
        "constant",
        str,
        "cosine and linear decay to 0; step: divides by 10 after each third of the epochs; one_cycle: rises for 30% of "
        "training, then falls.",
        **_one_of("constant", "cosine", "linear", "step", "one_cycle"),
    ),
    "optimizer.warmup_epochs": Key(0.0, float, "Epochs of linear learning-rate warmup from 0.", **_NOT_NEGATIVE),
    "optimizer.reference_batch": Key(
        None,
        int,
        "Batch size that learning_rate is meant for; it is scaled linearly by batch_size / reference_batch.",
        optional=True,
        **_POSITIVE,
    ),
    "optimizer.accumulate": Key(
        1,
        int,
        "Gradient accumulation: micro-batches per batch, to save memory; batch norm sees one micro-batch at a time.",
        **_POSITIVE,
    ),
    "logging.wandb": Key(
        False, bool, "Also log to Weights & Biases (pip install wandb), in the project WANDB_PROJECT."
    ),
    "logging.mlflow": Key(False, bool, "Also log to MLflow (pip install mlflow), at MLFLOW_TRACKING_URI."),
    "limit_train_examples": Key(None, int, "Train on only this many images.", optional=True, **_POSITIVE),
    "limit_eval_examples": Key(
        None, int, "Evaluate on only this many images of each split.", optional=True, **_POSITIVE
    ),
}

KIND_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of numbers such as 0.5,0.5,0.5",
    Patterns: "a list of regular expressions such as 'conv1.*;bn1.*'",
    Pairs: "a list of pairs such as 'fc.*=1;.*=0.1'",
}
