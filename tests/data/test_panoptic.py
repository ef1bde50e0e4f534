"""Tests the source of COCO's panoptic masks, as the panoptic API and transformers write them."""

import json
import shutil

import numpy as np
import pytest
from mask_folders import NAMES, VOID, pictured
from PIL import Image
from transformers.image_transforms import id_to_rgb

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.images import mask
from sft_jax.data.images.square import Square
from sft_jax.data.sources.everything import load_everything
from sft_jax.data.sources.panoptic import list_panoptic
from sft_jax.errors import UserError

# COCO's categories have gaps, and its stuff comes last.
CATEGORIES = {7: "square", 90: "disc", 200: "ground"}
# Of a category's first segment; COCO's are colours, so they exceed 16 bits.
FIRST = {7: 1000, 90: 70_000, 200: 16_000_000}


def panoptic(seed):
    """Returns a picture, its mask of segments uint8 [height, width, 3], and their description; squares are two."""
    picture, values = pictured(seed)
    numbers = np.zeros(values.shape, np.uint32)
    listed = []
    for category, name in CATEGORIES.items():
        inside = values == NAMES.index(name)
        halves = [inside]
        if name == "square":  # two objects of one category
            left = inside & (np.cumsum(inside, 1) <= 4)
            halves = [left, inside & ~left]
        for index, part in enumerate(half for half in halves if half.any()):
            numbers[part] = FIRST[category] + index
            own = {"area": int(part.sum()), "bbox": [0, 0, 1, 1], "iscrowd": 0}
            listed.append({"id": FIRST[category] + index, "category_id": category, **own})
    return picture, id_to_rgb(numbers), listed


@pytest.fixture
def root(tmp_path):
    for start, (part, count) in enumerate({"train2017": 3, "val2017": 2}.items()):
        masks = tmp_path / "annotations" / f"panoptic_{part}"
        masks.mkdir(parents=True)
        (tmp_path / part).mkdir()
        images, annotations = [], []
        for number in range(count):
            picture, own, listed = panoptic(1000 * start + number)
            name = f"{1000 * start + number:012}"
            Image.fromarray(picture).save(tmp_path / part / f"{name}.jpg", quality=95)
            Image.fromarray(own).save(masks / f"{name}.png")
            images.append({"id": number, "file_name": f"{name}.jpg", "width": 24, "height": 20})
            annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": listed})
        categories = [{"id": key, "name": name, "isthing": 1, "supercategory": "x", "color": [1, 2, 3]}
                      for key, name in CATEGORIES.items()]  # fmt: skip
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"panoptic_{part}.json").write_text(json.dumps(content))
    return tmp_path


def load(root, **changes):
    values = {"data.source": f"panoptic:{root}", "data.size": 16, "data.fit": "squash"}
    config = complete(values | {f"data.{key}": value for key, value in changes.items()})
    return load_dataset(config.data, seed=0, labelling="mask")


def changed(root, change, part="train2017"):
    path = root / "annotations" / f"panoptic_{part}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_segments_become_their_classes(root):
    dataset = load(root, size=20, fit="crop")
    assert dataset.class_names == tuple(CATEGORIES.values())
    assert (len(dataset.validation), len(dataset.train) + len(dataset.test)) == (2, 3)
    _, values = pictured(1001)
    places = np.array([dataset.class_names.index(name) for name in NAMES] + [255] * (VOID - len(NAMES) + 1), np.uint8)
    np.testing.assert_array_equal(dataset.validation.targets["mask"][1], places[values][:, 2:22], strict=True)


def test_another_network_is_evaluated_on_them_with_its_own_order_of_classes(root):
    names = ("nothing", *NAMES)
    config = complete({"data.source": f"panoptic:{root}", "data.size": 16})
    found = load_everything(config.data, names, "val", notices := [], Square(16, "squash"), "mask")
    _, values = pictured(1001)
    wanted = np.array([names.index(name) for name in NAMES] + [255] * (VOID - len(NAMES) + 1), np.uint8)[values]
    np.testing.assert_array_equal(found.targets["mask"][1].values(), wanted, strict=True)
    assert [path.name for path in found.paths] == ["000000001000.jpg", "000000001001.jpg"]
    assert any("no images of 1 of the network's 4 classes: nothing" in line for line in notices)


def test_the_digest_covers_the_json_file(root):
    def digests():
        return [file.label[1] for file in list_panoptic(root, mask.VOID, []).files]

    before = digests()
    changed(root, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=90))
    after = digests()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True, True]


def test_images_may_be_in_a_folder_of_their_own_and_lack_masks(root):
    (root / "images").mkdir()
    shutil.move(root / "train2017", root / "images")
    changed(root, lambda content: content["annotations"].pop())
    notices = []
    assert len(list_panoptic(root, mask.VOID, notices).files) == 4
    (line,) = notices
    assert line.startswith("1 image of ")
    assert line.endswith(f"panoptic_train2017.json ignored, without a mask: {root}/images/train2017/000000000002.jpg")


def rename(root, name, to):
    (root / "annotations" / name).rename(root / "annotations" / to)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda root: shutil.rmtree(root / "annotations"), " has no annotations/panoptic_train2017.json or the like"),
        (lambda root: shutil.rmtree(root / "train2017"), "neither {root}/train2017 nor {root}/images/train2017 is a"),
        (lambda root: (root / "train2017/000000000001.jpg").unlink(), "1 file of {root}/annotations/panoptic_t"),
        (lambda root: (rename(root, "panoptic_val2017", "x"), (root / "annotations/panoptic_val2017.zip").touch()),
         "panoptic_val2017 of masks beside it; unpack {root}/annotations/panoptic_val2017.zip"),
        (lambda root: rename(root, "panoptic_val2017.json", "panoptic_all.json"), "is not named like a split"),
        (lambda root: changed(root, lambda content: content.pop("images")), "not in COCO's panoptic format (KeyError"),
        (lambda root: changed(root, lambda content: content["annotations"][0].update(segments_info=[{"id": "a"}])),
         "not in COCO's panoptic format (KeyError: 'category_id')"),
        (lambda root: changed(root, lambda content: content["annotations"][1]["segments_info"].pop()),
         "000000000001.png has the segment 16000000, which its JSON file does not list"),
        (lambda root: changed(root, lambda content: content["categories"][0].update(name="disc")), "a category twice"),
        (lambda root: changed(root, lambda content: content["categories"].reverse()), "has other categories than"),
        (lambda root: Image.new("L", (24, 20)).save(root / "annotations/panoptic_train2017/000000000000.png"),
         "000000000000.png has no colours (mode L), whose values are the numbers of segments"),
        (lambda root: Image.new("RGB", (20, 20)).save(root / "annotations/panoptic_train2017/000000000000.png"),
         "000000000000.png has 20 x 20 pixels, but its picture {root}/train2017/000000000000.jpg has 24 x 20"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(spoil, line, root):
    spoil(root)
    with pytest.raises(UserError) as caught:
        load(root)
    assert line.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_no_other_value_to_ignore(root):
    with pytest.raises(UserError, match="data.ignore_index=0: panoptic masks have no .*ignore_index=255"):
        load(root, ignore_index=0)
