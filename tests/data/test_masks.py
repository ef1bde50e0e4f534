"""Tests the sources of images with masks: layouts, what masks become, and what is refused."""

import shutil

import numpy as np
import pytest
from mask_folders import NAMES, VOID, fill, parts, pictured
from PIL import Image

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.images.square import Square
from sft_jax.data.sources.folder import load_folder
from sft_jax.errors import UserError


def load(source, *, recorded=None, resuming=False, **changes):
    values = {"data.source": source, "data.size": 16, "data.fit": "squash", "data.ignore_index": VOID}
    config = complete(values | {f"data.{key}": value for key, value in changes.items()})
    return load_dataset(config.data, seed=0, labelling="mask", recorded=recorded, resuming=resuming)


def message(source, **changes):
    with pytest.raises(UserError) as caught:
        load(source, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return parts(tmp_path / "set", 3, 2, 2)


def test_splits_classes_and_ignored_pixels(folder):
    dataset = load(f"masks:{folder}", size=20, fit="crop")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3, 2, 2)
    assert dataset.class_names == NAMES
    _, mask = pictured(1001)
    wanted = np.where(mask == VOID, 255, mask)[:, 2:22]
    np.testing.assert_array_equal(dataset.validation.targets["mask"][1], wanted, strict=True)
    picture = next(dataset.validation.batches(np.array([[1]])))["image"][0]
    np.testing.assert_array_equal(picture, pictured(1001)[0][:, 2:22])


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(24, 20), (21, 33), (7, 40), (301, 30)])
def test_a_mask_is_brought_to_the_place_of_its_picture(fit, size):
    """A picture that shows its mask's values in large steps, resized alike, has them where the mask has them."""
    square = Square(16, fit)
    width, height = size
    quarter = np.ones(((height + 1) // 2, (width + 1) // 2), np.uint8)
    mask = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), quarter)[:height, :width]
    picture = Image.fromarray(np.repeat(80 * mask[..., None], 3, -1))
    ours, seen = square.of_mask(Image.fromarray(mask), 255), square.of_image(picture)[..., 0]
    assert ours.shape == (16, 16)
    assert ours.dtype == np.uint8
    assert set(np.unique(ours)) <= {0, 1, 2, 3, 255}
    near = seen / 80 - np.where(ours == 255, 0, ours)
    inside = np.abs(near) < 0.01
    # Only at the borders of classes do pixels of the picture mix two of them.
    assert inside.mean() > 0.6
    assert (np.abs(near[~inside]) < 3).all()
    if fit == "pad" and width != height:
        assert (ours == 255).any()
        assert (seen[ours == 255] == 0).all()
    else:
        assert not (ours == 255).any()


def test_palettes_bits_and_nested_parts(tmp_path):
    for number in range(6):
        for kind in ("images", "masks"):
            (tmp_path / kind / "training").mkdir(parents=True, exist_ok=True)
        picture, mask = pictured(number)
        Image.fromarray(picture).save(tmp_path / "images" / "training" / f"{number}.jpg")
        image = Image.fromarray(np.minimum(mask, 2), "P") if number else Image.fromarray((mask == 1).astype(bool))
        if number:
            image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(tmp_path / "masks" / "training" / f"{number}.png")
    dataset = load(f"masks:{tmp_path}", size=20, fit="crop")
    assert dataset.class_names == ("0", "1", "2")
    lines = " ".join(dataset.notices)
    assert "has no classes.txt: the classes are the values of the masks, 0 to 2" in lines
    assert "no validation or test split" in lines or "no val or test split" in lines
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(map(len, splits)) == 6
    for split in splits:
        for name, own in zip(split.names, split.targets["mask"], strict=True):
            number = int(name.split("/")[-1].split(".")[0])
            mask = pictured(number)[1]
            wanted = np.minimum(mask, 2) if number else (mask == 1).astype(np.uint8)
            np.testing.assert_array_equal(own, wanted[:, 2:22])


def test_masks_under_other_usual_names(tmp_path):
    fill(tmp_path, 5)
    (tmp_path / "masks").rename(tmp_path / "labels")
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    dataset = load(f"masks:{tmp_path}")
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 5
    (tmp_path / "images" / "test").mkdir()
    (tmp_path / "labels" / "test").mkdir()
    (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "test" / "000.png")
    (tmp_path / "labels" / "000_mask.png").rename(tmp_path / "labels" / "test" / "000_mask.png")
    assert "001.png is in no split, but others are in folders of splits" in message(f"masks:{tmp_path}")


def test_pascal_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    fill(tmp_path / "plain", 6)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "plain" / "masks").rename(root / "SegmentationClass")
    (root / "JPEGImages").mkdir()
    for path in (tmp_path / "plain" / "images").iterdir():
        Image.open(path).save(root / "JPEGImages" / f"{path.stem}.jpg")
    lists = {"train": ["000", "001", "002", "003"], "val": ["004"], "test": ["005", "999"], "trainval": ["000"]}
    for part, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
    dataset = load(f"voc:{tmp_path / 'VOCdevkit'}")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (4, 1, 1)
    assert dataset.class_names[:2] == ("background", "aeroplane")
    assert len(dataset.class_names) == 21
    assert any("1 test image ignored, which have no mask: 999" in line for line in dataset.notices)
    (root / "SegmentationClass" / "001.png").unlink()
    assert "1 file of" in message(f"voc:{tmp_path / 'VOCdevkit'}")


