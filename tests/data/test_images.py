"""Tests of real-world images: formats, aspect ratios, 16 bits, damaged files, and the notices about them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from image_folders import SIZE, fill, png
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.images import formats
from sft_jax.data.images.files import find_images
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.preprocess import Preprocess
from sft_jax.data.sources.folder import load_folder
from sft_jax.errors import UserError
from sft_jax.models.architecture import Pretrained

USUAL = Preprocess.of_pretrained(Pretrained())


def noise_image(seed=0, width=12, height=10):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def load(folder, **settings):
    return load_folder(folder, SIZE, reading=Reading(**settings))


def gray(path, values):
    """Writes a gray image with `values` along each row, in their dtype."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.asarray(values), (SIZE, 1))).save(path)


# --- Aspect ratios


def test_a_crop_of_a_larger_size_matches_torchvision():
    for interpolation in ("bilinear", "bicubic"):
        mode = InterpolationMode[interpolation.upper()]
        for width, height in ((40, 30), (30, 55), (16, 16), (9, 100)):
            image = noise_image(0, width, height)
            theirs = v2.Compose([v2.Resize(20, mode), v2.CenterCrop(16)])(image)
            ours = Square(16, resize=20, interpolation=interpolation)
            np.testing.assert_array_equal(ours.of_image(image), theirs)
            np.testing.assert_array_equal(ours.of_array(np.asarray(image)), theirs)


def test_pad_keeps_everything_between_black_bars():
    for width, height in ((40, 20), (20, 40), (33, 20)):
        image = noise_image(0, width, height)
        padded = Square(16, "pad").of_image(image)
        np.testing.assert_array_equal(padded, ImageOps.pad(image, (16, 16), Image.Resampling.BILINEAR))
    white = Image.new("RGB", (40, 20), "white")
    rows = Square(16, "pad").of_image(white).mean((1, 2))
    np.testing.assert_array_equal(rows, 4 * [0] + 8 * [255] + 4 * [0])
    # A strip whose height would round to zero.
    assert Square(16, "pad").of_image(Image.new("RGB", (4000, 2), "white")).max() == 255


def test_squash_resizes_both_sides():
    image = noise_image(0, 40, 20)
    theirs = v2.Resize((16, 16))(image)
    np.testing.assert_array_equal(Square(16, "squash").of_image(image), theirs)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_floating_point_images_are_resized_like_uint8(fit):
    pixels = np.asarray(noise_image(0, 5, 3).resize((40, 24), Image.Resampling.BICUBIC))
    for square in (Square(16, fit), Square(16, fit, resize=20, interpolation="bicubic")):
        whole, exact = square.of_array(pixels), square.of_array(pixels.astype(np.float32) / 255)
        assert exact.dtype == np.float32
        # The uint8 result is rounded once per axis, and bicubic weights amplify the error.
        assert 0 < np.abs(exact * 255 - whole).max() <= 1.5


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ("crop", "centre crop: 50% of the image area is cropped on average (up to 50%); data.fit=pad keeps it all"),
        ("pad", "pad: 50% of the input is black padding on average (up to 50%)"),
        (
            "squash",
            "squash: aspect ratios change by 2.00 x on average (up to 2.00 x); data.fit=pad preserves them",
        ),
    ],
)
def test_the_treatment_of_oblong_images_is_reported(tmp_path, fit, said):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, ["a", "b"], 2)
    for seed, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        noise_image(seed, 40, 20).save(path)
    first = noise_image(4, 40, 20)  # after those of the test split
    dataset = load(tmp_path, fit=fit)
    assert dataset.notices == (said,)
    assert dataset.square == Square(SIZE, fit)
    np.testing.assert_array_equal(dataset.train.images[0], Square(SIZE, fit).of_image(first))


# --- Formats


