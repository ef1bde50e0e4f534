"""The config keys of the group `data`: sources, splits, preprocessing and augmentation."""

import math

from sft_jax.config.key import DEVIATIONS, FRACTION, NOT_NEGATIVE, POSITIVE, PROBABILITY, RGB, Key, Pairs, one_of, whole

DATA: dict[str, Key] = {
    "data.source": Key(
        "tfds:cifar10",
        str,
        "The dataset: tfds:NAME, folder:PATH, csv:FILE, hf:PATH or hf://OWNER/NAME, digits or digits:FIRST-LAST; for "
        "segmentation masks:PATH, voc:PATH, panoptic:PATH or tfds:NAME; of texts text:PATH or tfds:NAME.",
    ),
    "data.dir": Key(None, str, "Data directory of tfds; none: its default.", optional=True),
    "data.download": Key(True, bool, "Whether a missing dataset of tfds or of Hugging Face's hub may be downloaded."),
    "data.train": Key("train[:45000]", str, "Training split, in the syntax of tfds."),
    "data.validation": Key("train[45000:]", str, "Validation split, which selects the best checkpoint."),
    "data.test": Key("test", str, "Test split, evaluated once at the end."),
    "data.allow_overlap": Key(
        False,
        bool,
        "Train even if the training split, of this run or of the run that init names, contains test images.",
    ),
    "data.per_class": Key(None, int, "Train on only this many images per class (few-shot).", optional=True, **POSITIVE),
    "data.balance": Key(
        "none",
        str,
        "Class-balanced sampling of training images. none: in proportion to the number of images in the class; sqrt: "
        "to its square root; full: all classes equally often.",
        **one_of("none", "sqrt", "full"),
    ),
    "data.placement": Key(
        "auto",
        str,
        "Where the images are. replicated: on each device; sharded: a share on each, exchanged once an epoch; auto: "
        "replicated if they fit, else sharded if they fit on all devices together, else streamed in chunks.",
        **one_of("auto", "replicated", "sharded"),
    ),
    "data.size": Key(32, int, "Side length in pixels to which images are resized for the network.", **POSITIVE),
    "data.keep_size": Key(
        None,
        int,
        "Side length in pixels at which images are kept, for random resized crops and evaluation.crops to choose from; "
        "none: data.size / data.crop_pct.",
        optional=True,
        **POSITIVE,
    ),
    "data.crop_pct": Key(
        1.0,
        float,
        "Fraction of the image's side that evaluation and prediction see, from the centre, as in timm.",
        check=lambda value: 0 < value <= 1,
        rule="greater than 0 and at most 1",
    ),
    "data.interpolation": Key(
        "bilinear", str, "How images are resized, with antialiasing.", **one_of("bilinear", "bicubic")
    ),
    "data.fit": Key(
        "crop",
        str,
        "How images become square. crop: resize the shorter side to data.size, then centre-crop; pad: resize the "
        "longer side, then pad with black; squash: resize both sides.",
        **one_of("crop", "pad", "squash"),
    ),
    "data.decoding": Key(
        "fast",
        str,
        "fast: JPEG files with at least four times the pixels a side that are kept are decoded at half, a quarter or "
        "an eighth of their size, which changes pixels by a few of 255 at most; exact: they are decoded whole, as by "
        "torchvision.",
        **one_of("fast", "exact"),
    ),
    "data.on_error": Key(
        "stop",
        str,
        "Unreadable images: stop before training starts, or skip them.",
        **one_of("stop", "skip"),
    ),
    "data.max_pixels": Key(500_000_000, int, "Image files with more pixels than this count as unreadable.", **POSITIVE),
    "data.image_key": Key(
        None, str, "Image feature of a tfds dataset, or image column of a table; none: guessed.", optional=True
    ),
    "data.label_key": Key(
        None,
        str,
        "Label or mask feature of a tfds dataset, or label column of a table; for multilabel also several columns of 0 "
        "and 1, separated by semicolons, or * for all that are left; none: guessed.",
        optional=True,
    ),
    "data.part_key": Key(
        None,
        str,
        "Column of a CSV file that says train, validation or test; none: guessed, and it may be absent.",
        optional=True,
    ),
    "data.ignore_index": Key(
        255,
        int,
        "Value of the pixels of masks that are of no class and neither learnt nor scored, as in torch; none: all "
        "pixels are of a class. Only for task=segmentation.",
        check=lambda value: value is None or 0 <= value <= 255,
        rule="from 0 to 255, or none",
        optional=True,
    ),
    "data.mean": Key((0.5, 0.5, 0.5), tuple, "Per-channel mean for normalisation, for pixels in 0..1.", **RGB),
    "data.std": Key(
        (0.5, 0.5, 0.5), tuple, "Per-channel standard deviation for normalisation, for pixels in 0..1.", **DEVIATIONS
    ),
    "data.augment": Key(
        "none",
        str,
        "Augmentation of training images as one key. light: crops of at least half the area and color_jitter=0.2; "
        "medium: at least a quarter, TrivialAugmentWide, random_erasing=0.1; strong: at least 8%, RandAugment of "
        "magnitude 15, random_erasing=0.25. Of the keys below only those that have their defaults are changed.",
        **one_of("none", "light", "medium", "strong"),
    ),
    "data.crop_padding": Key(4, int, "Zero padding in pixels before a random crop; 0: no crop.", **NOT_NEGATIVE),
    "data.crop_scale": Key(
        (),
        tuple,
        "Random resized crops as torchvision's, instead of crop_padding: least and greatest fraction of the image's "
        "area, e.g. 0.35,1; empty: off. With data.keep_size larger than data.size they are sharper.",
        check=lambda value: value == () or (len(value) == 2 and 0 < value[0] <= value[1] <= 1),
        rule="empty, or two fractions of the area such as 0.35,1",
    ),
    "data.crop_ratio": Key(
        (0.75, 1.33333),
        tuple,
        "Least and greatest ratio of width to height of random resized crops.",
        check=lambda value: len(value) == 2 and 0 < value[0] <= value[1] < math.inf,
        rule="two ratios such as 0.75,1.33",
    ),
    "data.flip": Key(True, bool, "Flip training images horizontally with probability 0.5."),
    "data.vertical_flip": Key(False, bool, "Flip training images vertically with probability 0.5."),
    "data.rotation": Key(
        0.0,
        float,
        "Rotate training images by up to this many degrees, over black.",
        check=lambda value: 0 <= value <= 180,
        rule="from 0 to 180",
    ),
    "data.color_jitter": Key(
        (),
        tuple,
        "Strengths of random changes of brightness, contrast, saturation and hue, e.g. 0.4,0.4,0.4,0.1; one number: "
        "the first three, as in timm; empty: off.",
        check=lambda value: (
            len(value) in (0, 1, 4) and all(0 <= part < math.inf for part in value) and max(value[3:], default=0) <= 0.5
        ),
        rule="empty, one number or four, of 0 or more, the fourth (hue) at most 0.5",
    ),
    "data.grayscale": Key(0.0, float, "Probability of removing the colours of a training image.", **PROBABILITY),
    "data.blur": Key(
        0.0, float, "Probability of blurring a training image, with sigmas of 0.1 to 2 pixels.", **PROBABILITY
    ),
    "data.repeats": Key(
        1,
        int,
        "Repeated augmentation (arXiv:1901.09335): an epoch has this many versions of each image in the same batch, "
        "and as many fewer images.",
        **POSITIVE,
    ),
    "data.size_schedule": Key(
        Pairs(),
        Pairs,
        "Progressive resizing, as pixels=fraction pairs: '16=0.5;24=0.3' trains half of the epochs at 16 px, then 30% "
        "at 24 px, and the rest at data.size.",
        check=lambda value: (
            all(whole(left) and right > 0 for left, right in value) and sum(right for _, right in value) < 1
        ),
        rule="pairs pixels=fraction whose fractions sum to less than 1",
    ),
    "data.auto_augment": Key(
        "none",
        str,
        "trivial: TrivialAugmentWide (arXiv:2103.10158); rand: RandAugment (arXiv:1909.13719); augmix: AugMix "
        "(arXiv:1912.02781), which takes nine times as long as trivial.",
        **one_of("none", "trivial", "rand", "augmix"),
    ),
    "data.rand_augment_operations": Key(2, int, "N of RandAugment: operations per image.", **POSITIVE),
    "data.rand_augment_magnitude": Key(
        9, int, "M of RandAugment: magnitude.", check=lambda value: 0 <= value <= 30, rule="from 0 to 30"
    ),
    "data.random_erasing": Key(0.0, float, "Probability of random erasing (arXiv:1708.04896).", **FRACTION),
}
