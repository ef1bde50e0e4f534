"""The page: thumbnails of what was found, with the sizes of the classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sft_jax.cli import printable
from sft_jax.data.images.square import Square
from sft_jax.data.sources.pictures import Pictures
from sft_jax.inspect.examine import imbalance, splits, totals
from sft_jax.inspect.finding import ISSUES, Finding
from sft_jax.report.page import Tile
from sft_jax.report.pictures import data_uri
from sft_jax.report.render import render

# Findings of one issue that are shown; the table has all.
SHOWN = 60
# Issues that are shown with the other picture.
PAIRED = ("leak", "duplicate", "near_duplicate")
TITLES = {
    "label": ("Suspected labels", "A linear probe on the features, which had not seen these labels, thinks otherwise."),
    "leak": (
        "Leaks",
        "The picture, nearly the same one or its group is also in another split, from which scores would be too good.",
    ),
    "duplicate": ("Duplicates", "The same pixels as another picture of its split."),
    "near_duplicate": (
        "Near duplicates",
        "Nearly the same as another picture of its split: resized, mirrored, a burst.",
    ),
    "outlier": ("Outliers", "The features are far from those of all other pictures."),
    "quality": ("Quality", "Unreadable, small, long, blank, dark, bright or blurred."),
}


def inspection_page(
    source: str, network: str, table: str, pictures: Pictures, findings: Sequence[Finding], notices: Sequence[str]
) -> str:
    """Returns the page as HTML.

    Args:
      source: what was inspected.
      network: whose features were used.
      table: name of the file that has all findings.
      pictures, findings: see `examine`.
      notices: lines about what was skipped or not examined.
    """
    shown = {issue: [each for each in findings if each.issue == issue][:SHOWN] for issue in ISSUES}
    rows = {each.row for group in shown.values() for each in group}
    rows |= {each.against for issue in PAIRED for each in shown[issue] if each.against is not None}
    uris = thumbnails(pictures, rows)
    counts, parts = totals(list(findings)), splits(pictures)

    def drawn(row: int) -> dict[str, str | None]:
        label, part = pictures.class_names[pictures.labels[row]], parts[row]
        name = printable(pictures.names[row])
        return {"uri": uris.get(row), "file": name, "label": printable(label), "part": part}

    sections = [
        {
            "issue": issue,
            "title": TITLES[issue][0],
            "words": TITLES[issue][1],
            "count": counts[issue],
            "paired": issue in PAIRED,
            "entries": [
                {
                    "picture": drawn(each.row),
                    "other": None if each.against is None else drawn(each.against),
                    "score": f"{each.score:.2f}",
                    "said": printable(each.other),
                }
                for each in shown[issue]
            ],
        }
        for issue in ISSUES
    ]
    tiles = [
        Tile("Pictures", f"{len(pictures):,}", printable(imbalance(pictures))),
        *(Tile(str(section["title"]), f"{section['count']:,}") for section in sections),
    ]
    return render(
        "inspect.html",
        source=printable(source),
        network=network,
        table=table,
        tiles=tiles,
        notices=[printable(notice) for notice in notices],
        sections=sections,
        split_names=list(dict.fromkeys(part for part in parts if part)),
        classes=class_sizes(pictures, parts),
    )


def class_sizes(pictures: Pictures, parts: Sequence[str | None]) -> list[dict[str, object]]:
    """Returns the number of pictures of each class, in all and in each split, the largest class first."""
    names = list(dict.fromkeys(part for part in parts if part))
    place = {part: number for number, part in enumerate(names)}
    counts = np.zeros((len(pictures.class_names), len(names) + 1), int)
    columns = np.array([place.get(part or "", len(names)) for part in parts])
    np.add.at(counts, (pictures.labels, columns), 1)
    order = np.argsort(-counts.sum(1), kind="stable")
    most = max(int(counts.sum(1).max()), 1)
    return [
        {
            "name": printable(pictures.class_names[label]),
            "count": int(counts[label].sum()),
            "share": 100 * int(counts[label].sum()) / most,
            "parts": counts[label, : len(names)].tolist(),
        }
        for label in order
    ]


def thumbnails(pictures: Pictures, rows: set[int]) -> Mapping[int, str]:
    """Returns those of `rows` that are readable as data URIs."""

    def uri(image: Image.Image) -> str:
        return data_uri(np.asarray(Square(1).rgb(image)))

    return dict(pictures.read(uri, {}, rows))
