"""A whole epoch of the PyTorch worker: training on augmented images, then validation, in two ways."""

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torchvision import transforms

from sft_jax.benchmark import worker


class Epoch:
    """An epoch with the images and the augmentation of our side: random crops and flips.

    Args:
      network: is set to training and evaluation mode.
      update: trains on a batch: inputs, placed, and labels.
      logits: maps placed inputs to logits.
      placed: moves inputs to the device, in the memory format of the network.
      batch: batch size.
      size: side of the images.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        update: Callable[[torch.Tensor, torch.Tensor], None],
        logits: Callable[[torch.Tensor], torch.Tensor],
        placed: Callable[[torch.Tensor], torch.Tensor],
        batch: int,
        size: int,
    ):
        self._network, self._update, self._logits, self._placed = network, update, logits, placed
        self._batch, self._size = batch, size

    def from_loaders(self) -> Callable[[], None]:
        """Returns an epoch of torchvision's transforms, image by image, in `DataLoader`s with two workers."""
        normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        crop = transforms.RandomCrop(self._size, padding=worker.CROP_PADDING)
        augment = transforms.Compose([transforms.RandomHorizontalFlip(), crop, transforms.ToTensor(), normalize])
        plain = transforms.Compose([transforms.ToTensor(), normalize])
        loader = torch.utils.data.DataLoader
        training = _Images(worker.EPOCH_TRAIN, self._size, augment)
        held_out = _Images(worker.EPOCH_VALIDATION, self._size, plain)
        train = loader(training, self._batch, shuffle=True, num_workers=2)
        validation = loader(held_out, self._batch, num_workers=2)
        return lambda: self._run(train, validation)

    def in_memory(self) -> Callable[[], None]:
        """Returns an epoch of images that are one tensor, each batch of which is augmented at once."""
        images, labels = worker.images(worker.EPOCH_TRAIN + worker.EPOCH_VALIDATION, self._size)
        pixels, classes = torch.from_numpy(images), torch.from_numpy(labels).long()
        count = worker.EPOCH_TRAIN

        def train() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for rows in torch.randperm(count).split(self._batch):
                yield normalised(cropped(pixels[rows], worker.CROP_PADDING)), classes[rows]

        def validation() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for first in range(count, len(pixels), self._batch):
                rows = slice(first, first + self._batch)
                yield normalised(pixels[rows]), classes[rows]

        return lambda: self._run(train(), validation())

    def _run(self, train, validation) -> None:
        self._network.train()
        for inputs, labels in train:
            placed = self._placed(inputs)
            self._update(placed, labels.to(placed.device))
        self._network.eval()
        with torch.no_grad():
            hits = (
                (self._logits(self._placed(inputs)).argmax(1).cpu() == labels).sum() for inputs, labels in validation
            )
            correct = int(sum(hits))
        assert 0 <= correct <= worker.EPOCH_VALIDATION


def cropped(pixels: torch.Tensor, padding: int) -> torch.Tensor:
    """Flips each image of uint8 [n, size, size, 3] or not, and takes a random crop of its size after zero padding."""
    count, size = pixels.shape[:2]
    padded = torch.nn.functional.pad(pixels, (0, 0, padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    along = torch.arange(size)
    columns = torch.where(torch.rand(count, 1) < 0.5, along.flip(0), along) + left
    return padded[torch.arange(count)[:, None, None], (along + top)[:, :, None], columns[:, None, :]]


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Maps uint8 [n, size, size, 3] to float32 [n, 3, size, size] from -1 to 1, channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class _Images(torch.utils.data.Dataset):
    def __init__(self, count: int, size: int, transform):
        self.images, self.labels = worker.images(count, size)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int):
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])