@pytest.mark.parametrize(
    "suffix", ["tif", "tiff", "ppm", "pgm", "jfif", "avif", "webp", "bmp", "gif", "jp2", "JPG", "tga"]
)
def test_every_format_of_pillow_is_an_image(tmp_path, suffix):
    """Regression: only six suffixes were known, and folders of TIFF lost their images."""
    name = {"jfif": "jpg", "pgm": "ppm"}.get(suffix, suffix.lower())
    noise_image().save(tmp_path / f"a.{name}")
    (tmp_path / f"a.{name}").rename(tmp_path / f"b.{suffix}")
    assert find_images(tmp_path).images == [tmp_path / f"b.{suffix}"]
    assert Square(SIZE).read(tmp_path / f"b.{suffix}").shape == (SIZE, SIZE, 3)


def test_photographs_with_several_frames_are_read(tmp_path):
    """Some phones write MPO, JPEG with a second image, with the suffix of JPEG."""
    noise_image().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise_image(1)])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
        np.testing.assert_array_equal(Square(SIZE).read(tmp_path / "a.jpg"), Square(SIZE).of_image(image))


def test_a_file_without_a_suffix_is_recognised_by_its_content(tmp_path):
    noise_image().save(tmp_path / "a.png")
    for name in ("no_suffix", "image.123", "image.jpg_large", "photo.jpg?v=2"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    texts = {
        "README": b"P",
        "labels.txt": b"0 0.5 0.5\n",
        "a.json": b"{}",
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF",
        "x": b"",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    files = find_images(tmp_path)
    assert {path.name for path in files.others} == set(texts)
    assert len(files.images) == 5


def test_a_program_in_place_of_an_image_is_not_run(tmp_path):
    """Pillow would start Ghostscript for PostScript, whatever the suffix."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(Image.UnidentifiedImageError):
        Square(SIZE).read(tmp_path / "a.png")


def test_heic_is_read_if_pillow_heif_is_installed(tmp_path):
    """A fake package of that name registers a format, as the real one does."""
    package = tmp_path / "path" / "pillow_heif"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile, lambda prefix: prefix.startswith(b'\\x89PNG'))\n"
        "    Image.register_extensions('HEIF', ['.heic', '.heif'])\n"
    )
    noise_image().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "IMG_1.HEIC")
    code = (
        "import sys, pathlib\n"
        "from sft_jax.data.images.files import find_images\n"
        f"print(find_images(pathlib.Path({str(tmp_path)!r})).images)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(package.parent), "HOME": str(tmp_path)},
    )
    assert "IMG_1.HEIC" in done.stdout


def test_heic_with_another_suffix_names_the_package_to_install(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(Image.UnidentifiedImageError) as caught:
        Square(SIZE).read(tmp_path / "a.jpg")
    assert formats.reason(caught.value, tmp_path / "a.jpg") == "it is HEIF: pip install pillow-heif"


# --- Large images


def test_an_image_above_pillows_limit_is_read_up_to_the_setting(tmp_path, monkeypatch):
    """For maps and slide scans: Pillow warns above 89 million pixels and refuses above 179 million."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    noise_image(0, 20, 10).save(tmp_path / "a.png")
    assert Square(SIZE).read(tmp_path / "a.png", 200).shape == (SIZE, SIZE, 3)
    assert Image.MAX_IMAGE_PIXELS == 50, "Pillow's own limit is unchanged"
    with pytest.raises(formats.TooLargeError, match=r"it has 200 pixels, more than 199; .*--config.data.max_pixels"):
        Square(SIZE).read(tmp_path / "a.png", 199)
    fill(tmp_path, ["a", "b"], 10)
    noise_image(0, 20, 10).save(tmp_path / "b" / "large.png")
    with pytest.raises(UserError, match=f"1 image cannot be read: {tmp_path}/b/large.png .it has 200 pixels"):
        load(tmp_path, max_pixels=199)


# --- More than 8 bits


def grays(tmp_path, name, low, high, dtype, classes=("a", "b")):
    """Loads splits of gray images from `low` to `high`; validation and test images exceed the range."""
    for part, count in {"train": 3, "val": 1, "test": 1}.items():
        for label in classes:
            for number in range(count):
                values = np.linspace(low, high, SIZE)
                values[1] *= 1 - 0.01 * (10 * len(part) + number + (label == "b") / 2)  # no two alike
                values[-1] = high if part == "train" else high + (high - low)
                gray(tmp_path / part / label / f"{number}{name}", values.astype(dtype))
    return load(tmp_path)


@pytest.mark.parametrize(
    ("name", "low", "high", "dtype", "field", "limits"),
    [
        (".png", 0, 4000, np.uint16, "integers", (0, 4095)),
        (".tif", 100, 900, np.uint16, "integers", (0, 1023)),
        (".tif", 0, 200, np.int32, "integers", (0, 255)),
        (".tif", -1000, 3000, np.int32, "integers", (-1000, 4095)),
        (".tif", 0, 100_000, np.int32, "integers", (0, 100_000)),
        (".tif", 0, 0.9, np.float32, "floats", (0, 1)),
        (".tif", -2, 6, np.float32, "floats", (-2, 6)),
    ],
)
def test_gray_values_are_scaled_by_the_range_of_the_training_images(tmp_path, name, low, high, dtype, field, limits):
    """Regression: 12-bit X-rays were nearly black when only the upper 8 of 16 bits were used."""
    dataset = grays(tmp_path, name, low, high, dtype)
    assert getattr(dataset.square, field) == limits
    assert dataset.notices == (
        f"{'floating-point' if field == 'floats' else '16- or 32-bit'} gray images: {limits[0]:g} to "
        f"{limits[1]:g}, the range of the training images, is mapped to 0 to 255",
    )
    values = np.linspace(low, high, SIZE).astype(dtype).astype(np.float64)
    wanted = np.round((values - limits[0]) / (limits[1] - limits[0]) * 255)
    for channel in range(3):
        np.testing.assert_allclose(np.delete(dataset.train.images[0, 0, :, channel], 1), np.delete(wanted, 1), atol=1)
    assert dataset.test.images[0, 0, -1, 0] >= 255 * min(1, (high + high - low) / limits[1]) - 1, "clipped, not wrapped"


def test_gray_values_over_all_16_bits_are_not_rescaled(tmp_path):
    dataset = grays(tmp_path, ".png", 0, 30_000, np.uint16)
    assert (dataset.square, dataset.notices) == (Square(SIZE), ())
    wanted = np.linspace(0, 30_000, SIZE).astype(np.uint16) >> 8
    np.testing.assert_array_equal(np.delete(dataset.train.images[0, 0, :, 0], 1), np.delete(wanted, 1))


def test_16_bit_colour_is_reduced_to_8_bits_with_a_notice(tmp_path):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, ["a", "b"], 2, start=10 * len(part))
    rows = b"".join(b"\0" + bytes([value, 255] * 3 * SIZE) for value in range(SIZE))
    (tmp_path / "train" / "a" / "deep.png").write_bytes(png(SIZE, SIZE, depth=16, data=rows))
    for memory_bytes in (None, 1):
        dataset = load(tmp_path, memory_bytes=memory_bytes)
        assert dataset.notices[0] == "images with 16 bits per channel (1): only the upper 8 bits are used"
    pixels = Square(SIZE).read(tmp_path / "train" / "a" / "deep.png")
    np.testing.assert_array_equal(pixels[:, 0, 0], np.arange(SIZE))


def test_the_recorded_range_is_reused(tmp_path):
    """Evaluation and prediction repeat the preprocessing of training, even if the images have changed."""
    square = grays(tmp_path, ".png", 0, 4000, np.uint16).square
    recorded = Preprocess.from_json(
        json.loads(json.dumps(Preprocess(**vars(square), mean=(0,) * 3, std=(1,) * 3).to_json()))
    )
    gray(tmp_path / "train" / "a" / "brighter.png", np.linspace(0, 16_000, SIZE).astype(np.uint16))
    again = load(tmp_path, square=recorded.square)
    bright, dim = again.train.images[3, 0, :, 0], again.train.images[0, 0, :, 0]
    np.testing.assert_array_equal(bright, np.clip(np.round(np.linspace(0, 16_000, SIZE) / 4095 * 255), 0, 255))
    np.testing.assert_allclose(dim[2:], np.linspace(0, 4000, SIZE)[2:] / 4095 * 255, atol=1)
    np.testing.assert_array_equal(recorded.read(tmp_path / "train" / "a" / "brighter.png")[0, :, 0], bright)


# --- Damaged files


def broken(tmp_path, *names):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, ["a", "b"], 4, start=10 * len(part))
    paths = [tmp_path / name for name in names]
    for number, path in enumerate(paths):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number else b"")
    return paths


