"""Tests that images and folders of all kinds are read correctly or named in an error, without hanging."""

import io
import itertools
import os
import sys
import time

import numpy as np
import pytest
from fuzzing import contents, damages, refusals, tries
from hypothesis import given
from hypothesis import strategies as st
from image_folders import png
from PIL import Image

from sft_jax.data.images.files import is_ignored
from sft_jax.data.images.formats import UNREADABLE
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.folder import load_folder
from sft_jax.data.sources.part_names import part_of
from sft_jax.errors import UserError

SIZE = 8
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")


def encoded(image, form, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
WHOLE = {form: encoded(Image.fromarray(PIXELS), form) for form in FORMATS}
WHOLE["PNG, palette"] = encoded(Image.fromarray(PIXELS).convert("P"), "PNG")
WHOLE["PNG, 16 bits"] = encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")
WHOLE["JPEG, CMYK"] = encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")
WHOLE["JPEG, progressive"] = encoded(Image.fromarray(PIXELS), "JPEG", progressive=True, exif=Image.Exif())
WHOLE["GIF, animated"] = encoded(
    Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged files that it can still read
@given(kind=st.sampled_from(list(WHOLE)), damage=damages(names=("empty", "truncate", "flip", "insert", "swap")))
@tries(200)
def test_damaged_pictures(tmp_path, kind, damage):
    path = tmp_path / "image.png"
    path.write_bytes(damage(WHOLE[kind]))
    before = contents(tmp_path)
    try:
        found = Square(SIZE).read(path)
    except UNREADABLE:
        pass
    else:
        assert (found.shape, found.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert contents(tmp_path) == before


NOT_IMAGES = {
    "no pixels": png(0, 0),
    "no width": png(0, 5),
    "no height": png(5, 0, data=b""),
    "GIF without pixels": b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\0;",
    "text": b"this is no picture\n",
    "HTML": b"<!DOCTYPE html><img src=x>",
    "a claim of 2^31 pixels": png(2**31 - 1, 1),
    "a claim of 10^10 pixels": png(100_000, 100_000),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_files_that_are_not_images_are_named(tmp_path, content):
    """They are named within seconds, even in a folder of good images."""
    classes(tmp_path, "a", "b")
    bad = tmp_path / "b" / "bad.png"
    bad.write_bytes(content)
    start = time.monotonic()
    for memory_bytes in (None, 1):
        with pytest.raises(UserError, match="1 image cannot be read: ") as caught:
            load_folder(tmp_path, SIZE, reading=Reading(memory_bytes=memory_bytes))
        assert str(bad) in str(caught.value)
    unchecked = parts(load_folder(tmp_path, SIZE, reading=Reading(memory_bytes=1, check=False)))
    with pytest.raises(UserError, match=r"b/bad\.png cannot be read \(.*\); repair or remove it"):
        list(itertools.chain.from_iterable(split.batches(np.arange(len(split))[None]) for split in unchecked))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 1), (1, 20_000), (20_000, 300), (2, 60_000)])
def test_extreme_aspect_ratios_are_resized(width, height):
    """Resized naively to `SIZE`, a strip one pixel wide would take 4 GB."""
    colors = np.zeros((height, width, 3), np.uint8)
    colors[..., 1] = 200
    start = time.monotonic()
    resized = Square(224).of_image(Image.fromarray(colors))
    np.testing.assert_array_equal(resized, np.broadcast_to([0, 200, 0], (224, 224, 3)))
    assert time.monotonic() - start < 5


def test_the_middle_of_a_strip_is_kept():
    colors = np.zeros((2, 4000, 3), np.uint8)
    colors[:, 1999:2001] = 255
    resized = Square(32).of_image(Image.fromarray(colors))
    assert resized[:, 8:24].min() > 120
    assert resized[:, [0, -1]].max() < 140
    np.testing.assert_array_equal(resized, resized[:, ::-1])


# --- Folders


def classes(root, *names, count=10):
    for index, name in enumerate(names):
        folder = root / name if isinstance(name, str) else os.fsencode(root) + b"/" + name
        os.makedirs(folder, exist_ok=True)
        for number in range(count):
            pixels = np.full((SIZE, SIZE, 3), 10 * index + number, np.uint8)
            data = encoded(Image.fromarray(pixels), "PNG")
            path = os.path.join(os.fsencode(folder), f"{number:02}.png".encode())
            with open(path, "wb") as file:
                file.write(data)


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def test_circular_links_are_not_followed(tmp_path):
    classes(tmp_path, "a", "b")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == ("a", "b")
    assert sum(map(len, parts(dataset))) == 20
    assert dataset.notices[0].startswith(
        "3 files skipped, not readable as images: 3 special files or broken links (e.g. "
    )


def test_special_files_are_not_opened(tmp_path):
    """Reading a pipe would block forever."""
    classes(tmp_path, "a", "b")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert sum(map(len, parts(load_folder(tmp_path, SIZE)))) == 20


def as_nobody(action):
    """Runs `action` as an unprivileged user, because root may read everything."""
    if os.geteuid():
        return action()
    os.seteuid(65534)
    try:
        return action()
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("kind", ["image", "class", "folder"])
def test_unreadable_files_and_folders_are_named(tmp_path, kind):
    root = tmp_path / "images"
    classes(root, "a", "b")
    closed = {"image": root / "b" / "03.png", "class": root / "b", "folder": root}[kind]
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        parent.chmod(0o755)
    closed.chmod(0)
    try:
        with pytest.raises(UserError) as caught:
            as_nobody(lambda: load_folder(root, SIZE))
    finally:
        closed.chmod(0o755)
    assert str(closed) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    names=st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=30), min_size=2, max_size=5)
)
@tries(25)
def test_any_names(tmp_path_factory, names):
    """Class names are taken as they are and sorted as strings; a leading dot hides a folder."""
    root = tmp_path_factory.mktemp("folder")
    try:
        for name in names:
            classes(root, name, count=10)
    except (OSError, UnicodeEncodeError):
        return  # not a valid name on this file system
    wanted = sorted({name for name in names if not is_ignored(name)})
    with refusals() as said:
        found = load_folder(root, SIZE)
        assert found.class_names == tuple(wanted)
        assert sum(map(len, parts(found))) == 10 * len(wanted)
    assert not said or len(wanted) < 2 or any(map(part_of, wanted))


