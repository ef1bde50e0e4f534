"""Pages of texts with what each part of them contributes to its prediction, for `predict --explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_jax.cli import printable
from sft_jax.inference.attribution import METHOD
from sft_jax.inference.spans import Span
from sft_jax.report.render import render
from sft_jax.runtime.files import write_text
from sft_jax.tasks.decoding import Decoder


def write_explained(folder: Path, answers: Sequence[dict[str, Any]], decoder: Decoder, network: str, done: int) -> Path:
    """Writes a page of texts and their predictions, and returns it.

    Args:
      folder: made if it does not exist; the page is called by the number of its first text.
      answers: predictions with "contributions", see `text_predictions`.
      decoder: of the network.
      network: what the user called it.
      done: number of texts before these.

    Raises:
      UserError: the file cannot be written.
    """
    entries = [
        {
            "spans": [Span(*part) for part in answer["contributions"]],
            "file": printable(answer["file"]),
            "said": list(zip(decoder.heads, decoder.row(answer), strict=True)),
        }
        for answer in answers
    ]
    page = folder / f"texts_{done + 1:06}.html"
    numbers = f"{done + 1:,} to {done + len(answers):,}"
    write_text(page, render("explained.html", network=network, numbers=numbers, method=METHOD, entries=entries))
    return page
