"""The training run: prepare, then epoch by epoch train, evaluate and save, then score the best checkpoint once."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data, models, optim, parallel, weights
from sft_jax.data.order import epoch_order
from sft_jax.epoch import make_train_steps
from sft_jax.errors import DivergedError, StoppedError, UserError
from sft_jax.evaluation import Evaluator
from sft_jax.feed import Feed, Pace, Piece
from sft_jax.progress import Progress
from sft_jax.report.console import Console, duration, epoch_line
from sft_jax.report.results import write_json, write_rows
from sft_jax.runs import Run, load_run_weights
from sft_jax.signals import StopRequest
from sft_jax.state import TrainState, from_arrays, to_arrays
from sft_jax.step import make_train_step


def train(config: ConfigDict, workdir: Path, *, resume: bool, command: list[str], console: Console) -> dict[str, Any]:
    """Runs `config` in `workdir` to its end and returns what results.json holds.

    Raises:
      UserError: something given is wrong; nothing was written.
      DivergedError: the loss became non-finite; the checkpoints before it are kept.
      StoppedError: a signal came; the state is saved.
    """
    run = Run(workdir)
    run.check_use(config, resume=resume)
    devices = parallel.Devices()
    devices.check_batch(config.batch_size)
    start = load_start(config)
    dataset = data.load_dataset(
        config.data,
        seed=config.seed,
        limit_train=config.limit_train_examples,
        limit_eval=config.limit_eval_examples,
    )
    for notice in dataset.notices:
        console.line(notice)
    trainer = Trainer(config, dataset, devices, run, console)
    trainer.start(start, resume=resume, command=command)
    with StopRequest() as stop:
        trainer.fit(stop)
    return trainer.finish()


def load_start(config: ConfigDict) -> weights.Weights | None:
    """What `config.init` names: a converted file, the best checkpoint of a run, or nothing (scratch)."""
    if config.init == "scratch":
        return None
    path = Path(config.init)
    found = load_run_weights(path) if path.is_dir() else weights.load_weights(path)
    if found.arch != config.model.name:
        raise UserError(
            f"init={config.init} holds a {found.arch}, but model.name={config.model.name}; "
            f"use --config.model.name={found.arch}"
        )
    return found


class Trainer:
    """One run in one process: its programs, its state on the devices and its progress."""

    def __init__(self, config: ConfigDict, dataset: data.Dataset, devices: parallel.Devices, run: Run, console: Console):
        self.config, self.dataset, self.devices, self.run, self.console = config, dataset, devices, run, console
        self.checkpoints = run.checkpoints
        self.order = lambda epoch: epoch_order(config.seed, epoch, len(dataset.train), config.batch_size)
        self.epoch_steps = len(self.order(0))
        total_steps = config.epochs * self.epoch_steps
        self.schedule = optim.make_schedule(config.optimizer, total_steps)
        self.optimizer = optim.make_optimizer(config.optimizer, total_steps)
        self.network = models.create(config.model, len(dataset.class_names), config.precision, axis_name=parallel.AXIS)
        self.key = devices.replicate(jax.random.key(config.seed))
        self.feed = Feed(dataset.train, devices)
        self.pace = Pace()
        augment, preprocess = data.make_augment(config.data), data.make_preprocess(config.data)
        step = make_train_step(self.network, self.optimizer, parallel.AXIS)
        program = make_train_steps(step, augment, parallel.AXIS, devices.count)
        self.train_steps = devices.compile(
            program, sharded=(False, *self.feed.sharded, False, False, False), donate=(0,)
        )
        self.evaluator = Evaluator(self.network, preprocess, devices, len(dataset.class_names), config.batch_size)
        self.validation = Feed(dataset.validation, devices)
        self.progress = Progress()
        self.state: TrainState

    def start(self, init: weights.Weights | None, *, resume: bool, command: list[str]) -> None:
        """Decides where the weights come from, and records the run.

        1. With `resume`, the latest checkpoint of this run, if there is one.
        2. The weights that `config.init` names; the head is new where the classes differ.
        3. Random weights.
        """
        classes = self.dataset.class_names
        fresh = self.network.init(self.config.seed)
        restored = None
        if resume:
            like = TrainState.create(*fresh, self.optimizer)
            expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), to_arrays(like))
            restored = self.checkpoints.restore("latest", expected)
        if restored is not None:
            for notice in restored.notices:
                self.console.line(notice)
            self.progress = Progress(**restored.metadata["progress"])
            state = from_arrays(like, restored.arrays)
            self.say(f"resumed at epoch {self.progress.epoch + 1}, step {int(state.step)}")
        elif init is not None:
            keep_head = weights.keeps_head(init.class_names, classes)
            params, batch_stats = weights.initialise(
                fresh, init.arrays, source=self.config.init, keep_head=keep_head
            )
            state = TrainState.create(params, batch_stats, self.optimizer)
            self.say(f"weights from {self.config.init}, {'its' if keep_head else 'a new'} head")
        else:
            state = TrainState.create(*fresh, self.optimizer)
            self.say("random weights")
        self.state = self.devices.replicate(state)
