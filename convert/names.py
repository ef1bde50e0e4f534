"""Translates the tensor names that other libraries use for a ResNet to torchvision's.

Libraries add a prefix to every name (`module.`, `model.backbone.`), and some use their own names:

| torchvision        | Hugging Face                                         | Sequential | kuangliu   |
| ------------------ | ---------------------------------------------------- | ---------- | ---------- |
| conv1              | embedder.embedder.convolution                        | 0          | conv1      |
| bn1                | embedder.embedder.normalization                      | 1          | bn1        |
| layer2.0.conv1     | encoder.stages.1.layers.0.layer.0.convolution        | 5.0.conv1  |            |
| layer2.0.bn1       | encoder.stages.1.layers.0.layer.0.normalization      | 5.0.bn1    |            |
| layer2.0.downsample | encoder.stages.1.layers.0.shortcut                  |            | shortcut   |

For heads see `heads.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

Replacement = str | Callable[[re.Match], str]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The naming scheme of a library.

    Attributes:
      title: whose names they are, None for torchvision's.
      first: matches the name of a stage's first convolution; the group `prefix` is the prefix of all names.
      rules: pairs of a pattern for whole names and its replacement; the first match wins.
    """

    title: str | None
    first: re.Pattern
    rules: tuple[tuple[str, Replacement], ...]


def _hugging_face_block(match: re.Match) -> str:
    block = f"layer{int(match['stage']) + 1}.{match['block']}"
    convolution = match["kind"] == "convolution"
    if match["layer"] is None:
        return f"{block}.downsample.{0 if convolution else 1}.{match['leaf']}"
    return f"{block}.{'conv' if convolution else 'bn'}{int(match['layer']) + 1}.{match['leaf']}"


PREFIX = r"(?P<prefix>(?:.*\.)?)"
DIALECTS = (
    Dialect(
        None,
        re.compile(PREFIX + r"layer[1-4]\.0\.conv1\.weight"),
        ((r"(layer\d\.\d+)\.shortcut\.(.+)", r"\1.downsample.\2"),),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + r"encoder\.stages\.[0-3]\.layers\.0\.layer\.0\.convolution\.weight"),
        (
            (r"embedder\.embedder\.convolution\.(.+)", r"conv1.\1"),
            (r"embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
            (
                r"encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\.(?:layer\.(?P<layer>\d)|shortcut)\."
                r"(?P<kind>convolution|normalization)\.(?P<leaf>.+)",
                _hugging_face_block,
            ),
        ),
    ),
    Dialect(
        "those of torch.nn.Sequential(*model.children())",
        re.compile(PREFIX + r"[4-7]\.0\.conv1\.weight"),
        (
            (r"0\.(.+)", r"conv1.\1"),
            (r"1\.(.+)", r"bn1.\1"),
            (r"([4-7])\.(\d+\..+)", lambda match: f"layer{int(match[1]) - 3}.{match[2]}"),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """The naming scheme and prefix of one ResNet in a file."""

    dialect: Dialect
    prefix: str

    def torchvision_name(self, name: str) -> str:
        """Translates a name in the file that has the prefix to torchvision's."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.dialect.rules:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        return name


def namings(names: Iterable[str]) -> list[Naming]:
    """Returns the naming of each ResNet in a file, in the order of its names; a file may contain several."""
    all_matches = [
        Naming(dialect, match["prefix"])
        for name in names
        for dialect in DIALECTS
        if (match := dialect.first.fullmatch(name))
    ]
    return list(dict.fromkeys(all_matches))