NAMES = ("train/b/001.png", "val/a/002.png", "test/b/003.png")


@pytest.mark.parametrize("memory_bytes", [None, 100], ids=["in memory", "streamed"])
def test_broken_images_of_all_splits_are_listed_at_once_and_can_be_skipped(tmp_path, memory_bytes):
    bad = broken(tmp_path, *NAMES)
    with pytest.raises(UserError) as caught:
        load(tmp_path, memory_bytes=memory_bytes)
    assert str(caught.value).startswith("3 images cannot be read: ")
    for path in bad:
        assert str(path) in str(caught.value)
    dataset = load(tmp_path, memory_bytes=memory_bytes, on_error="skip")
    assert dataset.notices[0].startswith(f"3 images cannot be read and were skipped: {bad[0]} (not an image, or ")
    for part, split in (("train", dataset.train), ("val", dataset.validation), ("test", dataset.test)):
        left = sorted(path for path in (tmp_path / part).rglob("*.png") if path not in bad)
        assert split.names == [str(path.relative_to(tmp_path)) for path in left]
        assert split.labels.tolist() == [int("/b/" in name) for name in split.names]
        images = next(split.batches(np.arange(len(split))[None]))["image"]
        for image, path in zip(images, left, strict=True):
            np.testing.assert_array_equal(image, Square(SIZE).read(path))


