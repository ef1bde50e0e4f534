"""All config keys with their defaults, descriptions and constraints."""

import math

from sft_jax.config.data_keys import DATA
from sft_jax.config.key import EXPONENT, FRACTION, NOT_NEGATIVE, POSITIVE, Key, Pairs, Patterns, one_of

KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        int,
        "Seed for newly initialised weights, shuffling, augmentation, and the subsets drawn by data.per_class and the "
        "limits. It does not affect the train/validation/test split, which depends on file names only.",
        **NOT_NEGATIVE,
    ),
    "epochs": Key(100, int, "Number of passes over the training set.", **POSITIVE),
    "batch_size": Key(100, int, "Global batch size: images per step, summed over all devices.", **POSITIVE),
    "precision": Key(
        "float32",
        str,
        "Data type of activations and matrix products; weights stay float32. With float32 products are what the device "
        "has by default: float32 on CPUs, TF32 on NVIDIA GPUs since A100, bfloat16 on TPUs; tf32 means at least TF32 "
        "(on TPUs, 3 passes of bfloat16), highest means float32 on every device.",
        **one_of("float32", "highest", "tf32", "bfloat16"),
    ),
    "save_minutes": Key(
        10.0, float, "Minutes between checkpoints within an epoch; one is always saved at its end.", **POSITIVE
    ),
    "task": Key(
        "classification",
        str,
        "What to learn: classification (one class per image), multilabel (any number of labels), regression (a "
        "number), segmentation (a class per pixel), text (one class per text) or text_regression (a number per text).",
    ),
    "monitor": Key(
        None,
        str,
        "Metric that selects the best epoch, drives regularization.early_stopping and ranks the trials of a search; "
        "none for the task's own. Classification has val_accuracy (its own), val_balanced_accuracy, val_macro_f1 and "
        "val_loss; multilabel val_map (its own), val_macro_f1 and val_loss; regression val_mae (its own), val_rmse, "
        "val_r2 and val_loss; segmentation val_mean_iou (its own), val_pixel_accuracy, val_mean_accuracy and val_loss; "
        "text those of classification and val_matthews; text_regression val_spearman (its own), val_pearson and those "
        "of regression. Losses and errors are minimised.",
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
        **one_of("imagenet", "cifar", "cifar3x3"),
    ),
    "init": Key(
        "weights/resnet18.safetensors",
        str,
        "Initial weights: a converted file (.safetensors), the folder of an earlier run, package:NAME for those of an "
        "installed package (efficientnet-lite0, -lite1, -lite2; all-minilm-l6-v2), or scratch for random ones.",
    ),
    **DATA,
    "finetune.method": Key(
        "full",
        str,
        "full: all layers; head: only the head, on features computed once (linear probe); head_then_full: LP-FT "
        "(arXiv:2202.10054); gradual: unfreezes one more stage every unfreeze_epochs (ULMFiT, arXiv:1801.06146).",
        **one_of("full", "head", "head_then_full", "gradual"),
    ),
    "finetune.head_epochs": Key(10, int, "Epochs of head_then_full in which only the head is trained.", **POSITIVE),
    "finetune.head_learning_rate": Key(
        None,
        float,
        "Replaces optimizer.learning_rate while only the head is trained, including the first stage of gradual; the "
        "schedule applies to it as well.",
        optional=True,
        **POSITIVE,
    ),
    "finetune.unfreeze_epochs": Key(1, int, "Epochs of gradual before the next stage is unfrozen.", **POSITIVE),
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
        **one_of("none", "blocks"),
    ),
    "finetune.batch_norm": Key(
        "train",
        str,
        "train: batch statistics; freeze_statistics: the running statistics of init; freeze: scale and bias frozen as "
        "well; recalibrate: running statistics re-estimated on the training images (AdaBN, arXiv:1603.04779), then "
        "frozen.",
        **one_of("train", "freeze_statistics", "freeze", "recalibrate"),
    ),
    "regularization.label_smoothing": Key(0.0, float, "Target mass spread uniformly over all classes.", **FRACTION),
    "regularization.class_weights": Key(
        "none",
        str,
        "Class weights of the training loss, as torch's CrossEntropyLoss(weight=...): none; balanced: images / (classes"
        " * images of the class), as in scikit-learn; or a JSON or CSV file of names and weights. The validation loss "
        "is not weighted.",
    ),
    "regularization.mixup": Key(0.0, float, "Alpha of mixup (arXiv:1710.09412); 0: off.", **NOT_NEGATIVE),
    "regularization.cutmix": Key(
        0.0,
        float,
        "Alpha of CutMix (arXiv:1905.04899); 0: off. With mixup, each batch uses one of the two.",
        **NOT_NEGATIVE,
    ),
    "regularization.stochastic_depth": Key(
        0.0, float, "Drop rate of the last block; it is lower for earlier ones (arXiv:1603.09382).", **FRACTION
    ),
    "regularization.dropout": Key(
        0.0,
        float,
        "Dropout of networks of texts: after the embeddings, of every branch (ModernBERT: within its MLPs), and of the "
        "head's inputs (BERT: 0.1, ModernBERT: 0), rounded to a 256th.",
        **FRACTION,
    ),
    "regularization.attention_dropout": Key(
        0.0,
        float,
        "Dropout of the attention weights of networks of texts (BERT: 0.1, ModernBERT: 0), rounded to a 256th.",
        **FRACTION,
    ),
    "regularization.l2_sp": Key(
        0.0,
        float,
        "L2-SP (arXiv:1802.01483): coefficient of half the squared distance to init's weights.",
        **NOT_NEGATIVE,
    ),
    "regularization.clip_norm": Key(None, float, "Maximum global norm of the gradients.", optional=True, **POSITIVE),
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
        **POSITIVE,
    ),
    "multilabel.loss": Key(
        "bce",
        str,
        "Loss of task=multilabel, averaged over labels. bce: binary cross-entropy; focal (arXiv:1708.02002), as "
        "torchvision's sigmoid_focal_loss; asymmetric: ASL (arXiv:2009.14119).",
        **one_of("bce", "focal", "asymmetric"),
    ),
    "multilabel.focal_gamma": Key(2.0, float, "Exponent of the focal loss.", **EXPONENT),
    "multilabel.focal_alpha": Key(
        0.25,
        float,
        "Weight of an image's own labels in the focal loss, that of the others being 1 minus this; none: unweighted.",
        check=lambda value: value is None or 0 < value < 1,
        rule="greater than 0 and less than 1",
        optional=True,
    ),
    "multilabel.gamma_positive": Key(1.0, float, "ASL's exponent for an image's own labels.", **EXPONENT),
    "multilabel.gamma_negative": Key(4.0, float, "ASL's exponent for all other labels.", **EXPONENT),
    "multilabel.clip": Key(
        0.05, float, "ASL's margin: less probable labels that an image does not have cost nothing.", **FRACTION
    ),
    "regression.loss": Key(
        "squared",
        str,
        "Loss of task=regression and text_regression, of errors divided by the standard deviation of the training "
        "numbers: squared, absolute, or huber (squared up to 1).",
        **one_of("squared", "absolute", "huber"),
    ),
    "segmentation.loss": Key(
        "cross_entropy",
        str,
        "Loss of task=segmentation. cross_entropy: the mean over pixels that have a class; dice: 1 - Dice (the F1 of "
        "probabilities), the mean over the classes of each image and over images, weighed by their pixels; both: the "
        "sum. regularization.class_weights weighs pixels.",
        **one_of("cross_entropy", "dice", "both"),
    ),
    "text.columns": Key(
        None,
        str,
        "Column of a table with the texts; two, separated by a semicolon, are a pair, e.g. premise;hypothesis; none: "
        "guessed.",
        optional=True,
    ),
    "text.length": Key(
        128, int, "Most tokens of a text, or of both of a pair; longer ones lose their ends.", **POSITIVE
    ),
    "text.tokenizer": Key(
        None,
        str,
        "For init=scratch, a tokenizer.json, or weights as init names them; none: that of init.",
        optional=True,
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
    "report.explain": Key(
        False,
        bool,
        "Show in the report of the end what mistakes, and a sample of right answers, depend on: heat maps by "
        "Grad-CAM, or by attention rollout for vision transformers, for classification and multilabel; for texts, the "
        "contributions of their tokens.",
    ),
    "optimizer.name": Key(
        "sgd",
        str,
        "sgd, with momentum as in torch, or any optimizer of optax or optax.contrib: adamw, lamb, lion, muon, "
        "schedule_free_sgd, ...",
    ),
    "optimizer.learning_rate": Key(1e-3, float, "Peak learning rate of the schedule.", **NOT_NEGATIVE),
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
        **NOT_NEGATIVE,
    ),
    "optimizer.decay": Key(
        "kernels",
        str,
        "What weight_decay applies to: kernels, or all parameters (torch's default), including biases and batch norm.",
        **one_of("kernels", "all"),
    ),
    "optimizer.sam_rho": Key(
        0.0,
        float,
        "Radius rho of sharpness-aware minimisation (arXiv:2010.01412); 0: off. Doubles the time of a step.",
        **NOT_NEGATIVE,
    ),
    "optimizer.schedule": Key(
        "constant",
        str,
        "cosine and linear decay to 0; step: divides by 10 after each third of the epochs; one_cycle: rises for 30% of "
        "training, then falls.",
        **one_of("constant", "cosine", "linear", "step", "one_cycle"),
    ),
    "optimizer.warmup_epochs": Key(0.0, float, "Epochs of linear learning-rate warmup from 0.", **NOT_NEGATIVE),
    "optimizer.reference_batch": Key(
        None,
        int,
        "Batch size that learning_rate is meant for; it is scaled linearly by batch_size / reference_batch.",
        optional=True,
        **POSITIVE,
    ),
    "optimizer.accumulate": Key(
        1,
        int,
        "Gradient accumulation: micro-batches per batch, to save memory; batch norm sees one micro-batch at a time.",
        **POSITIVE,
    ),
    "logging.wandb": Key(
        False, bool, "Also log to Weights & Biases (pip install wandb), in the project WANDB_PROJECT."
    ),
    "logging.mlflow": Key(False, bool, "Also log to MLflow (pip install mlflow), at MLFLOW_TRACKING_URI."),
    "limit_train_examples": Key(None, int, "Train on only this many images.", optional=True, **POSITIVE),
    "limit_eval_examples": Key(
        None, int, "Evaluate on only this many images of each split.", optional=True, **POSITIVE
    ),
}