def test_a_mask_that_does_not_fit_is_one_line(folder):
    source, masks = f"masks:{folder}", folder / "train" / "masks"
    before = (masks / "001.png").read_bytes()

    def refused(image=None, name="001.png", **changes):
        if image is not None:
            image.save(masks / name)
        line = message(source, **changes)
        (masks / "001.png").write_bytes(before)
        if name != "001.png":
            (masks / name).unlink()
        return line

    plain = np.zeros((20, 24), np.uint8)
    assert "001.png has 20 x 24 pixels, but its picture" in refused(Image.fromarray(plain.T.copy()))
    assert "001.png has colours (mode RGB)" in refused(Image.fromarray(np.stack([plain] * 3, -1)))
    wide = Image.fromarray(np.full((20, 24), 999, np.uint16))
    assert "has values from 999 to 999; use only 0 to 255" in refused(wide)
    line = refused(Image.fromarray(plain + 7))
    assert "1 mask with a value that no class has" in line
    assert "001.png has 7, but the 3 classes are 0 to 2" in line
    line = message(source, ignore_index=None)
    assert f"7 masks with a value that no class has: {folder / 'test' / 'masks' / '000.png'} has {VOID}" in line
    assert "use --config.data.ignore_index=200" in message(source, ignore_index=255)
    assert "has several masks" in refused(Image.fromarray(plain), "001.bmp")
    (masks / "001.png").write_bytes(b"no image")
    assert "1 image without a mask" not in message(source)
    (masks / "001.png").write_bytes(before)
    (masks / "001.png").rename(folder / "001.png")
    line = message(source)
    assert "1 image without a mask" in line
    assert f"the first needs {masks / '001.png'}" in line
    (folder / "001.png").rename(masks / "001.png")
    Image.fromarray(plain).save(masks / "unused.png")
    assert any("1 mask ignored, without an image" in line for line in load(source).notices)


def test_folders_that_are_not_of_masks(folder, tmp_path):
    assert message(f"masks:{tmp_path / 'nowhere'}").endswith("no such folder")
    assert "has neither folders images and masks nor" in message(f"masks:{tmp_path}")
    shutil.rmtree(folder / "val" / "masks")
    assert message(f"masks:{folder}") == f"{folder / 'val'} has a folder images but none called masks"
    (folder / "val").rename(folder / "third")
    assert "third contains images but is not named like a split" in message(f"masks:{folder}")


def test_names_of_classes(folder):
    for text, line in [
        ("a\n\nb\n", "line 2 is empty"),
        ("a\na\n", "has 'a' twice"),
        ("a\n", "has 1 class, but segmentation needs two or more"),
        ("\n".join(map(str, range(256))), "has 256 classes; masks of 8 bits have at most 255"),
    ]:
        (folder / "classes.txt").write_text(text)
        assert line in message(f"masks:{folder}")


def test_binary_masks_of_0_and_255_are_refused_instead_of_ignoring_all_objects(tmp_path):
    fill(tmp_path, 4)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, np.uint8(255), np.uint8(0))).save(path)
    line = message(f"masks:{tmp_path}", ignore_index=255)
    assert "needs two or more; if 255 is one, write 1 in its place" in line
    assert "masks have the value 255, and no classes.txt" in message(f"masks:{tmp_path}", ignore_index=None)


def test_a_jpeg_file_is_no_mask_and_a_rotated_picture_is_refused(folder):
    masks = folder / "train" / "masks"
    Image.open(masks / "000.png").save(masks / "000.jpg")
    (masks / "000.png").unlink()
    assert "is a JPEG file, which does not keep the indices of classes" in message(f"masks:{folder}")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(masks / "000.png")
    (masks / "000.jpg").unlink()
    picture = folder / "train" / "images" / "000.png"
    image = Image.open(picture)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(picture, exif=exif)
    assert f"{picture} is stored rotated (EXIF)" in message(f"masks:{folder}")


def test_a_resumed_run_notices_changed_masks(folder):
    source = f"masks:{folder}"
    before = load(source)
    again = load(source, recorded=type(before.record).from_json(before.record.to_json()), resuming=True)
    np.testing.assert_array_equal(again.train.targets["mask"], before.train.targets["mask"])
    fill(folder / "more", 1, 77)
    (folder / "more" / "images" / "000.png").rename(folder / "train" / "images" / "new.png")
    (folder / "more" / "masks" / "000.png").rename(folder / "train" / "masks" / "new.png")
    shutil.rmtree(folder / "more")
    again = load(source, recorded=before.record, resuming=True)
    assert len(again.train) == 3
    assert any("added since the run began: 1 image" in line for line in again.notices)
    mask = folder / "val" / "masks" / "000.png"
    Image.fromarray(np.asarray(Image.open(mask)).T.copy().T[::-1].copy()).save(mask)
    line = message(source, recorded=before.record)
    assert "labels of 1 image changed since the run began: val/images/000.png" in line


def test_a_folder_of_images_and_masks_is_not_two_classes(folder):
    with pytest.raises(UserError, match=f"no classes: use data.source=masks:{folder} with task=segmentation"):
        load_folder(folder, 16)


def test_labels_of_another_kind_are_refused(folder):
    config = complete({"data.source": f"masks:{folder}", "data.ignore_index": VOID})
    with pytest.raises(UserError, match="has a mask per image, but the task needs one class per image; use --config"):
        load_dataset(config.data, seed=0)
    with pytest.raises(
        UserError, match="has one class per image, but the task needs a mask per image; use tfds:NAME, masks:PATH"
    ):
        load("digits")


def test_unreadable_pictures_are_skipped_with_their_masks(folder):
    (folder / "train" / "images" / "001.png").write_bytes(b"no image at all")
    dataset = load(f"masks:{folder}", on_error="skip")
    assert len(dataset.train) == len(dataset.train.targets["mask"]) == 2
    wanted = load(f"masks:{folder}", on_error="skip", size=20, fit="crop").train.targets["mask"][1]
    np.testing.assert_array_equal(wanted, np.where(pictured(2)[1] == VOID, 255, pictured(2)[1])[:, 2:22])
