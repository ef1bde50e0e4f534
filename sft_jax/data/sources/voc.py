"""The source of images with masks in Pascal VOC's layout."""

from pathlib import Path

from sft_jax.data.images.files import subfolders
from sft_jax.data.sources.listing import Listing, counted, some
from sft_jax.data.sources.masks import Pair, check_folder, check_present, lines_of, listing_of
from sft_jax.errors import UserError

# Pascal VOC's, in the order of the values of its masks; 255 is the border between them.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def list_voc(root: Path, ignored: int | None, notices: list[str]) -> Listing:
    """Lists the images of Pascal VOC's ImageSets/Segmentation, in ROOT or ROOT/VOC2012; see `list_masks`."""
    check_folder(f"voc:{root}", root)
    years = [folder for folder in (root, *reversed(subfolders(root))) if (folder / "SegmentationClass").is_dir()]
    if not years:
        raise UserError(f"data.source=voc:{root} has no SegmentationClass, nor has a folder in it; name VOC2012")
    folder, pairs, without = years[0], [], []
    for part in ("train", "val", "test"):
        names = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
        for name in lines_of(names) if names.is_file() else ():
            image = folder / "JPEGImages" / f"{name}.jpg"
            own = folder / "SegmentationClass" / f"{name}.png"
            if part == "test" and not own.is_file():
                without.append(name)  # those of VOC are not published
            else:
                pairs.append(Pair(image, own, image.name, part))
    if without:
        notices.append(f"{counted(len(without), 'test image')} ignored, which have no mask: {some(without)}")
    if not pairs:
        raise UserError(f"data.source=voc:{root}: {folder}/ImageSets/Segmentation has no train.txt with images")
    check_present(pairs, folder / "ImageSets" / "Segmentation")
    return listing_of(folder, pairs, VOC_CLASSES, ignored, notices)
