"""The torchvision worker of the comparison of input pipelines: ImageFolder and DataLoader with a worker per core.

    python -m sft_jax.benchmark.torch_input FOLDER SIZE BATCH

It runs in its own process, like `torch_side`.
"""

import os
import sys

import torch
from torchvision import datasets, transforms

from sft_jax.benchmark import worker
from sft_jax.errors import run_command


def main() -> None:
    """Serves the tasks first, with new workers, and later, with those of the epoch before."""
    folder, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders: list[torch.utils.data.DataLoader] = []

    def epoch() -> None:
        for images, _ in loaders[-1]:
            images.to(device, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def new() -> None:
        loaders.append(
            torch.utils.data.DataLoader(
                datasets.ImageFolder(folder, augment),
                batch,
                shuffle=True,
                drop_last=True,
                num_workers=os.cpu_count() or 1,
                pin_memory=device.type == "cuda",
                persistent_workers=True,
            )
        )
        epoch()

    def first(repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            loaders.clear()  # ends the workers
            times += worker.milliseconds(new, 1)
        return times

    worker.serve({"torch": torch.__version__}, {"first": first, "later": lambda n: worker.milliseconds(epoch, n)})


if __name__ == "__main__":
    sys.exit(run_command(main))
