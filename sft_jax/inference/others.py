"""Evaluates a trained network on other data than its run's."""

import argparse
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.cli import OTHERS_KEYS, WITH_TEXTS, Overrides, check_overrides, check_view_flags, tell
from sft_jax.config import complete, default_config, flatten
from sft_jax.config.recipe import parse_value
from sft_jax.data.sources.everything import load_everything
from sft_jax.data.sources.listing import counted, some
from sft_jax.data.sources.record import trained_among
from sft_jax.data.sources.texts.everything import labelled_texts
from sft_jax.inference.mask_scoring import score_masks
from sft_jax.inference.predictor import Classifier, load
from sft_jax.inference.scoring import file_name, score, score_texts
from sft_jax.inference.texts import TextClassifier
from sft_jax.inference.windows import View
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.runtime.files import write_json
from sft_jax.tasks import Task, monitor_of


def evaluate_others(
    args: argparse.Namespace, overrides: Overrides, console: Console
) -> tuple[dict[str, Any], Task, Path]:
    """Evaluates the network of `args` on all examples of `args.data`; returns and raises the same as `evaluate`."""
    check_overrides(overrides, OTHERS_KEYS, "evaluation")
    run = None if args.workdir is None else Run(args.workdir)
    changes = {name: parse_value(name, text) for name, text in overrides}
    classifier = load(args.workdir or args.weights, checkpoint=args.checkpoint)
    keys: dict[str, Any] = dict.fromkeys(WITH_TEXTS[2:]) | {"data.source": args.data}
    if isinstance(classifier, Classifier):
        keys["data.size"] = classifier.preprocess.size
    config = complete(flatten(run.config() if run else default_config()) | keys | changes)
    check_view_flags(args, dense=classifier.task.dense)
    view = View(args.windows, flips=args.flips)
    if isinstance(classifier, Classifier):
        results = _on_images(classifier, config, run, args.split, view, console)
    else:
        results = _on_texts(classifier, config, args.split, console)
    name = file_name(args.data, args.split) + view.suffix
    if run is None:
        file = args.weights.with_name(f"{args.weights.stem}_{name}.json")
    else:
        progress = Progress.from_json(run.restored("latest").metadata["progress"])
        results |= progress.outcome(classifier.task, monitor_of(config))
        file = run.folder / "evaluations" / f"{name}_{args.checkpoint}.json"
    write_json(file, results)
    return results, classifier.task, file


def _on_images(
    classifier: Classifier, config: ConfigDict, run: Run | None, split: str | None, view: View, console: Console
) -> dict[str, Any]:
    notices: list[str] = []
    known, square, labelling = classifier.class_names, classifier.preprocess.square, classifier.task.labelling
    images = load_everything(config.data, known, split, notices, square, labelling)
    record = run.dataset_record() if run else None
    if record is not None and images.record is not None:
        for names in trained_among(record, images.record).values():
            notices.append(f"the run was trained on {counted(len(names))} of {config.data.source}: {some(names)}")
    tell(notices)
    with console.progress(config.data.source, 1) as bar:
        if labelling == "mask":
            return score_masks(classifier, images, after=bar.set, view=view)
        augmentation = {} if run is None else config.evaluation.to_dict()
        return score(classifier, images, **augmentation, after=bar.set)


def _on_texts(classifier: TextClassifier, config: ConfigDict, split: str | None, console: Console) -> dict[str, Any]:
    notices: list[str] = []
    texts, targets = labelled_texts(config, classifier.class_names, split, notices, classifier.task.labelling)
    tell(notices)
    with console.progress(config.data.source, 1) as bar:
        return score_texts(classifier, texts, targets, bar.set)
