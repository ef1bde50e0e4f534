"""Small datasets, prepared with tensorflow_datasets."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# The version of tfds's own CIFAR-100, so that tfds finds the dataset prepared here instead.
VERSION = tfds.builder_cls("cifar100").VERSION


def prepare(name, directory, features, examples, version=VERSION):
    """Writes (key, example) pairs of each split as a dataset of tfds."""

    def info(builder):
        return tfds.core.DatasetInfo(builder=builder, features=features)

    members = {"VERSION": version, "_info": info, "_split_generators": lambda builder, _: examples}
    members |= {"_generate_examples": lambda _: None, "name": name}
    with tfds.core.registered.skip_registration():
        builder = type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=directory, file_format="array_record").download_and_prepare()


class ImageSet:
    """Images of class `label`, filled with its value; `draw` may create others."""

    def __init__(self, classes, shape, keys=("image", "label"), draw=None):
        self.classes, self.shape, self.keys, self.draw = classes, shape, keys, draw

    def prepare(self, name, directory, version=VERSION, **counts):
        """Writes them as a dataset of tfds; as PNG files, because tfds encodes arrays with TensorFlow."""
        features = tfds.features.FeaturesDict(
            {
                self.keys[0]: tfds.features.Image(shape=self.shape),
                self.keys[1]: tfds.features.ClassLabel(num_classes=self.classes),
            }
            | {key: tfds.features.Image(shape=self.shape) for key in self.keys[2:]}
        )

        examples = {split: self.examples(count, split) for split, count in counts.items()}
        prepare(name, directory, features, examples, version)

    def examples(self, count, split):
        for number in range(count):
            label = number % self.classes if split != "unlabelled" else -1
            height, width = (side or 8 + number for side in self.shape[:2])
            pixels = np.full((height, width, self.shape[2]), label % 256, np.uint8)
            image = Image.fromarray(pixels if self.shape[2] == 3 else pixels[..., 0])
            image = self.draw(number) if self.draw else image
            form = "JPEG" if image.mode == "CMYK" else "PNG"
            yield (
                str(number),
                {key: encoded(image, form) for key in self.keys if key != self.keys[1]} | {self.keys[1]: label},
            )


def encoded(image, form):
    file = io.BytesIO()
    image.save(file, form)
    file.seek(0)
    return file


def noise(number, height, width):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))
