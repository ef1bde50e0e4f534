"""Loads what training starts from: the dataset, and converted, earlier or random weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data.preprocess import Preprocess, recorded_square
from sft_jax.data.sources.known import kind_of, source_of
from sft_jax.data.sources.listing import counted, some
from sft_jax.data.sources.overlap import ALLOW, check_positions
from sft_jax.data.sources.record import trained_among
from sft_jax.data.sources.tfds import positions
from sft_jax.errors import UserError
from sft_jax.models import architecture, initial_arrays
from sft_jax.models.packages import PREFIX, load_packaged
from sft_jax.models.weights import Weights, inherited_head, initialise, load_weights
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights
from sft_jax.tasks import check_settings, task_class
from sft_jax.training.experiment import Experiment
from sft_jax.training.state import Arrays


@dataclasses.dataclass(frozen=True)
class Earlier:
    """The records of an existing run that is to be resumed, evaluated or reported on.

    Attributes:
      images: its record of the images in each split; None without a run, or if its version did not record them.
      began: whether there is a run.
      saved: whether it has a checkpoint to resume from.
      preprocess: preprocessing of its images, see `recorded_square`.
      learnt: what its predictions need besides the weights, see `Task.learnt`.
    """

    images: data.Record | None = None
    began: bool = False
    saved: bool = False
    preprocess: dict[str, Any] | None = None
    learnt: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict for `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, contents: dict[str, Any]) -> "Earlier":
        """Inverts `to_json`, also in another process."""
        images = contents["images"]
        return cls(**{**contents, "images": images and data.Record.from_json(images)})


def earlier(run: Run) -> Earlier:
    """Returns the `Earlier` of `run`. Raises UserError if its record cannot be read."""
    saved = run.checkpoints.holds("latest")
    metadata = run.latest_metadata() if saved else {}
    learnt = metadata.get("progress", {}).get("learnt", {})
    return Earlier(run.dataset_record(), run.exists(), saved, metadata.get("preprocess"), learnt)


def load_init(config: ConfigDict) -> Weights | None:
    """Loads the weights that `config.init` names; None for scratch.

    They are a converted file, a run's best checkpoint, or those of an installed package.
    """
    if config.init == "scratch":
        return None
    weights = load_named(config.init)
    if not architecture(config.model.name).starts_from(architecture(weights.arch, f"network in init={config.init}: ")):
        raise UserError(
            f"init={config.init} contains a {weights.arch}, but model.name={config.model.name}; "
            f"use --config.model.name={weights.arch}"
        )
    return weights


def load_named(init: str) -> Weights:
    """Loads the weights that a `config.init` other than scratch names. Raises UserError if there are none."""
    if init.startswith(PREFIX):
        return load_packaged(init)
    path = Path(init)
    if not path.suffix and not path.exists():
        raise UserError(
            f"init={init}: there is no such run; train it first, with --workdir {path} "
            f"(configs/digits.py needs: python -m sft_jax.main --config configs/digits.py:source)"
        )
    return load_run_weights(path) if path.is_dir() else load_weights(path)


def read_dataset(
    config: ConfigDict,
    console: Console,
    *,
    init: Weights | None = None,
    once: bool = False,
    before: Earlier | None = None,
    resuming: bool = False,
) -> data.Dataset:
    """Loads the dataset that `config.data` names, reduced to the limits, see `data.load_dataset`.

    Args:
      config: the whole configuration.
      console: shows the progress.
      init: what `load_init` returned; loaded again if it is None and texts need its tokenizer.
      once: see `data.load_dataset`.
      before: an existing run whose images are to be loaded.
      resuming: whether that run is resumed.

    Raises:
      UserError: a setting does not fit the task, or the images cannot be read, are not those of the run, or were
        trained on by the run that `init` names.
    """
    check_settings(config)
    before = before or Earlier()
    texts = task_class(config).reading(config, lambda: _tokenizer(config, init, before))
    square = recorded_square(before.preprocess)
    if square is None and before.saved:  # early versions did not record it
        square = Preprocess.of_config(config.data).square
    title = f"reading {config.data.source}"
    if not console.moves:
        console.line(title)
    with console.progress(title, 1) as bar:
        dataset = data.load_dataset(
            config.data,
            seed=config.seed,
            limit_train=config.limit_train_examples,
            limit_eval=config.limit_eval_examples,
            once=once,
            recorded=before.images,
            resuming=resuming,
            old_seed=config.seed if before.began and before.images is None else None,
            square=square,
            progress=bar.set,
            labelling=task_class(config).labelling,
            texts=texts,
        )
    notices = [] if before.began else _trained_before(config, dataset)
    if resuming and before.began and before.images is None and dataset.record and dataset.record.parts:
        notices.append(
            "the run was started by a version that did not record its images: added or removed images since "
            "then cannot be detected"
        )
    return dataclasses.replace(dataset, notices=(*dataset.notices, *notices))


def _tokenizer(config: ConfigDict, init: Weights | None, before: Earlier) -> str | None:
    """Returns the tokenizer of the run, else that of `init`, else that of `config.text.tokenizer`; None without any.

    Raises:
      UserError: the last two are not the same, or cannot be read.
    """
    if "tokenizer" in before.learnt:
        return before.learnt["tokenizer"]
    weights, named = load_init(config) if init is None else init, config.text.tokenizer
    own = None if weights is None else weights.tokenizer
    given = None
    if named is not None:
        given = _read(named) if named.endswith(".json") else load_named(named).tokenizer
    if None not in (own, given) and own != given:
        raise UserError(
            f"config.text.tokenizer={named} is not the tokenizer with which the weights of init={config.init} were "
            f"trained; leave it out"
        )
    return own or given


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"config.text.tokenizer={file} cannot be read: {error}") from None


def _trained_before(config: ConfigDict, dataset: data.Dataset) -> list[str]:
    """Returns notices about validation and test images that `config.init`, or a run it started from, trained on."""
    notices, seen, init = [], set(), config.init
    while init != "scratch" and Path(init).is_dir() and Path(init).resolve() not in seen:
        seen.add(Path(init).resolve())
        run = Run(Path(init))
        record = run.dataset_record()
        if record is not None and dataset.record is not None:
            for part, names in trained_among(record, dataset.record).items():
                line = f"init={init} was trained on {counted(len(names), f'{part} image')}: {some(names)}"
                if part == "test" and not config.data.allow_overlap:
                    raise UserError(f"{line}; {ALLOW}")
                notices.append(line)
        before = run.config()
        notices += _test_split_before(config, before, init)
        init = before.init
    return notices


def _test_split_before(config: ConfigDict, before: ConfigDict, init: str) -> list[str]:
    """Checks whether the test split contains records of the training split of `init`, if both use the same tfds set."""
    _, name = kind_of(config.data)
    if not source_of(config.data).has_splits or before.data.source != config.data.source:
        return []
    names = {"train": f"{before.data.train} of init={init}", "test": config.data.test}
    splits = {"train": before.data.train, "test": config.data.test}
    records = {part: positions(name, directory=config.data.dir, split=split) for part, split in splits.items()}
    return check_positions(records, names, allow_overlap=config.data.allow_overlap)


def initial_weights(experiment: Experiment, init: Weights | None) -> tuple[Arrays, Arrays, str]:
    """Returns the parameters and batch statistics before the first step, and a description of their origin.

    With `init` they are its weights; in the head, if `init` learnt the same task, rows of classes with the same name
    are kept and the others are initialised with `config.seed`. Position embeddings are resampled for
    `config.data.size`. Without `init` all weights are random.

    Raises:
      UserError: `init` does not fit the network.
    """
    config, build, network = experiment.config, experiment.build, experiment.network
    if init is None:
        return *initial_arrays(build, config.seed), "random weights"
    adopted = network.architecture.adopted(init.arrays)
    network.architecture.check_stem(adopted, config.model.stem, source=config.init)
    arrays, resampled = network.architecture.for_size(adopted, config.data.size)
    prefix = f"{network.architecture.head}."
    own, statistics = initial_arrays(build, config.seed, prefix=prefix)
    head = {**own, **statistics}
    inherited, description = _inherited_head(experiment, init, head, prefix)
    params, batch_stats = initialise(network, arrays | inherited, source=config.init, head=None if inherited else head)
    normalisation = _normalisation(init, config) if "image" in network.inputs else ""
    return params, batch_stats, f"weights of {config.init}{description}{resampled}{normalisation}"


def _inherited_head(
    experiment: Experiment, init: Weights, fresh: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], str]:
    """Returns `inherited_head` in the scale of the task; nothing is inherited from another task.

    Layers of the head before the last are inherited whatever the classes, if it is a head of the same kind.
    """
    if init.task != experiment.config.task:
        return {}, f" with a new head (they learnt task={init.task})"
    gives_outputs = experiment.network.architecture.gives_outputs
    before = {name: leaf for name, leaf in fresh.items() if not gives_outputs(name)}
    if any(name not in init.arrays or init.arrays[name].shape != leaf.shape for name, leaf in before.items()):
        return {}, " with a new head"
    last = {name: leaf for name, leaf in fresh.items() if name not in before}
    inherited, description = inherited_head(init, experiment.dataset.class_names, last)
    if before:
        description = description if inherited else " with a new last layer"
        inherited = {name: init.arrays[name] for name in before} | (inherited or last)
    taken = experiment.task.taken({name.removeprefix(prefix): array for name, array in inherited.items()})
    return {prefix + leaf: array for leaf, array in taken.items()}, description


def _normalisation(init: Weights, config: ConfigDict) -> str:
    """Returns a note if `init` was trained on images that were normalised in another way than those of this run."""
    trained = Preprocess.of_metadata(init.metadata, Preprocess.of_config(config.data))
    pairs = ((trained.mean, config.data.mean), (trained.std, config.data.std))
    if all(np.allclose(theirs, ours, atol=1e-3) for theirs, ours in pairs):
        return ""
    mean, std = (",".join(f"{value:g}" for value in values) for values in (trained.mean, trained.std))
    return f"; notice: they were trained with --config.data.mean={mean} --config.data.std={std}"
