"""The PyTorch worker of the benchmark: torchvision's, timm's or transformers' network in a plain training script.

    python -m sft_jax.benchmark.torch_side ARCH BATCH SIZE PRECISION [channels_last] [compiled]

With precision bfloat16 it runs under autocast. `channels_last` is the memory format that PyTorch recommends for
convolutions; `compiled` compiles the network with CUDA graphs (`torch.compile`, mode "reduce-overhead"). SGD is the
fused one. On a GPU, cuDNN's algorithms are timed and chosen, and float32 is multiplied in TF32, as JAX does by default.

It runs in its own process: of the package only the files `torch_*.py` of this folder import torch.
"""

import sys
from typing import Any

from sft_jax.runtime.allocator import keep_freed_memory

# `python -m sft_jax.benchmark` switches it off to time stock PyTorch.
keep_freed_memory()

import torch  # noqa: E402  # the allocator first

from sft_jax import models  # noqa: E402
from sft_jax.benchmark import worker  # noqa: E402
from sft_jax.benchmark.torch_epoch import Epoch  # noqa: E402
from sft_jax.benchmark.torch_networks import of_images, of_texts  # noqa: E402
from sft_jax.errors import run_command  # noqa: E402


def main() -> None:
    """Serves the tasks train, eval, epoch and epoch_in_memory."""
    arch, batch, size, precision, *options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    memory_format = torch.channels_last if "channels_last" in options else torch.contiguous_format
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    inputs: Any
    known = models.architecture(arch)
    dense = known.dense
    if known.texts is None:
        network, inputs = of_images(arch, size), torch.randn(batch, 3, size, size)
    else:
        network, inputs = of_texts(arch, batch, size)
    network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    if "compiled" in options:
        network.compile(mode="reduce-overhead")
    platform = "gpu" if device.type == "cuda" else "cpu"
    steps = worker.steps_per_call(platform)
    optimizer = torch.optim.SGD(network.parameters(), lr=worker.LEARNING_RATE, momentum=worker.MOMENTUM, fused=True)
    criterion = torch.nn.CrossEntropyLoss()

    def placed(inputs: Any) -> Any:
        if isinstance(inputs, dict):
            return {name: tensor.to(device) for name, tensor in inputs.items()}
        return inputs.to(device, memory_format=memory_format)

    def logits(inputs: Any) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            found = network(**inputs) if isinstance(inputs, dict) else network(inputs)
        return found["out"] if dense else found.logits if isinstance(inputs, dict) else found

    inputs = placed(inputs)
    labels = torch.randint(0, worker.CLASSES, (batch, size, size) if dense else (batch,), device=device)

    def update(inputs, labels) -> None:
        optimizer.zero_grad()
        criterion(logits(inputs), labels).backward()
        optimizer.step()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def train(repeats: int) -> list[float]:
        network.train()

        def call() -> None:
            for _ in range(steps):
                update(inputs, labels)
            wait()

        return worker.milliseconds(call, repeats, steps)

    @torch.no_grad()
    def evaluate(repeats: int) -> list[float]:
        network.eval()

        def call() -> None:
            for _ in range(steps):
                logits(inputs)
            wait()

        return worker.milliseconds(call, repeats, steps)

    whole = Epoch(network, update, logits, placed, batch, size)

    def epoch(repeats: int) -> list[float]:
        return worker.milliseconds(whole.from_loaders(), repeats)

    def epoch_in_memory(repeats: int) -> list[float]:
        return worker.milliseconds(whole.in_memory(), repeats)

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"torch": torch.__version__, "device": name, "platform": platform}
    worker.serve(facts, {"train": train, "eval": evaluate, "epoch": epoch, "epoch_in_memory": epoch_in_memory})


if __name__ == "__main__":
    sys.exit(run_command(main))
