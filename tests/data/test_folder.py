"""Tests of folders of images: image modes, layouts, and errors."""

import runpy

import numpy as np
import pytest
from image_folders import SIZE, fill, message, noise_image
from PIL import Image
from torchvision.transforms import v2

from sft_jax.data.images import named
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.folder import load_folder


@pytest.mark.parametrize(
    ("width", "height"), [(12, 10), (9, 31), (8, 8), (31, 31), (5, 7), (1, 1), (200, 3), (17, 1), (9, 8), (8, 11)]
)
def test_any_size_becomes_a_square_as_in_torchvision(width, height):
    image = noise_image(0, width, height)
    theirs = np.asarray(v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE)])(image))
    np.testing.assert_array_equal(Square(SIZE).of_image(image), theirs)
    np.testing.assert_array_equal(Square(SIZE).of_array(np.asarray(image)), theirs)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "HSV", "RGBX"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    gray = np.full((SIZE, SIZE), 128, np.uint8)
    gray[:, : SIZE // 2] = 0
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "1":
        image = Image.fromarray(np.where(gray > 0, 255, 0).astype(np.uint8)).convert("1")
    elif mode == "P":
        image = Image.fromarray(gray).convert("P")  # converting from RGB would dither
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode)
    bright = 255 if mode == "1" else 128
    pixels = Square(SIZE).of_image(image)
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_allclose(pixels[:, : SIZE // 2], 0, atol=2)
    np.testing.assert_allclose(pixels[:, SIZE // 2 :], bright, atol=2)
    if mode in ("L", "P", "1", "RGBA", "LA", "I;16"):
        image.save(tmp_path / "image.png")
        np.testing.assert_array_equal(Square(SIZE).read(tmp_path / "image.png"), pixels)


def test_transparency_is_white():
    image = Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0))
    assert (Square(SIZE).of_image(image) == 255).all()


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[0] = 255  # a bright upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # camera held in portrait: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    rotated = Square(SIZE).read(tmp_path / "image.png")
    assert rotated[:, -1].min() == 255
    assert rotated[:, :-1].max() == 0


def test_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(Square(SIZE).read(tmp_path / "image.gif")[0, 0], (255, 0, 0))


def test_split_folders_are_used(tmp_path):
    for part, count in {"train": 5, "val": 2, "test": 3}.items():
        fill(tmp_path / part, ["cat", "dög"], count, start=100 * count)
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == ("cat", "dög")
    assert dataset.notices == ()
    for split, count in ((dataset.train, 5), (dataset.validation, 2), (dataset.test, 3)):
        np.testing.assert_array_equal(split.labels, np.repeat([0, 1], count))
    first = Square(SIZE).read(tmp_path / "train" / "dög" / "000.png")
    np.testing.assert_array_equal(dataset.train.images[5], first)


def test_the_validation_folder_may_have_its_full_name(tmp_path):
    for index, part in enumerate(("train", "validation", "test")):
        fill(tmp_path / part, ["a", "b"], 2, start=100 * index)
    assert load_folder(tmp_path, SIZE).notices == ()


def test_without_split_folders_splits_are_drawn_by_name_and_class_with_a_notice(tmp_path):
    fill(tmp_path, ["a", "b", "c"], 20)
    dataset = load_folder(tmp_path, SIZE)
    splits = (dataset.train, dataset.validation, dataset.test)
    counts = ", ".join(f"{len(split)} {part}" for split, part in zip(splits, ("train", "val", "test"), strict=True))
    assert dataset.notices == (
        "no val or test split: using about 10% of the training images of each class, chosen by file name: " + counts,
    )
    for split in splits:
        assert np.bincount(split.labels).min() >= 1
    everything = [image.tobytes() for split in splits for image in split.images]
    assert len(set(everything)) == len(everything) == 60, "no image is in two splits"


def test_a_missing_validation_split_is_drawn_from_training(tmp_path):
    fill(tmp_path / "train", ["a", "b"], 20)
    fill(tmp_path / "test", ["a", "b"], 3, start=500)
    dataset = load_folder(tmp_path, SIZE)
    assert len(dataset.train) + len(dataset.validation) == 40
    assert len(dataset.test) == 6
    assert dataset.notices[0].startswith("no val split: using about 10% of the training images of each class")


def test_other_files_are_counted_and_skipped(tmp_path):
    fill(tmp_path, ["a", "b"], 10)
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "b" / "pipe.png").symlink_to("nowhere")
    (tmp_path / "b" / ".hidden.png").write_text("")
    (tmp_path / "b" / "@eaDir").mkdir()
    (tmp_path / "b" / "@eaDir" / "thumbnail.jpg").write_text("")
    (tmp_path / ".cache").mkdir()
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == ("a", "b")
    assert dataset.notices[0] == (
        "2 files skipped, not readable as images: "
        f"1 .txt (e.g. {tmp_path}/a/notes.txt), 1 special files or broken links (e.g. {tmp_path}/b/pipe.png)"
    )


def test_images_in_subfolders_belong_to_the_class(tmp_path):
    """As in torchvision's ImageFolder, for training, prediction and the recipe."""
    fill(tmp_path, ["a", "b"], 10)
    fill(tmp_path / "a", ["2023", "2024"], 5)
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == ("a", "b")
    labels = np.concatenate([split.labels for split in (dataset.train, dataset.validation, dataset.test)])
    assert np.bincount(labels).tolist() == [20, 10]
    assert len(list(named.files([str(tmp_path)], print))) == 30
    assert runpy.run_path("configs/folder.py")["count"](tmp_path) == round(0.8 * 30)


def assert_same_batch(actual, wanted):
    assert actual.keys() == wanted.keys() == {"image", "label"}
    for name, column in wanted.items():
        np.testing.assert_array_equal(actual[name], column, strict=True)


def test_streamed_images_equal_those_in_memory(tmp_path):
    fill(tmp_path, ["a", "b"], 10)
    memory, streamed = load_folder(tmp_path, SIZE), load_folder(tmp_path, SIZE, reading=Reading(memory_bytes=1000))
    for data in (memory, streamed):
        for split in (data.train, data.validation.take(np.array([1, 0]))):
            images = next(split.batches(np.arange(len(split))[None]))["image"]
            for image, name in zip(images, split.names, strict=True):
                np.testing.assert_array_equal(image, Square(SIZE).read(tmp_path / name), name)
    assert streamed.notices[-1] == "the images would need 0.0 GiB of memory: decoding them anew in each epoch"
    order = np.array([[3, 0, 13], [7, 7, 1]])
    for actual, wanted in zip(streamed.train.batches(order), memory.train.batches(order), strict=True):
        assert_same_batch(actual, wanted)
    rows = np.array([4, 2])
    (actual,), (wanted,) = (list(data.train.take(rows).batches(np.array([[1, 0]]))) for data in (streamed, memory))
    assert_same_batch(actual, wanted)


def test_unusable_folders_are_refused(tmp_path):
    assert message(tmp_path / "no") == f"data.source=folder:{tmp_path / 'no'}: no such folder"
    needs = f"{tmp_path} needs one folder of images per class, at least two; found "
    assert message(tmp_path) == needs + "none"
    (tmp_path / "labels.csv").write_text("file,label\n")
    assert message(tmp_path) == (
        f"{needs}none; if labels.csv has the labels, use --config.data.source=csv:{tmp_path / 'labels.csv'}"
    )
    fill(tmp_path, ["a"], 10)
    assert message(tmp_path) == needs + "only 'a'"
    (tmp_path / "b").mkdir()
    assert message(tmp_path) == f"{tmp_path / 'b'} contains no images; add some, or remove the folder"
    fill(tmp_path, ["b"], 1)
    fill(tmp_path / "test", ["a", "b", "x"], 1)
    assert message(tmp_path) == (
        f"{tmp_path / 'test'} has classes that are not in the training split: 'x'; rename or remove them, or put "
        f"unlabelled images directly into {tmp_path / 'test'}"
    )
    (tmp_path / "flowers.zip").write_bytes(b"PK")
    assert message(tmp_path / "flowers.zip").endswith("flowers.zip is a file; unpack it and name the folder")
    assert message(tmp_path / "labels.csv").endswith(f" is a file; use csv:{tmp_path / 'labels.csv'}")


def test_too_few_images_to_split_are_refused(tmp_path):
    fill(tmp_path, ["a", "b"], 1)
    assert message(tmp_path).startswith(f"{tmp_path} has too few images to draw a ")


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no picture at all",
    "flipped": lambda data: data[:20] + bytes(byte ^ 0xFF for byte in data[20:]),
}


@pytest.mark.parametrize("memory_bytes", [None, 100], ids=["in memory", "streamed"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_images_are_named(tmp_path, damage, memory_bytes):
    fill(tmp_path, ["a", "b"], 10)
    bad = tmp_path / "b" / "003.png"
    bad.write_bytes(DAMAGE[damage](bad.read_bytes()))
    said = message(tmp_path, reading=Reading(memory_bytes=memory_bytes))
    assert said.startswith(f"1 image cannot be read: {bad} (")
    assert said.endswith("; repair or remove them, or skip them with --config.data.on_error=skip")


def test_many_damaged_images_are_counted_and_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val", "test"):
        fill(tmp_path / part, ["a", "b"], 12)
    for path in (tmp_path / "train" / "a").iterdir():
        path.write_bytes(b"")
    said = message(tmp_path, allow_overlap=True)
    assert said.startswith(f"12 images cannot be read: {tmp_path}/train/a/000.png (not an image, or damaged), ")
    assert " and 9 more, all listed in bad_images.txt; repair or remove them" in said
    listed = [line.split("\t")[0] for line in (tmp_path / "bad_images.txt").read_text().splitlines()]
    assert listed == [f"{tmp_path}/train/a/{number:03}.png" for number in range(12)]