def test_names_that_are_not_text_are_refused_or_replaced(tmp_path):
    """A name in Latin-1 could not be printed."""
    if sys.platform != "linux":
        pytest.skip("file names are text here")
    classes(tmp_path, "a", b"caf\xe9")
    with pytest.raises(UserError, match=r"class name is not valid UTF-8: .*caf\\udce9.*rename the folder"):
        load_folder(tmp_path, SIZE)
    (tmp_path / os.fsdecode(b"caf\xe9")).rename(tmp_path / "b")
    (tmp_path / "a" / "00.png").rename(tmp_path / "a" / os.fsdecode(b"caf\xe9.png"))
    assert "a/caf\N{REPLACEMENT CHARACTER}.png" in [
        name for split in parts(load_folder(tmp_path, SIZE)) for name in split.names
    ]


@given(data=st.data())
@tries(15)
def test_any_layout(tmp_path_factory, data):
    """Missing, empty or incomplete splits: refused, or every split has images of known classes."""
    root = tmp_path_factory.mktemp("folder")
    names = st.sampled_from(["a", "b", "c", ".hidden"])
    for part in data.draw(st.lists(st.sampled_from(["train", "val", "validation", "test", "."]), unique=True)):
        for name in data.draw(st.lists(names, unique=True)):
            classes(root / part, name, count=data.draw(st.sampled_from([0, 1, 10])))
    with refusals() as said:
        found = load_folder(root, SIZE)
    if not said:
        assert len(found.class_names) >= 2
        for split in parts(found):
            assert len(split)
            assert set(split.labels) <= set(range(len(found.class_names)))