def test_a_class_without_readable_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken(tmp_path, *(f"val/b/{number:03}.png" for number in range(3)), "val/b/003.png")
    with pytest.raises(UserError, match=r"no val image of the class of .*val/b/000.png is readable"):
        load(tmp_path, on_error="skip")


def test_a_truncated_jpeg_is_detected_before_training_on_streamed_images(tmp_path):
    """Regression: such files have a valid header, and ended runs midway."""
    fill(tmp_path, ["a", "b"], 10)
    path = tmp_path / "b" / "photo.jpg"
    noise_image(0, 300, 200).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=f"1 image cannot be read: {path} .image file is truncated"):
        load(tmp_path, memory_bytes=1)


def test_a_file_that_disappears_later_is_named_with_a_remedy(tmp_path):
    fill(tmp_path, ["a", "b"], 10)
    dataset = load(tmp_path, memory_bytes=1)
    (tmp_path / dataset.train.names[5]).unlink()
    with pytest.raises(UserError) as caught:
        list(dataset.train.batches(np.arange(len(dataset.train))[None]))
    assert str(caught.value) == (
        f"{tmp_path / dataset.train.names[5]} cannot be read any more, although it could when the run began (No such "
        "file or directory); repair it and add --resume to the same command"
    )


def test_progress_counts_all_images(tmp_path):
    fill(tmp_path, ["a", "b"], 10)
    calls = []
    load(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == 2 * [(done, 20) for done in range(1, 21)], "checked, then read"


def test_warnings_of_pillow_name_the_first_file(tmp_path):
    """Regression: thousands of warnings about corrupt EXIF data did not name any file."""
    fill(tmp_path, ["a", "b"], 10)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    for name in ("x.jpg", "y.jpg"):
        noise_image().save(tmp_path / "a" / name, exif=exif)
    for memory_bytes in (None, 1):
        dataset = load(tmp_path, memory_bytes=memory_bytes)
        (said,) = [notice for notice in dataset.notices if "EXIF" in notice]
        assert said.startswith((f"{tmp_path}/a/x.jpg: Corrupt EXIF", f"{tmp_path}/a/y.jpg: Corrupt EXIF"))
        assert said.endswith("(and 1 more files)")
        for split in (dataset.train, dataset.validation, dataset.test):
            list(split.batches(np.arange(len(split))[None]))


# --- Records


def test_the_preprocessing_is_recorded_and_read_back():
    facts = {
        "size": 224,
        "resize": 256,
        "interpolation": "bicubic",
        "fit": "crop",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
    }
    preprocess = Preprocess.of_metadata({"preprocess": json.dumps(facts)}, USUAL)
    assert preprocess == Preprocess(224, resize=256, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    assert Preprocess.of_metadata({}, USUAL) is USUAL
    assert Preprocess(224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) == USUAL
    first = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": False}
    assert Preprocess.from_json(first) == Preprocess(32, keep_square=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    for wrong in ({"fit": "stretch"}, {"interpolation": "cubic"}, {"pad": True}):
        with pytest.raises(UserError, match="this version does not support the recorded preprocessing"):
            Preprocess.from_json(facts | wrong)


def photo(path, width, height, orientation=1, quality=90):
    """Writes an image with detail at all scales, as photographs have it."""
    generator = np.random.default_rng(0)
    layers = (
        np.kron(generator.integers(0, 64, (999 // s + 1, 999 // s + 1, 3)), np.ones((s, s, 1))) for s in (1, 4, 16, 64)
    )
    pixels = sum(layer[:height, :width] for layer in layers)
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif, quality=quality)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(800, 600), (601, 999)])
def test_fast_decoding_changes_pixels_slightly(tmp_path, fit, orientation, size):
    path = photo(tmp_path / "a.jpg", *size, orientation)
    for interpolation in ("bilinear", "bicubic"):
        exact, fast = (
            Square(64, fit, interpolation=interpolation, decoding=decoding).read(path).astype(int)
            for decoding in ("exact", "fast")
        )
        difference = np.abs(exact - fast)
        assert (0 < difference.mean() < 0.8) == (orientation == 1 or size == (800, 600))
        assert difference.max() <= 6


def test_fast_decoding_is_exact_where_there_is_little_to_gain(tmp_path):
    large = photo(tmp_path / "a.jpg", 400, 300)
    small = photo(tmp_path / "b.jpg", 400, 255)
    lossless = photo(tmp_path / "c.png", 400, 300)
    for path, same in ((large, False), (small, True), (lossless, True)):
        exact, fast = (Square(64, decoding=decoding).read(path) for decoding in ("exact", "fast"))
        assert np.array_equal(exact, fast) == same, path
    with Image.open(large) as image:
        image.load()  # too late
        np.testing.assert_array_equal(Square(64, decoding="fast").of_image(image), Square(64).read(large))


@pytest.mark.parametrize("decoding", ["fast", "exact"])
def test_prediction_decodes_as_training_did(tmp_path, decoding):
    for name in ("ant", "bee"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            photo(tmp_path / name / f"{number}.jpg", 240 + number, 200, quality=80 + number)
    values = {"data.source": f"folder:{tmp_path}", "data.size": 32, "data.decoding": decoding}
    dataset = load_dataset(complete(values).data, seed=0)
    said = "large JPEG files decoded at a fraction of the size; data.decoding=exact decodes all of it"
    assert any(said in notice for notice in dataset.notices) == (decoding == "fast")
    preprocess = Preprocess.of_config(complete({"data.decoding": "exact"}).data, dataset.square)
    recorded = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    for name, image in zip(dataset.train.names, dataset.train.images, strict=True):
        np.testing.assert_array_equal(image, recorded.read(tmp_path / name))
        assert np.array_equal(image, Square(32).read(tmp_path / name)) == (decoding == "exact")
