"""Tests of the epoch of PyTorch's worker, with few images."""

import numpy as np
import pytest
import torch

from sft_jax.benchmark import worker
from sft_jax.benchmark.torch_epoch import Epoch, cropped, normalised

torch.manual_seed(0)


def test_crops_are_windows_of_the_padded_images_flipped_or_not():
    pixels, _ = worker.images(64, 8)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, result in zip(padded, cropped(torch.from_numpy(pixels), 2).numpy(), strict=True):
        windows = {
            (top, left, flip): image[top : top + 8, left : left + 8][:, :: -1 if flip else 1]
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
        }
        seen |= {place for place, window in windows.items() if np.array_equal(window, result)}
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}
    assert len(seen) > 25, "all are drawn independently"


def test_pixels_are_normalised_channels_last():
    result = normalised(torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3))
    assert result.flatten().tolist() == pytest.approx([-1, 1, -0.6])
    assert normalised(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("way", ["from_loaders", "in_memory"])
def test_an_epoch_trains_on_every_image_once_and_validates_on_the_others(way, monkeypatch):
    monkeypatch.setattr(worker, "EPOCH_TRAIN", 12)
    monkeypatch.setattr(worker, "EPOCH_VALIDATION", 6)
    network, trained, validated = torch.nn.Identity(), [], []

    def update(inputs, labels):
        assert network.training
        assert inputs.shape == (4, 3, 8, 8)
        trained.extend(labels.tolist())

    def logits(inputs):
        assert not network.training
        validated.append(inputs)
        return inputs.flatten(1)[:, : worker.CLASSES]

    monkeypatch.setattr(torch.utils.data, "DataLoader", _in_this_process)
    epoch = getattr(Epoch(network, update, logits, lambda inputs: inputs, 4, 8), way)()
    for _ in range(2):  # a second one is like the first
        trained.clear()
        validated.clear()
        epoch()
        images, labels = worker.images(18 if way == "in_memory" else 12, 8)
        assert sorted(trained) == sorted(labels[:12].tolist())
        rest = images[12:] if way == "in_memory" else worker.images(6, 8)[0]
        np.testing.assert_allclose(torch.cat(validated), normalised(torch.from_numpy(rest)), atol=1e-6)


_LOADER = torch.utils.data.DataLoader


def _in_this_process(data, batch, *, num_workers, **settings):
    assert num_workers == 2
    return _LOADER(data, batch, **settings)
