"""The sft-jax worker of the benchmark: the compiled programs with which `sft_jax.main` trains and evaluates.

python -m sft_jax.benchmark.jax_side ARCH BATCH SIZE PRECISION [stock]
"""

import contextlib
import sys
import tempfile
from pathlib import Path

from sft_jax.runtime.allocator import keep_freed_memory

ALLOCATOR = keep_freed_memory()

import jax  # noqa: E402  # the allocator first
import numpy as np  # noqa: E402

from sft_jax import data, models  # noqa: E402
from sft_jax.benchmark import stock, worker  # noqa: E402
from sft_jax.config import complete  # noqa: E402
from sft_jax.data.dataset import ArraySplit  # noqa: E402
from sft_jax.data.loader import Loader, StepsPerCall  # noqa: E402
from sft_jax.errors import UserError, run_command  # noqa: E402
from sft_jax.run.console import Console  # noqa: E402
from sft_jax.run.folder import Run  # noqa: E402
from sft_jax.runtime.devices import AXIS, Devices  # noqa: E402
from sft_jax.runtime.estimate import flops  # noqa: E402
from sft_jax.runtime.signals import StopRequest  # noqa: E402
from sft_jax.tasks import Task  # noqa: E402
from sft_jax.tasks.classification import Classification  # noqa: E402
from sft_jax.tasks.segmentation import Segmentation  # noqa: E402
from sft_jax.tasks.text import TextClassification  # noqa: E402
from sft_jax.training import optimizer  # noqa: E402
from sft_jax.training.evaluator import Evaluator  # noqa: E402
from sft_jax.training.state import TrainState  # noqa: E402
from sft_jax.training.step import make_train_step  # noqa: E402
from sft_jax.training.steps import make_train_steps  # noqa: E402
from sft_jax.training.trainer import Trainer  # noqa: E402


def main() -> None:
    """Serves the tasks train, eval and epoch."""
    arch, batch, size, precision, *rest = sys.argv[1:]
    if rest == ["stock"] and not stock.use_stock_layers(arch):
        raise UserError(f"--stock: only ResNets are written in stock Flax layers, not {arch}")
    config = complete(worker.recipe(arch, int(batch), int(size), precision))
    devices = Devices()
    devices.check_batch(config.batch_size)
    side = _Side(config, devices)
    facts = {"jax": jax.__version__, "device": str(devices), "platform": jax.default_backend(), "allocator": ALLOCATOR}
    facts |= {"train_flops": side.flops()}
    worker.serve(facts, {"train": side.train, "eval": side.evaluate, "epoch": side.epoch})


class _Side:
    def __init__(self, config, devices: Devices):
        self.config, self.devices = config, devices
        self.steps = steps = worker.steps_per_call(jax.default_backend())
        settings = {"size": config.data.size, "precision": config.precision}
        self.build = models.builder(config.model, worker.CLASSES, **settings, axis_name=AXIS)
        self.network = models.Network.abstract(self.build)
        self.optimizer = optimizer.make_optimizer(config.optimizer, steps, architecture=self.network.architecture)
        names, count = tuple(map(str, range(worker.CLASSES))), steps * config.batch_size
        self.task: Task
        if self.network.architecture.texts is not None:
            inputs, labels = worker.texts(config.model.name, count, config.text.length)
            self.task, split = TextClassification(names), ArraySplit(inputs, {"label": labels})
        elif self.network.architecture.dense:
            (images, _), masks = worker.images(count, config.data.size), worker.masks(count, config.data.size)
            self.task, split = Segmentation(names), ArraySplit({"image": images}, {"mask": masks})
        else:
            self.task, split = Classification(names), ArraySplit.of_images(*worker.images(count, config.data.size))
        self.loader = Loader(split, devices)
        order = np.arange(len(split), dtype=np.int32).reshape(steps, -1)
        steps_per_call = StepsPerCall()
        steps_per_call.steps = steps
        self.chunk = next(self.loader.calls(order, steps_per_call=steps_per_call)).chunk
        params, batch_stats = models.initial_arrays(self.build, config.seed)
        self.state = devices.replicate(TrainState.create(params, batch_stats, self.optimizer))
        self.key = devices.replicate(jax.random.key(config.seed))
        step = make_train_step(self.network, self.task, self.optimizer, AXIS)
        preprocess = self.task.preprocess(config.data, config.data.size)
        # No augmentation, because PyTorch's steps have none either; an epoch includes it on both sides.
        program = make_train_steps(step, lambda batch, *_: preprocess(batch), AXIS, devices.count)
        self.program = self.loader.compile(program, chunk_at=1, arguments=3, donate=(0,))
        self.evaluator = Evaluator(self.network, self.task, [preprocess], config.batch_size)

    def flops(self) -> float:
        """Returns the floating-point operations of one training step, see `estimate.flops`."""
        size, precision = self.config.data.size, self.config.precision
        build = models.builder(self.config.model, worker.CLASSES, size=size, precision=precision)
        network = models.Network.abstract(build)
        count, length = self.config.batch_size, self.config.text.length
        batch = {
            "image": jax.ShapeDtypeStruct((count, size, size, 3), np.float32),
            "tokens": jax.ShapeDtypeStruct((count, length), np.int32),
            "segments": jax.ShapeDtypeStruct((count, length), np.uint8),
            "label": jax.ShapeDtypeStruct((count,), np.int32),
            "mask": jax.ShapeDtypeStruct((count, size, size), np.uint8),
        }
        step = make_train_step(network, self.task, self.optimizer)
        return flops(step, jax.eval_shape(lambda: self.state), batch)

    def train(self, repeats: int) -> list[float]:
        def call() -> None:
            self.state, metrics = self.program(self.state, self.chunk, self.key)
            jax.block_until_ready((self.state, metrics))

        return worker.milliseconds(call, repeats, self.steps)

    def evaluate(self, repeats: int) -> list[float]:
        def call() -> None:
            self.evaluator(self.state.params, self.state.batch_stats, self.loader)

        return worker.milliseconds(call, repeats, self.steps)

    def epoch(self, repeats: int) -> list[float]:
        images, labels = worker.images(worker.EPOCH_TRAIN + worker.EPOCH_VALIDATION, self.config.data.size)
        split = ArraySplit.of_images(images, labels)
        training, validation = np.split(np.arange(len(split)), [worker.EPOCH_TRAIN])
        held_out = split.take(validation)
        dataset = data.Dataset(split.take(training), held_out, held_out, tuple(map(str, range(worker.CLASSES))))
        quiet = contextlib.redirect_stdout(sys.stderr)  # standard output carries the answers
        with tempfile.TemporaryDirectory() as folder, self.config.unlocked(), quiet:
            trainer = Trainer(self.config, dataset, self.devices, Run(Path(folder)), Console(), StopRequest())
            trainer.begin(None, resume=False, command=sys.argv)
            self.config.epochs = 1
            trainer.fit()  # compiles

            def call() -> None:
                self.config.epochs += 1
                trainer.fit()

            return worker.milliseconds(call, repeats)


if __name__ == "__main__":
    sys.exit(run_command(main))
