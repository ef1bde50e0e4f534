"""The page: thumbnails, or words, of what was found, with the sizes of the classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sft_jax.cli import printable
from sft_jax.data.images.square import Square
from sft_jax.data.sources.pictures import Pictures
from sft_jax.inference.spans import plain
from sft_jax.inspect.examine import Examples, imbalance, splits, totals
from sft_jax.inspect.finding import ISSUES, Finding
from sft_jax.inspect.texts import Writings
from sft_jax.report.page import Tile
from sft_jax.report.pictures import data_uri
from sft_jax.report.render import render

# Findings of one issue that are shown; the table has all.
SHOWN = 60
# Issues that are shown with the other picture.
PAIRED = ("leak", "duplicate", "near_duplicate")
TITLES = {
    "label": "Suspected labels",
    "leak": "Leaks",
    "duplicate": "Duplicates",
    "near_duplicate": "Near duplicates",
    "outlier": "Outliers",
    "quality": "Quality",
}
# What is said below each title, of both, of images and of texts.
OF_BOTH = {
    "label": "A linear probe on the features, which had not seen these labels, thinks otherwise.",
    "leak": "It, nearly the same or its group is also in another split, from which scores would be too good.",
    "outlier": "The features are far from all others.",
}
WORDS = {
    "image": OF_BOTH
    | {
        "duplicate": "The same pixels as another image of its split.",
        "near_duplicate": "Nearly the same as another image of its split: resized, mirrored, a burst.",
        "quality": "Unreadable, small, long, blank, dark, bright or blurred.",
    },
    "text": OF_BOTH
    | {
        "duplicate": "The same as another text of its split.",
        "near_duplicate": "Nearly the words of another text of its split.",
        "quality": "Cut, without words, unknown to the tokenizer, wrongly decoded or with markup.",
    },
}


def inspection_page(
    source: str,
    network: str,
    table: str,
    examples: Pictures | Writings,
    findings: Sequence[Finding],
    notices: Sequence[str],
) -> str:
    """Returns the page as HTML.

    Args:
      source: what was inspected.
      network: whose features were used.
      table: name of the file that has all findings.
      examples, findings: see `examine`.
      notices: lines about what was skipped or not examined.
    """
    shown = {issue: [each for each in findings if each.issue == issue][:SHOWN] for issue in ISSUES}
    rows = {each.row for group in shown.values() for each in group}
    rows |= {each.against for issue in PAIRED for each in shown[issue] if each.against is not None}
    uris = thumbnails(examples, rows) if isinstance(examples, Pictures) else {}
    counts, parts = totals(list(findings)), splits(examples)

    def drawn(row: int) -> dict[str, Any]:
        label, part = examples.class_names[examples.labels[row]], parts[row]
        name = printable(examples.names[row])
        spans = plain(examples.texts[row]) if isinstance(examples, Writings) else ()
        return {"uri": uris.get(row), "spans": spans, "file": name, "label": printable(label), "part": part}

    sections = [
        {
            "issue": issue,
            "title": TITLES[issue],
            "words": WORDS[examples.unit][issue],
            "count": counts[issue],
            "paired": issue in PAIRED,
            "entries": [
                {
                    "example": drawn(each.row),
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
        Tile(f"{examples.unit.capitalize()}s", f"{len(examples):,}", printable(imbalance(examples))),
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
        classes=class_sizes(examples, parts),
        unit=examples.unit,
    )


def class_sizes(examples: Examples, parts: Sequence[str | None]) -> list[dict[str, object]]:
    """Returns the number of examples of each class, in all and in each split, the largest class first."""
    names = list(dict.fromkeys(part for part in parts if part))
    place = {part: number for number, part in enumerate(names)}
    counts = np.zeros((len(examples.class_names), len(names) + 1), int)
    columns = np.array([place.get(part or "", len(names)) for part in parts])
    np.add.at(counts, (examples.labels, columns), 1)
    order = np.argsort(-counts.sum(1), kind="stable")
    most = max(int(counts.sum(1).max()), 1)
    return [
        {
            "name": printable(examples.class_names[label]),
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
