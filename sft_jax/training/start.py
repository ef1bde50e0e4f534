"""What training starts from: converted weights, an earlier run, or random weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data.preprocess import Preprocess, recorded_square
from sft_jax.data.sources.listing import counted, some
from sft_jax.data.sources.load import kind_of, source_of
from sft_jax.data.sources.overlap import ALLOW, check_positions
from sft_jax.data.sources.record import trained_among
from sft_jax.data.sources.tfds import positions
from sft_jax.errors import UserError
from sft_jax.models import Network, initial_arrays
from sft_jax.models.weights import Weights, inherited_head, initialise, load_weights
from sft_jax.run.console import Console
from sft_jax.run.folder import Run, load_run_weights
from sft_jax.training.state import Arrays


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What the run that is to be resumed, scored or reported on has recorded of its beginning.

    Attributes:
      images: which is in which part; None where there is no run yet, or one of a version that recorded none.
      began: whether there is a run.
      saved: whether it has a checkpoint to go on from.
      preprocess: what its images went through, see `recorded_square`.
    """

    images: data.Record | None = None
    began: bool = False
    saved: bool = False
    preprocess: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, contents: dict[str, Any]) -> "Earlier":
        """Of what `to_json` gave, from another process too."""
        images = contents["images"]
        return cls(**{**contents, "images": images and data.Record.from_json(images)})


def earlier(run: Run) -> Earlier:
    """That of `run`. Raises UserError where its record cannot be read."""
    saved = run.checkpoints.holds("latest")
    preprocess = run.latest_metadata().get("preprocess") if saved else None
    return Earlier(run.dataset_record(), run.exists(), saved, preprocess)


def load_init(config: ConfigDict) -> Weights | None:
    """What `config.init` names: a converted file, the best checkpoint of a run, or nothing (scratch)."""
    if config.init == "scratch":
        return None
    path = Path(config.init)
    if not path.suffix and not path.exists():
        raise UserError(
            f"init={config.init}: there is no such run yet; train it first, with --workdir {path} "
            f"(configs/digits.py needs: python -m sft_jax.main --config configs/digits.py:source)"
        )
    found = load_run_weights(path) if path.is_dir() else load_weights(path)
    if found.arch != config.model.name:
        raise UserError(
            f"init={config.init} holds a {found.arch}, but model.name={config.model.name}; "
            f"use --config.model.name={found.arch}"
        )
    return found


def read_dataset(
    config: ConfigDict, console: Console, *, once: bool = False, before: Earlier | None = None, resuming: bool = False
) -> data.Dataset:
    """What `config.data` names, less what the limits leave out, see `data.load_dataset`.

    Args:
      config: the whole configuration.
      console: shows that it takes its time.
      once: see `data.load_dataset`.
      before: of a run that began earlier: its images are wanted.
      resuming: that run goes on.

    Raises:
      UserError: the images cannot be read, are not those of the run, or were trained on by the run that `init` names.
    """
    before = before or Earlier()
    square = recorded_square(before.preprocess)
    if square is None and before.saved:  # the first runs
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
        )
    found = [] if before.began else _trained_before(config, dataset)
    if resuming and before.began and before.images is None and dataset.record and dataset.record.parts:
        found.append("the run began when runs recorded no images: which of them came or went since cannot be told")
    return dataclasses.replace(dataset, notices=(*dataset.notices, *found))


def _trained_before(config: ConfigDict, dataset: data.Dataset) -> list[str]:
    """Lines about images that are to be scored and that the run `config.init`, or the one before it, trained on."""
    notices, seen, init = [], set(), config.init
    while init != "scratch" and Path(init).is_dir() and Path(init).resolve() not in seen:
        seen.add(Path(init).resolve())
        run = Run(Path(init))
        record = run.dataset_record()
        if record is not None and dataset.record is not None:
            for part, names in trained_among(record, dataset.record).items():
                line = f"{counted(len(names), f'{part} image')} were trained on by init={init}: {some(names)}"
                if part == "test" and not config.data.allow_overlap:
                    raise UserError(f"{line}; {ALLOW}")
                notices.append(line)
        before = run.config()
        notices += _test_split_before(config, before, init)
        init = before.init
    return notices


def _test_split_before(config: ConfigDict, before: ConfigDict, init: str) -> list[str]:
    """The same of a prepared set that both are on: whether the test split has records of the earlier training split."""
    _, name = kind_of(config.data)
    if not source_of(config.data).has_splits or before.data.source != config.data.source:
        return []
    splits = {"train": f"{before.data.train} of init={init}", "test": config.data.test}
    wanted = {"train": before.data.train, "test": config.data.test}
    found = {part: positions(name, directory=config.data.dir, split=split) for part, split in wanted.items()}
    return check_positions(found, splits, allow_overlap=config.data.allow_overlap)


def initial_weights(
    config: ConfigDict, build: Callable, network: Network, init: Weights | None, class_names: tuple[str, ...]
) -> tuple[Arrays, Arrays, str]:
    """The parameters and batch statistics before the first step, and in words where they come from.

    With `init` the weights are its own, and so are the rows of the head whose classes have the same name among
    `class_names`; the other rows are drawn with `config.seed`. Without it all weights are random.

    Raises:
      UserError: `init` does not fit the network.
    """
    if init is None:
        return *initial_arrays(build, config.seed), "random weights"
    network.architecture.check_stem(init.arrays, config.model.stem, source=config.init)
    head, _ = initial_arrays(build, config.seed, prefix=f"{network.architecture.head}.")
    own, said = inherited_head(init, class_names, head)
    params, batch_stats = initialise(network, init.arrays | own, source=config.init, head=None if own else head)
    return params, batch_stats, f"weights of {config.init}{said}"
