"""Masks of pictures at their own size, from outputs of the square that the network sees."""

import concurrent.futures
import io
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.images.formats import MAX_PIXELS, FileWarnings, opened, readable
from sft_jax.data.images.given import Given, one_by_one
from sft_jax.data.images.mask import VOID
from sft_jax.data.images.named import decoded
from sft_jax.data.images.square import upright
from sft_jax.data.preprocess import Preprocess
from sft_jax.inference.own_size import at_own_size
from sft_jax.inference.windows import BATCH, WHOLE, View, check_view, outputs_of, seen_in_windows
from sft_jax.runtime.files import write_bytes

if TYPE_CHECKING:
    from sft_jax.inference.predictor import Classifier

# Share of the mask's colours in an overlay.
OPACITY = 0.5


class Picture(NamedTuple):
    """Height and width of a picture, upright, and its square, see `Preprocess.read`."""

    shape: tuple[int, ...]
    square: np.ndarray


def read(file: Path, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads a picture. Raises one of `formats.UNREADABLE`."""
    with opened(file, max_pixels) as image:
        shape = upright(image)
        return Picture(shape, preprocess.of_image(image))


def pixels_of(file: Path, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the pixels of a picture: uint8 [height, width, 3]. Raises one of `formats.UNREADABLE`."""
    with opened(file, max_pixels) as image:
        return np.asarray(preprocess.rgb(image))


def predict(classifier: "Classifier", images: Any, view: View = WHOLE) -> list[np.ndarray]:
    """Returns the class of each pixel of `images`, see `Classifier.logits`: uint8 [height, width] at their own sizes.

    Pixels that the network does not see, because `data.fit` or `data.crop_pct` crops pictures, are 255. With windows,
    arrays of floating point are rounded to 8 bits.

    Raises:
      UserError: a file cannot be read, or the view does not suit the pictures.
    """
    preprocess = classifier.preprocess
    check_view(view, preprocess)
    given, masks = one_by_one(images), []
    with FileWarnings() as warned, concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
        if view.windows is not None:
            masks = [seen_in_windows(classifier, _pixels(image, preprocess), view) for image in given]
        else:
            for first in range(0, len(given), BATCH):
                block = list(pool.map(lambda image: _picture(image, preprocess), given[first : first + BATCH]))
                masks += of_block(classifier, block, view)
    for line in warned.lines:
        warnings.warn(line, stacklevel=3)
    return masks


def of_block(classifier: "Classifier", pictures: Sequence[Picture], view: View = WHOLE) -> list[np.ndarray]:
    """Returns the masks of at most `BATCH` pictures that are seen whole, see `predict`."""
    outputs = outputs_of(classifier, [picture.square for picture in pictures], view)
    return [
        at_own_size(own, classifier.preprocess, picture.shape) for own, picture in zip(outputs, pictures, strict=True)
    ]


def _pixels(image: Given, preprocess: Preprocess) -> np.ndarray:
    """Returns the pixels of a picture: uint8 [height, width, 3]. Raises UserError if its file cannot be read."""
    if isinstance(image, np.ndarray):
        return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)
    if isinstance(image, Image.Image):
        return np.asarray(preprocess.rgb(image))
    with readable(image):
        return pixels_of(image, preprocess)


def _picture(image: Given, preprocess: Preprocess) -> Picture:
    if isinstance(image, np.ndarray):
        return Picture(image.shape[:2], preprocess.of_array(image))
    if isinstance(image, Image.Image):
        return Picture(upright(image), preprocess.of_image(image))
    with readable(image):
        return read(image, preprocess)


def answers(
    classifier: "Classifier",
    paths: Iterable[Path],
    folder: Path,
    tell: Callable[[str], None],
    max_pixels: int,
    view: View = WHOLE,
) -> Iterator[list[dict[str, Any]]]:
    """Writes the masks of pictures to FOLDER/masks, and the pictures under the masks' colours to FOLDER/overlays.

    Masks are PNG files whose values are the classes, with a palette.

    Args:
      classifier: a network of the task segmentation.
      paths: of the pictures.
      folder: made if it does not exist.
      tell: called with a line per unreadable picture.
      max_pixels: larger pictures count as unreadable.
      view: how the network sees them.

    Yields:
      for some pictures each their JSON objects: file, mask, overlay, and shares, the fraction of the pixels by class.

    Raises:
      UserError: a file cannot be written, or the view does not suit the pictures.
    """
    check_view(view, classifier.preprocess)
    names: dict[str, int] = {}
    preprocess = classifier.preprocess
    readable = decoded(paths, lambda path: read(path, preprocess, max_pixels), tell)
    while block := list(itertools.islice(readable, BATCH)):
        found = []
        masks = of_block(classifier, [picture for _, picture in block], view) if view.windows is None else None
        for place, (path, _) in enumerate(block):
            # Again, as dozens of large pictures do not fit into memory.
            pixels = pixels_of(path, preprocess, max_pixels)
            mask = seen_in_windows(classifier, pixels, view) if masks is None else masks[place]
            names[path.stem] = names.get(path.stem, 0) + 1
            again = f"_{names[path.stem]}" if names[path.stem] > 1 else ""
            files = {kind: folder / f"{kind}s" / f"{path.stem}{again}.png" for kind in ("mask", "overlay")}
            _save(with_palette(mask), files["mask"])
            _save(Image.fromarray(overlay(pixels, mask)), files["overlay"])
            shares = {"shares": shares_of(mask, classifier.class_names)}
            found.append({"file": str(path)} | {kind: str(file) for kind, file in files.items()} | shares)
        yield found


def shares_of(mask: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Returns the fraction of a mask's pixels of each class that it has, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=VOID + 1)[: len(class_names)]
    order = [label for label in np.argsort(-counts, kind="stable") if counts[label]]
    return {class_names[label]: float(counts[label] / mask.size) for label in order}


def colours() -> np.ndarray:
    """Returns Pascal VOC's colours of the values of masks, uint8 [256, 3]."""
    values = np.arange(256)
    channels = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            channels[:, channel] |= (((values >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return channels


def overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blends a picture uint8 [height, width, 3] with the colours of its mask; pixels of no class stay as they are."""
    blended = (1 - OPACITY) * picture + OPACITY * colours()[mask].astype(np.float32)
    return np.where((mask == VOID)[..., None], picture, blended.round().astype(np.uint8))


def with_palette(mask: np.ndarray) -> Image.Image:
    """Returns a mask as an image whose values are those of the mask, in `colours`."""
    image = Image.fromarray(mask)
    image.putpalette(colours().tobytes())
    return image


def _save(image: Image.Image, file: Path) -> None:
    content = io.BytesIO()
    image.save(content, "PNG")
    write_bytes(file, content.getvalue())
